"""Checks on features of real images, where the truth is known: mixtures of digits, classes, halves, scale, contrast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from checks import Cells, Check, Draw, Streams, both
from criteria import START, Curve, Group, Outcome, all_keep, at_most, bell, close, worst_within
from real_features import CONTRASTS

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
KNOWN_DIGITS = 5
LARGEST_REFERENCE = 2500


@lru_cache(maxsize=1)
def load_features(path: Path) -> Mapping[str, np.ndarray]:
    """Read all arrays of a file of features."""
    with np.load(path) as file:
        return dict(file)


class Split:
    """Known and new digits of one repeat: a reference of the known, and held-out images of both."""

    def __init__(self, path: Path, streams: Streams) -> None:
        arrays = load_features(path)
        self._features, self._digits = arrays["features"], arrays["digits"]
        order = streams("split").permutation(len(self._digits))
        known = order[self._digits[order] < KNOWN_DIGITS]
        size = min(LARGEST_REFERENCE, len(known) * 5 // 9)
        self.reference = self._features[known[:size]]
        self._held_out, self._new = known[size:], order[self._digits[order] >= KNOWN_DIGITS]

    def mixed(self, share: float) -> np.ndarray:
        """Return held-out known digits, a share of them replaced by new ones."""
        size = len(self.reference) * 4 // 5
        new = round(share * size)
        return self._features[np.concatenate([self._held_out[: size - new], self._new[:new]])]

    def digit(self, digit: int) -> np.ndarray:
        """Return held-out images of one known digit."""
        return self._features[self._held_out[self._digits[self._held_out] == digit]]


def mixture_error(curve: Curve) -> float:
    """Return the mean distance from the truth, relative to the value without new digits."""
    return float(np.abs(curve.y / max(curve.at(START), 1e-9) - (1 - curve.x)).mean())


def identity(curves: Sequence[Curve]) -> Outcome:
    """Judge the value without new digits, which is 1."""
    (curve,) = curves
    value = curve.at(START)
    return Outcome(abs(value - 1) - 0.02, "no new digits", value=value)


def interval_coverage(curves: Sequence[Curve]) -> Outcome | None:
    """Judge the share of repeats whose interval holds the true value 1; wanted are 90 to 99 %."""
    (curve,) = curves
    if curve.intervals is None:
        return None
    low, high = curve.intervals[:, 0].T
    share = float(((low <= 1) & (high >= 1)).mean())
    return Outcome(max(0.9 - share, share - 0.99), f"{len(low)} halves", value=share)


def real_checks(path: Path) -> tuple[Check, ...]:
    """Return the checks on the features in a file, which need not be there yet."""

    def draw_precision(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        split = Split(path, streams)
        return split.mixed(x), split.reference

    def draw_recall(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        split = Split(path, streams)
        return split.reference, split.mixed(x)

    def draw_class(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        split = Split(path, streams)
        return split.digit(int(x)), split.reference

    def draw_halves(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        features = load_features(path)["features"]
        order = streams("split").permutation(len(features))[: min(4000, len(features) // 2)]
        one, other = np.array_split(features[order], 2)
        return one, other

    def draw_scaled(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        one, other = draw_halves(group, x, streams)
        return one.mean(0) + x * (one - one.mean(0)), other

    def draw_contrast(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        generated = load_features(path)[f"contrast {x}"]
        others = load_features(path)["features"][len(generated) :]
        return generated, others[streams("split").permutation(len(others))[: len(generated)]]

    def check(
        name: str,
        title: str,
        points: Sequence[float],
        draw: Draw,
        cells: Cells,
        repeats: tuple[int, int] = (5, 1),
        **options: bool,
    ) -> Check:
        return Check(
            name,
            title,
            lambda quick: {(): points},
            draw,
            cells,
            repeats=repeats,
            standardized=False,
            source_data=path.stem,
            **options,
        )

    error = at_most(0.1, mixture_error)
    return (
        check(
            "mixture_precision",
            "known mixture, generated",
            SHARES,
            draw_precision,
            {"mean error": {"fidelity": error}, "held out": both(identity)},
        ),
        check("mixture_recall", "known mixture, real", SHARES, draw_recall, {"mean error": {"diversity": error}}),
        check(
            "class_precision",
            "one class only",
            tuple(range(KNOWN_DIGITS)),
            draw_class,
            {"worst class": {"fidelity": worst_within(1, 0.05)}},
        ),
        check(
            "feature_scale",
            "A11 features scaled",
            (0.5, 0.75, 1.0, 1.25, 1.5),
            draw_scaled,
            {"bell": both(all_keep(bell(1), close(1, 1)))},
        ),
        check("contrast", "A11 contrast", CONTRASTS, draw_contrast, {"bell": both(all_keep(bell(1), close(1, 1)))}),
        check(
            "interval",
            "A17 95 % interval holds 1",
            (1.0,),
            draw_halves,
            {"share of halves": both(interval_coverage)},
            repeats=(100, 10),
            ours_only=True,
        ),
    )
