"""The difference between two sets of generated samples that are compared with the same real ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.conformal import Estimate, variance_of_folds, variance_of_mean, variance_of_set
from torch_fidelity_lsh.metric.functional import (
    FEWEST_ROWS,
    METRICS,
    Features,
    PrecisionRecall,
    f_score_slopes,
    harmonic_mean,
    measure,
    reduced_alike,
)
from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.metric.messages import did_you_mean

NUMBERS = ("precision", "recall", "f_score")
KEEPS = 0.05  # a number is kept if not even the lower end of the interval is this far below


@dataclass(frozen=True)
class Difference:
    """A number of A minus that of B, both before they are clipped at 1.

    Attributes:
        value: The difference.
        stderr: Its standard error, over samples, calibration sets, folds and anchors.
    """

    value: float
    stderr: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval; like the value it may reach beyond [-1, 1]."""
        return self.value - 1.96 * self.stderr, self.value + 1.96 * self.stderr

    @property
    def word(self) -> str:
        """What A does, compared with B: ``"gains"``, ``"loses"``, ``"keeps"`` or ``"may keep"``."""
        low, high = self.interval
        if high < 0:
            return "loses"
        if low > 0:
            return "gains"
        return "keeps" if low > -KEEPS else "may keep"

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:+.3f} [{low:+.3f}, {high:+.3f}]"


@dataclass(frozen=True)
class Comparison:
    """How two sets of generated samples, A and B, differ in precision, recall and F-score.

    Attributes:
        metric: ``"lsh"`` or ``"lsh_knn"``.
        a: The result of A.
        b: The result of B.
        paired: Whether row i of both is the same latent.
        precision: Difference of precision, A minus B.
        recall: That of recall.
        f_score: That of the F-score.
    """

    metric: str
    a: PrecisionRecall = field(repr=False)
    b: PrecisionRecall = field(repr=False)
    paired: bool
    precision: Difference
    recall: Difference
    f_score: Difference

    @property
    def verdict(self) -> str:
        """What A does, compared with B, in words, such as ``"A loses recall: 0.81 against 0.93, -0.120 [...]"``."""
        return "A " + "; ".join(self._said(name) for name in ("precision", "recall"))

    def _said(self, name: str) -> str:
        difference: Difference = getattr(self, name)
        a, b = (_unclipped(side, name) for side in (self.a, self.b))
        # Two values of 0 are kept as well.
        return f"{difference.word} {name}: {a:.2f} against {b:.2f}, {difference}"

    def __str__(self) -> str:
        return f"{self.metric}: {self.verdict}"

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, as JSON takes them."""
        numbers: dict[str, Any] = {"metric": self.metric, "paired": self.paired, "verdict": self.verdict}
        for name in NUMBERS:
            difference: Difference = getattr(self, name)
            low, high = difference.interval
            numbers[name] = {
                "a": _unclipped(self.a, name),
                "b": _unclipped(self.b, name),
                "difference": difference.value,
                "stderr": difference.stderr,
                "ci_low": low,
                "ci_high": high,
            }
        return numbers


@default_modes()
def compare(
    generated_a: Features,
    generated_b: Features,
    real: Features,
    config: LSHConfig | None = None,
    metric: str = "lsh_knn",
    paired: bool = False,
) -> Comparison:
    """Compare two sets of generated samples with the same real ones, and with each other.

    The difference varies less than each number: precision is measured with the same calibration sets and anchors,
    recall on the same real samples. Where rows are paired, folds and anchors of both are the same rows, and B's recall
    differs from that of a separate call by what its choice of them would.

    Args:
        generated_a: M x D samples of one generator, float tensor or array, or reduced.
        generated_b: K x D samples of the other.
        real: N x D real samples.
        config: Settings. Default: ``LSHConfig()``.
        metric: ``"lsh"`` or ``"lsh_knn"``.
        paired: Whether row i of A and of B come from the same latent, so that M = K. Default: `False`.

    Raises:
        ValueError: As the functions of the metrics, or ``metric`` is none, or rows are ``paired`` and M is not K.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> real, b = torch.randn(2, 500, 16, generator=draw)
        >>> a = b.clone()
        >>> a[:250] += 20
        >>> compare(a, b, real, paired=True).precision.word
        'loses'
    """
    config = config or LSHConfig()
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}{did_you_mean(metric, METRICS)}")
    if paired and len(generated_a) != len(generated_b):
        raise ValueError(f"paired sets must have as many rows; got {len(generated_a)} and {len(generated_b)}")
    sides = {"generated_a": generated_a, "generated_b": generated_b, "real": real}
    reduced_a, reduced_b, reduced = reduced_alike(sides, config, FEWEST_ROWS)
    a = measure(metric, reduced_a, reduced, config)
    b = measure(metric, reduced_b, reduced, config, reduced_a if paired else None)
    precision = _variance_of_precision(a.precision_estimate, b.precision_estimate, paired)
    recall = _variance_of_recall(a, b, paired)
    f_score = _variance_of_f_score(a, b, precision, recall)
    return Comparison(
        metric=metric,
        a=a,
        b=b,
        paired=paired,
        **{
            name: Difference(_unclipped(a, name) - _unclipped(b, name), math.sqrt(variance))
            for name, variance in zip(NUMBERS, (precision, recall, f_score), strict=True)
        },
    )


def _unclipped(result: PrecisionRecall, name: str) -> float:
    if name == "f_score":
        return harmonic_mean(result.precision_unclipped, result.recall_unclipped)
    return float(getattr(result, f"{name}_unclipped"))


def _variance_of_precision(a: Estimate, b: Estimate, paired: bool) -> float:
    """Return the variance of the difference of two sets assessed by one."""
    if paired:
        of_samples = variance_of_mean(a.weights - b.weights)
    else:
        of_samples = variance_of_mean(a.weights) + variance_of_mean(b.weights)
    fold_values = [one - other for one, other in zip(a.fold_values, b.fold_values, strict=True)]
    of_set = variance_of_set(a.influence - b.influence, fold_values)
    return of_samples + a.variance_of_crowding + b.variance_of_crowding + of_set


def _variance_of_recall(a: PrecisionRecall, b: PrecisionRecall, paired: bool) -> float:
    """Return the variance of the difference of one set assessed by two."""
    one, other = a.recall_estimate, b.recall_estimate
    of_samples = variance_of_mean(one.weights - other.weights) + one.variance_of_crowding + other.variance_of_crowding
    if not paired or len(one.influence) != len(other.influence):
        return of_samples + sum(variance_of_set(each.influence, each.fold_values) for each in (one, other))
    share = a.protocol["storey_lambda"]
    outcomes = torch.stack([(each.pvalues_of_set > share).double() for each in (one, other)])
    alike = float(torch.corrcoef(outcomes)[0, 1].nan_to_num(1.0).clamp(min=0))
    # What a row does to both sets alike makes no difference.
    own = (1 - alike) * math.fsum((one.influence**2 + other.influence**2).tolist())
    shared = alike * math.fsum(((one.influence - other.influence) ** 2).tolist())
    fold_values = [x - y for x, y in zip(one.fold_values, other.fold_values, strict=True)]
    return of_samples + (own + shared + variance_of_folds(fold_values)) / 2


def _variance_of_f_score(a: PrecisionRecall, b: PrecisionRecall, precision: float, recall: float) -> float:
    """Return the variance of the difference of two F-scores by the delta method, precision and recall independent."""
    total = 0.0
    for i, name in enumerate(("precision", "recall")):
        slope_a, slope_b = (f_score_slopes(each.precision_unclipped, each.recall_unclipped)[i] for each in (a, b))
        variance_a, variance_b = (getattr(each, f"{name}_stderr") ** 2 for each in (a, b))
        covariance = (variance_a + variance_b - (precision, recall)[i]) / 2
        total += slope_a**2 * variance_a + slope_b**2 * variance_b - 2 * slope_a * slope_b * covariance
    return max(total, 0.0)
