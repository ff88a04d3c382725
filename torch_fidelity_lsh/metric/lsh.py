"""Metric ``lsh``: a constant number of distances for each sample, whatever the size of the sets."""

from __future__ import annotations

import numpy as np
import torch

from torch_fidelity_lsh.metric.anchors import AnchorTables
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.conformal import Scored
from torch_fidelity_lsh.metric.coordinates import Coordinates

NUM_FOLDS = 2
CELLS = 64  # anchors of the tables whose cells are compared
SCALES = {16: 1.0, CELLS: 1.0, 256: 0.25}  # anchors of a table, and tables in parts of ``num_tables``


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
        tables = {
            num_anchors: AnchorTables.draw(inside, num_anchors, max(1, round(share * config.num_tables)), rng)
            for num_anchors, share in SCALES.items()
        }
        scores, cells = _scores_and_cells(points, tables)
        held_out_scores, held_out_cells = _scores_and_cells(held_out, tables)
        num_cells = tables[CELLS].rows.shape[1]
        folds.append(Scored(scores, held_out_scores, cells, held_out_cells, num_cells, calibration))
    return folds


def _scores_and_cells(points: torch.Tensor, tables: dict[int, AnchorTables]) -> tuple[torch.Tensor, torch.Tensor]:
    nearest = {num_anchors: table.nearest(points) for num_anchors, table in tables.items()}
    ratios = [tables[num_anchors].log_ratio(*found) for num_anchors, found in nearest.items()]
    return -torch.stack(ratios).sum(0), nearest[CELLS][0]
