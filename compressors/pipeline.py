"""Several compressors, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from compressors.common.measure import Inputs, run, sqnr_db
from compressors.core.model import CompressedModel, Compressor, begin
from compressors.errors import CompressionError
from compressors.quantize.quantizer import Quantizer


@dataclass(frozen=True, init=False)
class Pipeline:
    """Apply compressors in order: prune, clip, and at last quantize.

    A `Quantizer` anywhere but at the end is refused, because later steps would invalidate its ranges. To fine-tune in
    between, call the compressors one by one: each accepts the `CompressedModel` of the one before.
    """

    stages: tuple[Compressor, ...]

    def __init__(self, *stages: Compressor) -> None:
        if not stages or not all(callable(getattr(stage, "compress", None)) for stage in stages):
            raise CompressionError(f"stages must be one or more compressors; got {stages!r}")
        if any(isinstance(stage, Quantizer) for stage in stages[:-1]):
            order = " -> ".join(stage.name for stage in stages)
            raise CompressionError(f"stages: quantization comes last, after pruning and clipping; got {order}")
        object.__setattr__(self, "stages", stages)

    @property
    def name(self) -> str:
        """The labels of the stages."""
        return " + ".join(stage.name for stage in self.stages)

    def compress(
        self,
        model: nn.Module | CompressedModel,
        example_inputs: Inputs,
        calibration: Iterable[Inputs] | None = None,
    ) -> CompressedModel:
        """Return `model` after all stages, with one report over all of them; see `Compressor.compress`."""
        original = begin(model, example_inputs)
        batches = None if calibration is None else tuple(calibration)
        result: nn.Module | CompressedModel = model
        for stage in self.stages:
            result = stage.compress(result, example_inputs, batches)
        assert isinstance(result, CompressedModel)
        error = sqnr_db(original.outputs, run(result.model, original.inputs))
        return replace(result, report=replace(result.report, sqnr_db=error))
