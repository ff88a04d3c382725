"""`WidthSearch`: any generator with fewer channels in each layer, how many is searched; no space to write."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from compressors.common.bake import baked_copy
from compressors.common.checks import check_count
from compressors.common.generation import SEED, Draw, drawn
from compressors.common.measure import Inputs, count_macs, run
from compressors.core.model import CompressedModel
from compressors.core.stage import Stage, Work
from compressors.distil.distiller import Distiller
from compressors.distil.training import Loss
from compressors.errors import CompressionError, NothingCompressed
from compressors.prune.pruner import ChannelPruner
from compressors.search.data import example, split
from compressors.search.settings import check_budget, resolved
from compressors.search.strategies import distinct, evolve

Counts: TypeAlias = tuple[int, ...]
"""Channels that each group keeps."""

_FEWEST = 0.125
# A share to remove that is less than any channel's: of what can only go together, one goes.
_ONE = 1e-6
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class WidthSearch(Stage):
    """Remove channels so that a budget is met, from each layer as many as a search finds best, and repair the rest.

    torch-pruning finds the groups of layers that share their channels. How many of each group stay is found by
    evolution, on the loss of the pruned generator without training; the best are distilled for a short time, and the
    best of those for `steps`. The result keeps its class: its file needs that to load, as after `ChannelPruner`.

    Args:
        budget: the most that the result may cost for one sample: multiply-accumulates as an integer, or a share of the
            generator's as a float above 0, at most 1.
        draw: called as ``draw(n, random)``, returns the forward arguments of n samples; or a data set of inputs.
        steps: batches to train the result on.
        seed: of everything that is drawn.
        loss: "l1" (default), "mse", or a function, as in `Distiller`.
        terms: more losses with their weights.
        trials: how many candidates are distilled for a short time; default 4.
        trial_steps: batches of each of these; default a quarter of `steps`.
        population: candidates in a generation of evolution; default 10.
        generations: their number; default 5.
        batch_size: default 16.
        rate: highest learning rate; default None: chosen by the damage, as in `Distiller`.
        importance: see `ChannelPruner`; default "l2", the norm of the weights.
        exclude: see `ChannelPruner`.
        param_dims: see `ChannelPruner`.
        held_out: inputs that candidates and states are compared on; default 64.
        folder: for files that trials and training resume from; None (default) writes none.
        progress: show bars on stderr; default True.

    Source: torch-pruning (DepGraph, Fang et al. 2023, arXiv 2301.12900).

    Raises:
        CompressionError: a setting is unusable. `compress` raises it also where the budget cannot be met, and names the
            least that can.
        UnsupportedModule: from `compress`, see `ChannelPruner`.
    """

    budget: int | float
    draw: Draw | Dataset[Any] | Tensor
    steps: int
    seed: int = SEED
    loss: Literal["l1", "mse"] | Loss = "l1"
    terms: Sequence[tuple[float, Loss]] = ()
    trials: int = 4
    trial_steps: int | None = None
    population: int = 10
    generations: int = 5
    batch_size: int = 16
    rate: float | None = None
    importance: Literal["fisher", "latent", "l2", "lamp"] | Callable[[Any], Tensor | None] = "l2"
    exclude: Sequence[str] = ()
    param_dims: Mapping[str, int | None] | None = None
    held_out: int = 64
    folder: str | Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_budget(self.budget)
        for name in ("steps", "trials", "population", "generations", "batch_size", "held_out"):
            check_count(name, getattr(self, name))
        if self.trial_steps is not None:
            check_count("trial_steps", self.trial_steps)
        if self.folder is not None and not Path(self.folder).is_dir():
            raise CompressionError(f"folder: {self.folder} does not exist")

    @property
    def name(self) -> str:
        """A short label, such as "search widths 0.25"."""
        return "search widths " + (
            f"{self.budget:g}" if isinstance(self.budget, float) else f"{self.budget / 1e9:.4g}G"
        )

    def _apply(self, work: Work) -> Work:
        draw, _ = split(self.draw)
        device = next(work.model.parameters()).device
        one = drawn(draw, 1, torch.Generator().manual_seed(self.seed), device)
        held_out = drawn(draw, self.held_out, torch.Generator().manual_seed(self.seed + 1), device)
        budget = resolved(self.budget, work.model, *one)
        full = baked_copy(work.model)
        groups = _Groups(full, one, self._pruner, self.progress)
        smallest, largest = groups.macs((1,) * len(groups.units)), groups.macs(groups.units)
        if budget < smallest:
            raise CompressionError(
                f"budget: {budget:,} multiply-accumulates are less than one channel in each group of layers needs for "
                f"one sample, {smallest:,} (all channels: {largest:,})"
            )
        losses, targets = self._distiller(1, "").plan(False).losses, run(full, held_out)

        @torch.no_grad()
        def score(counts: Counts) -> float:
            outputs = run(self._pruner(groups.ratios(counts)).compress(full, one).model, held_out)
            pairs = zip(outputs, targets, strict=True)
            return sum(weight * float(term(*pair)) for pair in pairs for weight, term in losses)

        rng = random.Random(self.seed)
        ranked = evolve(
            lambda: groups.fitted([rng.uniform(_FEWEST, 1) for _ in groups.units], budget),
            lambda counts: groups.mutated(counts, budget, rng),
            score,
            rng,
            population=self.population,
            generations=self.generations,
            progress=self.progress,
        )
        best, rows = self._best(distinct(ranked, self.trials), groups, full, one)
        pruned = self._pruner(groups.ratios(best))._apply(work)
        found = count_macs(pruned.model, one)[""]
        if found > budget:
            raise CompressionError(f"budget: {budget:,}; the layers found for it cost {found:,} multiply-accumulates")
        teacher = full if work.teacher is None else work.teacher
        trained = self._distiller(self.steps, "student.safetensors")._apply(replace(pruned, teacher=teacher))
        outcome = {"budget": budget, "macs": found, "groups": groups.names, "candidates": rows}
        return replace(trained, outcome={**trained.outcome, **outcome}, teacher=work.teacher)

    def _best(
        self, candidates: list[Counts], groups: _Groups, full: nn.Module, one: Inputs
    ) -> tuple[Counts, list[dict[str, Any]]]:
        """Return the candidate that is best after a short training, and all with their losses."""
        rows = list[dict[str, Any]]()
        for number, counts in enumerate(candidates if len(candidates) > 1 else ()):
            distiller = self._distiller(self.trial_steps or max(1, self.steps // 4), f"trial-{number}.safetensors")
            pruned = self._pruner(groups.ratios(counts)).compress(full, one)
            course = distiller.compress(pruned, one, teacher=full).recipe.steps[-1]["training"]
            rows.append({"channels": list(counts), "macs": groups.macs(counts), "loss": course["best_loss"]})
        best = min(range(len(rows)), key=lambda row: float(rows[row]["loss"]), default=0)
        return candidates[best], rows

    def _pruner(self, ratios: Mapping[str, float]) -> ChannelPruner:
        return ChannelPruner(
            ratios, self.importance, exclude=self.exclude, param_dims=self.param_dims or {}, min_effect=0
        )

    def _distiller(self, steps: int, name: str) -> Distiller:
        return Distiller(
            split(self.draw)[0],
            steps,
            self.seed,
            self.batch_size,
            self.rate,
            self.loss,
            self.terms,
            held_out=self.held_out,
            checkpoint=None if self.folder is None else Path(self.folder) / name,
            progress=self.progress,
        )


class _Groups:
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
            shares[place] = min(1.0, max(_FEWEST, shares[place] * rng.choice((0.5, 0.75, 1.4, 2))))
        return self.fitted(shares, budget)


def _width(layer: Any) -> int:
    width: int = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return width


def search_widths(
    teacher: nn.Module | CompressedModel,
    budget: int | float,
    draw: Draw | Dataset[Any] | Tensor,
    *,
    steps: int = 1000,
    seed: int = SEED,
    **settings: Any,
) -> CompressedModel:
    """Return `teacher` with fewer channels, searched under a budget and distilled; for any generator, without a space.

    The same as `WidthSearch(...).compress(teacher, example)` with one drawn sample as the example.

    Args:
        teacher: left as it was.
        budget: multiply-accumulates of one sample as an integer, or a share of the teacher's as a float.
        draw: a function ``draw(n, random)`` that returns forward arguments, or a data set of inputs.
        steps: batches to train the result on; default 1000.
        seed: default 2020.
        settings: further settings of `WidthSearch`.

    Raises:
        CompressionError: see `WidthSearch`.
    """
    stage = WidthSearch(budget, draw, steps, seed, **settings)
    return stage.compress(teacher, example(draw, teacher, seed))
