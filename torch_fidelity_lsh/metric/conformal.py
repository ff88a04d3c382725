"""From scores to the share of members: conformal p-values and Storey's estimate, with what makes it vary.

A sample is compared with held-out members of a set, the *calibration set*, that live in its cell: its conformal p-value
is the share of them whose score is no higher (Vovk, Gammerman and Shafer, 2005; cells as categories make it a Mondrian
one). P-values of members are uniform, those of strangers small, so the share above lambda, divided by 1 - lambda, is
the share of members (Storey, 2002).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_fidelity_lsh.metric.anchors import cell_counts

LOWEST_LAMBDA = 0.05
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


@dataclass(frozen=True)
class Estimate:
    """Share of members among M assessed samples, and what its error is made of.

    Attributes:
        value: Storey's estimate; its expectation is 1 where all are members, and it may exceed 1.
        weights: M summands of the estimate, whose mean it is: 0, or 1 / (1 - lambda) where the p-value is above lambda.
        pvalues: M conformal p-values in (0, 1); the lowest are the outliers.
        variance_of_samples: Variance of the estimate over the choice of the assessed samples.
        influence: One number for each row of the set: the square of its sum is the variance over calibration sets.
        fold_values: The estimate of each fold; their spread shows what the choice of folds and anchors adds.
        design_effect: Assessed samples that count as one observation, on average; at least 1.
    """

    value: float
    weights: torch.Tensor
    pvalues: torch.Tensor
    variance_of_samples: float
    influence: torch.Tensor
    fold_values: tuple[float, ...]
    design_effect: float

    @property
    def variance(self) -> float:
        """Variance of the estimate: over samples, over calibration sets, and over folds and anchors."""
        return self.variance_of_samples + float(self.influence.square().sum()) + variance_of_folds(self.fold_values)

    @property
    def effective_samples(self) -> float:
        """Number of independent observations that the assessed samples amount to."""
        return len(self.weights) / self.design_effect


def variance_of_folds(values: Sequence[float]) -> float:
    """Return the variance of the mean of the values of F folds."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)


def estimate(
    folds: Sequence[Scored],
    log_crowding: torch.Tensor,
    num_rows: int,
    largest_lambda: float,
    are_members: bool = False,
) -> Estimate:
    """Estimate the share of members from all folds of a set.

    Args:
        folds: The assessed samples scored in each of F folds.
        log_crowding: M logarithms of the distance to the own kind over the distance to the set; whole multiples of a
            unit.
        num_rows: Rows of the set.
        largest_lambda: Lambda in (0, 1) where the assessed samples do not crowd.
        are_members: Whether the variance is to be that of assessed samples which all are members.
    """
    weights, pvalues = torch.zeros_like(log_crowding), torch.zeros_like(log_crowding)
    influence = log_crowding.new_zeros(num_rows)
    values, variances, effects = [], [], []
    for fold in folds:
        low, high = _ranks(fold)
        sizes = cell_counts(fold.cells, fold.num_cells)
        crowding = _cell_mean(fold, sizes, log_crowding)
        # The closer the samples are to each other, the fewer independent answers they give, and the less may be asked.
        lambdas = (largest_lambda * (2 * crowding.exp()).clamp(max=1) ** 2).clamp(min=LOWEST_LAMBDA)
        share_above = ((high - lambdas) / (high - low)).clamp(0, 1)
        fold_weights = _rounded(share_above / (1 - lambdas))
        local = torch.ones_like(lambdas) if are_members else _cell_mean(fold, sizes, fold_weights).clamp(max=1)
        effect = 1 + (_of_cell(fold, sizes) - 1) * (1 - lambdas / largest_lambda).clamp(min=0)
        values.append(exact_mean(fold_weights))
        variances.append(exact_mean(effect * local * (1 / (1 - lambdas) - local)) / len(fold_weights))
        effects.append(exact_mean(effect))
        influence[fold.calibration_rows] += _influence(fold, local * (lambdas / (1 - lambdas)).sqrt()) / len(folds)
        weights += fold_weights / len(folds)
        pvalues += (low + high) / (2 * len(folds))
    return Estimate(
        math.fsum(values) / len(values),
        weights,
        pvalues,
        math.fsum(variances) / len(variances),
        influence,
        tuple(values),
        math.fsum(effects) / len(effects),
    )


def test_of_membership(folds: Sequence[Scored], log_crowding: torch.Tensor, num_rows: int) -> float:
    """Return the p-value of the hypothesis that all assessed samples are members, against some being strangers.

    The estimate at a small lambda, below 1 by how many of its standard errors (one-sided normal test)?
    """
    found = estimate(folds, log_crowding, num_rows, LAMBDA_OF_TEST, are_members=True)
    return 0.5 * math.erfc((1 - found.value) / math.sqrt(2 * found.variance))


def _ranks(fold: Scored) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest and highest conformal p-value of each assessed sample, which ties leave open.

    The p-values in cells are ranked once more among those of the calibration set, so that they are uniform for members
    however few live in a cell.
    """
    in_cells, calibration = _pvalues_in_cells(fold)
    ordered = calibration.sort().values
    below, up_to = (torch.searchsorted(ordered, in_cells, right=right) for right in (False, True))
    total = len(ordered) + 1
    return below / total, (up_to + 1) / total


def _pvalues_in_cells(fold: Scored) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean over the tables of the share of the cell's calibration samples that are no closer.

    Ties count half, a calibration sample leaves itself out, and an empty cell gives 0.
    """
    ordered, size = fold.calibration_scores.sort().values, len(fold.calibration_scores)

    def places(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.searchsorted(ordered, scores), torch.searchsorted(ordered, scores, right=True)

    keys = (fold.calibration_cells * (size + 1) + places(fold.calibration_scores)[1]).sort(1).values
    counts = cell_counts(fold.calibration_cells, fold.num_cells).long()
    starts = counts.cumsum(1) - counts

    def shares(scores: torch.Tensor, cells: torch.Tensor, itself: int) -> torch.Tensor:
        no_closer = -2 * starts.gather(1, cells) - itself
        for place in places(scores):
            no_closer += torch.searchsorted(keys, cells * (size + 1) + place, right=True)
        others = counts.gather(1, cells) - itself
        share = (no_closer.double() / (2 * others)).masked_fill(others == 0, 0)
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


def exact_mean(values: torch.Tensor) -> float:
    """Return the mean of N values, the same whatever their order."""
    return math.fsum(values.tolist()) / len(values)
