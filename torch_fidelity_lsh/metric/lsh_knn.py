"""Metric ``lsh_knn``: support by distances to nearest neighbours, searched among the samples that share a bucket.

How far are a sample's neighbours, in units of how far these have theirs? That is about 1 inside a set at any density,
and more outside: a local outlier factor (Breunig et al., 2000) in its simplified form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from torch_fidelity_lsh.metric.buckets import BucketIndex, Buckets
from torch_fidelity_lsh.metric.calibration import LOOSE_QUORUM, QUORUM, Evidence, Verdict, exact_mean, memberships
from torch_fidelity_lsh.metric.config import ResolvedConfig
from torch_fidelity_lsh.metric.hashing import HashFamily, occupancy, others_in_bucket, rounded

NEIGHBORHOOD = 15
SAMPLES_PER_NEIGHBOUR = 8  # at least, if the neighbourhood is not given
BUCKET_CAPACITY = 6  # samples searched in a bucket, times log2 of the samples indexed
CANDIDATES = 8  # for each neighbour asked for, at least, on average over the real samples
FAR = 2.0  # radii; what is further away, or not found, counts as this far


@dataclass(frozen=True)
class NeighbourSupport:
    """Says how remote samples are from a set; fitted on the real samples, used both ways.

    A sample's radius is the distance to its k-th nearest among the samples of its set that share a bucket with it in
    any table. The *remoteness* of a point is the mean, over its k nearest, of the distance in units of their radii,
    the least left out. Units are local, so that sparse modes are as much part of the support as dense ones.

    Attributes:
        family: The hash functions.
        width: Bucket width that reaches ``LSHConfig.occupancy`` among the real samples, or the one asked for.
        neighborhood: k.
    """

    family: HashFamily
    width: float
    neighborhood: int

    @classmethod
    def fit(cls, real: torch.Tensor, thinned_to: int, config: ResolvedConfig) -> NeighbourSupport:
        """Find the bucket width for N x P distinct real coordinates, as if only ``thinned_to`` of them were indexed."""
        neighborhood = config.neighborhood or max(2, min(NEIGHBORHOOD, thinned_to // SAMPLES_PER_NEIGHBOUR))
        capacity = _capacity(thinned_to, neighborhood)
        # No more than there are, where samples or tables are few.
        target_candidates = min(CANDIDATES * (neighborhood + 1) / config.num_tables, capacity / 2, (thinned_to - 1) / 2)
        family = HashFamily.sample(real.shape[1], config, real.device)

        def reaches(keys: torch.Tensor) -> bool:
            share = (thinned_to - 1) / (keys.shape[1] - 1)
            others = others_in_bucket(keys)
            candidates = (share * others).clamp(max=capacity).mean()
            return bool(occupancy(others, share).mean() >= config.occupancy and candidates >= target_candidates)

        return cls(family, config.bucket_width or family.find_width(real, reaches), neighborhood)

    def compare(self, generated: torch.Tensor, real: torch.Tensor, thinned_to: int) -> tuple[Verdict, Verdict]:
        """Judge two sets by each other's samples; arguments and result as :meth:`BucketSupport.compare`."""
        return self._judge(generated, real, thinned_to), self._judge(real, generated, thinned_to)

    def _judge(self, assessed: torch.Tensor, support: torch.Tensor, thinned_to: int) -> Verdict:
        k = self.neighborhood
        index = BucketIndex.build(self.family, self.width, support, thinned_to, _capacity(thinned_to, k))
        to_others, others = index.nearest_others(k + 1)
        radii, radii_without_one = to_others[:, k - 1], to_others[:, k]
        buckets = Buckets.of(self.family.keys(assessed, self.width))
        distances, members = index.nearest(assessed, buckets, k)
        remoteness = _remoteness(distances, radii[members])
        own, others = to_others[:, :k], others[:, :k]
        # Left out, a sample is no longer among the k nearest of those that found it.
        itself = torch.arange(len(others), device=others.device)[:, None]
        is_found = torch.stack([others[:, place][others] == itself for place in range(k)]).any(0)
        radii_left_out = torch.where(is_found, radii_without_one[others], radii[others])
        remoteness_left_out = _remoteness(own, radii_left_out)
        strict = Evidence.of(-remoteness, -remoteness_left_out, QUORUM)
        dependence = 1 + k * _agreement(strict.left_out, others)
        # Samples more alike than those of the support, and near the same of these, repeat one observation.
        crowding = min(
            buckets.collisions - index.buckets.collisions,
            _first(members).collisions - _first(others).collisions,
        )
        return Verdict(
            memberships=memberships(-remoteness, -remoteness_left_out),
            strict=strict,
            loose=Evidence.of(-remoteness, -remoteness_left_out, LOOSE_QUORUM),
            dependence=dependence,
            crowding=(len(assessed) - 1) * max(0.0, crowding),
        )

    def to_dict(self) -> dict[str, object]:
        """Return the fitted width and the neighbours looked at, for the protocol."""
        return {"bucket_width": self.width, "neighborhood": self.neighborhood}


def _remoteness(distances: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """Return the mean of M x k distances in units of radii, `inf` where all are far; either may be `inf`.

    The least of the k is left out: an outlier has a large radius, and would lend support to all around it.
    """
    ratios = torch.where(distances == radii, 1.0, distances / radii)
    ratios = ratios.masked_fill(distances.isinf() | radii.isinf(), FAR).clamp(max=FAR)
    ratios = rounded(ratios)
    mean = (ratios.sum(1) - ratios.amin(1)) / (ratios.shape[1] - 1)
    return mean.masked_fill(mean == FAR, math.inf)


def _agreement(passed: torch.Tensor, neighbours: torch.Tensor) -> float:
    """Return how far, in [0, 1], N samples pass or fail, 1 or 0, as their N x k neighbours do: a correlation."""
    pairs, passed = neighbours >= 0, passed > 0
    total, share = int(pairs.sum()), exact_mean(passed.double())
    if not total or not 0 < share < 1:
        return 0.0
    # Those who pass are neighbours more often: the two sides of the pairs have shares of their own.
    near, centre = passed[neighbours] & pairs, passed[:, None] & pairs
    covariance = int((near & centre).sum()) / total - int(near.sum()) / total * int(centre.sum()) / total
    return max(0.0, covariance / (share * (1 - share)))


def _first(members: torch.Tensor) -> Buckets:
    """Put samples with the same first of M x k members together, those without any each on its own."""
    first = members[:, 0]
    return Buckets.of(torch.where(first < 0, -1 - torch.arange(len(first), device=first.device), first)[None])


def _capacity(num_samples: int, neighborhood: int) -> int:
    return max(BUCKET_CAPACITY * math.ceil(math.log2(num_samples)), 2 * neighborhood)
