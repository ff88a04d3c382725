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

from torch_fidelity_lsh.metric.anchors import cell_counts, exact_mean, in_one_table, of_cells, tables_at_once
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
    def pvalues_in_cells(self) -> tuple[torch.Tensor, torch.Tensor]:
        """P-values in cells of the assessed samples and of the calibration set."""
        return _pvalues_in_cells(self)

    @cached_property
    def ranks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lowest and highest p-value of each assessed sample, which ties leave open, and those of the calibration set.

        The p-values in cells are ranked once more among those of the calibration set, so that they are uniform for
        members however few live in a cell.
        """
        in_cells, calibration = self.pvalues_in_cells
        ordered = calibration.sort().values
        below, up_to = (torch.searchsorted(ordered, in_cells, right=right) for right in (False, True))
        total = len(ordered) + 1
        own = torch.searchsorted(ordered, calibration, right=True).double() / len(ordered)
        return below.double() / total, (up_to + 1).double() / total, own

    @property
    def out_of_reach(self) -> float:
        """Highest p-value of a sample out of reach, as some of the calibration set may be; at most .95."""
        calibration = self.pvalues_in_cells[1]
        return min(0.95, (int((calibration == 0).sum()) + 1) / (len(calibration) + 1))


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
    """

    value: float
    weights: torch.Tensor
    pvalues: torch.Tensor
    variance_of_crowding: float
    influence: torch.Tensor
    pvalues_of_set: torch.Tensor
    fold_values: tuple[float, ...]
    design_effect: float

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


@dataclass(frozen=True)
class Crowding:
    """How many of the M samples assessed in one fold answer together.

    Attributes:
        sizes: T x ``num_cells`` numbers of samples in cells.
        together: M mean numbers of samples in a sample's cells.
        effect: M design effects: samples that count as one observation, at least 1.
    """

    sizes: torch.Tensor
    together: torch.Tensor
    effect: torch.Tensor

    @classmethod
    def of(cls, fold: Scored, rows: torch.Tensor, spacing: Spacing, spacing_of_set: Spacing) -> Crowding:
        """Compare the spacing of assessed samples, by their numbers among distinct rows, with that of the set."""
        log_spacing = spacing.log_distance[rows]
        sizes = cell_counts(fold.cells, fold.num_cells)
        together = of_cells(sizes, fold.cells)
        closeness = _log_closeness(fold, sizes, log_spacing, spacing_of_set.log_distance[fold.calibration_rows])
        # Samples in the space of one of the set's give one answer, and the less may be asked of them.
        effect = ((closeness - LOG_CROWDED) * spacing.dimension).clamp(min=0, max=100).exp().minimum(together)
        return cls(sizes, together, effect)


def estimate(
    folds: Sequence[Scored], crowding: Sequence[Crowding], num_members: int, largest_lambda: float
) -> Estimate:
    """Estimate the share of members from all folds of a set.

    Args:
        folds: The M assessed samples scored in each of F folds.
        crowding: How they crowd in each.
        num_members: Size of the set.
        largest_lambda: Lambda in (0, 1) where the assessed samples do not crowd.
    """
    effect = crowding[0].effect
    weights, pvalues = torch.zeros_like(effect), torch.zeros_like(effect)
    influence, pvalues_of_set = (effect.new_zeros(num_members) for _ in range(2))
    values, variances = [], []
    for fold, crowd in zip(folds, crowding, strict=True):
        low, high, pvalues_of_set[fold.calibration_rows] = fold.ranks
        lambdas, fold_weights = _lambdas_and_weights(fold, crowd.effect, largest_lambda)
        answers = crowd.together / crowd.effect
        sums = cell_counts(fold.cells, fold.num_cells, fold_weights)
        mean = of_cells(sums / crowd.sizes.clamp(min=1), fold.cells).clamp(max=1)
        # A member fails with probability lambda: where few answers are all no, some may be members.
        local = (mean * answers + lambdas) / (answers + lambdas)
        values.append(exact_mean(fold_weights))
        variances.append(exact_mean((crowd.effect - 1) * local * (1 / (1 - lambdas) - local)) / len(fold_weights))
        influence[fold.calibration_rows] += _influence(fold, local * (lambdas / (1 - lambdas)).sqrt()) / len(folds)
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
        math.fsum(exact_mean(crowd.effect) for crowd in crowding) / len(folds),
    )


def membership_pvalue(folds: Sequence[Scored], crowding: Sequence[Crowding], num_members: int) -> float:
    """Return the p-value of the hypothesis that all assessed samples are members, against some being strangers.

    The estimate at a small lambda, below 1 by how many of the standard errors that it has if they are (one-sided
    normal test)?
    """
    influence = crowding[0].effect.new_zeros(num_members)
    values, variances = [], []
    for fold, crowd in zip(folds, crowding, strict=True):
        lambdas, weights = _lambdas_and_weights(fold, crowd.effect, LAMBDA_OF_TEST)
        odds = lambdas / (1 - lambdas)
        values.append(exact_mean(weights))
        variances.append(exact_mean(crowd.effect * odds) / len(weights))
        influence[fold.calibration_rows] += _influence(fold, odds.sqrt()) / len(folds)
    variance = math.fsum(variances) / len(folds) + math.fsum((influence**2).tolist())
    return 0.5 * math.erfc((1 - math.fsum(values) / len(values)) / math.sqrt(2 * variance))


def _lambdas_and_weights(
    fold: Scored, effect: torch.Tensor, largest_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return M lambdas and the M summands of the estimate."""
    low, high, _ = fold.ranks
    # To be out of reach, as some of the set are, is no sign of a member.
    lambdas = (largest_lambda / effect).clamp(min=max(min(LOWEST_LAMBDA, largest_lambda), fold.out_of_reach))
    share_above = ((high - lambdas) / (high - low)).clamp(0, 1)
    return lambdas, _rounded(share_above / (1 - lambdas))


def _log_closeness(
    fold: Scored, sizes: torch.Tensor, log_spacing: torch.Tensor, log_spacing_of_calibration: torch.Tensor
) -> torch.Tensor:
    """Return the log of how much closer than the set's the assessed samples of a cell lie to each other.

    Mean over the tables; 0 where a cell holds no calibration sample, which passes nobody.
    """
    own = cell_counts(fold.cells, fold.num_cells, log_spacing) / sizes.clamp(min=1)
    counts = cell_counts(fold.calibration_cells, fold.num_cells)
    of_set = cell_counts(fold.calibration_cells, fold.num_cells, log_spacing_of_calibration) / counts.clamp(min=1)
    return of_cells((of_set - own).masked_fill(counts == 0, 0), fold.cells)


def _pvalues_in_cells(fold: Scored) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean over the tables of the share of the cell's calibration samples that are no closer.

    0 where it is one alone; ties count half, and a calibration sample leaves itself out.
    """
    size = len(fold.calibration_scores)
    scores, order = torch.cat([fold.calibration_scores, fold.scores]).sort()
    is_calibration = (order < size).long()
    tie = torch.unique_consecutive(scores, return_inverse=True)[1]

    total = torch.zeros_like(scores, dtype=torch.float64)
    for cells in tables_at_once(torch.cat([fold.calibration_cells, fold.cells], 1)):
        flat = in_one_table(cells, fold.num_cells)
        counts = flat[:, :size].flatten().bincount(minlength=len(cells) * fold.num_cells)
        flat, place = flat[:, order].flatten().sort(stable=True)
        # In the order of cells, and of scores within each, ties are runs: how many were counted before and after one?
        itself = is_calibration.repeat(len(cells))[place]
        _, run, lengths = torch.unique_consecutive(
            flat.long() * len(scores) + tie.repeat(len(cells))[place], return_inverse=True, return_counts=True
        )
        after = itself.cumsum(0)[lengths.cumsum(0) - 1]
        before = torch.nn.functional.pad(after[:-1], (1, 0))
        starts = counts.cumsum(0) - counts
        no_closer = (before + after)[run] - 2 * starts[flat] - itself
        others = counts[flat] - itself
        # One alone may be an outlier, and would vouch for all that is between it and the others.
        share = (no_closer.double() / (2 * others)).masked_fill_(no_closer <= 2, 0)
        total += torch.empty_like(share).scatter_(0, place, share).view(len(cells), -1).sum(0)
    pvalues = torch.empty_like(total)
    pvalues[order] = _rounded(total / len(fold.cells)).masked_fill(scores == -math.inf, 0)
    return pvalues[size:], pvalues[:size]


def _influence(fold: Scored, effect: torch.Tensor) -> torch.Tensor:
    """Return what each calibration sample moves the estimate by: its share of the effects on those in its cells."""
    sums = cell_counts(fold.cells, fold.num_cells, _rounded(effect))
    counts = cell_counts(fold.calibration_cells, fold.num_cells)
    return of_cells(sums / counts.clamp(min=1), fold.calibration_cells) / len(effect)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    # Sums are then exact, and do not depend on their order.
    return (values / WEIGHT_UNIT).round() * WEIGHT_UNIT
