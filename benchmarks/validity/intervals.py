"""Do 95 % intervals fit? The share that holds the mean over draws, and their width against what varies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from checks import Cells, Check, Grid, Streams, both
from criteria import Curve, Group, Judge, Outcome
from mixtures import Split
from ordinary import SAMPLES, Pair, draw_collapse, draw_modes, draw_strangers

DRAWS = (100, 3)
SHARES = (0.0, 0.25, 0.5)
HELD = (0.9, 0.99)
WIDTH = (0.9, 1.4)
# Values that deviate less than this over draws need no interval.
STEADY = 0.005


class Fit(NamedTuple):
    """How the intervals at one point of a sweep fit.

    Attributes:
        where: Curve and point.
        held: Share of intervals that hold the mean value over draws.
        width: Mean half-width in units of 1.96 deviations over draws, of the unclipped values; `None` where these are
            steady.
    """

    where: str
    held: float
    width: float | None

    @property
    def held_excess(self) -> float:
        """By how much the share leaves 90 to 99 %; 100 % is no fault where values are steady."""
        low, high = HELD
        return max(low - self.held, self.held - (1 if self.width is None else high))

    @property
    def width_excess(self) -> float:
        """By how much the width leaves .9 to 1.4."""
        low, high = WIDTH
        return 0.0 if self.width is None else max(low - self.width, self.width - high)


def fits(curves: Sequence[Curve]) -> Iterator[Fit]:
    """Yield how the intervals of all points fit, nothing where there are none."""
    for curve in curves:
        if curve.intervals is None or curve.stderr is None or curve.unclipped is None or len(curve.values) < 2:
            continue
        low, high = np.moveaxis(curve.intervals, 2, 0)
        # Rounding aside.
        held = ((low <= curve.y + 1e-9) & (curve.y - 1e-9 <= high)).mean(0)
        deviation = curve.unclipped.std(0, ddof=1)
        for point, x in enumerate(curve.x):
            steady = deviation[point] < STEADY
            width = None if steady else float(curve.stderr[:, point].mean() / deviation[point])
            yield Fit(f"{curve.label}: {x:g}", float(held[point]), width)


def worst(excess: Callable[[Fit], float], value: Callable[[Fit], float | None]) -> Judge:
    """Return a judge of the point that fits worst."""

    def judge(curves: Sequence[Curve]) -> Outcome | None:
        fit = max(fits(curves), key=excess, default=None)
        return None if fit is None else Outcome(excess(fit), fit.where, value=value(fit))

    return judge


FIT: Cells = {
    "holds the mean": both(worst(lambda fit: fit.held_excess, lambda fit: fit.held)),
    "half-width": both(worst(lambda fit: fit.width_excess, lambda fit: fit.width)),
}


_check = partial(Check, cells=FIT, repeats=DRAWS, standardized=False, ours_only=True)


def at(points: Sequence[float]) -> Callable[[bool], Grid]:
    """Return a grid of one sweep, quick or not."""
    return lambda quick: {(): points}


def interval_checks(path: Path) -> tuple[Check, ...]:
    """Return the checks; those on images need the features in a file."""

    def draw_digits(group: Group, x: float, streams: Streams) -> Pair:
        split = Split(path, streams)
        return split.mixed(x), split.reference

    def draw_kept(group: Group, x: float, streams: Streams) -> Pair:
        return draw_modes(streams, [round(SAMPLES / x)] * int(x))

    return (
        _check(
            "interval_digits",
            "95 % interval, share of new digits",
            at(SHARES),
            draw_digits,
            source_data=path.stem,
        ),
        _check(
            "interval_strangers",
            "95 % interval, share far away",
            at(SHARES),
            lambda group, x, streams: draw_strangers(streams, x),
        ),
        _check("interval_modes", "95 % interval, modes kept of ten", at((9, 5, 1)), draw_kept),
        _check(
            "interval_collapse",
            "95 % interval, spread of a collapsed generator",
            at((0.01, 0.1, 0.3)),
            lambda group, x, streams: draw_collapse(streams, x),
        ),
    )
