"""Multiply-accumulates of all networks of a chain, as tables, and the best network under a budget.

A table has one entry for each operator, input width and output width of a layer. A network is `Indices`: for each layer
the positions of its operator and of its output width.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressors.errors import CompressionError

Table: TypeAlias = NDArray[np.int64]
Indices: TypeAlias = tuple[tuple[int, int], ...]

_BUCKETS = 2000
_REJECTED = 2000


def macs_of(tables: Sequence[Table], indices: Indices) -> int:
    """Return the multiply-accumulates of one network."""
    total, before = 0, 0
    for table, (operator, width) in zip(tables, indices, strict=True):
        total += int(table[operator, before, width])
        before = width
    return total


def expected_macs(tables: Sequence[Tensor], operators: Sequence[Tensor], widths: Sequence[Tensor]) -> Tensor:
    """Return the mean over networks drawn layer by layer, exactly, with gradients to the probabilities.

        E[F] = sum_l sum_{o,i,j} p_l(o) q_{l-1}(i) q_l(j) C_l[o,i,j]

    Args:
        tables: C_l, float64.
        operators: p_l, a probability for each operator.
        widths: q_l, a probability for each width.
    """
    total = tables[0].new_zeros(())
    before = tables[0].new_ones(1)
    for table, operator, width in zip(tables, operators, widths, strict=True):
        total = total + torch.einsum("oij,o,i,j->", table, operator.to(table), before, width.to(table))
        before = width.to(table)
    return total


def extreme(tables: Sequence[Table], largest: bool = False) -> Indices:
    """Return the network of the fewest or the most multiply-accumulates."""
    sign = -1 if largest else 1
    cost: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    back: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for table in tables:
        operator = (sign * table).argmin(0)  # in x out
        total = cost[:, None] + sign * np.take_along_axis(table, operator[None], 0)[0]
        source = total.argmin(0)
        cost = total.min(0)
        back.append((operator, source))
    return _followed(back, int(cost.argmin()))


def _followed(back: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]], width: int) -> Indices:
    found = []
    for operator, source in reversed(back):
        before = int(source[width])
        found.append((int(operator[before, width]), width))
        width = before
    return tuple(reversed(found))


def sample(tables: Sequence[Table], rng: random.Random, band: tuple[float, float]) -> Indices:
    """Return a network drawn uniformly among those within `band`, the least and the most multiply-accumulates.

    Where 2,000 draws hit none, it is the best one under random scores: see `derive`.
    """
    for _ in range(_REJECTED):
        drawn = tuple((rng.randrange(t.shape[0]), rng.randrange(t.shape[2])) for t in tables)
        if band[0] <= macs_of(tables, drawn) <= band[1]:
            return drawn
    noise = np.random.default_rng(rng.getrandbits(64))
    operators, widths = ([noise.gumbel(size=(table.shape[axis],)) for table in tables] for axis in (0, 2))
    return derive(tables, operators, widths, int(band[1]), band[0] / band[1])


def derive(
    tables: Sequence[Table],
    operators: Sequence[NDArray[np.float64]],
    widths: Sequence[NDArray[np.float64]],
    budget: int,
    fill: float = 0.94,
) -> Indices:
    """Return the most probable network of at most `budget` and, where there is one, at least `fill` times as much.

    Maximises sum_l log p_l(o) + log q_l(j) by dynamic programming over layers, widths and 2,000 buckets of cost, each
    rounded up: the budget always holds, and what is best up to that rounding is found.

    Args:
        tables: see `macs_of`.
        operators: log p_l for each operator of each layer.
        widths: log q_l for each width.
        budget: multiply-accumulates; more than those of the largest network count as these.
        fill: share of the budget to use at least, 0 to 1; 0 asks for none.

    Raises:
        CompressionError: `budget` is below the smallest network.
    """
    smallest, largest = (macs_of(tables, extreme(tables, end)) for end in (False, True))
    if budget < smallest:
        raise CompressionError(f"budget must be at least {smallest:,} multiply-accumulates; got {budget:,}")
    if budget >= largest and not fill:
        return tuple((int(o.argmax()), int(w.argmax())) for o, w in zip(operators, widths, strict=True))
    budget = min(budget, largest)
    least = [int(table.min()) for table in tables]
    unit = max(1.0, (budget - sum(least)) / _BUCKETS)
    # What every network pays needs no bucket, so that nothing is lost to rounding where there is no choice.
    score = np.full((1, _BUCKETS + 1), -np.inf)
    score[0, 0] = 0
    steps: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
    for table, low, operator, width in zip(tables, least, operators, widths, strict=True):
        steps.append((score, np.ceil((table - low) / unit - 1e-9).astype(np.int64)))
        score = _advanced(score, steps[-1][1], operator, width)
    floor = int(np.ceil((fill * budget - sum(least)) / unit)) if fill else 0
    banded = np.where(np.arange(_BUCKETS + 1) >= floor, score, -np.inf)
    final = banded if np.isfinite(banded).any() else score
    if not np.isfinite(final).any():  # lost to rounding
        return extreme(tables)
    width_index, bucket = np.unravel_index(int(final.argmax()), final.shape)
    return _traced(steps, operators, widths, score, int(width_index), int(bucket))


def _advanced(
    score: NDArray[np.float64], cost: NDArray[np.int64], operator: NDArray[np.float64], width: NDArray[np.float64]
) -> NDArray[np.float64]:
    new = np.full((cost.shape[2], score.shape[1]), -np.inf)
    for choice, before, after in np.ndindex(*cost.shape):
        shift = int(cost[choice, before, after])
        if shift < score.shape[1]:
            gained = score[before, : score.shape[1] - shift] + (operator[choice] + width[after])
            np.maximum(new[after, shift:], gained, out=new[after, shift:])
    return new


def _traced(
    steps: Sequence[tuple[NDArray[np.float64], NDArray[np.int64]]],
    operators: Sequence[NDArray[np.float64]],
    widths: Sequence[NDArray[np.float64]],
    score: NDArray[np.float64],
    after: int,
    bucket: int,
) -> Indices:
    """Return the network that led to a state, by asking each layer backwards for a step that gives its score."""
    found, goal = [], score[after, bucket]
    for (before_score, cost), operator, width in zip(
        reversed(steps), reversed(operators), reversed(widths), strict=True
    ):
        shifts = bucket - cost[:, :, after]
        previous = np.where(shifts >= 0, before_score[np.arange(cost.shape[1])[None], np.maximum(shifts, 0)], -np.inf)
        gained = previous + (operator[:, None] + width[after])
        choice, before = np.unravel_index(int(gained.argmax()), gained.shape)
        assert gained[choice, before] == goal, "a step of the dynamic programme is missing"
        found.append((int(choice), after))
        bucket, goal, after = int(shifts[choice, before]), previous[choice, before], int(before)
    return tuple(reversed(found))
