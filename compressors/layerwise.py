"""What each layer's compression alone costs: where bits and channels can go, and where they cannot."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from compressors.common.bake import baked_copy
from compressors.common.checks import check_count
from compressors.common.extras import extra
from compressors.common.generation import SEED, Draw, drawn_batches
from compressors.common.measure import Inputs, device_of, run, sqnr_db
from compressors.common.text import aligned
from compressors.errors import CompressionError, NothingCompressed
from compressors.prune.pruner import ChannelPruner
from compressors.quantize.quantizer import Quantizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerCost:
    """What compressing some layers alone does.

    Attributes:
        layers: one layer, or all that share its weight; with pruning all whose channels can only go together.
        parameters: of these layers.
        way: the label of the compressor.
        sqnr_db: signal to noise ratio of the model's outputs, in dB; None where they do not change.
    """

    layers: tuple[str, ...]
    parameters: int
    way: str
    sqnr_db: float | None


@dataclass(frozen=True)
class LayerCosts:
    """A table of `LayerCost`; printed, it has one line per layer and one column per way, in dB of the outputs."""

    rows: tuple[LayerCost, ...]

    def __str__(self) -> str:
        """Return the table."""
        ways = list(dict.fromkeys(row.way for row in self.rows))
        lines = [("layers", "parameters", *(f"{way}, dB" for way in ways))]
        for layers in dict.fromkeys(row.layers for row in self.rows):
            costs = {row.way: row for row in self.rows if row.layers == layers}
            cells = (_decibels(costs[way].sqnr_db) if way in costs else "" for way in ways)
            lines.append((_label(layers), f"{next(iter(costs.values())).parameters:,}", *cells))
        return "\n".join(aligned(lines))


def sensitivity(
    model: nn.Module,
    draw: Draw,
    ways: Sequence[Quantizer | ChannelPruner],
    *,
    samples: int = 32,
    seed: int = SEED,
    progress: bool = True,
) -> tuple[LayerCosts, Figure]:
    """Compress one layer at a time, in every way given, and measure what that does to the outputs.

    >>> table, picture = sensitivity(generator, draw, [Quantizer(4), ChannelPruner(0.3)])  # doctest: +SKIP
    >>> picture.savefig("sensitivity.png")  # doctest: +SKIP

    Args:
        model: left as it is.
        draw: called as ``draw(n, random)``, returns the forward arguments of n samples as a tuple.
        ways: `Quantizer` and `ChannelPruner`, each with settings of its own; what they exclude stays excluded. A pruner
            without samples of its own takes those of `draw`.
        samples: drawn for the outputs, default 32.
        seed: of what is drawn.
        progress: show a bar on stderr; default True.

    Returns:
        The costs, and a matplotlib figure of them: one line of points per way, the layers in the order of the model.

    Raises:
        CompressionError: `ways` holds something else or two of one name, or a way cannot treat the model at all.
        ImportError: without the extra ``plots``.
    """
    check_count("samples", samples)
    if not ways or not all(isinstance(way, Quantizer | ChannelPruner) for way in ways):
        raise CompressionError(f"ways must be Quantizer or ChannelPruner, one or more; got {ways!r}")
    twice = [name for name, number in Counter(way.name for way in ways).items() if number > 1]
    if twice:
        raise CompressionError(f"ways: two are called {twice[0]!r}, which the table could not tell apart")
    original = baked_copy(model)
    (inputs,) = drawn_batches(draw, samples, samples, seed, device_of(original))
    reference = run(original, inputs)
    jobs = [(way, *job) for way in ways for job in _alone(way, original, inputs, draw)]
    rows = []
    for way, layers, compressor in tqdm(jobs, unit="layer", file=sys.stderr, disable=not progress):
        try:
            outputs = run(compressor.compress(original, inputs, [inputs]).model, inputs)
        except NothingCompressed:
            continue
        rows.append(LayerCost(layers, _parameters(original, layers), way.name, sqnr_db(reference, outputs)))
    return LayerCosts(tuple(rows)), _picture(rows)


def _alone(
    way: Quantizer | ChannelPruner, model: nn.Module, inputs: Inputs, draw: Draw
) -> Iterator[tuple[tuple[str, ...], Quantizer | ChannelPruner]]:
    """Yield layers that are treated together, and the way that treats them alone."""
    if isinstance(way, Quantizer):
        whole = way.compress(model, inputs, [inputs])
        quantized = whole.recipe.quantized  # not in the order of the model where patterns give the bits
        bits = {name: quantized[name].bits for name, _ in model.named_modules() if name in quantized}
        sharing: dict[nn.Parameter, list[str]] = {}
        for name in bits:
            sharing.setdefault(model.get_submodule(name).get_parameter("weight"), []).append(name)
        for names in sharing.values():
            others = tuple(name for name in bits if name not in names)
            yield tuple(names), replace(way, bits={name: bits[name] for name in names}, exclude=(*way.exclude, *others))
        return
    from compressors.prune._torch_pruning import layers_of

    groups: list[tuple[str, ...]] = []

    def record(group: Any) -> Tensor:
        groups.append(layers_of(group))
        return torch.ones(len(group[0].idxs))

    replace(way, importance=record, scope="local", min_effect=0.0).compress(model, inputs)
    every = [name for group in groups for name in group]
    for group in groups:
        others = tuple(name for name in every if name not in group)
        yield group, replace(way, exclude=(*way.exclude, *others), min_effect=0.0, draw=way.draw or draw)


def _parameters(model: nn.Module, layers: Sequence[str]) -> int:
    found = {parameter for name in layers for parameter in model.get_submodule(name).parameters()}
    return sum(parameter.numel() for parameter in found)


def _label(layers: Sequence[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} + {len(layers) - 1}"


def _decibels(value: float | None) -> str:
    return "same" if value is None else f"{value:.1f}"


def _picture(rows: Sequence[LayerCost]) -> Figure:
    with extra("plots"):
        from matplotlib.figure import Figure

    labels = list(dict.fromkeys(_label(row.layers) for row in rows))
    figure = Figure(figsize=(8, 1 + 0.25 * len(labels)), layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(row.way for row in rows):
        costs = {_label(row.layers): row.sqnr_db for row in rows if row.way == way and row.sqnr_db is not None}
        heights = [labels.index(label) for label in costs]
        axes.plot(list(costs.values()), heights, "o-", label=f"{way}, this layer alone")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("signal to noise ratio of the outputs, dB (higher is better)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
