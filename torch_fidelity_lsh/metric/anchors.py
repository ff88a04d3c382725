"""Anchors: cells that are locality-sensitive hashes, and distances to a number of points that does not grow.

A table draws some members of a set, its *anchors*; the *cell* of a point is its nearest anchor. The nearer two points
are, the likelier they share a cell, which makes the cell a locality-sensitive hash that follows the density of the data
(the Voronoi cells of isolation by nearest-neighbour ensembles: Bandaragoda et al., 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.coordinates import ROWS_AT_ONCE

# Logarithms are rounded to this: sums of them are then exact, and do not depend on their order.
LOG_UNIT = 2.0**-16
SHARE_OF_ANCHORS = 4  # at most a fourth of a set are anchors of one table


@dataclass(frozen=True)
class AnchorTables:
    """T tables of as many anchors each, drawn from one set.

    Attributes:
        anchors: (T psi) x P coordinates, table by table, whole numbers in float64.
        rows: T x psi rows of the anchors in their set.
        log_radius: T x psi logarithms of each anchor's distance to the nearest other anchor of its table.
    """

    anchors: torch.Tensor
    rows: torch.Tensor
    log_radius: torch.Tensor

    @classmethod
    def draw(cls, support: torch.Tensor, num_anchors: int, num_tables: int, rng: np.random.Generator) -> AnchorTables:
        """Draw anchors from N x P coordinates, N >= 2; at most N / 4 a table, and at least 2."""
        size = min(num_anchors, max(2, len(support) // SHARE_OF_ANCHORS))
        drawn = np.stack([rng.choice(len(support), size, replace=False) for _ in range(num_tables)])
        rows = torch.from_numpy(drawn).to(support.device)
        anchors = support[rows].double()
        between = torch.stack([_squared_distances(table, table) for table in anchors])
        between.diagonal(dim1=1, dim2=2).fill_(math.inf)
        return cls(anchors.flatten(0, 1), rows, half_log(between.amin(2)))

    def nearest(self, points: torch.Tensor, are_support: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest anchor of M x P coordinates in each table.

        Args:
            points: M x P.
            are_support: Whether they are the set the anchors were drawn from; each then passes over itself.

        Returns:
            T x M cells, numbers of anchors in their tables, and the logarithms of the distances to them.
        """
        tables, size = self.rows.shape
        cells = torch.empty(tables, len(points), dtype=torch.int64, device=points.device)
        logs = torch.empty(tables, len(points), dtype=torch.float64, device=points.device)
        for start in range(0, len(points), ROWS_AT_ONCE):
            block = points[start : start + ROWS_AT_ONCE].double()
            squared = _squared_distances(block, self.anchors)
            if are_support:
                row = self.rows.flatten() - start
                column = ((row >= 0) & (row < len(block))).nonzero().flatten()
                squared[row[column], column] = math.inf
            nearest = squared.view(len(block), tables, size).min(2)
            cells[:, start : start + len(block)] = nearest.indices.T
            logs[:, start : start + len(block)] = nearest.values.T
        return cells, half_log(logs)

    def log_ratio(self, cells: torch.Tensor, log_distance: torch.Tensor) -> torch.Tensor:
        """Return M means over the tables of log(distance to the nearest anchor / radius of that anchor)."""
        return (log_distance - self.log_radius.gather(1, cells)).mean(0)


def cell_counts(cells: torch.Tensor, num_cells: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return T x ``num_cells`` sums of M weights, 1 if not given, over T x M cells; exact for multiples of a unit."""
    values = torch.ones_like(cells, dtype=torch.float64) if weights is None else weights.expand(cells.shape)
    return values.new_zeros(len(cells), num_cells).scatter_add_(1, cells, values.contiguous())


def exact_mean(values: torch.Tensor) -> float:
    """Return the mean of N values, the same whatever their order."""
    return math.fsum(values.tolist()) / len(values)


def _squared_distances(points: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    # Coordinates are whole numbers, and so are these, exactly.
    norms, norms_of_others = (rows.square().sum(1) for rows in (points, others))
    return torch.addmm(norms[:, None] + norms_of_others, points, others.T, alpha=-2)


def half_log(squared: torch.Tensor) -> torch.Tensor:
    """Return the logarithms of distances in whole units, 0 for distances of 0."""
    return (squared.clamp(min=1).log() / (2 * LOG_UNIT)).round_() * LOG_UNIT
