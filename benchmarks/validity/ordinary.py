"""Ordinary data: situations that users have, each with a known truth for precision and recall.

Sides are independent draws; what is not said to differ is the same distribution on both. Truths hold by construction:
distributions that do not meet, or the same one, or, for overlapping discs, an area.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from checks import Check, Streams
from criteria import NEAR, Curve, Group, Judge, Outcome
from protocols import normal

Pair = tuple[np.ndarray, np.ndarray]
SAMPLES = 1000
D = 64

# Tolerances of a mean over draws, and why.
AS_SUITE = "as in the sanity suite: a share read to a twentieth"
FEW = "150 or 200 samples: a median rule has an error of .03 to .04 a draw, and cells hold few samples"
REPEATED = "exact repeats add nothing: a value may move by its own noise only"
COLLAPSE = "one to ten independent answers: the mean of ten draws has an error of .1"
OUTLIER = "one sample among 1,000"
GROUP = "135 samples: an error of .04 a draw, and three sets of neighbours that are denser"
EDGE = "a disc's edge is known to a neighbour's distance, .1 of its radius"


class Expected(NamedTuple):
    """A true value, and by how much the mean over draws may miss it."""

    value: float
    tolerance: float = NEAR


@dataclass(frozen=True)
class Situation:
    """One row of the page.

    Attributes:
        case: In words; unique in its check.
        draw: Streams to generated and real samples.
        precision: Share of the generated distribution inside the support of the real one.
        recall: The reverse.
        reason: Why these tolerances.
    """

    case: str
    draw: Callable[[Streams], Pair]
    precision: Expected
    recall: Expected
    reason: str = AS_SUITE


# --- Draws: streams to generated and real samples ---------------------------------------------------------------------


def on_axis(d: int, axis: int, distance: float) -> np.ndarray:
    """Return the point at a distance along one axis, float32, d."""
    point = np.zeros(d, np.float32)
    point[axis] = distance
    return point


def cluster(rng: np.random.Generator, samples: int, center: np.ndarray, deviation: float = 1) -> np.ndarray:
    """Draw from N(center, deviation^2 I), float32."""
    return center + np.float32(deviation) * normal(rng, samples, len(center))


def draw_alike(streams: Streams, generated: int = SAMPLES, real: int = SAMPLES, d: int = D) -> Pair:
    """Draw both sides from a standard normal distribution."""
    return normal(streams("generated"), generated, d), normal(streams("real"), real, d)


def draw_sparse_group(streams: Streams, d: int, apart: float, copies: bool) -> Pair:
    """Generate one of four groups, the smallest; of the largest, all are new or five near copies each."""
    group, wide, wider = (on_axis(d, axis, apart) for axis in range(3))
    rng = streams("real")
    if copies:
        large = normal(rng, 440, d).repeat(5, axis=0) + np.float32(0.1) * normal(rng, 2200, d)
    else:
        large = normal(rng, 2200, d)
    others = [large, cluster(rng, 400, wide, 1.2), cluster(rng, 800, wider, 1.5)]
    real = np.concatenate([cluster(rng, 135, group, 1.3), *others])
    return cluster(streams("generated"), 135, group, 1.3), real


def draw_small_class(streams: Streams) -> Pair:
    """Generate the small one of three classes far apart."""
    rng, small = streams("real"), on_axis(D, 0, 10)
    classes = [cluster(rng, 1000, on_axis(D, axis, 10)) for axis in (1, 2)]
    return cluster(streams("generated"), 200, small), np.concatenate([*classes, cluster(rng, 200, small)])


SMALL_DISC, DISC_DISTANCE, IN_DISC, IN_SMALL_DISC = 0.5, 1.2, 2000, 300


def disc(rng: np.random.Generator, samples: int, radius: float, x: float) -> np.ndarray:
    """Draw from a disc around (x, 0), evenly."""
    distance, angle = radius * np.sqrt(rng.random(samples)), rng.uniform(0, 2 * np.pi, samples)
    return np.stack([x + distance * np.cos(angle), distance * np.sin(angle)], axis=1)


def lens_area(radius: float, distance: float) -> float:
    """Return the area that a disc shares with the unit disc, edges crossing."""
    to_edge = (distance**2 + 1 - radius**2) / (2 * distance)
    to_edge_small = distance - to_edge
    half_chord = math.sqrt(1 - to_edge**2)
    return (
        math.acos(to_edge)
        - to_edge * half_chord
        + (radius**2 * math.acos(to_edge_small / radius) - to_edge_small * half_chord)
    )


DISC_RECALL = (IN_SMALL_DISC + IN_DISC * lens_area(SMALL_DISC, DISC_DISTANCE) / math.pi) / (IN_DISC + IN_SMALL_DISC)


def draw_discs(streams: Streams) -> Pair:
    """Generate the small one of two overlapping discs, in a plane of 16 dimensions."""
    plane = np.linalg.qr(Streams("plane")().standard_normal((16, 2)))[0].T
    rng = streams("real")
    real = np.concatenate([disc(rng, IN_DISC, 1, 0), disc(rng, IN_SMALL_DISC, SMALL_DISC, DISC_DISTANCE)])
    generated = disc(streams("generated"), SAMPLES, SMALL_DISC, DISC_DISTANCE)
    return (generated @ plane).astype(np.float32), (real @ plane).astype(np.float32)


SPREADS = (0.2, 1, 3)


def draw_spreads(streams: Streams, kept: Sequence[int]) -> Pair:
    """Generate some of three classes far apart, of unequal spread."""

    def draw(rng: np.random.Generator, chosen: Sequence[int]) -> np.ndarray:
        return np.concatenate([cluster(rng, 400, on_axis(D, i, 60), SPREADS[i]) for i in chosen])

    return draw(streams("generated"), kept), draw(streams("real"), range(3))


def draw_shares_turned(streams: Streams) -> Pair:
    """Nine tenths of one side are of one class, and of the other side of the other."""

    def draw(rng: np.random.Generator, first: int) -> np.ndarray:
        return np.concatenate([normal(rng, first, D), cluster(rng, SAMPLES - first, on_axis(D, 0, 10))])

    return draw(streams("generated"), 100), draw(streams("real"), 900)


def swapped(draw: Callable[[Streams], Pair], streams: Streams) -> Pair:
    """Draw with the sides swapped."""
    generated, real = draw(streams)
    return real, generated


def draw_copies(streams: Streams, share: float, noise: float = 0) -> Pair:
    """Give a share of the generated rows once more, exactly or with some noise."""
    generated, real = draw_alike(streams, 1200, 1200)
    copied = generated[: round(share * len(generated))]
    noisy = copied + np.float32(noise) * normal(streams("noise"), *copied.shape)
    return np.concatenate([generated, noisy]), real


def modes(rng: np.random.Generator, counts: Sequence[int]) -> np.ndarray:
    """Draw given numbers of samples from modes far apart."""
    return np.concatenate([cluster(rng, count, on_axis(D, mode, 10)) for mode, count in enumerate(counts)])


def draw_modes(streams: Streams, counts: Sequence[int]) -> Pair:
    """Generate the first of ten modes, which are real alike."""
    return modes(streams("generated"), counts), modes(streams("real"), [100] * 10)


def draw_modes_and_strangers(streams: Streams) -> Pair:
    """Generate the first five of ten real modes, and a quarter of what is not real."""
    return modes(streams("generated"), [150] * 5 + [0] * 5 + [250]), modes(streams("real"), [100] * 10)


def draw_strangers(streams: Streams, share: float = 0.25) -> Pair:
    """Move a share of the generated samples far away."""
    generated, real = draw_alike(streams)
    generated[: round(share * SAMPLES)] += on_axis(D, 0, 20)
    return generated, real


LATENT, FEATURES = 16, 256


def rectified(rng: np.random.Generator, samples: int, network: str) -> np.ndarray:
    """Draw non-negative features, two thirds of them zero: one rectified layer and noise, as the last of VGG."""
    weights = Streams("rectified", network)().standard_normal((LATENT, FEATURES)) / math.sqrt(LATENT)
    before = rng.standard_normal((samples, LATENT)) @ weights + 0.1 * rng.standard_normal((samples, FEATURES))
    return np.maximum(before - 0.4, 0).astype(np.float32)


def draw_rectified(streams: Streams, share: float) -> Pair:
    """A share of the generated features comes from other weights."""
    strangers = round(share * SAMPLES)
    rng = streams("generated")
    generated = [rectified(rng, SAMPLES - strangers, "real"), rectified(rng, strangers, "other")]
    return np.concatenate(generated), rectified(streams("real"), SAMPLES, "real")


def draw_student(streams: Streams) -> Pair:
    """Student's t with 2 degrees of freedom in 16 dimensions: the variance is infinite."""
    sides = draw_alike(streams, d=16)
    generated, real = (
        (x / np.sqrt(streams(side).chisquare(2, (SAMPLES, 1)) / 2)).astype(np.float32)
        for x, side in zip(sides, ("divisor generated", "divisor real"), strict=True)
    )
    return generated, real


def draw_log_normal(streams: Streams) -> Pair:
    """Sixteen log-normal columns."""
    generated, real = draw_alike(streams, d=16)
    return np.exp(generated), np.exp(real)


def constant_and_duplicated(x: np.ndarray) -> np.ndarray:
    """Give each column four times, and as many constant ones."""
    return np.concatenate([x, x, x, x, np.full_like(x.repeat(4, axis=1), 3.5)], axis=1)


def draw_columns(streams: Streams, share: float, form: Callable[[np.ndarray], np.ndarray]) -> Pair:
    """Bring 16 columns into a form, a share of the generated rows moved far away."""
    generated, real = draw_alike(streams, d=16)
    generated[: round(share * SAMPLES)] += 5
    return form(generated), form(real)


def scaled(x: np.ndarray) -> np.ndarray:
    """Scale columns so that they differ a thousandfold."""
    return x * np.logspace(-1.5, 1.5, x.shape[1], dtype=np.float32)


def draw_outliers(streams: Streams) -> Pair:
    """Throw three generated samples a thousand times as far out."""
    generated, real = draw_alike(streams)
    generated[:3] *= 1000
    return generated, real


def draw_one_outlier(streams: Streams, d: int) -> Pair:
    """Put one generated sample beyond the real ones, which are far from the others."""
    generated, real = draw_alike(streams, d=d)
    apart = np.float32(20 / math.sqrt(d))
    generated[0] = 3 * apart
    return generated, real + apart


def draw_collapse(streams: Streams, spread: float) -> Pair:
    """Generate a small blob around one sample of the real distribution."""
    _, real = draw_alike(streams)
    center = normal(streams("center"), 1, D)[0]
    return cluster(streams("generated"), SAMPLES, center, spread), real


# --- The list ---------------------------------------------------------------------------------------------------------

ALL, NONE = Expected(1), Expected(0)


def both_sides(
    case: str, draw: Callable[[Streams], Pair], precision: Expected, recall: Expected, reason: str = AS_SUITE
) -> tuple[Situation, Situation]:
    """Return a situation of the generated side, and the same of the real side."""
    return (
        Situation(f"{case}, generated", draw, precision, recall, reason),
        Situation(f"{case}, real", partial(swapped, draw), recall, precision, reason),
    )


def as_expected(expected: Mapping[Group, Expected]) -> Judge:
    """Return a judge that wants each mean near its truth, and reports the one that misses most."""

    def judge(curves: Sequence[Curve]) -> Outcome:
        misses = [(miss(curve, expected[curve.group]), curve.label, curve.at(0)) for curve in curves]
        excess, where, value = max(misses)
        return Outcome(excess, where, value=value)

    return judge


def miss(curve: Curve, expected: Expected) -> float:
    """Return by how much a mean leaves its tolerance; at most 0 if it keeps it."""
    return abs(curve.at(0) - expected.value) - expected.tolerance


SITUATIONS: Mapping[tuple[str, str], Sequence[Situation]] = {
    ("sparse_group", "a sparse group alone"): [
        Situation(
            f"d {d}, largest group {large}",
            partial(draw_sparse_group, d=d, apart=apart, copies=copies),
            Expected(1, 0.12),
            Expected(135 / 3535, 0.08 - 135 / 3535),
            GROUP,
        )
        for d, apart in ((16, 10), (64, 20))
        for large, copies in (("all new", False), ("of near copies", True))
    ],
    ("small_class", "a small class beside big ones"): [
        Situation("separate", draw_small_class, ALL, Expected(200 / 2200)),
        Situation("overlapping discs", draw_discs, Expected(1, 0.1), Expected(DISC_RECALL, 0.1), EDGE),
    ],
    ("unequal_spread", "classes of spread .2, 1 and 3"): [
        Situation("all", partial(draw_spreads, kept=(0, 1, 2)), ALL, ALL),
        Situation("the tightest", partial(draw_spreads, kept=(0,)), ALL, Expected(1 / 3)),
        Situation("the widest", partial(draw_spreads, kept=(2,)), ALL, Expected(1 / 3)),
    ],
    ("unequal_shares", "classes of unequal shares"): [
        Situation("90 and 10 % against 10 and 90 %", draw_shares_turned, ALL, ALL)
    ],
    ("repeats", "rows given twice"): [
        situation
        for share in (0.1, 0.3, 0.5, 1.0)
        for situation in both_sides(
            f"{share:.0%}", partial(draw_copies, share=share), Expected(1, 0.03), Expected(1, 0.03), REPEATED
        )
    ],
    ("near_copies", "rows with a near copy"): [
        situation
        for share in (0.3, 1.0)
        for situation in both_sides(f"{share:.0%}", partial(draw_copies, share=share, noise=0.05), ALL, ALL)
    ],
    ("sizes", "few samples"): [
        *both_sides(
            "150 against 5,000",
            partial(draw_alike, generated=150, real=5000),
            Expected(1, 0.1),
            Expected(1, 0.1),
            FEW,
        ),
        Situation("200 a side", partial(draw_alike, generated=200, real=200), Expected(1, 0.1), Expected(1, 0.1), FEW),
    ],
    ("modes", "ten modes"): [
        Situation("half dropped, the rest in proportion", partial(draw_modes, counts=[200] * 5), ALL, Expected(0.5)),
        Situation(
            "half dropped, one of the rest crowded", partial(draw_modes, counts=[800, *[50] * 4]), ALL, Expected(0.5)
        ),
        Situation("all but one dropped", partial(draw_modes, counts=[1000]), ALL, Expected(0.1)),
        Situation("half dropped, a quarter invented", draw_modes_and_strangers, Expected(0.75), Expected(0.5)),
    ],
    ("strangers", "a quarter far away"): [*both_sides("one side", draw_strangers, Expected(0.75), ALL)],
    ("rectified", "sparse non-negative features"): [
        Situation("alike", partial(draw_rectified, share=0), ALL, ALL),
        Situation("a quarter of other weights", partial(draw_rectified, share=0.25), Expected(0.75), ALL),
    ],
    ("tails", "heavy tails"): [
        Situation("Student's t, 2 degrees of freedom", draw_student, ALL, ALL),
        Situation("log-normal", draw_log_normal, ALL, ALL),
    ],
    ("columns", "constant and duplicated columns"): [
        Situation("alike", partial(draw_columns, share=0, form=constant_and_duplicated), ALL, ALL),
        Situation(
            "a quarter far away", partial(draw_columns, share=0.25, form=constant_and_duplicated), Expected(0.75), ALL
        ),
    ],
    ("scales", "columns scaled .03 to 30"): [
        Situation("alike", partial(draw_columns, share=0, form=scaled), ALL, ALL),
        Situation("a quarter far away", partial(draw_columns, share=0.25, form=scaled), Expected(0.75), ALL),
    ],
    ("outliers", "outliers"): [
        *both_sides("3 of 1,000 a thousand times as far", draw_outliers, Expected(0.997), ALL),
        *(
            situation
            for d in (8, 64)
            for situation in both_sides(
                f"1 of 1,000 beyond a set far away, d {d}",
                partial(draw_one_outlier, d=d),
                Expected(0, 0.01),
                Expected(0, 0.01),
                OUTLIER,
            )
        ),
    ],
    ("collapsed", "a side collapsed to a spot"): [
        situation
        for spread in (0.01, 0.1, 0.3)
        for situation in both_sides(
            f"spread {spread:g}", partial(draw_collapse, spread=spread), Expected(1, 0.25), NONE, COLLAPSE
        )
    ],
}


def _check(name: str, title: str) -> Check:
    by_group: dict[Group, Situation] = {(situation.case,): situation for situation in SITUATIONS[name, title]}

    def draw(group: Group, x: float, streams: Streams) -> Pair:
        return by_group[group].draw(streams)

    precision = as_expected({group: situation.precision for group, situation in by_group.items()})
    recall = as_expected({group: situation.recall for group, situation in by_group.items()})
    return Check(
        name,
        title,
        lambda quick: {group: [0] for group in by_group},
        draw,
        {"truth": {"fidelity": precision, "diversity": recall}},
        labels=("case",),
        standardized=False,
    )


ORDINARY = tuple(_check(*key) for key in SITUATIONS)


def situations_of(check: Check) -> Sequence[Situation]:
    """Return the rows of a check."""
    return SITUATIONS[check.name, check.title]
