"""Metric ``lsh_knn``: nearest neighbours, searched among the samples of a few cells."""

from __future__ import annotations

import math

import numpy as np
import torch

from torch_fidelity_lsh.metric.anchors import AnchorTables
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.conformal import Scored
from torch_fidelity_lsh.metric.coordinates import Coordinates, by_blocks
from torch_fidelity_lsh.metric.neighbours import (
    CAPACITY,
    MEMBERS_IN_LIST,
    NOTHING,
    NUM_LISTS,
    PROBES,
    Lists,
    Located,
    distances_and_rows,
)
from torch_fidelity_lsh.metric.parallel import mapped

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
    k = max(2, min(config.neighborhood, len(members) // 8))
    rng = np.random.default_rng([config.seed, 2])
    tables = AnchorTables.draw(members, coordinates, NUM_ANCHORS, config.num_tables, rng)
    num_lists = max(1, min(NUM_LISTS, tables.rows.numel(), len(members) // MEMBERS_IN_LIST))
    located = Located.of(tables, assessed, num_lists)
    located_members = Located.of(tables, members, num_lists, are_support=True)
    capacity = max(CAPACITY * math.ceil(math.log2(len(members))), SEARCHED * k)
    lists = Lists.of(coordinates, located_members, num_lists, capacity)
    to_others = lists.nearest(located_members, SEARCHED * k, are_members=True)
    to_members = lists.nearest(located, SEARCHED * k)

    def fold(number: int) -> Scored:
        is_support = groups % NUM_FOLDS != number
        if num_lists > PROBES:
            # They find their own neighbours better than others find theirs, and would be no fair calibration.
            is_support[tables.rows.flatten()[:num_lists]] = True
        calibration = (~is_support).nonzero().flatten()
        own = by_blocks(lambda pairs: _first_of(pairs, is_support, k), to_others)
        radii = distances_and_rows(own[:, -1])[0]
        held_out_scores = -_remoteness(own[calibration], radii)
        scores = by_blocks(lambda pairs: -_remoteness(_first_of(pairs, is_support, k), radii), to_members)
        cells = located.cells, located_members.cells[:, calibration]
        return Scored(scores, held_out_scores, *cells, tables.rows.shape[1], calibration)

    return mapped(fold, range(NUM_FOLDS))


def _first_of(pairs: torch.Tensor, is_wanted: torch.Tensor, k: int) -> torch.Tensor:
    """Return the first k of M x K ascending pairs that hold wanted rows, ``NOTHING`` for fewer."""
    keep = is_wanted[distances_and_rows(pairs)[1]] & (pairs != NOTHING)
    place = keep.cumsum(1).clamp_(max=k + 1).masked_fill_(~keep, k + 1) - 1
    return pairs.new_full((len(pairs), k + 1), NOTHING).scatter_(1, place, pairs)[:, :k]


def _remoteness(pairs: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """Return the mean of M x k distances in units of the radii of the rows they lead to, `inf` where all are far.

    The least of the k is left out: an outlier has a large radius, and would lend support to all around it.
    """
    distances, rows = distances_and_rows(pairs)
    units = radii[rows]
    ratios = torch.where(distances == units, 1.0, distances / units)
    ratios = ratios.masked_fill(distances.isinf() | units.isinf(), FAR).clamp(max=FAR)
    ratios = (ratios / RATIO_UNIT).round() * RATIO_UNIT
    mean = (ratios.sum(1) - ratios.amin(1)) / (ratios.shape[1] - 1)
    return mean.masked_fill(mean == FAR, math.inf)
