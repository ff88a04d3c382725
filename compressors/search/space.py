"""Search spaces: chains of layers with operators and widths to choose from, and the networks in them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from compressors.common.checks import check_choice
from compressors.core.architecture import Architecture, register_architecture
from compressors.errors import CompressionError
from compressors.search.cost import Indices, Table, extreme, macs_of, sample
from compressors.search.operators import ENLARGING, NORMS, OPERATORS, Layer, Slot, positions, template
from compressors.search.student import OUTPUTS, Chain, Skip, Student

Genotype: TypeAlias = tuple[tuple[str, int], ...]
"""A network of a search space: operator and number of output channels of each layer."""

Size: TypeAlias = tuple[int, int]
"""Rows and columns of an input image."""


def make_divisible(value: float, divisor: int, least: int) -> int:
    """Return the multiple of `divisor` nearest to `value`, not less than `least` or, by a step, 0.9 `value`."""
    rounded = max(least, math.floor((value + divisor / 2) / divisor) * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class SearchSpace:
    """A chain of layers, each with operators and widths to choose from: maps images to images.

    Attributes:
        layers: from the input to the output; the width of the last one is that of the images it makes.
        in_channels: of the input; default 3.
        norm: "instance" (without parameters, default), "batch", or None.
        skips: skip connections over several layers; the layer before and the last one keep one width, which is equal.
        output: "tanh" (default), "sigmoid", "half_tanh" or "none".
        input_skip: add the input, enlarged bilinearly where outputs are larger, before `output`; default False.
        divisor: widths are rounded to multiples of this; default 8.
        min_width: the smallest width; default 3.

    Raises:
        CompressionError: the layers do not make a chain, or a setting is unusable.
    """

    layers: tuple[Layer, ...]
    in_channels: int = 3
    norm: str | None = "instance"
    skips: tuple[Skip, ...] = ()
    output: str = "tanh"
    input_skip: bool = False
    divisor: int = 8
    min_width: int = 3

    def __post_init__(self) -> None:
        for field in ("layers", "skips"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.layers or not all(isinstance(layer, Layer) for layer in self.layers):
            raise CompressionError(f"layers must be one or more Layer(...); got {self.layers!r}")
        if self.norm is not None:
            check_choice("norm", self.norm, [name for name in NORMS if name and "," not in name])
        check_choice("output", self.output, tuple(OUTPUTS))
        if len(self.widths(len(self.layers) - 1)) > 1:
            raise CompressionError("layers: the last one makes the images; its width must not be searched: ratios=(1,)")
        for skip in self.skips:
            if not 0 <= skip.first <= skip.last < len(self.layers):
                raise CompressionError(f"skips: {skip} is not within the layers 0 to {len(self.layers) - 1}")
            ends = self.widths(skip.first - 1), self.widths(skip.last)
            if ends[0] != ends[1] or len(ends[0]) > 1 or self._scale(skip.first) != self._scale(skip.last + 1):
                raise CompressionError(
                    f"skips: {skip} joins widths {ends[0]} and {ends[1]}: it needs one width, ratios=(1,), and one "
                    "size of images at both ends"
                )

    @property
    def chain(self) -> Chain:
        """How the layers are put together."""
        reductions = (1 / self._scale(end) for end in range(len(self.layers) + 1))
        return Chain(self.skips, self.output, self.input_skip, math.ceil(max(reductions)))

    def _scale(self, end: int) -> float:
        """Return how much larger than the input images are after `end` layers."""
        steps = (s.stride if s.operators[0] in ENLARGING else 1 / s.stride for s in self.layers[:end])
        return math.prod(steps)

    @property
    def enlargement(self) -> float:
        """How much larger images come out than they go in."""
        return self._scale(len(self.layers))

    def widths(self, layer: int) -> tuple[int, ...]:
        """Return the widths to choose from for a layer, rising; layer -1 is the input."""
        return (self.in_channels,) if layer < 0 else self._widths[layer]

    @cached_property
    def _widths(self) -> list[tuple[int, ...]]:
        return [self._widths_of(layer) for layer in self.layers]

    def _widths_of(self, options: Layer) -> tuple[int, ...]:
        found = (make_divisible(ratio * options.width, self.divisor, self.min_width) for ratio in options.ratios)
        # A width that is not searched, such as that of images, is not rounded.
        return (options.width,) if options.ratios == (1,) else tuple(sorted(set(found)))

    def slot(self, layer: int, before: int, after: int, norm: str | None = None, project: bool | None = None) -> Slot:
        """Return the place of a layer, for a network of these widths; the norm is that of the space."""
        if project is None:
            project = before != after or self.widths(layer - 1)[-1] != self.widths(layer)[-1]
        return Slot(self.layers[layer], before, after, norm or self.norm, project)

    def tables(self, size: Size) -> list[Table]:
        """Return the multiply-accumulates of each layer, for one input, by operator, input width and output width.

        Convolutions alone, without biases and norms, as `torch.utils.flop_counter` counts them.
        """
        found = []
        for number, layer in enumerate(self.layers):
            before, after = self.widths(number - 1), self.widths(number)
            table = np.zeros((len(layer.operators), len(before), len(after)), dtype=np.int64)
            for choice, into, out in np.ndindex(*table.shape):
                operator = layer.operators[choice]
                table[choice, into, out], output = self._layer_macs(number, operator, before[into], after[out], size)
            found.append(table)
            size = output
        return found

    def macs(self, genotype: Genotype, size: Size) -> int:
        """Return the multiply-accumulates of a network for one input of `size`."""
        self.check(genotype)
        total, before = 0, self.in_channels
        for number, (operator, width) in enumerate(genotype):
            macs, size = self._layer_macs(number, operator, before, width, size)
            total, before = total + macs, width
        return total

    def _layer_macs(self, number: int, operator: str, before: int, after: int, size: Size) -> tuple[int, Size]:
        """Return the multiply-accumulates of a layer for an input of `size`, and the size of its output."""
        used, output = positions(operator, self.slot(number, 1, 1, project=True), size)
        weights = dict(template(operator, self.slot(number, before, after)).named_parameters())
        return sum(n * weights[name].numel() for name, n in used.items() if name in weights), output

    def check(self, genotype: Genotype) -> None:
        """Raise `CompressionError` unless `genotype` has operators of the space, and any widths where these vary."""
        if len(genotype) != len(self.layers):
            raise CompressionError(f"genotype must have {len(self.layers)} layers; got {len(genotype)}")
        for number, (operator, width) in enumerate(genotype):
            check_choice(f"genotype: operator of layer {number}", operator, self.layers[number].operators)
            offered = self.widths(number)
            if not isinstance(width, int) or width < 1 or (len(offered) == 1 and width not in offered):
                accepted = offered[0] if len(offered) == 1 else "an integer above 0"
                raise CompressionError(f"genotype: width of layer {number} must be {accepted}; got {width!r}")

    def min_macs(self, size: Size) -> int:
        """Return the fewest multiply-accumulates of a network for one input of `size`."""
        tables = self.tables(size)
        return macs_of(tables, extreme(tables))

    def fixed_macs(self, size: Size) -> int:
        """Return the multiply-accumulates of the layers without a choice between layers without one, for one input."""
        return sum(int(table.min()) for table in self.tables(size) if table.size == 1)

    def max_macs(self, size: Size) -> int:
        """Return the most multiply-accumulates of a network for one input of `size`."""
        tables = self.tables(size)
        return macs_of(tables, extreme(tables, largest=True))

    def indices(self, genotype: Genotype) -> Indices:
        """Return the positions of operators and widths; raises `CompressionError` where they are not in the space."""
        self.check(genotype)
        found = []
        for number, (layer, (operator, width)) in enumerate(zip(self.layers, genotype, strict=True)):
            if width not in self.widths(number):
                raise CompressionError(f"width of layer {number} must be one of {self.widths(number)}; got {width}")
            found.append((layer.operators.index(operator), self.widths(number).index(width)))
        return tuple(found)

    def genotype(self, indices: Indices) -> Genotype:
        """Return the network of positions of operators and widths."""
        pairs = zip(self.layers, indices, strict=True)
        return tuple((layer.operators[o], self.widths(n)[w]) for n, (layer, (o, w)) in enumerate(pairs))

    def uniform(self, ratio: float, operator: str) -> Genotype:
        """Return the network of `operator` wherever it is offered, with `ratio` of the largest widths.

        Widths are rounded as those of the space are, but may lie between them.
        """
        found = []
        for number, layer in enumerate(self.layers):
            offered = self.widths(number)
            scaled = make_divisible(ratio * layer.width, self.divisor, self.min_width)
            width = offered[0] if len(offered) == 1 else scaled
            found.append((operator if operator in layer.operators else layer.operators[0], width))
        return tuple(found)

    def uniform_at(self, macs: int, operator: str, size: Size) -> Genotype:
        """Return the smallest network of `uniform` with at least `macs`, or the largest one."""
        found = [self.uniform(step / 64, operator) for step in range(1, 65)]
        return next((genotype for genotype in found if self.macs(genotype, size) >= macs), found[-1])

    def sample(self, rng: random.Random, size: Size, band: tuple[float, float] | None = None) -> Genotype:
        """Return a network drawn uniformly; with `band`, among those of so many multiply-accumulates."""
        return self.genotype(sample(self.tables(size), rng, band or (0, math.inf)))

    def build(self, genotype: Genotype) -> Student:
        """Return the network with fresh weights, by torch's own initialisation and generator."""
        self.check(genotype)
        before, layers = self.in_channels, list[nn.Module]()
        for number, (operator, width) in enumerate(genotype):
            layers.append(OPERATORS[operator](self.slot(number, before, width)))
            before = width
        return Student(layers, self.chain)

    def architecture(self, genotype: Genotype) -> Architecture:
        """Return what files of a network of this space hold to rebuild it."""
        return Architecture(_NAME, {"space": self.to_dict(), "genotype": [list(pair) for pair in genotype]})

    def to_dict(self) -> dict[str, Any]:
        """Return the space as plain types that JSON has."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """Read what `to_dict` gave."""
        layers = tuple(Layer(**layer) for layer in data["layers"])
        return cls(**{**data, "layers": layers, "skips": tuple(Skip(**skip) for skip in data["skips"])})


_NAME = "searched student"


def _rebuilt(space: Mapping[str, Any], genotype: Sequence[Sequence[Any]]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return SearchSpace.from_dict(space).build(tuple((str(op), int(width)) for op, width in genotype))


register_architecture(_NAME, _rebuilt)
