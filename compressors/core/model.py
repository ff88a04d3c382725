"""What all compressors share: the protocol, the result, and the frame of checks around their work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from compressors.common.bake import baked_copy
from compressors.common.checks import check_inputs
from compressors.common.files import read_file, write_file
from compressors.common.measure import Inputs, checked_outputs, reference_outputs, sqnr_db
from compressors.core.packing import pack, rebuild
from compressors.core.recipe import Recipe, settings
from compressors.core.report import Report, shapes_of
from compressors.errors import CompressionError

_KIND = "compressed model"


@dataclass(frozen=True)
class CompressedModel:
    """A compressed model (eval mode, trainable parameters), what the compression cost, and what was done."""

    model: nn.Module
    report: Report
    recipe: Recipe

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: packed tensors, recipe and report; no pickle, whole or not at all."""
        content = {"recipe": self.recipe.to_json(), "report": self.report.to_json()}
        write_file(path, _KIND, pack(self.model, self.recipe), content)

    @classmethod
    def load(cls, path: str | Path, factory: Callable[[], nn.Module]) -> CompressedModel:
        """Read a file of `save`; the model gives the same outputs as the saved one.

        `factory` builds the model as it was before compression, with any weights, on the wanted device.
        Raises `CompressionError` for a damaged or foreign file, or a `factory` that builds another model.
        """
        tensors, content = read_file(path, _KIND)
        recipe, report = Recipe.from_json(content["recipe"]), Report.from_json(content["report"])
        model = baked_copy(factory())
        rebuild(model, recipe, tensors)
        return cls(model, report, recipe)


class Compressor(Protocol):
    """Anything that makes a smaller model out of a model."""

    @property
    def name(self) -> str:
        """A short label, such as "prune 0.5" or "quantize W4"."""

    def compress(
        self,
        model: nn.Module | CompressedModel,
        example_inputs: Inputs,
        calibration: Iterable[Inputs] | None = None,
    ) -> CompressedModel:
        """Return a compressed copy of `model`, which is left as it was.

        Args:
            model: the model to compress, or the result of an earlier compression (fine-tuned or not), whose recipe
                and report are then continued, so that saving and loading need only the original class.
            example_inputs: arguments of one forward pass, always a tuple. The model is traced and checked on them;
                MACs are counted for this batch.
            calibration: batches of forward arguments, tuples like `example_inputs`, that show the quantizer the range
                of the activations; needed by a `Quantizer` with `act_bits` or `bias_correction` only.

        Raises:
            CompressionError: for settings, inputs or an order of steps that make no sense.
            UnsupportedModule: when the model holds what the compressor cannot treat.
            NothingCompressed: when the model came out (nearly) as it went in.
            ContractBroken: when the result does not run, or changed the shape or dtype of the outputs, or gives NaN.
        """


@dataclass(frozen=True)
class Work:
    """A copy to work on, and what its outputs and sizes were before."""

    model: nn.Module
    inputs: Inputs
    outputs: Sequence[Tensor]
    recipe: Recipe
    report: Report


def begin(model: nn.Module | CompressedModel, example_inputs: Inputs) -> Work:
    """Copy `model`, bake its reparametrisations in, run it on `example_inputs`, and measure it."""
    inputs = check_inputs("example_inputs", example_inputs)
    if not isinstance(model, nn.Module | CompressedModel):
        raise CompressionError(f"model must be an nn.Module or a CompressedModel; got {type(model).__name__}")
    source = model.model if isinstance(model, CompressedModel) else model
    if any(type(module).__module__.startswith("brevitas.") for module in source.modules()):
        raise CompressionError("model is already quantized: quantization comes last, after pruning and clipping")
    copy = baked_copy(source)
    outputs = reference_outputs(copy, inputs)
    if not isinstance(model, CompressedModel):
        return Work(copy, inputs, outputs, Recipe(), Report.of(copy, inputs))
    if shapes_of(inputs) != model.report.input_shapes:
        raise CompressionError(
            f"example_inputs have shapes {shapes_of(inputs)}, but the earlier steps were measured with "
            f"{model.report.input_shapes}: use the same, so that the MACs compare"
        )
    return Work(copy, inputs, outputs, model.recipe, model.report)


def finish(work: Work, compressor: Any, recipe: Recipe, notes: Mapping[str, str], coverage: float) -> CompressedModel:
    """Check the outputs of the compressed `work.model` and report on it."""
    outputs = checked_outputs(work.model, work.inputs, work.outputs)
    recipe = replace(recipe, steps=(*recipe.steps, settings(compressor)))
    report = work.report.updated(
        work.model,
        work.inputs,
        recipe,
        notes,
        name=" + ".join(filter(None, (work.report.name, compressor.name))),
        coverage=coverage,
        sqnr_db=sqnr_db(work.outputs, outputs),
    )
    return CompressedModel(work.model, report, recipe)
