"""The channels of a model that can go, and what it costs without them."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from compressors.common.measure import Inputs, count_macs
from compressors.errors import NothingCompressed
from compressors.prune.pruner import ChannelPruner

Counts: TypeAlias = tuple[int, ...]
"""Channels that each group keeps."""

FEWEST = 0.125
"""The smallest share of the channels of a group that a mutation asks for."""

# A share to remove that is less than any channel's: of what can only go together, one goes.
_ONE = 1e-6
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class ChannelGroups:
    """The groups of layers that share their channels, and what the model costs by the channels that they keep.

    A layer is in the group of a layer if it loses channels with it. Weights shrink by as much for each channel, so one
    pruned copy for each group tells what all numbers of channels cost.

    Args:
        model: left as it is.
        inputs: forward arguments of one sample.
        pruner: maps shares to remove, by layer, to a pruner.
        progress: whether to show a bar.

    Attributes:
        names: the first layer of each group.
        units: the channels of each group; what can only go together, as channels before a reshape, counts as one.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        pruner: Callable[[Mapping[str, float]], ChannelPruner],
        progress: bool,
    ) -> None:
        layers = {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}
        self.shapes = {name: np.array(module.weight.shape, dtype=float) for name, module in layers.items()}
        counted = count_macs(model, inputs)
        self.layer_macs = {name: counted.get(name, 0) for name in layers}
        self.rest = counted[""] - sum(self.layer_macs.values())
        self.names, units, self.shrinking = list[str](), list[int](), list[dict[str, NDArray[np.float64]]]()
        known = set[str]()
        for name in tqdm(layers, desc="groups", unit="layer", file=sys.stderr, leave=None, disable=not progress):
            width = _width(layers[name])
            if name in known or width == 1:
                continue
            pruned = pruner({name: _ONE}).compress(model, inputs).model
            after = {other: pruned.get_submodule(other) for other in layers}
            with_it = {other for other in layers if _width(after[other]) < _width(layers[other])}
            if name not in with_it:
                continue
            known |= with_it
            removed = width - _width(after[name])
            self.names.append(name)
            units.append(width // removed)
            self.shrinking.append(
                {
                    other: self.shapes[other] - np.array(module.weight.shape)
                    for other, module in after.items()
                    if module.weight.shape != layers[other].weight.shape
                }
            )
        self.units = tuple(units)
        if not self.units:
            raise NothingCompressed("no layer of the model can lose channels: ChannelPruner's report tells why of each")

    def macs(self, counts: Counts) -> int:
        """Return the multiply-accumulates with so many channels in each group."""
        shapes = {name: shape.copy() for name, shape in self.shapes.items()}
        for shrinking, units, count in zip(self.shrinking, self.units, counts, strict=True):
            for name, by in shrinking.items():
                shapes[name] -= by * (units - count)
        parts = (macs * shapes[name].prod() / self.shapes[name].prod() for name, macs in self.layer_macs.items())
        return self.rest + round(float(sum(parts)))

    def ratios(self, counts: Counts) -> dict[str, float]:
        """Return the share of channels to remove of each group, by its first layer."""
        return {n: 1 - count / units for n, units, count in zip(self.names, self.units, counts, strict=True)}

    def fitted(self, shares: Sequence[float], budget: int) -> Counts:
        """Return numbers of channels in the proportion of `shares` that fill `budget`, by bisection."""

        def scaled(factor: float) -> Counts:
            pairs = zip(shares, self.units, strict=True)
            return tuple(max(1, min(units, round(factor * share * units))) for share, units in pairs)

        low, high = 0.0, 1 / min(shares)
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.macs(scaled(middle)) <= budget else (low, middle)
        counts = scaled(low)
        # Rounding moves several groups at once; single channels fill what that has left.
        found: Counts | None = None
        while found != counts:
            found = counts
            for place, units in enumerate(self.units):
                wider = (*counts[:place], counts[place] + 1, *counts[place + 1 :])
                if counts[place] < units and self.macs(wider) <= budget:
                    counts = wider
        return counts

    def mutated(self, counts: Counts, budget: int, rng: random.Random) -> Counts:
        """Return numbers of channels that fill `budget` after one to three shares have been changed."""
        shares = [count / units for count, units in zip(counts, self.units, strict=True)]
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(shares))
            shares[place] = min(1.0, max(FEWEST, shares[place] * rng.choice((0.5, 0.75, 1.4, 2))))
        return self.fitted(shares, budget)


def _width(layer: Any) -> int:
    width: int = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return width
