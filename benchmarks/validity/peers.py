"""Published metrics to compare with, from the formulas of their papers.

All take generated and real samples as float tensors M x d and N x d, and return (fidelity, diversity).
"""

from __future__ import annotations

import contextlib
import io

import joblib
import numpy as np
import torch
from prdc import compute_prdc
from scipy.special import gammaln
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

ROWS = 1000


def knn(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Precision and recall (Kynkäänniemi et al., 2019), torch-fidelity's code and neighbourhood of 3."""
    result = prc_features_to_metric(generated, real, prc_neighborhood=3, verbose=False)
    return result["precision"], result["recall"]


def density_coverage(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Density and coverage (Naeem et al., 2020), prdc's code."""
    k = coverage_neighborhood(len(real), len(generated))
    # It prints, and spreads each distance matrix over eight threads: slower, and not one thread per job.
    with contextlib.redirect_stdout(io.StringIO()), joblib.parallel_config(backend="sequential"):
        result = compute_prdc(real.numpy(), generated.numpy(), nearest_k=k)
    return float(result["density"]), float(result["coverage"])


def coverage_neighborhood(num_real: int, num_generated: int, expected: float = 0.95, largest: int = 20) -> int:
    """Return the smallest k whose coverage is expected to exceed 0.95 for identical distributions (their Lemma 2)."""
    missed = 1.0
    for k in range(1, largest + 1):
        missed *= (num_real - k) / (num_real + num_generated - k)
        if 1 - missed > expected:
            return k
    return largest


def clipped(generated: Tensor, real: Tensor, k: int = 5) -> tuple[float, float]:
    """Clipped Density and Clipped Coverage (Salvy et al., 2026)."""
    radii = kth_distances(real, k)
    smaller = clipped_radii(radii)
    # A real sample lies in its own ball; it is judged by those of the others.
    density = clipped_density(balls_around(generated, real, smaller), balls_around(real, real, smaller) - 1, k)
    covered = (nearest_distances(real, generated, k) < radii[:, None]).double().mean()
    return density, clipped_coverage(float(covered), len(real), len(generated), k)


def clipped_radii(radii: Tensor) -> Tensor:
    """Return radii, those above the median set to it."""
    return radii.clamp(max=radii.quantile(0.5))


def clipped_density(counts: Tensor, ideal_counts: Tensor, k: int) -> float:
    """Return the mean number of balls, at most k, around each generated sample, relative to that around real ones."""
    return min(1.0, float(counts.clamp(max=k).mean() / ideal_counts.clamp(max=k).mean()))


def clipped_coverage(covered: float, num_real: int, num_generated: int, k: int) -> float:
    """Return the share of good samples that would be expected to cover as much."""
    expected = expected_coverage(num_real, num_generated, k)
    return float(np.interp(covered, expected, np.linspace(0, 1, len(expected))))


def expected_coverage(num_real: int, num_good: int, k: int) -> np.ndarray:
    """Return E[min(J, k)] / k for 0 ... num_good good samples, J of which fall in a ball of k neighbours.

    The mass of such a ball is Beta(k, num_real - k), so that J is beta-binomial.
    """
    good = np.arange(num_good + 1)[:, None]
    inside = np.arange(k)[None]
    outside = np.maximum(good - inside, 0)

    def log_beta(a: np.ndarray | int, b: np.ndarray | int) -> np.ndarray:
        return gammaln(a) + gammaln(b) - gammaln(a + b)

    log_choose = gammaln(good + 1) - gammaln(inside + 1) - gammaln(outside + 1)
    log_share = log_beta(k + inside, num_real - k + outside) - log_beta(k, num_real - k)
    probability = np.where(inside <= good, np.exp(log_choose + log_share), 0)
    # E[min(J, k)] is the sum of P(J >= t) over t = 1 ... k.
    return (1 - probability.cumsum(1)).sum(1) / k


def symmetric(generated: Tensor, real: Tensor, k: int = 5) -> tuple[float, float]:
    """Symmetric precision and recall (Khayatkhoei and AbdAlmageed, 2023)."""
    real_radii, generated_radii = kth_distances(real, k), kth_distances(generated, k)
    precision = (balls_around(generated, real, real_radii) > 0).double().mean()
    recall = (balls_around(real, generated, generated_radii) > 0).double().mean()
    coverage = (nearest_distances(real, generated, 1)[:, 0] <= real_radii).double().mean()
    complement_precision = (nearest_distances(generated, real, 1)[:, 0] <= generated_radii).double().mean()
    return float(min(precision, complement_precision)), float(min(recall, coverage))


def probabilistic(generated: Tensor, real: Tensor, k: int = 4, scale: float = 1.2) -> tuple[float, float]:
    """Probabilistic precision and recall (Park and Kim, 2023)."""

    def supported(samples: Tensor, support: Tensor) -> float:
        radius = scale * kth_distances(support, k).mean()
        misses = [(distances / radius).clamp(max=1).prod(1) for distances in distance_blocks(samples, support)]
        return float(1 - torch.cat(misses).mean())

    return supported(generated, real), supported(real, generated)


def distance_blocks(rows: Tensor, columns: Tensor) -> list[Tensor] | map:
    """Yield Euclidean distances, some rows at a time."""
    # Products of matrices are fast and inexact: they would tell equal samples apart. They pay in many dimensions only.
    mode = "use_mm_for_euclid_dist" if rows.shape[1] > 32 else "donot_use_mm_for_euclid_dist"
    return map(lambda block: torch.cdist(block, columns, compute_mode=mode), rows.split(ROWS))


def nearest_distances(samples: Tensor, others: Tensor, k: int) -> Tensor:
    """Return the distances to the k nearest of the others, ascending, N x k."""
    return torch.cat([block.topk(k, largest=False).values for block in distance_blocks(samples, others)])


def kth_distances(samples: Tensor, k: int) -> Tensor:
    """Return the distance of each sample to its k-th nearest in the same set, itself not counted."""
    return nearest_distances(samples, samples, k + 1)[:, k]


def balls_around(samples: Tensor, centers: Tensor, radii: Tensor) -> Tensor:
    """Return the number of balls around `centers` in which each sample lies, float64."""
    return torch.cat([(block <= radii).double().sum(1) for block in distance_blocks(samples, centers)])
