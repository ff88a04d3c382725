"""Metric ``lsh``: support by hashing alone, a few hashes and look-ups for each assessed sample.

Buckets of several widths show at which scale a sample has company. How early it has company, compared with the samples
it then meets, tells whether it lies where they lie: a local outlier factor (Breunig et al., 2000) that needs no
distances. Comparing with a sample's own company, and not with the whole set, keeps sparse modes as much part of the
support as dense ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from torch_fidelity_lsh.calibration import Evidence, Verdict
from torch_fidelity_lsh.config import ResolvedConfig
from torch_fidelity_lsh.hashing import HashFamily, counts_in, occupancy, others_in_bucket, rounded

NUM_WIDTHS = 8
COARSE_OCCUPANCY = 0.97
QUORUM = 0.5  # share of the left-out samples that may fail the test; more tell samples off the manifold apart better
# Nearly all samples of the set pass this second test, and none far away: samples piled up in a dense spot cannot pay
# for others that lie outside.
COARSE_QUORUM = 0.05
NUM_TABLE_GROUPS = 8
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
            return family.find_width(real, lambda keys: bool(_left_out(keys, thinned_to).mean() >= target))

        fine = config.bucket_width or width_at(config.occupancy)
        step = max(1.0, width_at(COARSE_OCCUPANCY) / fine) ** (1 / (NUM_WIDTHS - 1))
        return cls(family, tuple(fine * step**level for level in range(NUM_WIDTHS)))

    def assess(self, assessed: torch.Tensor, support: torch.Tensor, thinned_to: int) -> Verdict:
        """Judge M x P coordinates by the buckets of N x P ones, as if only ``thinned_to`` of the N were indexed."""
        keys = self.family.keys(support, *self.widths)
        assessed_keys = self.family.keys(assessed, *self.widths)
        share = thinned_to / len(support)
        shared = [
            occupancy(counts_in(level.sort(dim=1).values, queries), share)
            for level, queries in zip(keys, assessed_keys, strict=True)
        ]
        shared_left_out = [_left_out(level, thinned_to) for level in keys]
        closeness = torch.stack(shared_left_out).sum((0, 1))
        company = _Company.meet(keys, closeness, assessed_keys, shared)
        company_left_out = _Company.meet(keys, closeness, keys, shared_left_out, leave_out_self=True)
        return Verdict(
            memberships=_memberships(company.excess(), company_left_out.excess()),
            evidence=[
                _evidence(company.excess, company_left_out.excess, QUORUM, company.num_groups),
                _evidence(company.at_coarsest, company_left_out.at_coarsest, COARSE_QUORUM, company.num_groups),
            ],
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
        coarsest: G x M occupancies at the coarsest width alone.
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
        keys: list[torch.Tensor],
        closeness: torch.Tensor,
        query_keys: list[torch.Tensor],
        shared: list[torch.Tensor],
        leave_out_self: bool = False,
    ) -> _Company:
        """Look up M queries.

        Args:
            keys: For each width, fine to coarse, the L x N keys of the set.
            closeness: N closenesses of the set's samples.
            query_keys: For each width the L x M keys of the queries.
            shared: For each width the L x M occupancies of the queries' buckets.
            leave_out_self: The queries are the set's samples, and do not meet themselves.
        """
        still_alone = torch.ones_like(shared[0])
        met, weight = [], []
        for level, queries, occupied in zip(keys, query_keys, shared, strict=True):
            sums, counts = _sums_in(level, closeness, queries)
            if leave_out_self:
                sums, counts = sums - closeness, counts - 1
            mean = (sums / counts.clamp(min=1)).div_(MEAN_UNIT).round_().mul_(MEAN_UNIT)
            meeting = rounded(still_alone * occupied)
            still_alone = still_alone - meeting
            met.append(_by_group(meeting * mean))
            weight.append(_by_group(meeting))
        return cls(
            closeness=torch.stack([_by_group(occupied) for occupied in shared]).sum(0),
            coarsest=_by_group(shared[-1]),
            met=torch.stack(met).sum(0),
            weight=torch.stack(weight).sum(0),
        )

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

    def at_coarsest(self, without_group: int | None = None) -> torch.Tensor:
        """Return the occupancy of each sample's coarsest buckets, `-inf` for one that is alone in all."""
        total = self._total(self.coarsest, without_group)
        return total.masked_fill(total == 0, -math.inf)

    def _total(self, groups: torch.Tensor, without_group: int | None) -> torch.Tensor:
        total = groups.sum(0)
        return total if without_group is None else total - groups[without_group]


def _left_out(keys: torch.Tensor, thinned_to: int) -> torch.Tensor:
    """Return, for L x N keys, the L x N occupancy of each sample's bucket by the others of its set."""
    return occupancy(others_in_bucket(keys), (thinned_to - 1) / (keys.shape[1] - 1))


def _sums_in(keys: torch.Tensor, values: torch.Tensor, query_keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum N values over the members of each query's bucket; return L x M sums and counts from L x N and L x M keys."""
    sorted_keys, order = keys.sort(dim=1)
    first = torch.searchsorted(sorted_keys, query_keys)
    last = torch.searchsorted(sorted_keys, query_keys, right=True)
    running = torch.nn.functional.pad(values[order].cumsum(1), (1, 0))
    return running.gather(1, last) - running.gather(1, first), last - first


def _by_group(per_table: torch.Tensor) -> torch.Tensor:
    """Sum L x M values within at most 8 groups of tables of equal size, giving G x M."""
    tables = len(per_table)
    groups = max(g for g in range(1, NUM_TABLE_GROUPS + 1) if tables % g == 0)
    return per_table.view(groups, tables // groups, -1).sum(1)


def _memberships(excess: torch.Tensor, excess_left_out: torch.Tensor) -> torch.Tensor:
    """Return the share of left-out samples no closer than each sample, in parts of the quorum and at most 1."""
    rank = torch.searchsorted(excess_left_out.sort().values, excess, right=True)
    memberships = (rank / (QUORUM * len(excess_left_out))).double().clamp(max=1)
    return memberships.masked_fill(excess == -math.inf, 0)


def _evidence(
    assessed: Callable[[int | None], torch.Tensor],
    left_out: Callable[[int | None], torch.Tensor],
    quorum: float,
    num_groups: int,
) -> Evidence:
    """Test whether samples score at least the quantile ``quorum`` of the left-out ones, and better than `-inf`."""

    def passed(without_group: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        scores, scores_left_out = assessed(without_group), left_out(without_group)
        threshold = scores_left_out.kthvalue(1 + int(quorum * (len(scores_left_out) - 1))).values
        reached, reached_left_out = (((s >= threshold) & (s > -math.inf)).double() for s in (scores, scores_left_out))
        return reached, reached_left_out

    jackknife = [passed(group) for group in range(num_groups)] if num_groups > 1 else []
    return Evidence(*passed(None), jackknife)
