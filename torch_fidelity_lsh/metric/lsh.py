"""Metric ``lsh``: support by hashing alone, a few hashes and look-ups for each assessed sample.

Buckets of several widths show at which scale a sample has company. How early it has company, compared with the samples
it then meets, tells whether it lies where they lie: a local outlier factor (Breunig et al., 2000) that needs no
distances. Comparing with a sample's own company, and not with the whole set, keeps sparse modes as much part of the
support as dense ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from torch_fidelity_lsh.metric.calibration import LOOSE_QUORUM, QUORUM, Evidence, Verdict, memberships
from torch_fidelity_lsh.metric.config import ResolvedConfig
from torch_fidelity_lsh.metric.hashing import (
    HashFamily,
    bucket_numbers,
    bucket_sums,
    occupancy,
    others_in_bucket,
    rounded,
)

NUM_WIDTHS = 5
COARSE_OCCUPANCY = 0.97
OUTLIER_OCCUPANCY = 0.1  # of a sample's coarsest buckets; with less company it is an outlier
NUM_TABLE_GROUPS = 8
ELEMENTS_AT_ONCE = 2**18
MEAN_UNIT = 2.0**-12


@dataclass(frozen=True)
class BucketSupport:
    """Judges samples by the company they have in the buckets of a set; fitted on the real samples, used both ways.

    Attributes:
        family: The hash functions.
        widths: Ascending bucket widths, in geometric progression from the one that reaches ``LSHConfig.occupancy``
            among the real samples, or the one asked for, to the one that reaches 0.97.
    """

    family: HashFamily
    widths: tuple[float, ...]

    @classmethod
    def fit(cls, real: torch.Tensor, thinned_to: int, config: ResolvedConfig) -> BucketSupport:
        """Find the widths for N x P distinct real coordinates, as if only ``thinned_to`` of them were indexed."""
        family = HashFamily.sample(real.shape[1], config, real.device)

        def width_at(target: float) -> float:
            share = (thinned_to - 1) / max(1, len(real) - 1)
            return family.find_width(real, lambda keys: bool(occupancy(others_in_bucket(keys), share).mean() >= target))

        fine = config.bucket_width or width_at(config.occupancy)
        step = max(1.0, width_at(COARSE_OCCUPANCY) / fine) ** (1 / (NUM_WIDTHS - 1))
        return cls(family, tuple(fine * step**level for level in range(NUM_WIDTHS)))

    def compare(self, generated: torch.Tensor, real: torch.Tensor, thinned_to: int) -> tuple[Verdict, Verdict]:
        """Judge two sets by each other's buckets, as if of each only ``thinned_to`` samples were indexed.

        Args:
            generated: M x P coordinates.
            real: N x P coordinates.
            thinned_to: At most the smaller of M and N.

        Returns:
            What the real buckets say of the generated samples, and the generated ones of the real samples.
        """
        # Numbered together, the buckets of one set are those of the other, and need no search.
        levels = self.family.keys_at_widths([generated, real], self.widths)
        for part in (part for level in levels for part in _table_parts(level)):
            part.copy_(bucket_numbers(part))
        sizes = [len(generated), len(real)]
        sides = zip(*(torch.split(level, sizes, dim=1) for level in levels), strict=True)
        one, other = (_Side.of(side, sum(sizes), thinned_to) for side in sides)
        return _judge(one, other), _judge(other, one)

    def to_dict(self) -> dict[str, object]:
        """Return the fitted widths, for the protocol."""
        return {"bucket_widths": list(self.widths)}


@dataclass(frozen=True)
class _Side:
    """A set in buckets that it shares with another set.

    Attributes:
        levels: For each width, fine to coarse, the L x N numbers of the samples' buckets.
        num_buckets: All bucket numbers are below.
        share: Share of the samples to be thought of as indexed.
        share_left_out: The same where one sample is left out.
        members: N, 1 for samples and 0 for outliers. An outlier is no company: samples near it, if far from all others,
            are outside.
        closeness: N occupancies of the samples' buckets by others, over all widths and tables, 0 for outliers.
    """

    levels: tuple[torch.Tensor, ...]
    num_buckets: int
    share: float
    share_left_out: float
    members: torch.Tensor
    closeness: torch.Tensor

    @classmethod
    def of(cls, levels: tuple[torch.Tensor, ...], num_buckets: int, thinned_to: int) -> _Side:
        """Find the outliers and the closeness of all others."""
        tables, size = levels[0].shape
        share_left_out = (thinned_to - 1) / max(1, size - 1)

        def occupied_by_others(level: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
            total = torch.zeros_like(members)
            for numbers in _table_parts(level):
                count = bucket_sums(numbers, members, num_buckets).gather(1, numbers.long()) - members
                total += occupancy(count, share_left_out).sum(0)
            return total

        everyone = torch.ones(size, dtype=torch.float64, device=levels[0].device)
        members = (occupied_by_others(levels[-1], everyone) >= OUTLIER_OCCUPANCY * tables).double()
        closeness = torch.stack([occupied_by_others(level, members) for level in levels]).sum(0) * members
        return cls(levels, num_buckets, thinned_to / size, share_left_out, members, closeness)

    @property
    def collisions(self) -> float:
        """Probability in [0, 1] that two of the samples share a bucket of the finest width."""
        finest, pairs = self.levels[0], 0
        for numbers in _table_parts(finest):
            sizes = bucket_sums(numbers, torch.ones_like(numbers[0], dtype=torch.int64), self.num_buckets)
            pairs += int((sizes * (sizes - 1)).sum())
        return pairs / (finest.numel() * max(1, finest.shape[1] - 1))


class _Company:
    """What M samples find in the buckets of a set, width by width from fine to coarse, summed in G groups of tables.

    Sums are of whole multiples of small units, so that they do not depend on the order of summation.

    Attributes:
        closeness: G x M occupancies of the samples' buckets, over all widths.
        coarsest: G x M occupancies at the coarsest width alone.
        met: G x M mean closeness (over all tables) of those met in the finest bucket that holds anyone.
        weight: G x M probabilities of meeting anyone; ``met`` is to be divided by it.
    """

    closeness: torch.Tensor
    coarsest: torch.Tensor
    met: torch.Tensor
    weight: torch.Tensor

    def __init__(self, queries: _Side, left_out_of: _Side | None, share: float) -> None:
        """Prepare to look up the samples of one set.

        Args:
            queries: The set.
            left_out_of: The same set if its samples are looked up in their own buckets, and do not meet themselves.
            share: Share of the members to be thought of as indexed.
        """
        tables, num_samples = queries.levels[0].shape
        groups = max(g for g in range(1, NUM_TABLE_GROUPS + 1) if tables % g == 0)
        zeros = queries.members.new_zeros(4, groups, num_samples)
        self.closeness, self.coarsest, self.met, self.weight = zeros
        self._alone = queries.members.new_ones(tables, num_samples)  # Probability of having met nobody yet.
        self._left_out_of, self._share = left_out_of, share

    def look(self, numbers: torch.Tensor, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Look into the buckets of the next coarser width.

        Args:
            numbers: L x M bucket numbers of the samples.
            counts: L x B members in each bucket.
            sums: L x B sums of their closeness.
        """
        step = max(1, ELEMENTS_AT_ONCE // len(numbers))
        for part in (slice(first, first + step) for first in range(0, numbers.shape[1], step)):
            asked = numbers[:, part].long()
            count, closeness = counts.gather(1, asked), sums.gather(1, asked)
            if self._left_out_of is not None:
                count -= self._left_out_of.members[part]
                closeness -= self._left_out_of.closeness[part]
            mean = closeness.div_(count.clamp(min=1)).div_(MEAN_UNIT).round_().mul_(MEAN_UNIT)
            occupied = occupancy(count, self._share)
            meeting = rounded(self._alone[:, part] * occupied)
            self._alone[:, part] -= meeting
            self.coarsest[:, part] = self._by_group(occupied)
            self.closeness[:, part] += self.coarsest[:, part]
            self.met[:, part] += self._by_group(mean.mul_(meeting))
            self.weight[:, part] += self._by_group(meeting)

    def _by_group(self, per_table: torch.Tensor) -> torch.Tensor:
        groups = len(self.weight)
        return per_table.view(groups, len(per_table) // groups, -1).sum(1)

    @property
    def occupied(self) -> torch.Tensor:
        """M numbers of coarsest buckets that hold anyone, `-inf` for none."""
        total = self.coarsest.sum(0)
        return total.masked_fill(total == 0, -math.inf)

    def excess(self, without_group: int | None = None) -> torch.Tensor:
        """Return how much closer to the set each sample is than those it meets, `-inf` for one that meets none."""
        groups, weight = len(self.weight), self._total(self.weight, without_group)
        scale = groups / (groups - (without_group is not None))
        excess = scale * self._total(self.closeness, without_group) - self._total(self.met, without_group) / weight
        return excess.masked_fill(weight == 0, -math.inf)

    def _total(self, groups: torch.Tensor, without_group: int | None) -> torch.Tensor:
        total = groups.sum(0)
        return total if without_group is None else total - groups[without_group]


def _judge(assessed: _Side, support: _Side) -> Verdict:
    """Judge samples by the company they have in the support's buckets, compared with those of the support."""
    company, company_left_out = _meet(assessed, support)
    excess, excess_left_out = company.excess(), company_left_out.excess()
    groups = range(len(company.weight)) if len(company.weight) > 1 else ()
    return Verdict(
        memberships=memberships(excess, excess_left_out),
        strict=Evidence.of(excess, excess_left_out, QUORUM),
        loose=Evidence.of(company.occupied, company_left_out.occupied, LOOSE_QUORUM),
        crowding=(len(assessed.members) - 1) * max(0.0, assessed.collisions - support.collisions),
        jackknife=[Evidence.of(company.excess(g), company_left_out.excess(g), QUORUM) for g in groups],
    )


def _meet(assessed: _Side, support: _Side) -> tuple[_Company, _Company]:
    """Let the assessed samples look into the support's buckets, and those of the support, each left out."""
    company = _Company(assessed, None, support.share)
    company_left_out = _Company(support, support, support.share_left_out)
    for asked, held in zip(assessed.levels, support.levels, strict=True):
        counts, sums = (bucket_sums(held, v, support.num_buckets) for v in (support.members, support.closeness))
        company.look(asked, counts, sums)
        company_left_out.look(held, counts, sums)
    return company, company_left_out


def _table_parts(numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split L x N numbers into some tables at a time."""
    return torch.split(numbers, max(1, ELEMENTS_AT_ONCE // numbers.shape[1]))
