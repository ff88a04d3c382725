"""Anchors: cells that are locality-sensitive hashes, and distances to a number of points that does not grow.

A table draws some members of a set, its *anchors*; the *cell* of a point is its nearest anchor. The nearer two points
are, the likelier they share a cell, which makes the cell a locality-sensitive hash that follows the density of the data
(the Voronoi cells of isolation by nearest-neighbour ensembles: Bandaragoda et al., 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.coordinates import ROWS_AT_ONCE

# Logarithms are rounded to this: sums of them are then exact, and do not depend on their order.
LOG_UNIT = 2.0**-16
SHARE_OF_ANCHORS = 4  # at most a fourth of a set are anchors of one table

# In more dimensions than these points are rounded to a thousandth of the typical distance to the centre: whole numbers
# whose squared distances are then exact in float32, unless they are far out.
FEW_DIMENSIONS = 17
COARSE = 2.0**-8
EXACT_DISTANCE = 2.0**12


@dataclass(frozen=True)
class AnchorTables:
    """T tables of psi anchors each, drawn from one set.

    Attributes:
        anchors: (T psi) x P positions, table by table, whole numbers.
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
        anchors = positions(support[rows.flatten()])
        return cls(anchors, rows, log_radii(anchors.view(*rows.shape, -1), rows))

    def squared_distances(self, points: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield, some of M x P coordinates at a time, the first row and exact B x T x psi squared distances, whole."""
        for start, block in zip(range(0, len(points), ROWS_AT_ONCE), torch.split(points, ROWS_AT_ONCE), strict=True):
            block = positions(block)
            everything = slice(None)
            squared = SquaredDistances(block, self.anchors)(everything, everything)
            yield start, squared.view(len(block), *self.rows.shape)

    def nearest(self, points: torch.Tensor, are_support: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest anchor of M x P coordinates in each table.

        Args:
            points: M x P.
            are_support: Whether they are the set the anchors were drawn from; each then passes over itself.

        Returns:
            T x M cells, numbers of anchors in their tables, and the logarithms of the distances to them.
        """
        cells, nearest = [], []
        for start, squared in self.squared_distances(points):
            if are_support:
                self.pass_over_themselves(squared, start)
            found = squared.min(2)
            cells.append(found.indices)
            nearest.append(found.values)
        return torch.cat(cells).T.contiguous(), half_log(torch.cat(nearest)).T.contiguous()

    def pass_over_themselves(self, squared: torch.Tensor, start: int) -> None:
        """Make anchors among B rows of the support, from ``start``, infinitely far from themselves, in place."""
        row = self.rows.flatten() - start
        column = ((row >= 0) & (row < len(squared))).nonzero().flatten()
        squared.view(len(squared), -1)[row[column], column] = math.inf


class SquaredDistances:
    """Exact squared distances, whole numbers, between some of M x P and some of N x P positions."""

    def __init__(self, points: torch.Tensor, others: torch.Tensor) -> None:
        norms, norms_of_others = (each.double().square().sum(1) for each in (points, others))
        few = points.shape[1] <= FEW_DIMENSIONS
        is_far = float(norms.max().sqrt() + norms_of_others.max().sqrt()) > EXACT_DISTANCE
        dtype = torch.float64 if few or is_far else torch.float32
        self._points, self._others = points.to(dtype), others.to(dtype)
        self._norms, self._norms_of_others = norms.to(dtype), norms_of_others.to(dtype)

    def __call__(self, rows: torch.Tensor | slice, rows_of_others: torch.Tensor | slice) -> torch.Tensor:
        """Return those between some rows of both."""
        squared = torch.addmm(
            self._norms_of_others[rows_of_others], self._points[rows], self._others[rows_of_others].T, alpha=-2
        )
        return squared.add_(self._norms[rows, None])


def positions(points: torch.Tensor) -> torch.Tensor:
    """Return N x P coordinates as anchors see them."""
    return points if points.shape[1] <= FEW_DIMENSIONS else (points * COARSE).round()


def unit_of(points: torch.Tensor) -> float:
    """Return the unit of positions in units of coordinates."""
    return 1.0 if points.shape[1] <= FEW_DIMENSIONS else 1 / COARSE


def log_radii(anchors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return T x psi logarithms of the distances of T x psi x P anchors to the nearest other row of their table."""
    radii = []
    for table, numbers in zip(anchors.double(), rows, strict=True):
        norms = table.square().sum(1)
        squared = torch.addmm(norms[:, None] + norms, table, table.T, alpha=-2)
        radii.append(squared.masked_fill_(numbers[:, None] == numbers, math.inf).amin(1))
    return half_log(torch.stack(radii))


def cell_counts(cells: torch.Tensor, num_cells: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return T x ``num_cells`` sums of M weights, 1 if not given, over T x M cells; exact for multiples of a unit."""
    values = torch.ones_like(cells, dtype=torch.float64) if weights is None else weights.expand(cells.shape)
    return values.new_zeros(len(cells), num_cells).scatter_add_(1, cells, values.contiguous())


def exact_mean(values: torch.Tensor) -> float:
    """Return the mean of N values, the same whatever their order."""
    return math.fsum(values.tolist()) / len(values)


def half_log(squared: torch.Tensor) -> torch.Tensor:
    """Return the logarithms of distances in whole units, 0 for distances of 0."""
    return (squared.double().clamp(min=1).log() / (2 * LOG_UNIT)).round_() * LOG_UNIT
