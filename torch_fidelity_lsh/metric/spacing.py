"""How close the rows of a set lie to each other: their spacing, its growth, and which rows are nearly copies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.anchors import AnchorTables, cell_counts, exact_mean, half_log, positions
from torch_fidelity_lsh.metric.coordinates import ROWS_AT_ONCE

NUM_ANCHORS, RATIO, NUM_TABLES = 64, 4, 8  # a quarter of the anchors show how the spacing grows
HIGHEST_DIMENSION = 1000.0

# A pair is nearly a copy where so few others would be as near by chance, and it is nearer than a quarter of the
# distance to the nearest of 64 anchors.
BY_CHANCE = 0.001
NEAR = 0.25
TABLES_IN_KEY = 2
COMPARED = 2  # rows that follow in the order of a key


@dataclass(frozen=True)
class Spacing:
    """How close the K distinct rows of a set lie to each other.

    Attributes:
        log_distance: K mean logarithms of the distances to anchors drawn from the other rows.
        dimension: Intrinsic dimension: the number of rows within reach grows with the distance to this power.
        groups: K numbers of the first row of the group of near copies that each row belongs to, mostly its own.
    """

    log_distance: torch.Tensor
    dimension: float
    groups: torch.Tensor

    @classmethod
    def of(cls, points: torch.Tensor, num_anchors: int, seed: int) -> Spacing:
        """Measure K x P coordinates.

        Args:
            points: No row twice, in pseudo-random order.
            num_anchors: Anchors of a table, at most ``NUM_ANCHORS``.
            seed: Of the choice of anchors.
        """
        rng = np.random.default_rng([seed, 3])
        tables = AnchorTables.draw(points, num_anchors, NUM_TABLES, rng)
        cells, logs = tables.nearest(points, are_support=True)
        log_distance, num_cells = logs.mean(0), tables.rows.shape[1]
        if num_cells < 2 * RATIO:
            # Too few to tell: as on a line, where least is taken for crowding or copies.
            growth = torch.full_like(log_distance, math.log(RATIO))
        else:
            coarser = AnchorTables.draw(points, num_cells // RATIO, NUM_TABLES, rng)
            growth = coarser.nearest(points, are_support=True)[1].mean(0) - log_distance
        local_growth, local_distance = (_smoothed(each, cells, num_cells) for each in (growth, log_distance))
        # So many rows are expected within the distance to the nearest anchor; how the number falls, growth tells.
        expected = len(points) / num_cells
        shrinkage = local_growth / math.log(RATIO) * math.log(expected / BY_CHANCE)
        reach = local_distance - shrinkage.clamp(min=-math.log(NEAR))
        groups = _groups(positions(points), cells, log_distance, reach, num_cells)
        return cls(log_distance, _dimension(exact_mean(growth)), groups)

    @property
    def share_of_near_copies(self) -> float:
        """Share in [0, 1) of the rows that nearly repeat an earlier row."""
        return float((self.groups != torch.arange(len(self.groups), device=self.groups.device)).double().mean())


def _dimension(growth: float) -> float:
    return math.log(RATIO) / max(growth, math.log(RATIO) / HIGHEST_DIMENSION)


def _smoothed(values: torch.Tensor, cells: torch.Tensor, num_cells: int) -> torch.Tensor:
    """Return the means over the cells of each row of K multiples of a unit, averaged over the tables."""
    sums, counts = cell_counts(cells, num_cells, values), cell_counts(cells, num_cells)
    return (sums / counts.clamp(min=1)).gather(1, cells).mean(0)


def _groups(
    points: torch.Tensor, cells: torch.Tensor, log_distance: torch.Tensor, reach: torch.Tensor, num_cells: int
) -> torch.Tensor:
    """Join rows nearer to each other than the reach of both.

    Near copies share the cells of most tables, and are as far from anchors: a row is compared with those that follow
    it, in order of this distance, among the rows with which it shares the cells of two tables.
    """
    pairs = []
    for table in range(0, len(cells) - TABLES_IN_KEY + 1, TABLES_IN_KEY):
        key = sum(cells[table + i] * num_cells**i for i in range(TABLES_IN_KEY))
        order = log_distance.argsort(stable=True)
        order = order[key[order].argsort(stable=True)]
        for step in range(1, COMPARED + 1):
            one, other = order[:-step], order[step:]
            same = key[one] == key[other]
            pairs.append(torch.stack([one[same], other[same]]))
    blocks = torch.split(torch.cat(pairs, 1), ROWS_AT_ONCE, dim=1)
    one, other = torch.cat([block[:, _are_near(points, block, reach)] for block in blocks], 1)
    groups = torch.arange(len(points), device=points.device)
    while True:
        first = torch.minimum(groups[one], groups[other])
        joined = groups.scatter_reduce(0, torch.cat([one, other]), torch.cat([first, first]), "amin")
        if joined.equal(groups):
            return groups
        groups = joined


def _are_near(points: torch.Tensor, pairs: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
    one, other = pairs
    squared = (points[one] - points[other]).double().square().sum(1)
    return half_log(squared) <= torch.minimum(reach[one], reach[other])
