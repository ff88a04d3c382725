"""Protocols from the papers of single metrics: identity, outliers, spread, scale, and stability.

A1, A3 and so on are their names in this project. At 10,000 samples and more, sweeps and repeats are few; published
metrics that need all distances are left out where these are too many, and the table says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from checks import Cells, Check, Streams, both
from criteria import (
    END,
    START,
    Curve,
    Group,
    Judge,
    Outcome,
    all_keep,
    at_most,
    bell,
    close,
    either,
    falling,
    rising,
    worst_within,
)
from suite import MEAN_ENDS, sphere

LARGE = 10_000


def normal(rng: np.random.Generator, samples: int, d: int) -> np.ndarray:
    """Draw from a standard normal distribution; single precision, as features are."""
    return rng.standard_normal((samples, d), dtype=np.float32)


def draw_identical(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """A1: x samples a side of one Gaussian."""
    (d,) = group
    return normal(streams(d, x), int(x), d), normal(streams(d, x, "real"), int(x), d)


def draw_outlier(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """A3, A4: a shifted Gaussian; one sample of one side replaced by one beyond the other side."""
    d, side = group
    generated, real = x + normal(streams(d, x), 1000, d), normal(streams(d, x, "real"), 1000, d)
    if side == "real":
        real[0] = 3 * MEAN_ENDS[d]
    elif side == "generated":
        generated[0] = -3 * MEAN_ENDS[d]
    return generated, real


def moved_by_outlier(side: str) -> Judge:
    """Return a judge that compares with the same data without the outlier."""

    def judge(curves: Sequence[Curve]) -> Outcome:
        by_group = {curve.group: curve for curve in curves}
        changes = [
            (float(np.abs(curve.y - by_group[d, "none"].y).max()), curve.label)
            for (d, outlier), curve in by_group.items()
            if outlier == side
        ]
        value, where = max(changes)
        return Outcome(value - 0.01, where, value=value)

    return judge


def draw_spread(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """A8: Gaussians of deviation x and 1."""
    (n,) = group
    return x * normal(streams(x), n, 64), normal(streams("real"), n, 64)


def draw_large_sphere(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """A10: surfaces of spheres of radius x and 1."""
    n, d = group
    return x * sphere(streams(d, x), n, d), sphere(streams(d, "real"), n, d)


def throw_out(samples: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Move a share of the samples about ten times as far from the origin."""
    thrown = round(share * len(samples))
    factors = np.ones(len(samples))
    factors[:thrown] = np.maximum(2, 10 + rng.standard_normal(thrown))
    return (samples * factors[:, None]).astype(samples.dtype)


def draw_bad(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """A12: a share x of the generated samples is out of distribution."""
    (n,) = group
    return throw_out(normal(streams(n), n, 32), x, streams(n, x, "bad")), normal(streams(n, "real"), n, 32)


def draw_bad_alike(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """A13: the same share x of both sides is."""
    (n,) = group
    sides = [throw_out(normal(streams(side), n, 32), x, streams(x, side, "bad")) for side in ("generated", "real")]
    return sides[0], sides[1]


def off_line(curve: Curve) -> float:
    """Return the largest distance from a straight line down to 0."""
    return float(np.abs(curve.y - (1 - curve.x) * curve.at(START)).max())


def draw_overlapping_modes(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """A16: ten modes a side, seven of them shared; x samples a side."""
    centers = 2 * normal(streams("centers"), 13, 64)

    def draw(first: int, rng: np.random.Generator) -> np.ndarray:
        return centers[rng.integers(first, first + 10, int(x))] + normal(rng, int(x), 64)

    return draw(0, streams(x)), draw(3, streams(x, "real"))


SPREAD: Cells = {
    "shape": {
        "fidelity": all_keep(falling(), close(1, START), close(0, END)),
        "diversity": either(
            high=all_keep(rising(), close(0, START), close(1, END)),
            low=all_keep(bell(1), close(0, START), close(0, END)),
        ),
    }
}


def seed_deviation(curves: Sequence[Curve]) -> Outcome | None:
    """Judge the deviation between seeds at the largest number of samples."""
    (curve,) = curves
    if len(curve.values) < 2:
        return None
    value = float(curve.values[:, -1].std(ddof=1))
    return Outcome(value - 0.005, f"{curve.x[-1]:g} samples", value=value)


STABLE: Cells = {
    "seed deviation": both(seed_deviation),
    "half the samples": both(at_most(0.01, lambda curve: abs(curve.at(END) - curve.at(START)))),
}

# Measured as drawn, and once where nothing else is said: the sets are large.
_protocol = partial(Check, repeats=(1, 1), standardized=False)

PROTOCOLS = (
    _protocol(
        "identity",
        "A1 identical Gaussians",
        lambda quick: {
            (d,): [1000] if quick or d != 64 else [1000, 5000]
            for d in ((64, 2048) if quick else (2, 16, 64, 512, 2048, 4096))
        },
        draw_identical,
        {"1 everywhere": both(worst_within(1, 0.02))},
        labels=("d",),
    ),
    _protocol(
        "identity_large",
        "A1 the same, many samples",
        lambda quick: {(64,): [2000]} if quick else {(64,): [LARGE, 50_000], (2048,): [LARGE], (4096,): [50_000]},
        draw_identical,
        {"1 everywhere": both(worst_within(1, 0.02))},
        labels=("d",),
        repeats=(2, 1),
        size=lambda group, x: (int(x), group[0]),
    ),
    _protocol(
        "one_outlier",
        "A3, A4 one outlier in 1000",
        lambda quick: {
            (d, side): np.linspace(-MEAN_ENDS[d], MEAN_ENDS[d], 3 if quick else 7).tolist()
            for d in ((8,) if quick else MEAN_ENDS)
            for side in ("none", "real", "generated")
        },
        draw_outlier,
        {
            "moved by a real one": both(moved_by_outlier("real")),
            "moved by a generated one": both(moved_by_outlier("generated")),
        },
        labels=("d", "outlier"),
        repeats=(5, 1),
    ),
    _protocol(
        "spread",
        "A8 too narrow, too wide",
        lambda quick: {(1000,): [0.2, 1, 1.5]} if quick else {(LARGE,): [0.2, 0.6, 1, 1.2, 1.5]},
        draw_spread,
        SPREAD,
        labels=("n",),
    ),
    _protocol(
        "hypersphere_large",
        "A10 hypersphere, many samples",
        lambda quick: {(1000 if quick else LARGE, 128): [0, 0.5, 1, 1.5, 2]},
        draw_large_sphere,
        {"bell": both(all_keep(bell(1), close(1, 1)))},
        labels=("n", "d"),
    ),
    _protocol(
        "bad_generated",
        "A12 share of generated far outside",
        lambda quick: {(n,): np.linspace(0, 1, 5).tolist() for n in ((1000,) if quick else (5000, 25_000))},
        draw_bad,
        {"off the line": both(at_most(0.05, off_line))},
        labels=("n",),
        size=lambda group, x: (group[0], 32),
    ),
    _protocol(
        "bad_alike",
        "A13 the same share far outside on both sides",
        lambda quick: {(1000,): [0, 0.03]} if quick else {(5000,): [0, 0.01, 0.02, 0.03]},
        draw_bad_alike,
        {"range": both(at_most(0.05, lambda curve: float(np.ptp(curve.y))))},
        labels=("n",),
        repeats=(2, 1),
    ),
    _protocol(
        "stability",
        "A16 one data set, other seeds",
        lambda quick: {(): [1000, 2000] if quick else [LARGE // 2, LARGE]},
        draw_overlapping_modes,
        STABLE,
        repeats=(20, 5),
        same_data=True,
        ours_only=True,
    ),
)
