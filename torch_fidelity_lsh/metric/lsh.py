"""Metric ``lsh``: a constant number of distances for each sample, whatever the size of the sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.anchors import AnchorTables, half_log, log_radii
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.conformal import Scored
from torch_fidelity_lsh.metric.coordinates import Coordinates

NUM_FOLDS = 2
NUM_ANCHORS = 64  # of a table
RATIO = 4  # between scales: a fourth of the anchors of a table, and the anchors of four tables


def score_folds(assessed: torch.Tensor, members: torch.Tensor, groups: torch.Tensor, config: LSHConfig) -> list[Scored]:
    """Score samples against a set by their distances to anchors.

    In turn one half of the set is the support, from which anchors are drawn, the other the calibration set. The score
    is minus the sum over the scales of the mean over the tables of log(d / r): d is the distance to the nearest anchor,
    r the distance of that to its own nearest (isolation by nearest-neighbour ensembles, Bandaragoda et al., 2018).

    Args:
        assessed: M x P reduced features of the samples.
        members: N x P reduced features of the set, N >= 4, no row twice, in pseudo-random order.
        groups: N numbers; rows with the same number, near copies, are held out together.
        config: Settings.
    """
    folds = []
    for number in range(NUM_FOLDS):
        is_support = groups % NUM_FOLDS != number
        support, calibration = (rows.nonzero().flatten() for rows in (is_support, ~is_support))
        coordinates = Coordinates.fit(members[support])
        inside, points, held_out = (coordinates(x) for x in (members[support], assessed, members[calibration]))
        rng = np.random.default_rng([config.seed, 2, number])
        scales = Scales.of(AnchorTables.draw(inside, NUM_ANCHORS, config.num_tables, rng))
        scores, cells = scales.scores_and_cells(points)
        held_out_scores, held_out_cells = scales.scores_and_cells(held_out)
        num_cells = scales.tables.rows.shape[1]
        folds.append(Scored(scores, held_out_scores, cells, held_out_cells, num_cells, calibration))
    return folds


@dataclass(frozen=True)
class Scales:
    """Tables of anchors seen at three scales: a fourth of each, each, and four together.

    Attributes:
        tables: T tables of psi anchors.
        log_radius_coarse: T x psi / 4 radii among the first of each table.
        log_radius_fine: S x 4 x psi radii among those of four tables, or of all if there are fewer.
    """

    tables: AnchorTables
    log_radius_coarse: torch.Tensor
    log_radius_fine: torch.Tensor

    @classmethod
    def of(cls, tables: AnchorTables) -> Scales:
        """Measure the radii of anchors at the other scales."""
        count, size = tables.rows.shape
        anchors = tables.anchors.view(count, size, -1)
        few, together = max(2, size // RATIO), min(RATIO, count)
        sets = count // together
        rows = tables.rows[: sets * together].reshape(sets, together * size)
        fine = log_radii(anchors[: sets * together].reshape(sets, together * size, -1), rows)
        coarse = log_radii(anchors[:, :few], tables.rows[:, :few])
        return cls(tables, coarse, fine.view(sets, together, size))

    def scores_and_cells(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return M scores and T x M cells of M x P coordinates."""
        parts = [self._of_block(squared) for _, squared in self.tables.squared_distances(points)]
        scores, cells = (torch.cat(each) for each in zip(*parts, strict=True))
        return scores, cells.T.contiguous()

    def _of_block(self, squared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sets, together, _ = self.log_radius_fine.shape
        nearest, cells = squared.min(2)
        nearest_coarse, cells_coarse = squared[:, :, : self.log_radius_coarse.shape[1]].min(2)
        in_sets = slice(sets * together)
        nearest_fine, table = nearest[:, in_sets].reshape(-1, sets, together).min(2)
        cells_fine = cells[:, in_sets].reshape(-1, sets, together).gather(2, table[:, :, None]).squeeze(2)
        radius_fine = self.log_radius_fine[torch.arange(sets, device=cells.device), table, cells_fine]
        ratios = (
            half_log(nearest) - _of_cells(self.tables.log_radius, cells),
            half_log(nearest_coarse) - _of_cells(self.log_radius_coarse, cells_coarse),
            half_log(nearest_fine) - radius_fine,
        )
        # Sums of rounded logarithms are exact, whatever their order.
        return -torch.stack([ratio.mean(1) for ratio in ratios]).sum(0), cells


def _of_cells(values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Return the values, T x psi, of B x T cells."""
    return values.gather(1, cells.T).T
