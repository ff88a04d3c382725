"""What a metric's values along a sweep must look like, and by how much they miss it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Group = tuple[int | float | str, ...]

START, END = -np.inf, np.inf
NEAR = 0.05


@dataclass(frozen=True)
class Curve:
    """One number of one metric along a sweep.

    Attributes:
        group: What the sweep holds fixed, such as the dimension.
        label: The group in words.
        x: P points of the sweep, ascending.
        values: Repeats x P.
        intervals: Repeats x P x 2, the ends of 95 % confidence intervals, or `None` where the metric has none.
        stderr: Repeats x P, the standard errors that they come from.
        unclipped: Repeats x P, the values before they are limited to [0, 1], as these errors are.
    """

    group: Group
    label: str
    x: np.ndarray
    values: np.ndarray
    intervals: np.ndarray | None = None
    stderr: np.ndarray | None = None
    unclipped: np.ndarray | None = None

    @property
    def y(self) -> np.ndarray:
        """Mean over the repeats."""
        return self.values.mean(0)

    def at(self, x: float) -> float:
        """Return the mean at the point of the sweep nearest to `x`."""
        return float(self.y[np.abs(self.x - np.clip(x, self.x[0], self.x[-1])).argmin()])


@dataclass(frozen=True)
class Rule:
    """A demand on one curve: `excess` is what it breaks the rule by, at most 0 if it keeps it."""

    text: str
    excess: Callable[[Curve], float]


@dataclass(frozen=True)
class Outcome:
    """The verdict on one number of one metric.

    Attributes:
        excess: By how much the worst curve breaks the worst rule; at most 0 if all keep all.
        where: Which curve and rule that is.
        kind: Which of several allowed behaviours it was judged by.
        value: The number of interest, where there is one.
    """

    excess: float
    where: str
    kind: str = ""
    value: float | None = None

    @property
    def passed(self) -> bool:
        """Whether all rules are kept, rounding aside."""
        return bool(self.excess <= 1e-9)


# Judges all curves of one number; None: the metric does not give what is judged.
Judge = Callable[[Sequence[Curve]], Outcome | None]


def all_keep(*rules: Rule) -> Judge:
    """Return a judge that wants every rule kept by every curve."""

    def judge(curves: Sequence[Curve]) -> Outcome:
        excesses = [(rule.excess(curve), f"{curve.label}: {rule.text}") for curve in curves for rule in rules]
        return Outcome(*max(excesses))

    return judge


def either(**judges: Judge) -> Judge:
    """Return a judge that wants one of several behaviours, the same one in all curves."""

    def judge(curves: Sequence[Curve]) -> Outcome:
        kind, best = min(((kind, judge(curves)) for kind, judge in judges.items()), key=lambda pair: pair[1].excess)
        return Outcome(best.excess, best.where, kind, best.value)

    return judge


def worst_within(target: float, tolerance: float) -> Judge:
    """Return a judge that wants all points near `target`, and reports the furthest."""

    def judge(curves: Sequence[Curve]) -> Outcome:
        points = [(y, f"{curve.label}: {x:g}") for curve in curves for x, y in zip(curve.x, curve.y, strict=True)]
        value, where = max(points, key=lambda point: abs(point[0] - target))
        return Outcome(abs(value - target) - tolerance, where, value=float(value))

    return judge


def at_most(limit: float, measure: Callable[[Curve], float]) -> Judge:
    """Return a judge that wants a measure of each curve to be small, and reports the largest."""

    def judge(curves: Sequence[Curve]) -> Outcome:
        value, where = max((measure(curve), curve.label) for curve in curves)
        return Outcome(value - limit, where, value=value)

    return judge


def close(target: float, x: float, tolerance: float = NEAR) -> Rule:
    """Near `target` at `x`."""
    place = {START: "start", END: "end"}.get(x, f"{x:g}")
    return Rule(f"{target:g} at {place}", lambda curve: abs(curve.at(x) - target) - tolerance)


def bell(middle: float) -> Rule:
    """High at `middle` and low at both ends."""

    def excess(curve: Curve) -> float:
        top, left, right = curve.at(middle), curve.at(START), curve.at(END)
        lowest_end = min(left, right) - float(curve.y.min())
        return max(0.2 - (top - left), 0.2 - (top - right), float(curve.y.max()) - top - 0.1, lowest_end - 0.1)

    return Rule(f"bell around {middle:g}", excess)


def falling() -> Rule:
    """High at the start, low at the end."""
    return Rule("high to low", lambda curve: _fall(curve, curve.at(START), curve.at(END)))


def rising() -> Rule:
    """Low at the start, high at the end."""
    return Rule("low to high", lambda curve: _fall(curve, curve.at(END), curve.at(START)))


def _fall(curve: Curve, high: float, low: float) -> float:
    return max(0.2 - (high - low), float(curve.y.max()) - high - 0.1, low - float(curve.y.min()) - 0.1)


def dropped_at(x: float) -> Rule:
    """Visibly below the start at `x` already."""
    return Rule(f"down by .1 at {x:.2g}", lambda curve: 0.1 - (curve.at(START) - curve.at(x)))


def flat(tolerance: float = NEAR) -> Rule:
    """The same all along."""
    return Rule("flat", lambda curve: float(np.ptp(curve.y)) - tolerance)


def converging(tolerance: float = NEAR) -> Rule:
    """The same over the upper half of the sweep."""
    return Rule("converging", lambda curve: float(np.ptp(curve.y[curve.x >= np.median(curve.x)])) - tolerance)
