"""Clipping of weights without quantization: half of what the LSH paper studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressors.common.bake import independent_copy
from compressors.common.checks import check_bits, check_patterns, check_share, matching
from compressors.core.clip import ClipLike, as_clip, check_clip
from compressors.core.recipe import LayerQuantization
from compressors.core.stage import Stage, Work
from compressors.errors import CompressionError, NothingCompressed
from compressors.quantize.quantizer import quantizable_layers, shared_scales


@dataclass(frozen=True)
class Clipper(Stage):
    """Clip the weights to the range that a `Quantizer` with the same settings would divide into levels.

    Sizes do not change: this separates what clipping costs from what rounding costs.

    Args:
        clip: range of the weights, see `Clip`; "max" is refused, for it clips nothing.
        bits: 2 to 8; only the range of "mse" depends on it. Default 8.
        per_channel: one range per output channel or per tensor, as in `Quantizer`.
        symmetric: range [-t, t] or [low, high], as in `Quantizer`.
        exclude: glob patterns of layers that are left alone.
        min_coverage: the share of parameters, 0 to 1, that must be in layers brevitas knows; default 0.9.

    Source: ranges by brevitas, https://github.com/Xilinx/brevitas; clipping without quantization after Mordido, Yang,
    Meinel 2021, arXiv 2103.11912.
    """

    clip: ClipLike = "percentile"
    bits: int = 8
    per_channel: bool = True
    symmetric: bool = True
    exclude: Sequence[str] = ()
    min_coverage: float = 0.9

    def __post_init__(self) -> None:
        check_clip(self.clip, self.symmetric)
        if as_clip(self.clip).method == "max":
            raise CompressionError("clip='max' keeps every weight; use percentile, mse, sigma or a threshold")
        check_bits("bits", self.bits)
        check_patterns("exclude", self.exclude)
        check_share("min_coverage", self.min_coverage)

    @property
    def name(self) -> str:
        """A short label, such as "clip percentile"."""
        return f"clip {as_clip(self.clip)}"

    def _apply(self, work: Work) -> Work:
        from compressors.core._brevitas import clip_range, replace_layers

        names, coverage, why = quantizable_layers(work, self.min_coverage)
        excluded = matching("exclude", self.exclude, names)
        weights = {n: work.model.get_submodule(n).get_parameter("weight") for n in names if n not in excluded}
        layers = {name: self._layer(tuple(weight.shape)) for name, weight in weights.items()}
        layers = shared_scales(work.model, layers, names)
        quantized = independent_copy(work.model)
        replace_layers(quantized, layers, self.clip)
        notes = {name: note.replace("float", "not clipped", 1) for name, note in why.items()}
        notes |= dict.fromkeys(excluded, "not clipped: excluded")
        changed = 0
        for name, weight in weights.items():
            low, high = clip_range(quantized.get_submodule(name), layers[name])
            clipped = weight.detach().clamp(low, high)
            count = int((clipped != weight).sum())
            notes[name] = f"{count} of {weight.numel()} weights clipped"
            weight.data = clipped
            changed += count
        if not changed:
            raise NothingCompressed(f"clip={self.clip!r}: all weights are within their range already")
        return work.changed(notes, coverage)

    def _layer(self, shape: tuple[int, ...]) -> LayerQuantization:
        return LayerQuantization(shape, self.bits, None, self.per_channel, self.symmetric, act_symmetric=True)
