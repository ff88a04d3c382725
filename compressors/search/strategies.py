"""Ways to choose networks by the supernet; a new one is a function from a `Task` to `Chosen`, in `STRATEGIES`."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from compressors.search.cost import Indices, Table, derive, macs_of, sample

_MOST_MUTATIONS = 3
# Candidates that differ in fewer layers are the same one for what a short training can tell.
_LEAST_DIFFERENCE = 3
_TRIES = 50

Candidate = TypeVar("Candidate", bound=tuple[Any, ...])
Chosen: TypeAlias = list[tuple[str, Indices]]
"""Networks to train for a short time, each behind the name of what found it."""


@dataclass(frozen=True)
class Task:
    """What a strategy works on.

    Attributes:
        tables: multiply-accumulates of all networks.
        band: the least and the most multiply-accumulates.
        score: maps a network to its loss with the shared weights on inputs to choose by.
        learn_logits: trains logits; returns log probabilities of operators and of widths, by layer.
        trial: trains a network for a short time, notes what found it, and returns its loss.
        rng: all randomness.
        population: networks in a generation of evolution.
        generations: their number.
        progress: whether to show a bar.
    """

    tables: list[Table]
    band: tuple[int, int]
    score: Callable[[Indices], float]
    learn_logits: Callable[[], tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]]
    trial: Callable[[str, Indices], float]
    rng: random.Random
    population: int
    generations: int
    progress: bool

    def fits(self, indices: Indices) -> bool:
        """Tell whether a network is within the band."""
        return self.band[0] <= macs_of(self.tables, indices) <= self.band[1]

    def sample(self) -> Indices:
        """Return a random network within the band, or the nearest below it."""
        return sample(self.tables, self.rng, self.band)

    def mutated(self, indices: Indices) -> Indices:
        """Return a network within the band that differs in one to three choices, or a random one."""
        for _ in range(_TRIES):
            child = [list(pair) for pair in indices]
            for _ in range(self.rng.randint(1, _MOST_MUTATIONS)):
                layer, axis = self.rng.randrange(len(child)), self.rng.randrange(2)
                child[layer][axis] = self.rng.randrange(self.tables[layer].shape[2 if axis else 0])
            found = tuple((operator, width) for operator, width in child)
            if found != indices and self.fits(found):
                return found
        return self.sample()


def evolve(
    sample: Callable[[], Candidate],
    mutated: Callable[[Candidate], Candidate],
    score: Callable[[Candidate], float],
    scores: dict[Candidate, float],
    rng: random.Random,
    *,
    population: int,
    generations: int,
    progress: bool,
) -> None:
    """Fill `scores`, of candidates, tuples: each generation mutates the best third of a population of all seen.

    Args:
        sample: draws a candidate.
        mutated: changes one.
        score: of a candidate, the lower the better.
        scores: what is found, also where this is interrupted.
        rng: chooses parents.
        population: candidates in a generation.
        generations: their number.
        progress: whether to show a bar.
    """
    current = {sample() for _ in range(population)}
    with tqdm(total=generations, desc="evolution", file=sys.stderr, leave=None, disable=not progress) as bar:
        for _ in range(generations):
            for candidate in sorted(current - set(scores)):
                scores[candidate] = score(candidate)
            parents = ranked(scores)[: max(1, population // 3)]
            bar.update()
            bar.set_postfix(loss=f"{scores[parents[0]]:.4g}")
            current = {mutated(rng.choice(parents)) for _ in range(population)}


def ranked(scores: dict[Candidate, float]) -> list[Candidate]:
    """Return candidates by rising score."""
    return sorted(scores, key=lambda candidate: (scores[candidate], candidate))


def evolution(task: Task, count: int) -> Chosen:
    """Return networks by evolution on the loss with shared weights, best first, and as many random ones.

    Shared weights rank poorly: what the narrowest widths, trained in every step, do best may be what limits a network
    that is trained alone. Random candidates hedge against that.
    """
    scores: dict[Indices, float] = {}
    evolve(
        task.sample,
        task.mutated,
        task.score,
        scores,
        task.rng,
        population=task.population,
        generations=task.generations,
        progress=task.progress,
    )
    hedge = count // 2
    found = [("evolution", indices) for indices in distinct(ranked(scores), count - hedge)]
    return [*found, *(("random", task.sample()) for _ in range(hedge))]


def trials(task: Task, count: int) -> Chosen:
    """Try random networks, then as many mutations of the best third of them: no supernet.

    At most `count` networks: a mutation may meet one that is known, or another mutation.
    """
    half, scores, drawn = max(1, count // 2), dict[Indices, float](), set[Indices]()

    def sample() -> Indices:
        indices = task.sample()
        drawn.add(indices)
        return indices

    evolve(
        sample,
        task.mutated,
        lambda indices: task.trial("random" if indices in drawn else "evolution", indices),
        scores,
        task.rng,
        population=half,
        generations=min(2, count),
        progress=False,
    )
    return []


def gradient(task: Task, count: int) -> Chosen:
    """Return the most probable network within the band, after the logits have been trained: AGD's way."""
    operators, widths = task.learn_logits()
    return [("gradient", derive(task.tables, operators, widths, task.band[1], task.band[0] / task.band[1]))]


def both(task: Task, count: int) -> Chosen:
    """Return the network of `gradient` and those of `evolution`."""
    return [*gradient(task, 1), *evolution(task, count - 1)] if count > 1 else gradient(task, 1)


def distinct(candidates: list[Candidate], count: int) -> list[Candidate]:
    """Return up to `count` of the first candidates that differ from each other in three layers, or half of fewer."""
    chosen: list[Candidate] = []
    for candidate in candidates:
        differences = (sum(a != b for a, b in zip(candidate, other, strict=True)) for other in chosen)
        if all(number >= min(_LEAST_DIFFERENCE, (len(candidate) + 1) // 2) for number in differences):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


STRATEGIES: dict[str, Callable[[Task, int], Chosen]] = {
    "trials": trials,
    "evolution": evolution,
    "gradient": gradient,
    "both": both,
}
