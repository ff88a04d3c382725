"""From scores to a calibrated share with its standard error.

Assessed samples are compared with the samples of the support itself, each left out of the support in turn. Where both
come from one distribution they are exchangeable, so that the ratio of their shares is 1 in expectation for any number
of samples and dimensions.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

import torch

QUORUM = 0.5  # share of the left-out samples that fail the strict test; more tell samples off the manifold apart better
LOOSE_QUORUM = 0.05
# Shortfalls of the strict test, in units of its own noise, at which it begins to count and at which it decides.
NOTICED, DECISIVE = 1.0, 2.0


@dataclass(frozen=True)
class Evidence:
    """One test of membership.

    Attributes:
        assessed: M results of the assessed samples, 1 or 0.
        left_out: N results of the support's own samples, each judged by the others.
    """

    assessed: torch.Tensor
    left_out: torch.Tensor

    @classmethod
    def of(cls, scores: torch.Tensor, scores_left_out: torch.Tensor, quorum: float) -> Evidence:
        """Test whether M scores reach the quantile ``quorum`` of the scores of the N left-out samples; `-inf` fails."""
        threshold = scores_left_out.kthvalue(1 + int(quorum * (len(scores_left_out) - 1))).values
        return cls(*(((s >= threshold) & (s > -math.inf)).double() for s in (scores, scores_left_out)))

    @property
    def ratio(self) -> float:
        """Share of the assessed samples that pass, relative to that of the support's own samples."""
        share = exact_mean(self.left_out)
        # A support whose own samples fail the test holds nothing.
        return exact_mean(self.assessed) / share if share else 0.0


@dataclass(frozen=True)
class Verdict:
    """What a support says of a set of samples.

    The strict test tells samples near the support from those inside, and is noisy. The loose test, which nearly all of
    the support's own samples pass, misses what is near, but cannot be deceived: samples piled up in a dense spot, where
    all pass the strict test, do not pay for others far away. The value is the loose test's, less what the strict one
    finds missing beyond its noise.

    Attributes:
        memberships: M memberships of the assessed samples in [0, 1].
        strict: A test that a share ``QUORUM`` of the support's own samples fail.
        loose: A test that a share ``LOOSE_QUORUM`` of them fail.
        dependence: How many samples count as one observation because neighbours pass or fail together; at least 1.
        crowding: How many more because the assessed samples lie closer together than those of the support. All those of
            a collapsed generator pass or fail the strict test together, which is then no evidence.
        jackknife: The strict test without one group of hash tables each, to estimate what the choice of tables adds to
            the error; empty if that is not known.
    """

    memberships: torch.Tensor
    strict: Evidence
    loose: Evidence
    dependence: float = 1.0
    crowding: float = 0.0
    jackknife: list[Evidence] = field(default_factory=list)

    @property
    def raw(self) -> float:
        """Mean membership."""
        return exact_mean(self.memberships)

    @property
    def value(self) -> float:
        """The calibrated share in [0, 1]."""
        strict, loose = min(1.0, self.strict.ratio), min(1.0, self.loose.ratio)
        samples = (self.dependence + self.crowding) / len(self.strict.assessed) + 1 / len(self.strict.left_out)
        noise = math.sqrt(QUORUM / (1 - QUORUM) * samples)
        shortfall = max(0.0, loose - strict)
        weight = (shortfall / noise - NOTICED) / (DECISIVE - NOTICED)
        return loose - shortfall * min(1.0, max(0.0, weight))

    @property
    def stderr(self) -> float:
        """Standard error of the strict ratio over samples (delta method) and tables (jackknife over groups)."""
        return math.sqrt(self._variance_over_samples() + self._variance_over_tables())

    def _variance_over_samples(self) -> float:
        scale = exact_mean(self.strict.left_out)
        if scale == 0:
            return 0.0
        of_assessed, of_left_out = (_variance_of_mean(each) for each in (self.strict.assessed, self.strict.left_out))
        return self.dependence * (of_assessed + self.strict.ratio**2 * of_left_out) / scale**2

    def _variance_over_tables(self) -> float:
        groups = len(self.jackknife)
        if groups < 2:
            return 0.0
        return (groups - 1) * statistics.pvariance([evidence.ratio for evidence in self.jackknife])


def memberships(scores: torch.Tensor, scores_left_out: torch.Tensor) -> torch.Tensor:
    """Return the share of left-out samples that score no more than each sample, in parts of the quorum, at most 1."""
    rank = torch.searchsorted(scores_left_out.sort().values, scores, right=True)
    return (rank / (QUORUM * len(scores_left_out))).double().clamp(max=1).masked_fill(scores == -math.inf, 0)


def exact_mean(values: torch.Tensor) -> float:
    """Return the mean of N values, the same whatever their order."""
    return math.fsum(values.tolist()) / len(values)


def _variance_of_mean(values: torch.Tensor) -> float:
    mean = exact_mean(values)
    # A share of 0 or 1 in N samples is known to about 1/N, not exactly.
    floor = 1 / (len(values) + 1) ** 2
    return max(exact_mean((values - mean) ** 2) / len(values), floor)
