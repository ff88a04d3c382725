"""The sanity suite: 15 set-ups with two cells each for fidelity and diversity.

Set-ups and criteria follow Räisä, van Breugel and van der Schaar, "Position: All Current Generative Fidelity and
Diversity Metrics are Flawed" (ICML 2025). Their sweeps have 10 to 51 points; the longer ones are thinned here, ends,
middle and the points that rules look at kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from checks import Cells, Check, Draw, Grid, Streams, both
from criteria import (
    END,
    START,
    Group,
    Judge,
    Rule,
    all_keep,
    bell,
    close,
    converging,
    dropped_at,
    either,
    falling,
    flat,
    rising,
)

SAMPLES = 1000
MODES = 10
MEAN_ENDS = {1: 6.0, 8: 3.0, 64: 1.0}
LOG_DEVIATION_ENDS = {1: 3.0, 8: 1.0, 64: 0.5}
MODE_DEVIATIONS = {1: 1 / 6, 8: 1 / 3, 64: 1.0}
OVERLAP = 0.2
# The 0.95 quantile of the published 50 points.
ALMOST_ALL = 47 / 49


def by_dimension(dimensions: tuple[int, ...], points: Callable[[int, bool], list[float]]) -> Callable[[bool], Grid]:
    """Return a grid with one sweep per dimension; the quick one leaves the middle dimension out."""
    return lambda quick: {(d,): points(d, quick) for d in (dimensions[::2] if quick else dimensions)}


def spread(end: float, quick: bool) -> list[float]:
    """Return points from -end to end, those next to the middle where an asymmetric peak would be."""
    half = (0.4, 1) if quick else (0.04, 0.2, 0.4, 0.6, 1)
    return [end * x for x in (*(-x for x in reversed(half)), 0, *half)]


def sizes(quick: bool) -> list[float]:
    """Return numbers of samples."""
    return [100, 300, 1000, 2000] if quick else [100, 316, 1000, 3162, 10000]


BELL_AT_0: Cells = {
    "property": both(all_keep(bell(0))),
    "bounds": both(all_keep(close(1, 0), close(0, START), close(0, END))),
}


# --- Gaussians --------------------------------------------------------------------------------------------------------


def draw_mean(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """N(x, 1) against N(0, 1)."""
    (d,) = group
    return streams(d, x).normal(x, 1, (SAMPLES, d)), streams(d, "real").normal(0, 1, (SAMPLES, d))


def draw_mean_outlier(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """The same with one sample more on one side, where the other side is in the end."""
    d, side = group
    generated, real = draw_mean((d,), x, streams)
    outlier = np.full((1, d), MEAN_ENDS[d])
    if side == "real":
        return generated, np.concatenate([real, outlier])
    return np.concatenate([generated, outlier]), real


def draw_pareto(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """A shifted Gaussian beside a heavy tail."""

    def draw(mean: float, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.normal(mean, 1, SAMPLES), 1 + rng.pareto(1.01, SAMPLES)], axis=1)

    return draw(x, streams(x)), draw(0, streams("real"))


def draw_deviation(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """N(0, s) against N(0, 1), s = 10^x."""
    (d,) = group
    return streams(d, x).normal(0, 10**x, (SAMPLES, d)), streams(d, "real").normal(0, 1, (SAMPLES, d))


def draw_scaling(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint in one dimension; the other, alike, is stretched on both sides."""
    scale = (1, 10**x)
    return streams(x).normal((6, 0), 1, (SAMPLES, 2)) * scale, streams(x, "real").normal(0, 1, (SAMPLES, 2)) * scale


def draw_disjoint_dimension(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint in one dimension, alike in x others."""
    generated, real = (streams(x, side).normal(0, 1, (SAMPLES, int(x) + 1)) for side in ("generated", "real"))
    generated[:, 0] += 6
    return generated, real


def draw_discrete(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Rounded against continuous values; the larger 10^x, the finer the rounding."""
    generated, real = (10**x * streams(x, side).normal(0, 1, (SAMPLES, 1)) for side in ("generated", "real"))
    return (generated, np.round(real)) if group == ("real",) else (np.round(generated), real)


def discrete_bounds(discrete_real: float, discrete_generated: float) -> Judge:
    """Return a judge of the ends; rounded values are a null set of the continuous ones, never the reverse."""

    def excess(curve, x):
        target = discrete_real if curve.group == ("real",) else discrete_generated
        return abs(curve.at(x) - target) - 0.05

    return all_keep(Rule("coarse end", lambda c: excess(c, START)), Rule("fine end", lambda c: excess(c, END)))


# --- Mixtures ---------------------------------------------------------------------------------------------------------


def mixture(rng: np.random.Generator, centers: np.ndarray, shares: np.ndarray, deviation: float) -> np.ndarray:
    """Draw from a Gaussian mixture with `centers` of shape modes x d."""
    chosen = rng.choice(len(centers), SAMPLES, p=shares)
    return rng.normal(centers[chosen], deviation)


def draw_modes(d: int, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw from ten modes on the diagonal."""
    centers = np.linspace(0, 10, MODES)[:, None].repeat(d, axis=1)
    return mixture(rng, centers, shares, MODE_DEVIATIONS[d])


def draw_sequential(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """The last x of ten modes are not generated."""
    (d,) = group
    kept = np.arange(MODES) < MODES - x
    equal = np.full(MODES, 1 / MODES)
    return draw_modes(d, kept / kept.sum(), streams(d, x)), draw_modes(d, equal, streams(d, "real"))


def draw_simultaneous(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """All modes but the first lose a share x of their samples."""
    (d,) = group
    shares = np.where(np.arange(MODES) > 0, 1 - x, 1)
    equal = np.full(MODES, 1 / MODES)
    return draw_modes(d, shares / shares.sum(), streams(d, x)), draw_modes(d, equal, streams(d, "real"))


def draw_invention(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """The first five of ten modes are real, the first x are generated."""
    centers = 10 * Streams("mode invention")().standard_normal((MODES, 2))

    def draw(count: int, rng: np.random.Generator) -> np.ndarray:
        return mixture(rng, centers[:count], np.full(count, 1 / count), 0.25)

    return draw(int(x), streams(x)), draw(5, streams("real"))


def draw_collapse(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Two modes at a distance x, generated as one wide mode."""
    (d,) = group
    centers = np.array([[-x / 2], [x / 2]]).repeat(d, axis=1)
    generated = streams(d, x).normal(0, math.sqrt(1 + x**2), (SAMPLES, d))
    return generated, mixture(streams(d, x, "real"), centers, np.full(2, 0.5), 1)


# --- Bodies -----------------------------------------------------------------------------------------------------------


def sphere(rng: np.random.Generator, samples: int, d: int) -> np.ndarray:
    """Draw from the surface of the unit sphere."""
    points = rng.standard_normal((samples, d))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def ball(rng: np.random.Generator, samples: int, d: int) -> np.ndarray:
    """Draw from the unit ball."""
    return sphere(rng, samples, d) * rng.random((samples, 1)) ** (1 / d)


def torus(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Draw from a tube of radius 0.1 around the unit circle, a disc turned about the axis."""
    disc, angle = 0.1 * ball(rng, samples, 2), rng.uniform(0, 2 * np.pi, samples)
    ring = 1 + disc[:, 0]
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), disc[:, 1]], axis=1)


def draw_sphere(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Surfaces of spheres of radius x and 1."""
    (d,) = group
    return x * sphere(streams(d, x), SAMPLES, d), sphere(streams(d, "real"), SAMPLES, d)


def draw_cubes(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Cubes that share a fifth of their volume, x samples a side."""
    (d,) = group
    return draw_cube_pair(streams(d, x), int(x), streams(d, x, "real"), int(x), d)


def draw_cubes_generated(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """The same, with a fixed number of real samples."""
    (d,) = group
    return draw_cube_pair(streams(d, x), int(x), streams(d, "real"), SAMPLES, d)


def draw_cube_pair(
    rng: np.random.Generator, samples: int, rng_real: np.random.Generator, samples_real: int, d: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw from two cubes shifted along the diagonal."""
    return 1 - OVERLAP ** (1 / d) + rng.random((samples, d)), rng_real.random((samples_real, d))


def draw_torus(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """A ball in the hole of a torus, x generated samples."""
    if group == ("ball",):
        return torus(streams(*group, x), int(x)), 0.8 * ball(streams(*group, "real"), SAMPLES, 3)
    return 0.8 * ball(streams(*group, x), int(x), 3), torus(streams(*group, "real"), SAMPLES)


# --- The list ---------------------------------------------------------------------------------------------------------


def _mean_points(d: int, quick: bool) -> list[float]:
    return spread(MEAN_ENDS[d], quick)


DROPPED: Cells = {
    "bounds": {
        "fidelity": all_keep(close(1, START), close(1, END)),
        "diversity": all_keep(close(1, START)),
    },
}


def _overlapping_cubes(name: str, title: str, draw: Draw) -> Check:
    cells = {"property": both(all_keep(close(OVERLAP, END))), "bounds": both(all_keep(converging()))}
    return Check(name, title, by_dimension((1, 8, 64), lambda d, quick: sizes(quick)), draw, cells, labels=("d",))


SUITE = (
    Check(
        "mean",
        "mean difference",
        by_dimension((1, 8, 64), _mean_points),
        draw_mean,
        BELL_AT_0,
        labels=("d",),
    ),
    Check(
        "mean_outlier",
        "mean difference + outlier",
        lambda quick: {
            (d, side): _mean_points(d, quick)
            for d in ((1, 64) if quick else (1, 8, 64))
            for side in ("real", "generated")
        },
        draw_mean_outlier,
        BELL_AT_0,
        labels=("d", "outlier"),
    ),
    Check(
        "mean_pareto",
        "mean difference + Pareto",
        lambda quick: {(): spread(6, quick)},
        draw_pareto,
        BELL_AT_0,
    ),
    Check(
        "deviation",
        "deviation difference",
        by_dimension((1, 8, 64), lambda d, quick: spread(LOG_DEVIATION_ENDS[d], quick)),
        draw_deviation,
        {
            "property": {
                "fidelity": all_keep(falling()),
                "diversity": either(high=all_keep(rising()), low=all_keep(bell(0))),
            },
            "bounds": {
                "fidelity": all_keep(close(1, 0), close(1, START), close(0, END)),
                "diversity": either(
                    high=all_keep(close(1, 0), close(0, START), close(1, END)),
                    low=all_keep(close(1, 0), close(0, START), close(0, END)),
                ),
            },
        },
        labels=("d",),
    ),
    Check(
        "sequential_drop",
        "sequential mode dropping",
        by_dimension((1, 8, 64), lambda d, quick: [0, 2, 4, 7, 9] if quick else list(range(MODES))),
        draw_sequential,
        {
            "property": {
                "fidelity": all_keep(flat()),
                "diversity": all_keep(falling(), dropped_at(4)),
            },
            **DROPPED,
        },
        labels=("d",),
    ),
    Check(
        "simultaneous_drop",
        "simultaneous mode dropping",
        by_dimension(
            (1, 8, 64),
            lambda d, quick: [0, 0.5, ALMOST_ALL, 1] if quick else [0, 0.2, 0.4, 0.6, 0.8, 0.9, ALMOST_ALL, 1],
        ),
        draw_simultaneous,
        {
            "property": {
                "fidelity": all_keep(flat()),
                "diversity": all_keep(falling(), dropped_at(ALMOST_ALL)),
            },
            **DROPPED,
        },
        labels=("d",),
    ),
    Check(
        "invention",
        "mode dropping + invention",
        lambda quick: {(): [1, 3, 5, 8, 10] if quick else list(range(1, MODES + 1))},
        draw_invention,
        {
            "property": {"fidelity": all_keep(falling()), "diversity": all_keep(rising())},
            "bounds": {
                "fidelity": all_keep(close(1, 5), close(1, START)),
                "diversity": all_keep(close(1, 5), close(1, END)),
            },
        },
    ),
    Check(
        "collapse",
        "mode collapse",
        by_dimension((1, 8, 64), lambda d, quick: np.linspace(0, 5, 3 if quick else 6).tolist()),
        draw_collapse,
        {
            "property": {
                "fidelity": all_keep(falling()),
                "diversity": either(high=all_keep(flat()), low=all_keep(falling())),
            },
            "bounds": both(all_keep(close(1, START))),
        },
        labels=("d",),
    ),
    Check(
        "hypersphere",
        "hypersphere surface",
        by_dimension((2, 16, 128), lambda d, quick: (1 + np.array(spread(0.9, quick))).tolist()),
        draw_sphere,
        {
            "property": both(all_keep(bell(1))),
            "bounds": both(all_keep(close(1, 1), close(0, START), close(0, END))),
        },
        labels=("d",),
    ),
    _overlapping_cubes("hypercube", "hypercube, number of samples", draw_cubes),
    _overlapping_cubes("hypercube_generated", "hypercube, number of generated samples", draw_cubes_generated),
    Check(
        "torus",
        "ball in a torus",
        lambda quick: {(real,): sizes(quick) for real in ("ball", "torus")},
        draw_torus,
        {"property": both(all_keep(converging())), "bounds": both(all_keep(close(0, END)))},
        labels=("real",),
    ),
    Check(
        "scaling",
        "scaling of one dimension",
        lambda quick: {(): np.linspace(-3, 3, 3 if quick else 5).tolist()},
        draw_scaling,
        {"property": both(all_keep(flat())), "bounds": both(all_keep(close(0, START), close(0, END)))},
    ),
    Check(
        "disjoint_dimension",
        "one disjoint dimension among many",
        lambda quick: {(): [1, 31, 1000] if quick else [1, 4, 16, 63, 251, 1000]},
        draw_disjoint_dimension,
        {"property": both(all_keep(flat())), "bounds": both(all_keep(close(0, START), close(0, END)))},
    ),
    Check(
        "discrete",
        "discrete against continuous",
        lambda quick: {(side,): np.linspace(0, 3, 3 if quick else 6).tolist() for side in ("real", "generated")},
        draw_discrete,
        {
            "property": both(all_keep(flat())),
            "bounds": {
                "fidelity": discrete_bounds(0, 1),
                "diversity": either(high=discrete_bounds(1, 0), low=discrete_bounds(0, 0)),
            },
        },
        labels=("rounded",),
    ),
)
