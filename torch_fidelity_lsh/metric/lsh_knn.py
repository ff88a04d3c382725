"""Metric ``lsh_knn``: nearest neighbours, searched among the samples that share a hash bucket."""

from __future__ import annotations

import math

import numpy as np
import torch

from torch_fidelity_lsh.metric.anchors import AnchorTables
from torch_fidelity_lsh.metric.buckets import BucketIndex, Buckets
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.conformal import Scored
from torch_fidelity_lsh.metric.coordinates import Coordinates
from torch_fidelity_lsh.metric.hashing import HashFamily, others_in_bucket

NUM_FOLDS = 4
CELLS, CELL_TABLES = 48, 12
SEARCHED = 3  # times k neighbours are searched, so that k of them lie in the support of any fold
NUM_HASHES = 8
OCCUPANCY = 0.9  # of (member, table) pairs whose bucket holds another member, at least
CANDIDATES = 8  # for each neighbour asked for, at least, on average over the members
BUCKET_CAPACITY = 6  # members searched in a bucket, times log2 of the members
FAR = 2.0  # radii; what is further away, or not found, counts as this far
RATIO_UNIT = 2.0**-20


def score_folds(assessed: torch.Tensor, members: torch.Tensor, groups: torch.Tensor, config: LSHConfig) -> list[Scored]:
    """Score samples against a set by a local outlier factor.

    In turn one fourth of the set is the calibration set and the rest the support. The radius of a support sample is the
    distance to its k-th nearest other. The score is minus the mean, over the k nearest in the support, of the distance
    in units of their radii, each at most 2 and the least left out (a simplified local outlier factor, Breunig et al.,
    2000); `-inf` where all are at least 2 radii away. Neighbours are those found among about log N members that share
    one of the sample's hash buckets.

    Args:
        assessed: M x P reduced features of the samples.
        members: N x P reduced features of the set, N >= 8, no row twice, in pseudo-random order.
        groups: N numbers; rows with the same number, near copies, are held out together.
        config: Settings.
    """
    coordinates = Coordinates.fit(members)
    inside, points = coordinates(members), coordinates(assessed)
    k = max(2, min(config.neighborhood, len(members) // 8))
    index = _index(inside, k, config)
    to_others = index.nearest_others(SEARCHED * k)
    to_members = index.nearest(points, Buckets.of(index.family.keys(points, index.width)), SEARCHED * k)
    tables = AnchorTables.draw(inside, CELLS, CELL_TABLES, np.random.default_rng([config.seed, 2]))
    cells, cells_inside = tables.nearest(points)[0], tables.nearest(inside, are_support=True)[0]
    folds = []
    for number in range(NUM_FOLDS):
        is_support = groups % NUM_FOLDS != number
        calibration = (~is_support).nonzero().flatten()
        own_distances, _ = _nearest_of(*to_others, is_support, k)
        radii = own_distances[:, -1]
        held_out = to_others[0][calibration], to_others[1][calibration]
        scores, held_out_scores = (
            -_remoteness(*_nearest_of(*found, is_support, k), radii) for found in (to_members, held_out)
        )
        num_cells = tables.rows.shape[1]
        folds.append(Scored(scores, held_out_scores, cells, cells_inside[:, calibration], num_cells, calibration))
    return folds


def _index(members: torch.Tensor, k: int, config: LSHConfig) -> BucketIndex:
    """Index members with the narrowest buckets that hold enough of them."""
    size = len(members)
    capacity = max(BUCKET_CAPACITY * math.ceil(math.log2(size)), SEARCHED * k)
    # No more than there are, where samples or tables are few.
    wanted = min(CANDIDATES * (k + 1) / config.num_tables, capacity / 2, (size - 1) / 2)
    family = HashFamily.sample(members.shape[1], config.num_tables, NUM_HASHES, config.seed, members.device)

    def is_enough(keys: torch.Tensor) -> bool:
        others = others_in_bucket(keys)
        occupied, found = (others > 0).double().mean(), others.clamp(max=capacity).double().mean()
        return bool(occupied >= OCCUPANCY and found >= wanted)

    return BucketIndex.build(family, family.find_width(members, is_enough), members, capacity)


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
