"""A check: data along a sweep, and what a metric must say about them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from criteria import Group, Judge
from storage import digest

NUMBERS = ("fidelity", "diversity")

# The points of each sweep, by what stays fixed along it.
Grid = Mapping[Group, Sequence[float]]
Draw = Callable[[Group, float, "Streams"], tuple[np.ndarray, np.ndarray]]
# By name of the cell, then of the number.
Cells = Mapping[str, Mapping[str, Judge]]


def both(judge: Judge) -> dict[str, Judge]:
    """Return the same demand on fidelity and diversity."""
    return dict.fromkeys(NUMBERS, judge)


def seed_of(*names: object) -> int:
    """Return a seed that depends on the names alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:4])


class Streams:
    """Random generators by name, so that no draw depends on what else was drawn before it."""

    def __init__(self, *names: object) -> None:
        self._names = names

    def __call__(self, *names: object) -> np.random.Generator:
        """Return a fresh generator for `names`."""
        return np.random.default_rng(seed_of(*self._names, *names))


@dataclass(frozen=True)
class Check:
    """One row of the scoreboard.

    Attributes:
        name: Under which it is asked for and kept.
        title: In words.
        grid: Points of the sweeps, full or, if called with `True`, quick.
        draw: (group, point, streams) to generated and real samples.
        cells: What is judged.
        labels: Names of the entries of a group.
        repeats: Draws of the data, full and quick.
        standardized: Whether both sides are scaled by mean and deviation of the real samples.
        size: (group, point) to number of samples and dimension, where they may be too many for some metrics.
        same_data: Whether repeats differ in the metric's seed alone.
        ours_only: Whether it is about seeds or intervals, which the published metrics do not have.
        source_data: Name of the real data that it draws from.
    """

    name: str
    title: str
    grid: Callable[[bool], Grid]
    draw: Draw
    cells: Cells
    labels: tuple[str, ...] = ()
    repeats: tuple[int, int] = (10, 1)
    standardized: bool = True
    size: Callable[[Group, float], tuple[int, int]] = field(default=lambda group, x: (1, 1))
    same_data: bool = False
    ours_only: bool = False
    source_data: str = ""

    def data(self, group: Group, x: float, repeat: int) -> tuple[np.ndarray, np.ndarray]:
        """Return generated and real samples of one point."""
        generated, real = self.draw(group, x, Streams(self.name, 0 if self.same_data else repeat))
        if self.standardized:
            mean, deviation = real.mean(0), real.std(0)
            deviation[deviation == 0] = 1
            generated, real = (generated - mean) / deviation, (real - mean) / deviation
        return generated, real

    def label(self, group: Group) -> str:
        """Return a group in words."""
        return ", ".join(f"{name} {value}" for name, value in zip(self.labels, group, strict=True)) or "all"

    @cached_property
    def source(self) -> str:
        """Digest of the module that draws the data, and the name of these."""
        return digest(Path(sys.modules[self.draw.__module__].__file__)) + self.source_data
