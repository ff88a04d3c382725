"""Metric ``lsh``: a constant number of distances for each sample, whatever the size of the sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.anchors import NUMBER_BITS, AnchorTables, cells_and_logs, log_radii, squared_norms
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.conformal import Scored
from torch_fidelity_lsh.metric.coordinates import ROWS_AT_ONCE, Coordinates
from torch_fidelity_lsh.metric.parallel import mapped, shared

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

    def fold(number: int) -> Scored:
        is_support = groups % NUM_FOLDS != number
        support, calibration = (rows.nonzero().flatten() for rows in (is_support, ~is_support))
        supporting = members[support]
        rng = np.random.default_rng([config.seed, 2, number])
        tables = AnchorTables.draw(supporting, Coordinates.fit(supporting), NUM_ANCHORS, config.num_tables, rng)
        scales = Scales.of(tables)
        scores, cells = scales.scores_and_cells(assessed)
        held_out_scores, held_out_cells = scales.scores_and_cells(members[calibration])
        return Scored(scores, held_out_scores, cells, held_out_cells, tables.rows.shape[1], calibration)

    return mapped(fold, range(NUM_FOLDS))


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

    def scores_and_cells(self, reduced: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return M scores and T x M cells of M x P reduced features."""
        scores, cells = zip(*shared(self._of_block, torch.split(reduced, ROWS_AT_ONCE)), strict=True)
        return torch.cat(scores), torch.cat(cells, 1)

    def _of_block(self, reduced: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = self.tables.coordinates(reduced)
        norms, few = squared_norms(points), self.log_radius_coarse.shape[1]
        blocks = (self.tables.keys(squared) for _, squared in self.tables.squared_distances(points))
        lowest = [(keys.amin(2), keys[:, :, :few].amin(2)) for keys in blocks]
        keys, keys_coarse = (torch.cat(each) for each in zip(*lowest, strict=True))
        (cells, logs), (cells_coarse, logs_coarse) = (cells_and_logs(each, norms) for each in (keys, keys_coarse))
        sets, together, _ = self.log_radius_fine.shape
        in_sets = (x[:, : sets * together].reshape(-1, sets, together) for x in (keys >> NUMBER_BITS, cells, logs))
        squared_in_sets, cells_in_sets, logs_in_sets = in_sets
        table = squared_in_sets.min(2).indices
        cells_fine, logs_fine = (x.gather(2, table[:, :, None]).squeeze(2) for x in (cells_in_sets, logs_in_sets))
        radius_fine = self.log_radius_fine[torch.arange(sets, device=cells.device), table, cells_fine]
        ratios = (
            logs - _of_cells(self.tables.log_radius, cells),
            logs_coarse - _of_cells(self.log_radius_coarse, cells_coarse),
            logs_fine - radius_fine,
        )
        # Sums of rounded logarithms are exact, whatever their order.
        return -torch.stack([ratio.mean(1) for ratio in ratios]).sum(0), cells.T.int()


def _of_cells(values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Return the values, T x psi, of B x T cells."""
    return values.gather(1, cells.T).T
