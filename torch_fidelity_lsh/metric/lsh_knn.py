"""Metric ``lsh_knn``: nearest neighbours, searched among the samples of a few cells."""

from __future__ import annotations

import math

import numpy as np
import torch

from torch_fidelity_lsh.metric.anchors import AnchorTables
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.conformal import Scored
from torch_fidelity_lsh.metric.coordinates import Coordinates
from torch_fidelity_lsh.metric.neighbours import CAPACITY, MEMBERS_IN_LIST, NUM_LISTS, PROBES, Lists, Located

NUM_FOLDS = 4
NUM_ANCHORS = 64  # of a table
SEARCHED = 3  # times k neighbours are searched, so that k of them lie in the support of any fold
FAR = 2.0  # radii; what is further away, or not found, counts as this far
RATIO_UNIT = 2.0**-20


def score_folds(assessed: torch.Tensor, members: torch.Tensor, groups: torch.Tensor, config: LSHConfig) -> list[Scored]:
    """Score samples against a set by a local outlier factor.

    In turn one fourth of the set is the calibration set and the rest the support. The radius of a support sample is the
    distance to its k-th nearest other. The score is minus the mean, over the k nearest in the support, of the distance
    in units of their radii, each at most 2 and the least left out (a simplified local outlier factor, Breunig et al.,
    2000); `-inf` where all are at least 2 radii away. Neighbours are searched among about log N
    members, those listed by the anchors nearest to the sample.

    Args:
        assessed: M x P reduced features of the samples.
        members: N x P reduced features of the set, N >= 8, no row twice, in pseudo-random order.
        groups: N numbers; rows with the same number, near copies, are held out together.
        config: Settings.
    """
    coordinates = Coordinates.fit(members)
    inside, points = coordinates(members), coordinates(assessed)
    k = max(2, min(config.neighborhood, len(members) // 8))
    tables = AnchorTables.draw(inside, NUM_ANCHORS, config.num_tables, np.random.default_rng([config.seed, 2]))
    num_lists = max(1, min(NUM_LISTS, tables.rows.numel(), len(members) // MEMBERS_IN_LIST))
    located = Located.of(tables, points, num_lists)
    located_members = Located.of(tables, inside, num_lists, are_support=True)
    lists = Lists.of(located_members, num_lists, max(CAPACITY * math.ceil(math.log2(len(members))), SEARCHED * k))
    to_others = lists.nearest(located_members, SEARCHED * k, are_members=True)
    to_members = lists.nearest(located, SEARCHED * k)
    folds = []
    for number in range(NUM_FOLDS):
        is_support = groups % NUM_FOLDS != number
        if num_lists > PROBES:
            # They find their own neighbours better than others find theirs, and would be no fair calibration.
            is_support[tables.rows.flatten()[:num_lists]] = True
        calibration = (~is_support).nonzero().flatten()
        own_distances, _ = _nearest_of(*to_others, is_support, k)
        radii = own_distances[:, -1]
        held_out = to_others[0][calibration], to_others[1][calibration]
        scores, held_out_scores = (
            -_remoteness(*_nearest_of(*found, is_support, k), radii) for found in (to_members, held_out)
        )
        cells, num_cells = (located.cells, located_members.cells[:, calibration]), tables.rows.shape[1]
        folds.append(Scored(scores, held_out_scores, *cells, num_cells, calibration))
    return folds


def _nearest_of(
    distances: torch.Tensor, rows: torch.Tensor, is_wanted: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep of M x K ascending distances to rows, -1 for none, the first k to wanted rows; `inf` and -1 for fewer."""
    keep = is_wanted[rows] & (rows >= 0)
    distances, rows = distances.masked_fill(~keep, math.inf), rows.masked_fill(~keep, -1)
    order = keep.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :k]
    return distances.gather(1, order), rows.gather(1, order)


def _remoteness(distances: torch.Tensor, rows: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """Return the mean of M x k distances in units of the radii of the rows they lead to, `inf` where all are far.

    The least of the k is left out: an outlier has a large radius, and would lend support to all around it.
    """
    units = radii[rows]
    ratios = torch.where(distances == units, 1.0, distances / units)
    ratios = ratios.masked_fill(distances.isinf() | units.isinf(), FAR).clamp(max=FAR)
    ratios = (ratios / RATIO_UNIT).round() * RATIO_UNIT
    mean = (ratios.sum(1) - ratios.amin(1)) / (ratios.shape[1] - 1)
    return mean.masked_fill(mean == FAR, math.inf)
