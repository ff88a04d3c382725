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

from torch_fidelity_lsh.calibration import LOOSE_QUORUM, QUORUM, Evidence, Verdict, memberships
from torch_fidelity_lsh.config import ResolvedConfig
from torch_fidelity_lsh.hashing import Buckets, HashFamily, occupancy, others_in_bucket, rounded

NUM_WIDTHS = 5
COARSE_OCCUPANCY = 0.97
OUTLIER_OCCUPANCY = 0.1  # of a sample's coarsest buckets; with less company it is an outlier
NUM_TABLE_GROUPS = 8
CROWDING_TABLES = 4
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

    def assess(self, assessed: torch.Tensor, support: torch.Tensor, thinned_to: int) -> Verdict:
        """Judge M x P coordinates by the buckets of N x P ones, as if only ``thinned_to`` of the N were indexed."""
        support_keys = self.family.keys(support, *self.widths)
        assessed_keys = self.family.keys(assessed, *self.widths)
        share, share_left_out = thinned_to / len(support), (thinned_to - 1) / max(1, len(support) - 1)
        buckets = [Buckets.of(keys) for keys in support_keys]
        found = [b.find(keys) for b, keys in zip(buckets, assessed_keys, strict=True)]
        found_left_out = [b.find_own() for b in buckets]
        # An outlier is no company: samples near it, if far from all others, are outside.
        start, end = found_left_out[-1]
        members = (occupancy(end - start - 1, share_left_out).mean(0) >= OUTLIER_OCCUPANCY).double()
        counts = [b.sums(members, at) for b, at in zip(buckets, found, strict=True)]
        counts_left_out = [b.sums(members, at) - members for b, at in zip(buckets, found_left_out, strict=True)]
        closeness = torch.stack([occupancy(c, share_left_out) for c in counts_left_out]).sum((0, 1)) * members
        company = _Company.meet(buckets, closeness, found, counts, share)
        company_left_out = _Company.meet(buckets, closeness, found_left_out, counts_left_out, share_left_out, True)
        groups = range(company.num_groups) if company.num_groups > 1 else ()
        crowding = Buckets.of(assessed_keys[0][:CROWDING_TABLES]).collisions - buckets[0].collisions
        return Verdict(
            memberships=memberships(company.excess(), company_left_out.excess()),
            strict=Evidence.of(company.excess(), company_left_out.excess(), QUORUM),
            loose=Evidence.of(company.coarsest, company_left_out.coarsest, LOOSE_QUORUM),
            crowding=(len(assessed) - 1) * max(0.0, crowding),
            jackknife=[Evidence.of(company.excess(g), company_left_out.excess(g), QUORUM) for g in groups],
        )

    def to_dict(self) -> dict[str, object]:
        """Return the fitted widths, for the protocol."""
        return {"bucket_widths": list(self.widths)}


@dataclass(frozen=True)
class _Company:
    """What M samples find in the buckets of a set, summed within G groups of tables.

    Sums are of whole multiples of small units, so that they do not depend on the order of summation.

    Attributes:
        closeness: G x M occupancies of the samples' buckets, over all widths.
        coarsest: M occupancies at the coarsest width alone, of all tables; `-inf` where all those buckets are empty.
        met: G x M mean closeness (over all tables) of those met in the finest bucket that holds anyone.
        weight: G x M probabilities of meeting anyone; ``met`` is to be divided by it.
    """

    closeness: torch.Tensor
    coarsest: torch.Tensor
    met: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def meet(
        cls,
        buckets: list[Buckets],
        closeness: torch.Tensor,
        found: list[tuple[torch.Tensor, torch.Tensor]],
        counts: list[torch.Tensor],
        share: float,
        leave_out_self: bool = False,
    ) -> _Company:
        """Look up M queries.

        Args:
            buckets: Those of each width, fine to coarse.
            closeness: N closenesses of the set's samples, 0 for those that are no company.
            found: For each width where the buckets of the M queries start and end.
            counts: For each width the L x M numbers of members in the queries' buckets.
            share: Share of the members to be thought of as indexed.
            leave_out_self: The queries are the set's samples, and do not meet themselves.
        """
        still_alone = torch.ones_like(counts[0])
        all_occupied, met, weight = [], [], []
        for level, at, count in zip(buckets, found, counts, strict=True):
            sums = level.sums(closeness, at) - (closeness if leave_out_self else 0)
            mean = (sums / count.clamp(min=1)).div_(MEAN_UNIT).round_().mul_(MEAN_UNIT)
            occupied = occupancy(count, share)
            meeting = rounded(still_alone * occupied)
            still_alone = still_alone - meeting
            all_occupied.append(_by_group(occupied))
            met.append(_by_group(meeting * mean))
            weight.append(_by_group(meeting))
        sums_by_group = (torch.stack(levels).sum(0) for levels in (all_occupied, met, weight))
        closeness_of_queries, met_total, weight_total = sums_by_group
        coarsest = all_occupied[-1].sum(0)
        return cls(closeness_of_queries, coarsest.masked_fill(coarsest == 0, -math.inf), met_total, weight_total)

    @property
    def num_groups(self) -> int:
        """Number G of groups of tables."""
        return len(self.closeness)

    def excess(self, without_group: int | None = None) -> torch.Tensor:
        """Return how much closer to the set each sample is than those it meets, `-inf` for one that meets none."""
        weight = self._total(self.weight, without_group)
        scale = self.num_groups / (self.num_groups - (without_group is not None))
        excess = scale * self._total(self.closeness, without_group) - self._total(self.met, without_group) / weight
        return excess.masked_fill(weight == 0, -math.inf)

    def _total(self, groups: torch.Tensor, without_group: int | None) -> torch.Tensor:
        total = groups.sum(0)
        return total if without_group is None else total - groups[without_group]


def _by_group(per_table: torch.Tensor) -> torch.Tensor:
    """Sum L x M values within at most 8 groups of tables of equal size, giving G x M."""
    tables = len(per_table)
    groups = max(g for g in range(1, NUM_TABLE_GROUPS + 1) if tables % g == 0)
    return per_table.view(groups, tables // groups, -1).sum(1)
