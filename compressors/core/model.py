"""A compressed model, and what a compressor is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from compressors.common.bake import baked_copy
from compressors.common.checks import check_module
from compressors.common.files import check_target, read_file, write_file
from compressors.common.measure import Inputs
from compressors.core.packing import check_packed, pack, rebuild, sparse_shapes
from compressors.core.recipe import Recipe
from compressors.core.report import Report
from compressors.errors import CompressionError

_KIND = "compressed model"


@dataclass(frozen=True)
class CompressedModel:
    """A compressed model (eval mode, trainable parameters), what the compression cost, and what was done.

    `float_weights` holds the weights of quantized layers before rounding, by layer name, for training to start from.
    Files do not hold them.
    """

    model: nn.Module
    report: Report
    recipe: Recipe
    float_weights: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: packed tensors, recipe and report; no pickle, whole or not at all.

        Raises `CompressionError` where `path` is unusable or does not end in ".safetensors", or the file would not give
        the model back: what is written is read into a copy and compared.
        """
        check_target(path, ".safetensors")
        tensors = pack(self.model, self.recipe)
        shapes = sparse_shapes(self.model, self.recipe, tensors)
        check_packed(self.model, self.recipe, tensors, shapes)
        content = {"recipe": self.recipe.to_dict(), "report": self.report.to_dict(), "sparse_shapes": shapes}
        write_file(path, _KIND, tensors, content)

    @classmethod
    def load(cls, path: str | Path, factory: Callable[[], nn.Module] | None = None) -> CompressedModel:
        """Read a file of `save`; the model gives the same outputs as the saved one.

        Args:
            path: the file.
            factory: builds the model as it was before compression, with any weights, in its dtype and on the wanted
                device, with the hooks and plain attributes that its outputs depend on: files hold tensors only. Not
                called, and not needed, where the file names an architecture that is registered; that is built on the
                CPU.

        Raises:
            CompressionError: the file is damaged or foreign, or `factory` builds another model or is missing.
        """
        tensors, content = read_file(path, _KIND)
        recipe, report = Recipe.from_dict(content["recipe"]), Report.from_dict(content["report"])
        architecture = recipe.architecture
        if architecture is not None and (architecture.known or factory is None):
            factory = architecture.build
        if isinstance(factory, nn.Module) or not callable(factory):
            got = "none" if factory is None else f"a {type(factory).__name__}"
            raise CompressionError(
                f"factory must be a function that builds the original model, such as its class, to load {path}; got "
                f"{got}"
            )
        model = baked_copy(check_module("what factory returns", factory()))
        rebuild(model, recipe, tensors, content["sparse_shapes"])
        return cls(model, report, recipe)


class Compressor(Protocol):
    """Anything that makes a smaller model out of a model; `compressors.core.stage.Stage` is a base class for it."""

    @property
    def name(self) -> str:
        """A short label, such as "prune 0.5" or "quantize W4"."""

    def compress(
        self,
        model: nn.Module | CompressedModel,
        example_inputs: Inputs,
        calibration: Iterable[Inputs] | None = None,
        *,
        teacher: nn.Module | CompressedModel | None = None,
    ) -> CompressedModel:
        """Return a compressed copy of `model`, which is left as it was.

        Args:
            model: the model to compress, or the result of an earlier compression (fine-tuned or not), whose recipe
                and report are then continued, so that saving and loading need only the original class.
            example_inputs: arguments of one forward pass, always a tuple. The model is traced and checked on them;
                MACs are counted for this batch.
            calibration: batches of forward arguments, tuples like `example_inputs`, that show the quantizer the range
                of the activations; needed by a `Quantizer` with `act_bits` or `bias_correction` only.
            teacher: the model before all compression, for compressors that train; left as it is. A `Pipeline` passes
                the model that it was given.

        Raises:
            CompressionError: for settings, inputs or an order of steps that make no sense.
            UnsupportedModule: when the model holds what the compressor cannot treat.
            NothingCompressed: when the model came out (nearly) as it went in.
            ContractBroken: when the result does not run, or changed the shape or dtype of the outputs, or gives NaN.
        """
