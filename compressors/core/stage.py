"""The frame of checks, copy and report around a compressor's own work, which pipelines put up once for all stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from compressors.common.bake import baked_copy
from compressors.common.checks import check_inputs, check_module, check_replaceable
from compressors.common.measure import Inputs, checked_outputs, reference_outputs, sqnr_db
from compressors.core.model import CompressedModel
from compressors.core.recipe import Recipe, settings
from compressors.core.report import Report, shapes_of
from compressors.core.sharing import sharing_notes
from compressors.errors import CompressionError


@dataclass(frozen=True)
class Work:
    """A compression under way.

    Attributes:
        model: a copy in eval mode with plain parameters, changed in place.
        inputs: the example inputs.
        outputs: what `model` returned on them before the first stage.
        outputs_now: what it returns now.
        recipe: of `model` as it is now.
        report: with the sizes before the first stage; `finish` fills in those after.
        notes: remarks on layers, by name.
        source: what was to be compressed, left as it is; None after the first stage, whose result has no other copy.
        calibration: see `Compressor.compress`.
        teacher: likewise.
        float_weights: see `CompressedModel`.
        outcome: what the present stage adds to its step in the recipe, as JSON.
    """

    model: nn.Module
    inputs: Inputs
    outputs: Sequence[Tensor]
    outputs_now: Sequence[Tensor]
    recipe: Recipe
    report: Report
    notes: Mapping[str, str]
    source: nn.Module | CompressedModel | None
    calibration: Iterable[Inputs] | None = None
    teacher: nn.Module | CompressedModel | None = None
    float_weights: Mapping[str, Tensor] = field(default_factory=dict)
    outcome: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, notes: Mapping[str, str], coverage: float | None = None, **changes: Any) -> Work:
        """Return the work after `model` was changed, in place or by `changes` of attributes.

        Args:
            notes: further remarks on layers, by name.
            coverage: the share of parameters, 0 to 1, that could be treated; None keeps that of the stage before.
            changes: new values of attributes, such as ``recipe``.
        """
        joined = {name: "; ".join(filter(None, (self.notes.get(name), note))) for name, note in notes.items()}
        report = self.report if coverage is None else replace(self.report, coverage=coverage)
        return replace(self, report=report, notes={**self.notes, **joined}, **changes)

    def done(self, name: str, step: Mapping[str, Any]) -> Work:
        """Return the work after a stage: its outputs checked, its label and its step added to report and recipe."""
        outputs = checked_outputs(self.model, self.inputs, self.outputs)
        label = " + ".join(filter(None, (self.report.name, name)))
        return replace(
            self,
            outputs_now=outputs,
            recipe=replace(self.recipe, steps=(*self.recipe.steps, {**step, **self.outcome})),
            outcome={},
            report=replace(self.report, name=label),
            source=None,
        )


class Stage(ABC):
    """Base class of compressors: a subclass says in `_apply` what it does to a model, and inherits `compress`.

    What may follow what in a `Pipeline`: after a stage that `quantizes`, only stages that `accepts_quantized`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """A short label, such as "prune 0.5"."""

    @property
    def quantizes(self) -> bool:
        """Whether the result holds quantized layers."""
        return False

    @property
    def accepts_quantized(self) -> bool:
        """Whether a model with quantized layers can be the input."""
        return False

    def compress(
        self,
        model: nn.Module | CompressedModel,
        example_inputs: Inputs,
        calibration: Iterable[Inputs] | None = None,
        *,
        teacher: nn.Module | CompressedModel | None = None,
    ) -> CompressedModel:
        """Return a compressed copy of `model`, which is left as it was; see `Compressor.compress`."""
        work = begin(model, example_inputs, quantized=self.accepts_quantized)
        return finish(self.step(replace(work, calibration=calibration, teacher=teacher)))

    def step(self, work: Work) -> Work:
        """Return `work` after this stage."""
        if not self.accepts_quantized:
            _check_float(work.model)
        return self._apply(work).done(self.name, settings(self))

    @abstractmethod
    def _apply(self, work: Work) -> Work:
        """Compress ``work.model`` in place; return `work.changed` with what is to be told about it."""


def begin(model: nn.Module | CompressedModel, example_inputs: Inputs, quantized: bool = False) -> Work:
    """Copy `model`, bake its reparametrisations in, run it on `example_inputs`, and measure it.

    Args:
        model: see `Compressor.compress`; the sizes of a `CompressedModel` are those before its first compression.
        example_inputs: likewise.
        quantized: whether quantized layers are accepted; default False.

    Raises:
        CompressionError: `model` does not run on `example_inputs`, or is quantized already.
    """
    inputs = check_inputs("example_inputs", example_inputs)
    kind = "a torch.nn.Module or a CompressedModel"
    source = model.model if isinstance(model, CompressedModel) else check_module("model", model, kind)
    check_replaceable("model", source)
    if not quantized:
        _check_float(source)
    copy = baked_copy(source)
    outputs = reference_outputs(copy, inputs)
    if not isinstance(model, CompressedModel):
        report = Report.of(copy, inputs)
        return Work(copy, inputs, outputs, outputs, Recipe(), report, sharing_notes(copy), source)
    report = model.report
    if shapes_of(inputs) != report.input_shapes:
        raise CompressionError(
            f"example_inputs have shapes {shapes_of(inputs)}, but the earlier steps were measured with "
            f"{report.input_shapes}: use the same, so that the MACs compare"
        )
    notes = {row.name: row.note for row in report.layers}
    return Work(
        copy, inputs, outputs, outputs, model.recipe, report, notes, model, float_weights=dict(model.float_weights)
    )


def finish(work: Work) -> CompressedModel:
    """Measure the compressed model and report on it."""
    error = sqnr_db(work.outputs, work.outputs_now)
    report = work.report.updated(work.model, work.inputs, work.recipe, work.notes, sqnr_db=error)
    return CompressedModel(work.model, report, work.recipe, work.float_weights)


def _check_float(model: nn.Module) -> None:
    if any(type(module).__module__.startswith("brevitas.") for module in model.modules()):
        raise CompressionError("model is already quantized: quantization comes last, after pruning and clipping")
