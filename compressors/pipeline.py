"""Several compressors, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from compressors.core.model import CompressedModel, Compressor
from compressors.core.stage import Stage, Work, begin, finish
from compressors.errors import CompressionError, NothingCompressed


@dataclass(frozen=True, init=False)
class Pipeline(Stage):
    """Apply compressors in order: prune, clip, and at last quantize.

    After a stage that quantizes come only stages that accept quantized models; others would invalidate its ranges. A
    stage of a class of one's own says so by the attributes ``quantizes`` and ``accepts_quantized`` (default False).
    To fine-tune in between, call the compressors one by one: each accepts the `CompressedModel` of the one before.

    A stage that has nothing to do is left out, and `Report.notes` says so.

    Stages derived from `compressors.core.stage.Stage` work on one copy, which is measured before the first and after
    the last; others get the model in between as a `CompressedModel`. The teacher of all is the model to compress.

    Args:
        stages: one or more compressors.

    Raises:
        CompressionError: there is no stage, one is no compressor, or their order is wrong.
        NothingCompressed: by `compress`, where no stage has anything to do.
    """

    stages: tuple[Compressor, ...]

    def __init__(self, *stages: Compressor) -> None:
        if not stages or not all(callable(getattr(stage, "compress", None)) for stage in stages):
            raise CompressionError(f"stages must be one or more compressors; got {stages!r}")
        object.__setattr__(self, "stages", stages)
        quantized = False
        for stage in stages:
            if quantized and not _flag(stage, "accepts_quantized"):
                order = " -> ".join(other.name for other in stages)
                raise CompressionError(
                    f"stages: quantization comes last, after pruning and clipping, and {stage.name!r} accepts no "
                    f"quantized model; got {order}"
                )
            quantized |= _flag(stage, "quantizes")

    @property
    def name(self) -> str:
        """The labels of the stages."""
        return " + ".join(stage.name for stage in self.stages)

    @property
    def quantizes(self) -> bool:
        """Whether a stage quantizes."""
        return any(_flag(stage, "quantizes") for stage in self.stages)

    @property
    def accepts_quantized(self) -> bool:
        """Whether all stages accept quantized models."""
        return all(_flag(stage, "accepts_quantized") for stage in self.stages)

    def step(self, work: Work) -> Work:
        """Return `work` after all stages."""
        teacher = work.source if work.teacher is None else work.teacher
        # A stream can be read once, and several stages may want it.
        batches = tuple(work.calibration) if isinstance(work.calibration, Iterator) else work.calibration
        return self._apply(replace(work, teacher=teacher, calibration=batches))

    def _apply(self, work: Work) -> Work:
        skipped = []
        for stage in self.stages:
            try:
                work = stage.step(work) if isinstance(stage, Stage) else _foreign_step(stage, work)
            except NothingCompressed as error:
                skipped.append(f"{stage.name}: {error}")
        if len(skipped) == len(self.stages):
            raise NothingCompressed("; ".join(skipped))
        return replace(
            work, report=replace(work.report, notes=(*work.report.notes, *(f"skipped: {text}" for text in skipped)))
        )


def _foreign_step(stage: Compressor, work: Work) -> Work:
    """Return `work` after a compressor that has no method but `compress`."""
    model = finish(work) if work.source is None else work.source
    result = stage.compress(model, work.inputs, work.calibration, teacher=work.teacher)
    if not isinstance(result, CompressedModel):
        raise CompressionError(f"{stage.name}: compress returned {type(result).__name__}; a CompressedModel is needed")
    after = begin(result, work.inputs, quantized=True)
    return replace(after, outputs=work.outputs, source=None, calibration=work.calibration, teacher=work.teacher)


def _flag(stage: Compressor, name: str) -> bool:
    return bool(getattr(stage, name, False))
