"""`WidthSearch`: any generator with fewer channels in each layer, how many is searched; no space to write."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from compressors.common.bake import baked_copy
from compressors.common.generation import SEED, Draw, drawn
from compressors.common.measure import Inputs, count_macs, device_of, run
from compressors.core.model import CompressedModel
from compressors.core.stage import Stage, Work
from compressors.distil.distiller import Distiller
from compressors.distil.training import Loss, move_losses, weighted
from compressors.errors import CompressionError
from compressors.prune.pruner import ChannelPruner
from compressors.search.data import example, split
from compressors.search.groups import FEWEST, ChannelGroups, Counts
from compressors.search.settings import check_common, file_in, label_of, resolved
from compressors.search.strategies import distinct, evolve, ranked


@dataclass(frozen=True)
class WidthSearch(Stage):
    """Remove channels so that a budget is met, from each layer as many as a search finds best, and repair the rest.

    torch-pruning finds the groups of layers that share their channels. How many of each group stay is found by
    evolution, on the loss of the pruned generator without training; the best are distilled for a short time, and the
    best of those for `steps`. Ctrl-C ends evolution or the short trainings, and once more the last one, with the best
    so far; "interrupted" in the last of `recipe.steps` says so. The result keeps its class: its file needs that to
    load, as after `ChannelPruner`.

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
        check_common(self)
        self._distiller(self.steps)  # They check what is theirs.
        self._pruner({})

    @property
    def name(self) -> str:
        """A short label, such as "search widths 0.25"."""
        return f"search widths {label_of(self.budget)}"

    def _apply(self, work: Work) -> Work:
        draw, choosing = split(self.draw)
        device = device_of(work.model)
        one = drawn(draw, 1, torch.Generator().manual_seed(self.seed), device)
        held_out = drawn(choosing, self.held_out, torch.Generator().manual_seed(self.seed + 1), device)
        budget = resolved(self.budget, work.model, *one)
        full = baked_copy(work.model)
        groups = ChannelGroups(full, one, self._pruner, self.progress)
        smallest, largest = groups.macs((1,) * len(groups.units)), groups.macs(groups.units)
        if budget < smallest:
            raise CompressionError(
                f"budget: {budget:,} multiply-accumulates are less than one channel in each group of layers needs for "
                f"one sample, {smallest:,} (all channels: {largest:,})"
            )
        losses, targets = self._distiller(1).losses, run(full, held_out)
        move_losses(losses, device)

        @torch.no_grad()
        def score(counts: Counts) -> float:
            outputs = run(self._pruner(groups.ratios(counts)).compress(full, one).model, held_out)
            return sum(float(weighted(losses, *pair)) for pair in zip(outputs, targets, strict=True))

        rng, scores, interrupted = random.Random(self.seed), dict[Counts, float](), ""
        try:
            evolve(
                lambda: groups.fitted([rng.uniform(FEWEST, 1) for _ in groups.units], budget),
                lambda counts: groups.mutated(counts, budget, rng),
                score,
                scores,
                rng,
                population=self.population,
                generations=self.generations,
                progress=self.progress,
            )
            candidates = distinct(ranked(scores), self.trials)
        except KeyboardInterrupt:
            if not scores:
                raise
            candidates, interrupted = ranked(scores)[:1], "interrupted in evolution"
            warnings.warn(f"{self.name}: {interrupted}; the best so far is trained", stacklevel=4)
        best, rows, ended = self._best(candidates, groups, full, one)
        pruned = self._pruner(groups.ratios(best))._apply(work)
        found = count_macs(pruned.model, one)[""]
        if found > budget:
            raise CompressionError(f"budget: {budget:,}; the layers found for it cost {found:,} multiply-accumulates")
        teacher = full if work.teacher is None else work.teacher
        trained = self._distiller(self.steps, "student.safetensors")._apply(replace(pruned, teacher=teacher))
        outcome = {"budget": budget, "macs": found, "groups": groups.names, "candidates": rows}
        outcome["interrupted"] = interrupted or ended or trained.outcome["training"]["note"]
        return replace(trained, outcome={**trained.outcome, **outcome}, teacher=work.teacher)

    def _best(
        self, candidates: list[Counts], groups: ChannelGroups, full: nn.Module, one: Inputs
    ) -> tuple[Counts, list[dict[str, Any]], str]:
        """Return the candidate that is best after a short training, all with their losses, and what ended it early."""
        rows, ended = list[dict[str, Any]](), ""
        for number, counts in enumerate(candidates if len(candidates) > 1 else ()):
            distiller = self._distiller(self.trial_steps or max(1, self.steps // 4), f"trial-{number}.safetensors")
            pruned = self._pruner(groups.ratios(counts)).compress(full, one)
            course = distiller.compress(pruned, one, teacher=full).recipe.steps[-1]["training"]
            rows.append({"channels": list(counts), "macs": groups.macs(counts), "loss": course["best_loss"]})
            if course["note"].startswith("interrupted"):
                ended = f"interrupted in trial {number + 1}"
                break
        best = min(range(len(rows)), key=lambda row: float(rows[row]["loss"]), default=0)
        return candidates[best], rows, ended

    def _pruner(self, ratios: Mapping[str, float]) -> ChannelPruner:
        return ChannelPruner(
            ratios, self.importance, exclude=self.exclude, param_dims=self.param_dims or {}, min_effect=0
        )

    def _distiller(self, steps: int, name: str | None = None) -> Distiller:
        return Distiller(
            split(self.draw)[0],
            steps,
            self.seed,
            self.batch_size,
            self.rate,
            self.loss,
            self.terms,
            held_out=self.held_out,
            checkpoint=file_in(self.folder, name),
            progress=self.progress,
        )


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
