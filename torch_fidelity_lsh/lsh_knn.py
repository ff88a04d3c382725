"""Metric ``lsh_knn``: support by balls around nearest neighbours, searched among the samples that share a bucket."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from torch_fidelity_lsh.buckets import Block, BucketIndex, smallest_distinct
from torch_fidelity_lsh.calibration import Evidence, Verdict
from torch_fidelity_lsh.config import ResolvedConfig
from torch_fidelity_lsh.hashing import HashFamily, occupancy, others_in_bucket

BUCKET_CAPACITY = 16  # samples searched in a bucket, times log2 of the samples indexed
CANDIDATES = 4  # for each neighbour asked for, at least, on average over the real samples


@dataclass(frozen=True)
class BallSupport:
    """Says in how many balls of the samples of an index a sample lies.

    A ball's radius is the distance to the k-th nearest among the samples that share a bucket with its centre in any
    table. A sample with fewer such candidates is an outlier and gets no ball. Balls are counted with radii capped at
    the median radius of the next k neighbours, so that a sample at the rim does not claim the space around it. A cap
    that is the same everywhere would empty the sparse modes of a set: a generator of one sparse mode alone would score
    a low precision.

    Attributes:
        family: The hash functions.
        width: Bucket width that reaches ``LSHConfig.occupancy`` among the real samples, or the one asked for.
        neighborhood: k.
    """

    family: HashFamily
    width: float
    neighborhood: int

    @classmethod
    def fit(cls, real: torch.Tensor, thinned_to: int, config: ResolvedConfig) -> BallSupport:
        """Find the bucket width for N x P distinct real coordinates, as if only ``thinned_to`` of them were indexed."""
        target_occupancy = config.occupancy
        capacity = _capacity(thinned_to, config.neighborhood)
        # No more than there are, where samples or tables are few.
        target_candidates = min(
            CANDIDATES * (config.neighborhood + 1) / config.num_tables, capacity / 2, (thinned_to - 1) / 2
        )
        family = HashFamily.sample(real.shape[1], config, real.device)

        def reaches(keys: torch.Tensor) -> bool:
            share = (thinned_to - 1) / (keys.shape[1] - 1)
            others = others_in_bucket(keys)
            candidates = (share * others).clamp(max=capacity).mean()
            return bool(occupancy(others, share).mean() >= target_occupancy and candidates >= target_candidates)

        return cls(family, config.bucket_width or family.find_width(real, reaches), config.neighborhood)

    def assess(self, assessed: torch.Tensor, support: torch.Tensor, thinned_to: int) -> Verdict:
        """Judge M x P coordinates by the balls of ``thinned_to`` of the N x P ones of the support."""
        k = self.neighborhood
        index = BucketIndex.build(self.family, self.width, support, thinned_to, _capacity(thinned_to, k))
        distances = ((block, block.squared_distances) for block in index.blocks_of_others())
        nearest, neighbours = smallest_distinct(2 * k, distances, thinned_to, index)
        radii = nearest[:, k - 1]
        # Not the k nearest themselves: the radius of a sample, left out, must not have a say in whether it is inside.
        around = torch.where(nearest[:, k:].isfinite(), radii[neighbours[:, k:]], radii[:, None])
        capped = torch.minimum(radii, around.median(1).values)
        balls = _Balls(index, radii, capped, exists=radii.isfinite())
        any_ball, inside = balls.count(index.blocks_of(assessed), len(assessed), at_most=k)
        # A sample left out is judged by the balls that exist without it. Without it such a ball would be larger only if
        # it lies inside already, so that the radii need not be found again.
        balls_left_out = _Balls(index, radii, capped, exists=nearest[:, k].isfinite())
        any_ball_left_out, inside_left_out = balls_left_out.count(index.blocks_of_others(), thinned_to, at_most=k)
        return Verdict(
            memberships=inside / k,
            evidence=[
                # With radii as they are nearly every real sample is inside: samples piled up in a dense spot, where all
                # pass the stricter test, cannot pay here for others that lie outside.
                Evidence(any_ball, any_ball_left_out),
                Evidence(inside / k, inside_left_out / k),
            ],
        )

    def to_dict(self) -> dict[str, object]:
        """Return the fitted width, for the protocol."""
        return {"bucket_width": self.width}


class _Balls:
    """Balls around the samples of an index.

    Args:
        index: The N samples.
        radii: N squared radii.
        capped_radii: N squared radii.
        exists: Which of them have a ball.
    """

    def __init__(
        self, index: BucketIndex, radii: torch.Tensor, capped_radii: torch.Tensor, exists: torch.Tensor
    ) -> None:
        self.index = index
        # Nothing is inside a negative radius.
        self.radii = radii.masked_fill(~exists, -1)
        self.capped_radii = capped_radii.masked_fill(~exists, -1)

    def count(self, blocks: Iterable[Block], num_queries: int, at_most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return, for M queries, 1 where one is in any ball, and the number of balls with capped radii it is in."""
        in_any = torch.zeros(num_queries, dtype=torch.bool, device=self.radii.device)

        def heights() -> Iterator[tuple[Block, torch.Tensor]]:
            for block in blocks:
                reached = (block.squared_distances <= self.radii[block.members][:, None]).any(-1)
                in_any[block.queries[block.is_query & reached]] = True
                yield block, block.squared_distances - self.capped_radii[block.members][:, None]

        lowest, _ = smallest_distinct(at_most, heights(), num_queries, self.index)
        return in_any.double(), (lowest <= 0).sum(1).double()


def _capacity(num_samples: int, neighborhood: int) -> int:
    return max(BUCKET_CAPACITY * math.ceil(math.log2(num_samples)), 2 * neighborhood)
