"""How small a share of strangers is found? Tests at a level of 5 %: ours, and published values by permutation.

The null of a published value is its distribution over random divisions of the pooled rows into two sides; it holds its
level whatever the data. Permutations look up the nearest rows of the pooled set, which no division changes, so that the
distances are computed once. All tests are one-sided: fewer generated samples on the manifold than by chance, or a
larger distance. A distance, such as FID, also finds what is no stranger, as modes that are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peers
import torch
from checks import Streams, seed_of
from columns import OUR_SOURCE
from mixtures import KNOWN_DIGITS, load_features
from ordinary import modes
from storage import Row, Store, digest

from torch_fidelity_lsh import LSHConfig, PrecisionRecall, lsh_knn_precision_recall, lsh_precision_recall

LEVEL = 0.05
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2)
# Draws by samples a side.
DRAWS: Mapping[str, Mapping[int, int]] = {"full": {2000: 40, 5000: 20, 10_000: 10}, "quick": {400: 2}}
PERMUTATIONS = {"full": 199, "quick": 39}
Pair = tuple[np.ndarray, np.ndarray]
PValues = dict[str, float]


# --- Data -------------------------------------------------------------------------------------------------------------


def draw_digits(features: Path, size: int, strangers: int, streams: Streams) -> Pair | None:
    """Replace known digits by new ones, features of a network; `None` if there are too few images."""
    arrays = load_features(features)
    order = streams("split").permutation(len(arrays["digits"]))
    is_new = arrays["digits"][order] >= KNOWN_DIGITS
    known, new = order[~is_new], order[is_new]
    if len(known) < 2 * size or len(new) < strangers:
        return None
    generated = np.concatenate([known[size : 2 * size - strangers], new[:strangers]])
    return arrays["features"][generated], arrays["features"][known[:size]]


def draw_far(features: Path, size: int, strangers: int, streams: Streams) -> Pair:
    """Replace samples of ten Gaussian modes in 64 dimensions by an eleventh."""
    each = [size // 10] * 10
    generated, new = modes(streams("generated"), each), modes(streams("strangers"), [0] * 10 + [size])
    kept = streams("kept").permutation(size)[strangers:]
    return np.concatenate([generated[kept], new[:strangers]]), modes(streams("real"), each)


LATENT, FEATURES = 16, 64
ON_MANIFOLD, OFF_MANIFOLD = 0.1, 0.4


def draw_near(features: Path, size: int, strangers: int, streams: Streams) -> Pair:
    """Move samples of a folded manifold of 16 dimensions away from it, in 64: four times its noise."""
    weights = Streams("folded manifold")().standard_normal((LATENT, FEATURES)) / math.sqrt(LATENT)

    def draw(side: str, noise: np.ndarray) -> np.ndarray:
        on_manifold = np.maximum(streams(side).standard_normal((size, LATENT)) @ weights, 0)
        return (on_manifold + noise * streams(side, "noise").standard_normal((size, FEATURES))).astype(np.float32)

    noise = np.where(np.arange(size) < strangers, OFF_MANIFOLD, ON_MANIFOLD)[:, None]
    return draw("generated", noise), draw("real", np.full_like(noise, ON_MANIFOLD))


DATA: Mapping[str, Callable[[Path, int, int, Streams], Pair | None]] = {
    "new digits": draw_digits,
    "an eleventh mode": draw_far,
    "off a folded manifold": draw_near,
}


# --- Ours -------------------------------------------------------------------------------------------------------------


def own_test(
    name: str,
    function: Callable[..., PrecisionRecall],
    generated: np.ndarray,
    real: np.ndarray,
    permutations: int,
    seed: int,
) -> PValues:
    """Return the p-value of the result's own test."""
    result = function(torch.from_numpy(generated), torch.from_numpy(real), LSHConfig(seed=seed))
    return {name: result.precision_pvalue}


# --- Published values by permutation ----------------------------------------------------------------------------------


def p_values(
    statistics: Callable[[np.ndarray], dict[str, float]],
    num_generated: int,
    num_real: int,
    permutations: int,
    seed: int,
) -> PValues:
    """Return how rarely random sides give values as low.

    Args:
        statistics: Which of the pooled rows are real, boolean, to values by name.
        num_generated: The first rows.
        num_real: The rows after them.
        permutations: Number of random divisions.
        seed: Of these.
    """
    is_real = np.arange(num_generated + num_real) >= num_generated
    observed, rng = statistics(is_real), np.random.default_rng(seed)
    null = [statistics(rng.permutation(is_real)) for _ in range(permutations)]
    return {
        name: (1 + sum(values[name] <= value for values in null)) / (1 + permutations)
        for name, value in observed.items()
    }


class Neighbours:
    """The nearest others of each pooled row, in which any division finds its neighbours.

    Args:
        pooled: N x d.
        listed: How many of them; a ball around a real row ends with the list, where that holds fewer than k real ones.
    """

    def __init__(self, pooled: np.ndarray, listed: int = 48) -> None:
        rows, found = torch.from_numpy(pooled), []
        for block, own in zip(
            peers.distance_blocks(rows, rows), torch.arange(len(rows)).split(peers.ROWS), strict=True
        ):
            block[torch.arange(len(own)), own] = float("inf")
            found.append(block.topk(min(listed, len(rows) - 1), largest=False))
        self.indices = torch.cat([near.indices for near in found]).numpy()
        self.distances = torch.cat([near.values for near in found]).numpy()

    def statistics(self, is_real: np.ndarray) -> dict[str, float]:
        """Return kNN precision, density, and Clipped Density without its limit of 1, which would tie values."""
        near, distances = self.indices[is_real], self.distances[is_real]
        near_real = is_real[near]
        nearer_real = near_real.cumsum(1)
        num_real, num_generated = len(near), len(is_real) - len(near)

        def balls(inside: np.ndarray) -> np.ndarray:
            return np.bincount(near[inside], minlength=len(is_real))

        precision = (balls((nearer_real < KNN) & ~near_real) > 0).sum() / num_generated
        k = peers.coverage_neighborhood(num_real, num_generated)
        density = ((nearer_real < k) & ~near_real).sum() / (k * num_generated)
        ends = np.where(nearer_real >= CLIPPED, distances, np.inf).min(1)
        radii = np.minimum(ends, np.median(np.minimum(ends, distances[:, -1])))
        counts = balls(distances <= radii[:, None]).clip(max=CLIPPED)
        clipped = counts[~is_real].mean() / counts[is_real].mean()
        return {"kNN P": float(precision), "density": float(density), "clip D": float(clipped)}


KNN, CLIPPED = 3, 5


def neighbour_tests(generated: np.ndarray, real: np.ndarray, permutations: int, seed: int) -> PValues:
    """Return the p-values of kNN precision, density and Clipped Density."""
    neighbours = Neighbours(np.concatenate([generated, real]))
    return p_values(neighbours.statistics, len(generated), len(real), permutations, seed)


COMPONENTS = 128


def frechet_test(generated: np.ndarray, real: np.ndarray, permutations: int, seed: int) -> PValues:
    """Return the p-value of FID's distance, in the first 128 principal components of the pooled rows."""
    pooled = np.concatenate([generated, real]).astype(np.float64)
    pooled -= pooled.mean(0)
    if pooled.shape[1] > COMPONENTS:
        pooled = pooled @ np.linalg.eigh(pooled.T @ pooled)[1][:, -COMPONENTS:]
    total = pooled.T @ pooled

    def statistics(is_real: np.ndarray) -> dict[str, float]:
        one = pooled[is_real]
        squares = one.T @ one
        # The pooled mean is 0.
        mean = one.mean(0)
        other_mean = -mean * is_real.sum() / (~is_real).sum()
        cov = squares / is_real.sum() - np.outer(mean, mean)
        other_cov = (total - squares) / (~is_real).sum() - np.outer(other_mean, other_mean)
        return {"FID": -frechet_distance(mean - other_mean, cov, other_cov)}

    return p_values(statistics, len(generated), len(real), permutations, seed)


def frechet_distance(difference: np.ndarray, cov: np.ndarray, other_cov: np.ndarray) -> float:
    """Return |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two Gaussians."""
    values, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ other_cov @ root).clip(min=0)).sum()
    return float(difference @ difference + np.trace(cov) + np.trace(other_cov) - 2 * shared)


# --- The study --------------------------------------------------------------------------------------------------------


class Detector(NamedTuple):
    """Tests that share their work.

    Attributes:
        columns: Their names.
        test: (generated, real, number of permutations, seed) to p-values by column.
        source: Digest of the code of what they test.
    """

    columns: tuple[str, ...]
    test: Callable[[np.ndarray, np.ndarray, int, int], PValues]
    source: str


PEERS = digest(Path(peers.__file__))
DETECTORS: Mapping[str, Detector] = {
    "lsh": Detector(("lsh",), partial(own_test, "lsh", lsh_precision_recall), OUR_SOURCE),
    "lsh_knn": Detector(("lsh_knn",), partial(own_test, "lsh_knn", lsh_knn_precision_recall), OUR_SOURCE),
    "neighbours": Detector(("kNN P", "density", "clip D"), neighbour_tests, PEERS),
    "fid": Detector(("FID",), frechet_test, ""),
}
TESTS = tuple(column for detector in DETECTORS.values() for column in detector.columns)


class Trial(NamedTuple):
    """One detector on one draw."""

    detector: str
    data: str
    size: int
    share: float
    draw: int


@dataclass(frozen=True)
class Detection:
    """The trials of one run.

    Attributes:
        features: File with features of real images.
        quick: Whether sizes, draws and permutations are few.
        repeats: Largest number of draws, where fewer are wanted.
    """

    features: Path
    quick: bool
    repeats: int | None = None

    @property
    def extent(self) -> str:
        """Name of the extent of the run."""
        return "quick" if self.quick else "full"

    def draws(self, size: int) -> range:
        """Return the draws of a size."""
        return range(min(filter(None, (self.repeats, DRAWS[self.extent][size]))))

    def rows(self) -> Iterator[tuple[str, int, float]]:
        """Yield data, size of a side, and share of strangers."""
        yield from ((data, size, share) for data in DATA for size in DRAWS[self.extent] for share in SHARES)

    def tasks(self) -> list[Trial]:
        """Return all trials, the first draw of each first."""
        trials = [
            Trial(detector, data, size, share, draw)
            for data, size, share in self.rows()
            for draw in self.draws(size)
            for detector in DETECTORS
        ]
        return sorted(trials, key=lambda trial: trial.draw)

    def key(self, trial: Trial) -> str:
        """Return under which a trial is kept; it changes with the code of data and tests."""
        source = digest(Path(__file__)), DETECTORS[trial.detector].source, self.features.stem
        return "/".join(["detection", *map(str, trial), str(PERMUTATIONS[self.extent]), *source])

    def measure(self, trial: Trial) -> Row:
        """Draw and test; without p-values where there are too few images."""
        # The same samples at all shares and for all detectors; the first strangers stay as others join.
        streams = Streams("detection", trial.data, trial.size, trial.draw)
        pair = DATA[trial.data](self.features, trial.size, round(trial.share * trial.size), streams)
        seed = seed_of(*trial)
        permutations = PERMUTATIONS[self.extent]
        tests = {} if pair is None else DETECTORS[trial.detector].test(*pair, permutations, seed)
        return {"key": self.key(trial), "p_values": tests}

    def found(self, store: Store, row: tuple[str, int, float]) -> dict[str, float]:
        """Return the share of draws in which each test rejects at 5 %, as far as measured."""
        rates = {}
        for name, detector in DETECTORS.items():
            keys = [self.key(Trial(name, *row, draw)) for draw in self.draws(row[1])]
            if not all(key in store.rows for key in keys):
                continue
            for column in detector.columns:
                p = [store.rows[key]["p_values"].get(column) for key in keys]
                if None not in p:
                    rates[column] = float(np.mean(np.array(p) <= LEVEL))
        return rates
