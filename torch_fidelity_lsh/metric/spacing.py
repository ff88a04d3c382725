"""How close the rows of a set lie to each other: their spacing, its growth, and which rows are nearly copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.anchors import AnchorTables, cell_counts, exact_mean, half_log, of_cells
from torch_fidelity_lsh.metric.coordinates import ROWS_AT_ONCE, Coordinates
from torch_fidelity_lsh.metric.parallel import mapped, shared

NUM_ANCHORS, RATIO, NUM_TABLES = 64, 4, 8  # a quarter of the anchors show how the spacing grows
HIGHEST_DIMENSION = 1000.0

# A pair is nearly a copy where so few others would be as near by chance, and it is nearer than a quarter of the
# distance to the nearest of 64 anchors.
BY_CHANCE = 0.001
NEAR = 0.25
TABLES_IN_KEY = 2
COMPARED = 2  # rows that follow in the order of a key
GLANCE = 16  # coordinates that tell most pairs apart


@dataclass(frozen=True)
class Spacing:
    """How close the K distinct rows of a set lie to each other.

    Attributes:
        log_distance: K mean logarithms of the distances to anchors drawn from the other rows.
        dimension: Intrinsic dimension: the number of rows within reach grows with the distance to this power.
        groups: K numbers of the groups of near copies, mostly of one row each, in order of their first rows.
    """

    log_distance: torch.Tensor
    dimension: float
    groups: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, coordinates: Coordinates, num_anchors: int, seed: int) -> Spacing:
        """Measure K x P reduced features.

        Args:
            values: No row twice, in pseudo-random order.
            coordinates: In which distances are taken.
            num_anchors: Anchors of a table, at most ``NUM_ANCHORS``.
            seed: Of the choice of anchors.
        """
        rng = np.random.default_rng([seed, 3])
        tables = AnchorTables.draw(values, coordinates, num_anchors, NUM_TABLES, rng)
        num_cells = tables.rows.shape[1]
        scales = [tables]
        if num_cells >= 2 * RATIO:
            scales.append(AnchorTables.draw(values, coordinates, num_cells // RATIO, NUM_TABLES, rng))

        def block(start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            points = coordinates(values[start : start + ROWS_AT_ONCE])
            (cells, logs), *coarser = (each.nearest(points, start) for each in scales)
            means = torch.stack([logs.mean(1), *(coarse_logs.mean(1) for _, coarse_logs in coarser)])
            return cells.T.int(), means, points[:, :GLANCE].clone()

        *parts, glances = zip(*shared(block, range(0, len(values), ROWS_AT_ONCE)), strict=True)
        cells, (log_distance, *coarser) = (torch.cat(each, 1) for each in parts)
        glance = torch.cat(glances)
        # Too few to tell: as on a line, where least is taken for crowding or copies.
        growth = coarser[0] - log_distance if coarser else torch.full_like(log_distance, math.log(RATIO))
        local_growth, local_distance = (_smoothed(each, cells, num_cells) for each in (growth, log_distance))
        # So many rows are expected within the distance to the nearest anchor; how the number falls, growth tells.
        expected = len(values) / num_cells
        shrinkage = local_growth / math.log(RATIO) * math.log(expected / BY_CHANCE)
        reach = local_distance - shrinkage.clamp(min=-math.log(NEAR))
        pairs = _alike(cells, log_distance, num_cells)
        # Most are told apart by a few of their coordinates.
        pairs = _near(pairs, reach, lambda rows: glance[rows])
        pairs = _near(pairs, reach, lambda rows: coordinates(values[rows]))
        return cls(log_distance, _dimension(exact_mean(growth)), _joined(pairs, len(values)))

    @property
    def share_of_near_copies(self) -> float:
        """Share in [0, 1) of the rows that nearly repeat an earlier row."""
        return 1 - (int(self.groups.max()) + 1) / len(self.groups)


def _dimension(growth: float) -> float:
    return math.log(RATIO) / max(growth, math.log(RATIO) / HIGHEST_DIMENSION)


def _smoothed(values: torch.Tensor, cells: torch.Tensor, num_cells: int) -> torch.Tensor:
    """Return the means over the cells of each row of K multiples of a unit, averaged over the tables."""
    sums, counts = cell_counts(cells, num_cells, values), cell_counts(cells, num_cells)
    return of_cells(sums / counts.clamp(min=1), cells)


def _alike(cells: torch.Tensor, log_distance: torch.Tensor, num_cells: int) -> torch.Tensor:
    """Return 2 x R pairs of rows that may be near copies.

    These share the cells of most tables, and are as far from anchors: a row is compared with those that follow it, in
    order of this distance, among the rows with which it shares the cells of two tables.
    """
    pairs, by_distance = [], log_distance.argsort(stable=True)
    for table in range(0, len(cells) - TABLES_IN_KEY + 1, TABLES_IN_KEY):
        key = sum(cells[table + i] * num_cells**i for i in range(TABLES_IN_KEY))
        key, order = key[by_distance].sort(stable=True)
        order = by_distance[order]
        for step in range(1, COMPARED + 1):
            same = key[:-step] == key[step:]
            pairs.append(torch.stack([order[:-step][same], order[step:][same]]))
    return torch.cat(pairs, 1)


def _near(pairs: torch.Tensor, reach: torch.Tensor, positions: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Keep the pairs of rows whose positions, or some coordinates of these, are no further apart than both reach."""

    def block(some: torch.Tensor) -> torch.Tensor:
        one, other = some
        squared = (positions(one) - positions(other)).double().square().sum(1)
        return some[:, half_log(squared) <= torch.minimum(reach[one], reach[other])]

    return torch.cat(mapped(block, torch.split(pairs, ROWS_AT_ONCE, dim=1)), 1)


def _joined(pairs: torch.Tensor, count: int) -> torch.Tensor:
    """Return the numbers of the groups of so many rows that pairs link."""
    one, other = pairs
    groups = torch.arange(count, device=pairs.device)
    while True:
        first = torch.minimum(groups[one], groups[other])
        joined = groups.scatter_reduce(0, pairs.flatten(), first.repeat(2), "amin")
        if joined.equal(groups):
            numbers: torch.Tensor = torch.unique(groups, return_inverse=True)[1]
            return numbers
        groups = joined
