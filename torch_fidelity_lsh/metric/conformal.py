"""From scores to the share of members: conformal p-values and Storey's estimate, with what makes it vary.

A sample is compared with held-out members of a set, the *calibration set*, that live in its cell: its conformal p-value
is the share of them whose score is no higher (Vovk, Gammerman and Shafer, 2005; cells as categories make it a Mondrian
one). P-values of members are uniform, those of strangers small, so the share above lambda, divided by 1 - lambda, is
the share of members (Storey, 2002).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from torch_fidelity_lsh.metric.anchors import cell_counts, exact_mean
from torch_fidelity_lsh.metric.spacing import Spacing

LOWEST_LAMBDA = 0.05
LOG_CROWDED = math.log(2)  # samples that lie less than twice as close as the set's own count in full
LAMBDA_OF_TEST = 0.15  # few strangers sit in the lower tail, where a test sees them best
WEIGHT_UNIT = 2.0**-20


@dataclass(frozen=True)
class Scored:
    """M assessed samples and the n samples of one calibration set, scored against a support that holds neither.

    Attributes:
        scores: M, the higher the closer to the support, `-inf` for out of reach.
        calibration_scores: n.
        cells: T x M, numbers of cells below ``num_cells``.
        calibration_cells: T x n.
        num_cells: Cells of a table.
        calibration_rows: n rows of the calibration set in its whole set.
    """

    scores: torch.Tensor
    calibration_scores: torch.Tensor
    cells: torch.Tensor
    calibration_cells: torch.Tensor
    num_cells: int
    calibration_rows: torch.Tensor

    @cached_property
    def ranks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lowest and highest p-value of each assessed sample, which ties leave open, and those of the calibration set.

        The p-values in cells are ranked once more among those of the calibration set, so that they are uniform for
        members however few live in a cell.
        """
        in_cells, calibration = _pvalues_in_cells(self)
        ordered = calibration.sort().values
        below, up_to = (torch.searchsorted(ordered, in_cells, right=right) for right in (False, True))
        # What is out of reach, as some of the calibration set may be, is no member by that.
        up_to.masked_fill_(in_cells == 0, 0)
        total = len(ordered) + 1
        own = torch.searchsorted(ordered, calibration, right=True).double() / len(ordered)
        return below.double() / total, (up_to + 1).double() / total, own


@dataclass(frozen=True)
class Estimate:
    """Share of members among M assessed samples, and what its error is made of.

    Attributes:
        value: Storey's estimate; its expectation is 1 where all are members, and it may exceed 1.
        weights: M summands of the estimate, whose mean it is: 0, or 1 / (1 - lambda) where the p-value is above lambda.
        pvalues: M conformal p-values in (0, 1); the lowest are the outliers.
        variance_of_crowding: What samples that answer together add to the variance of the mean of the weights.
        influence: One number for each row of the set: the sum of their squares is the variance over calibration sets.
        pvalues_of_set: The conformal p-value of each row of the set, in the fold in which it calibrates.
        fold_values: The estimate of each fold; their spread shows what the choice of folds and anchors adds.
        design_effect: Assessed samples that count as one observation, on average; at least 1.
        variance_if_members: Variance that the estimate would have if all assessed samples were members.
    """

    value: float
    weights: torch.Tensor
    pvalues: torch.Tensor
    variance_of_crowding: float
    influence: torch.Tensor
    pvalues_of_set: torch.Tensor
    fold_values: tuple[float, ...]
    design_effect: float
    variance_if_members: float

    @property
    def variance(self) -> float:
        """Variance of the estimate: over samples, and over calibration sets, folds and anchors."""
        of_set = variance_of_set(self.influence, self.fold_values)
        return variance_of_mean(self.weights) + self.variance_of_crowding + of_set

    @property
    def effective_samples(self) -> float:
        """Number of independent observations that the assessed samples amount to."""
        return len(self.weights) / self.design_effect


def variance_of_mean(weights: torch.Tensor) -> float:
    """Return the variance of the mean of M independent weights; at least that of a share known to 1 / M."""
    mean, size = exact_mean(weights), len(weights)
    return float(max(exact_mean((weights - mean) ** 2) / size, size**-2))


def variance_of_set(influence: torch.Tensor, fold_values: Sequence[float]) -> float:
    """Return the variance over calibration sets, folds and anchors: the mean of two estimates of it."""
    return (math.fsum((influence**2).tolist()) + variance_of_folds(fold_values)) / 2


def variance_of_folds(values: Sequence[float]) -> float:
    """Return the variance of the mean of the values of F folds."""
    return statistics.variance(values) / len(values)


def estimate(
    folds: Sequence[Scored], rows: torch.Tensor, spacing: Spacing, spacing_of_set: Spacing, largest_lambda: float
) -> Estimate:
    """Estimate the share of members from all folds of a set.

    Args:
        folds: The M assessed samples scored in each of F folds.
        rows: M numbers of the assessed samples among their distinct rows.
        spacing: That of the assessed samples.
        spacing_of_set: That of the set.
        largest_lambda: Lambda in (0, 1) where the assessed samples do not crowd.
    """
    log_spacing = spacing.log_distance[rows]
    weights, pvalues = torch.zeros_like(log_spacing), torch.zeros_like(log_spacing)
    influence, influence_if_members, pvalues_of_set = (torch.zeros_like(spacing_of_set.log_distance) for _ in range(3))
    values, variances, variances_if_members, effects = [], [], [], []
    for fold in folds:
        low, high, pvalues_of_set[fold.calibration_rows] = fold.ranks
        sizes = cell_counts(fold.cells, fold.num_cells)
        together = _of_cell(fold, sizes)
        closeness = _log_closeness(fold, sizes, log_spacing, spacing_of_set.log_distance[fold.calibration_rows])
        # Samples in the space of one of the set's give one answer, and the less may be asked of them.
        effect = ((closeness - LOG_CROWDED) * spacing.dimension).clamp(min=0, max=100).exp().minimum(together)
        lambdas = (largest_lambda / effect).clamp(min=min(LOWEST_LAMBDA, largest_lambda))
        share_above = ((high - lambdas) / (high - low)).clamp(0, 1)
        fold_weights = _rounded(share_above / (1 - lambdas))
        answers = together / effect
        # A member fails with probability lambda: where few answers are all no, some may be members.
        local = (_cell_mean(fold, sizes, fold_weights).clamp(max=1) * answers + lambdas) / (answers + lambdas)
        values.append(exact_mean(fold_weights))
        variances.append(exact_mean((effect - 1) * local * (1 / (1 - lambdas) - local)) / len(fold_weights))
        effects.append(exact_mean(effect))
        odds = lambdas / (1 - lambdas)
        variances_if_members.append(exact_mean(effect * odds) / len(fold_weights))
        influence[fold.calibration_rows] += _influence(fold, local * odds.sqrt()) / len(folds)
        influence_if_members[fold.calibration_rows] += _influence(fold, odds.sqrt()) / len(folds)
        weights += fold_weights / len(folds)
        pvalues += (low + high) / (2 * len(folds))
    return Estimate(
        math.fsum(values) / len(values),
        weights,
        pvalues,
        math.fsum(variances) / len(variances),
        influence,
        pvalues_of_set,
        tuple(values),
        math.fsum(effects) / len(effects),
        math.fsum(variances_if_members) / len(folds) + math.fsum((influence_if_members**2).tolist()),
    )


def test_of_membership(folds: Sequence[Scored], rows: torch.Tensor, spacing: Spacing, spacing_of_set: Spacing) -> float:
    """Return the p-value of the hypothesis that all assessed samples are members, against some being strangers.

    The estimate at a small lambda, below 1 by how many of its standard errors (one-sided normal test)?
    """
    found = estimate(folds, rows, spacing, spacing_of_set, LAMBDA_OF_TEST)
    return 0.5 * math.erfc((1 - found.value) / math.sqrt(2 * found.variance_if_members))


def _log_closeness(
    fold: Scored, sizes: torch.Tensor, log_spacing: torch.Tensor, log_spacing_of_calibration: torch.Tensor
) -> torch.Tensor:
    """Return the log of how much closer than the set's the assessed samples of a cell lie to each other.

    Mean over the tables; 0 where a cell holds no calibration sample, which passes nobody.
    """
    own = cell_counts(fold.cells, fold.num_cells, log_spacing) / sizes.clamp(min=1)
    counts = cell_counts(fold.calibration_cells, fold.num_cells)
    of_set = cell_counts(fold.calibration_cells, fold.num_cells, log_spacing_of_calibration) / counts.clamp(min=1)
    return _of_cell(fold, (of_set - own).masked_fill(counts == 0, 0))


def _pvalues_in_cells(fold: Scored) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean over the tables of the share of the cell's calibration samples that are no closer.

    Of these the furthest is left out; ties count half, a calibration sample leaves itself out, and a cell without others
    gives 0.
    """
    ordered, size = fold.calibration_scores.sort().values, len(fold.calibration_scores)

    def places(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.searchsorted(ordered, scores), torch.searchsorted(ordered, scores, right=True)

    keys = (fold.calibration_cells * (size + 1) + places(fold.calibration_scores)[1]).sort(1).values
    counts = cell_counts(fold.calibration_cells, fold.num_cells).long()
    starts = counts.cumsum(1) - counts

    def shares(scores: torch.Tensor, cells: torch.Tensor, itself: int) -> torch.Tensor:
        low, high = places(scores)
        lower = torch.searchsorted(keys, cells * (size + 1) + low, right=True)
        no_higher = lower.clone()
        tied = (low != high).nonzero().flatten()
        no_higher[:, tied] = torch.searchsorted(keys, cells[:, tied] * (size + 1) + high[tied], right=True)
        # One of them, an outlier, would vouch for all that is between it and the others.
        no_closer = (lower + no_higher - 2 * starts.gather(1, cells) - itself - 2).clamp(min=0)
        others = counts.gather(1, cells) - itself - 1
        share = (no_closer.double() / (2 * others)).masked_fill(others <= 0, 0)
        return _rounded(share.mean(0)).masked_fill(scores == -math.inf, 0)

    return shares(fold.scores, fold.cells, 0), shares(fold.calibration_scores, fold.calibration_cells, 1)


def _influence(fold: Scored, effect: torch.Tensor) -> torch.Tensor:
    """Return what each calibration sample moves the estimate by: its share of the effects on those in its cells."""
    sums = cell_counts(fold.cells, fold.num_cells, _rounded(effect))
    counts = cell_counts(fold.calibration_cells, fold.num_cells)
    return (sums / counts.clamp(min=1)).gather(1, fold.calibration_cells).mean(0) / fold.cells.shape[1]


def _of_cell(fold: Scored, per_cell: torch.Tensor) -> torch.Tensor:
    return per_cell.gather(1, fold.cells).mean(0)


def _cell_mean(fold: Scored, sizes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return _of_cell(fold, cell_counts(fold.cells, fold.num_cells, values) / sizes.clamp(min=1))


def _rounded(values: torch.Tensor) -> torch.Tensor:
    # Sums are then exact, and do not depend on their order.
    return (values / WEIGHT_UNIT).round() * WEIGHT_UNIT
