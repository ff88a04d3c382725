"""Anchors: cells that are locality-sensitive hashes, and distances to a number of points that does not grow.

A table draws some members of a set, its *anchors*; the *cell* of a point is its nearest anchor. The nearer two points
are, the likelier they share a cell, which makes the cell a locality-sensitive hash that follows the density of the data
(the Voronoi cells of isolation by nearest-neighbour ensembles: Bandaragoda et al., 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from torch_fidelity_lsh.metric.coordinates import Coordinates

# Logarithms are rounded to this: sums of them are then exact, and do not depend on their order.
LOG_UNIT = 2.0**-16
SHARE_OF_ANCHORS = 4  # at most a fourth of a set are anchors of one table
NUMBER_BITS = 6  # of a key; a table has at most 64 anchors

EXACT_DISTANCE = 2.0**12  # whose square float32 holds
CELLS_AT_ONCE = 2**18  # of tables
IN_CACHE = 256  # rows whose distances to anchors are found at a time


@dataclass(frozen=True)
class AnchorTables:
    """T tables of psi anchors each, drawn from one set.

    Attributes:
        coordinates: Between whose positions distances are taken.
        anchors: (T psi) x P positions, table by table, whole numbers.
        rows: T x psi rows of the anchors in their set.
        log_radius: T x psi logarithms of each anchor's distance to the nearest other anchor of its table.
    """

    coordinates: Coordinates
    anchors: torch.Tensor
    rows: torch.Tensor
    log_radius: torch.Tensor

    @classmethod
    def draw(
        cls,
        support: torch.Tensor,
        coordinates: Coordinates,
        num_anchors: int,
        num_tables: int,
        rng: np.random.Generator,
    ) -> AnchorTables:
        """Draw at most 64 anchors a table from N reduced features, N >= 2; at most N / 4, and at least 2."""
        size = min(num_anchors, max(2, len(support) // SHARE_OF_ANCHORS))
        drawn = np.stack([rng.choice(len(support), size, replace=False) for _ in range(num_tables)])
        rows = torch.from_numpy(drawn).to(support.device)
        anchors = coordinates(support[rows.flatten()])
        return cls(coordinates, anchors, rows, log_radii(anchors.view(*rows.shape, -1), rows))

    @cached_property
    def _squared_distances(self) -> SquaredDistances:
        return SquaredDistances(self.anchors)

    def squared_distances(self, points: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield, some of M x P positions at a time, the first row and B x T x psi distances: see `SquaredDistances`."""
        for start, block in zip(range(0, len(points), IN_CACHE), torch.split(points, IN_CACHE), strict=True):
            yield start, self._squared_distances(block).view(len(block), *self.rows.shape)

    def keys(self, squared: torch.Tensor, first_row: int | None = None) -> torch.Tensor:
        """Return whole numbers that hold B x T x psi squared distances, and below these the numbers of the anchors.

        Args:
            squared: Distances.
            first_row: If these are from rows of the set the anchors were drawn from, the first of them; anchors are
                further from themselves than all others then.
        """
        numbers = torch.arange(self.rows.shape[1], dtype=squared.dtype, device=squared.device)
        keys = torch.add(numbers, squared, alpha=2**NUMBER_BITS)
        if first_row is not None:
            row = self.rows.flatten() - first_row
            column = ((row >= 0) & (row < len(keys))).nonzero().flatten()
            keys.view(len(keys), -1)[row[column], column] = torch.iinfo(keys.dtype).max
        return keys

    def nearest(self, points: torch.Tensor, first_row: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest anchor of each of M x P positions in each table.

        Args:
            points: M x P.
            first_row: If they are rows of the set the anchors were drawn from, the first; each passes over itself then.

        Returns:
            M x T cells, numbers of anchors in their tables, and the logarithms of the distances to them.
        """
        lowest = [
            self.keys(squared, None if first_row is None else first_row + start).amin(2)
            for start, squared in self.squared_distances(points)
        ]
        return cells_and_logs(torch.cat(lowest), squared_norms(points))


def cells_and_logs(keys: torch.Tensor, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cells and logarithms of distances that B x T keys hold, of points with B squared norms."""
    return (keys & (2**NUMBER_BITS - 1)).long(), half_log((keys >> NUMBER_BITS) + norms[:, None])


class SquaredDistances:
    """Exact squared distances to N positions, whole numbers, each less the squared norm of the point it is from."""

    def __init__(self, others: torch.Tensor) -> None:
        norms = squared_norms(others)
        self._largest_norm = norms.max()
        self._of_type = {dtype: (norms.to(dtype), others.T.to(dtype)) for dtype in (torch.float32, torch.float64)}

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        """Return those from B x P positions, B x N, int32 or int64."""
        dtype = exact_type(squared_norms(points).max(), self._largest_norm)
        norms, others = self._of_type[dtype]
        squared = torch.addmm(norms, points.to(dtype), others, alpha=-2)
        return squared.to(torch.int32 if dtype == torch.float32 else torch.int64)


def exact_type(*largest_norms: torch.Tensor) -> torch.dtype:
    """Return a type that holds the squared distances between positions of two sets with these largest squared norms."""
    distance = sum(float(norm) ** 0.5 for norm in largest_norms)
    return torch.float32 if distance <= EXACT_DISTANCE else torch.float64


def squared_norms(points: torch.Tensor) -> torch.Tensor:
    """Return the B squared norms of B x P positions, exact."""
    norms = points.square().sum(1)
    return norms if bool(norms.max() <= EXACT_DISTANCE**2) else points.double().square().sum(1)


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
    counts = []
    for some in tables_at_once(cells):
        flat, size = in_one_table(some, num_cells).flatten(), len(some) * num_cells
        if weights is None:
            counts.append(flat.bincount(minlength=size).double())
        else:  # Not as weights of bincount, which a GPU refuses where callers ask for deterministic algorithms.
            sums = torch.zeros(size, dtype=torch.float64, device=cells.device)
            counts.append(sums.scatter_add_(0, flat.long(), weights.expand(some.shape).flatten()))
    return torch.cat(counts).view(len(cells), num_cells)


def of_cells(values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Return the means over the tables of T x ``num_cells`` values of the T x M cells."""
    total = torch.zeros(cells.shape[1], dtype=values.dtype, device=values.device)
    for own, some in zip(tables_at_once(values, cells.shape[1]), tables_at_once(cells), strict=True):
        found = own.flatten().index_select(0, in_one_table(some, values.shape[1]).flatten())
        total += found.view(some.shape).sum(0)
    return total / len(cells)


def tables_at_once(of_tables: torch.Tensor, num_rows: int | None = None) -> tuple[torch.Tensor, ...]:
    """Split what T tables say of a number of rows, its columns if not given, so that some hold few."""
    return torch.split(of_tables, max(1, CELLS_AT_ONCE // (num_rows or of_tables.shape[1])))


def in_one_table(cells: torch.Tensor, num_cells: int) -> torch.Tensor:
    """Return T x M cells numbered as those of one table."""
    return cells + torch.arange(0, len(cells) * num_cells, num_cells, dtype=cells.dtype, device=cells.device)[:, None]


def exact_mean(values: torch.Tensor) -> float:
    """Return the mean of N values, the same whatever their order."""
    return math.fsum(values.tolist()) / len(values)


def half_log(squared: torch.Tensor) -> torch.Tensor:
    """Return the logarithms of distances in whole units, 0 for distances of 0."""
    return squared.double().clamp(min=1).log_().div_(2 * LOG_UNIT).round_().mul_(LOG_UNIT)
