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
        together = of_cells(sizes, fold.cells)
        closeness = _log_closeness(fold, sizes, log_spacing, spacing_of_set.log_distance[fold.calibration_rows])
        # Samples in the space of one of the set's give one answer, and the less may be asked of them.
        effect = ((closeness - LOG_CROWDED) * spacing.dimension).clamp(min=0, max=100).exp().minimum(together)
        # To be out of reach, as some of the set are, is no sign of a member.
        least = max(min(LOWEST_LAMBDA, largest_lambda), fold.out_of_reach)
        lambdas = (largest_lambda / effect).clamp(min=least)
        share_above = ((high - lambdas) / (high - low)).clamp(0, 1)
        fold_weights = _rounded(share_above / (1 - lambdas))
        answers = together / effect
        # A member fails with probability lambda: where few answers are all no, some may be members.
        local = (
            of_cells(cell_counts(fold.cells, fold.num_cells, fold_weights) / sizes.clamp(min=1), fold.cells).clamp(
                max=1
            )
            * answers
            + lambdas
        ) / (answers + lambdas)
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
        of_calibration = in_one_table(cells, fold.num_cells)[:, :size]
        flat, place = in_one_table(cells, fold.num_cells)[:, order].flatten().sort(stable=True)
        place %= len(scores)
        # In the order of cells, and of scores within each, ties are runs: how many were counted before and after one?
        itself = is_calibration[place]
        _, run, lengths = torch.unique_consecutive(
            flat.long() * len(scores) + tie[place], return_inverse=True, return_counts=True
        )
        after = itself.cumsum(0)[lengths.cumsum(0) - 1]
        before = torch.nn.functional.pad(after[:-1], (1, 0))
        counts = of_calibration.flatten().bincount(minlength=len(cells) * fold.num_cells)
        starts = counts.cumsum(0) - counts
        no_closer = (before + after)[run] - 2 * starts[flat] - itself
        others = counts[flat] - itself
        # One alone may be an outlier, and would vouch for all that is between it and the others.
        share = (no_closer.double() / (2 * others)).masked_fill_(no_closer <= 2, 0)
        total.index_add_(0, place, share)
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
