"""From per-sample evidence to a calibrated share with its standard error.

Assessed samples are compared with the samples of the support itself, each left out of the support in turn. Where both
come from one distribution they are exchangeable, so that the ratio of their shares is 1 in expectation for any number
of samples and dimensions.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Evidence:
    """One test of membership, with values in [0, 1].

    Attributes:
        assessed: M results of the assessed samples.
        left_out: N results of the support's own samples, each judged by the others.
        jackknife: The same two without one group of hash tables each, to estimate what the choice of tables adds to
            the error; empty if that is not known.
    """

    assessed: torch.Tensor
    left_out: torch.Tensor
    jackknife: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Share of the assessed samples inside the support, relative to its own samples."""
        return _ratio(self.assessed, self.left_out)

    @property
    def stderr(self) -> float:
        """Standard error of the ratio over samples (delta method) and tables (jackknife over groups)."""
        return math.sqrt(self._variance_over_samples() + self._variance_over_tables())

    def _variance_over_samples(self) -> float:
        scale = exact_mean(self.left_out)
        if scale == 0:
            return 0.0
        of_ratio = _variance_of_mean(self.assessed) + self.ratio**2 * _variance_of_mean(self.left_out)
        return of_ratio / scale**2

    def _variance_over_tables(self) -> float:
        groups = len(self.jackknife)
        if groups < 2:
            return 0.0
        ratios = [_ratio(*pair) for pair in self.jackknife]
        return (groups - 1) * statistics.pvariance(ratios)


@dataclass(frozen=True)
class Verdict:
    """What a support says of a set of samples.

    Attributes:
        memberships: M memberships of the assessed samples in [0, 1].
        evidence: Tests of which each must be passed.
    """

    memberships: torch.Tensor
    evidence: list[Evidence]

    @property
    def raw(self) -> float:
        """Mean membership."""
        return exact_mean(self.memberships)

    @property
    def decisive(self) -> Evidence:
        """The strictest test: no set is more inside the support than each test says."""
        return min(self.evidence, key=lambda evidence: evidence.ratio)

    @property
    def value(self) -> float:
        """The calibrated share in [0, 1]."""
        return min(1.0, self.decisive.ratio)


def exact_mean(values: torch.Tensor) -> float:
    """Return the mean of N values, the same whatever their order."""
    return math.fsum(values.tolist()) / len(values)


def _ratio(assessed: torch.Tensor, left_out: torch.Tensor) -> float:
    share = exact_mean(left_out)
    # A support whose own samples fail the test holds nothing.
    return exact_mean(assessed) / share if share else 0.0


def _variance_of_mean(values: torch.Tensor) -> float:
    mean = exact_mean(values)
    # A share of 0 or 1 in N samples is known to about 1/N, not exactly.
    floor = 1 / (len(values) + 1) ** 2
    return max(exact_mean((values - mean) ** 2) / len(values), floor)
