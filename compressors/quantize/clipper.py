"""Clipping of weights without quantization: half of what the LSH paper studies."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from compressors.common.checks import check_bits, check_patterns, check_share, matching
from compressors.common.measure import Inputs
from compressors.core.clip import ClipLike, as_clip, check_clip
from compressors.core.model import CompressedModel, begin, finish
from compressors.core.recipe import LayerQuantization
from compressors.errors import CompressionError, NothingCompressed
from compressors.quantize.quantizer import quantizable_layers


@dataclass(frozen=True)
class Clipper:
    """Clip the weights to the range that a `Quantizer` with the same settings would divide into levels.

    Sizes do not change: this separates what clipping costs from what rounding costs.

    Args:
        clip: range of the weights, see `Clip`; "max" is refused, for it clips nothing.
        bits: 2 to 8; only the range of "mse" depends on it. Default 8.
        per_channel: one range per output channel or per tensor, as in `Quantizer`.
        symmetric: range [-t, t] or [low, high], as in `Quantizer`.
        skip: glob patterns of layers that are left alone.
        min_coverage: the share of parameters, 0 to 1, that must be in layers brevitas knows; default 0.9.

    Source: ranges by brevitas, https://github.com/Xilinx/brevitas; clipping without quantization after Mordido, Yang,
    Meinel 2021, arXiv 2103.11912.
    """

    clip: ClipLike = "percentile"
    bits: int = 8
    per_channel: bool = True
    symmetric: bool = True
    skip: Sequence[str] = ()
    min_coverage: float = 0.9

    def __post_init__(self) -> None:
        check_clip(self.clip, self.symmetric)
        if as_clip(self.clip).method == "max":
            raise CompressionError("clip='max' keeps every weight; use percentile, mse, sigma or a threshold")
        check_bits("bits", self.bits)
        check_patterns("skip", self.skip)
        check_share("min_coverage", self.min_coverage)

    @property
    def name(self) -> str:
        """A short label, such as "clip percentile"."""
        return f"clip {as_clip(self.clip)}"

    def compress(
        self,
        model: nn.Module | CompressedModel,
        example_inputs: Inputs,
        calibration: Iterable[Inputs] | None = None,
    ) -> CompressedModel:
        """Return a copy of `model` with clipped weights; see `Compressor.compress`. `calibration` is not used."""
        from compressors.core._brevitas import clip_range, replace_layers

        work = begin(model, example_inputs)
        names, coverage = quantizable_layers(work, self.min_coverage)
        skipped = matching("skip", self.skip, names)
        weights = {n: work.model.get_submodule(n).get_parameter("weight") for n in names if n not in skipped}
        layers = {name: self._layer(tuple(weight.shape)) for name, weight in weights.items()}
        quantized = copy.deepcopy(work.model)
        replace_layers(quantized, layers, self.clip)
        notes = dict.fromkeys(skipped, "not clipped: skipped")
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
        return finish(work, self, work.recipe, notes, coverage)

    def _layer(self, shape: tuple[int, ...]) -> LayerQuantization:
        return LayerQuantization(shape, self.bits, None, self.per_channel, self.symmetric, act_symmetric=True)
