"""Runs what is missing, and answers what was measured or, where it was not, what its law says."""

from __future__ import annotations

import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import synthetic
from contestants import CONTESTANTS, Size
from measure import THREAD_VARIABLES, Worker, worker
from neighbours import neighbours
from sections import GROWTH, SECTIONS, Section
from storage import Row, Store, digest

GIB = 2**30
# Slow contestants vary less, in proportion, and cost more: no further round once one has used so much.
ENOUGH_S = 60.0
QUICK_ROUNDS = 2
DATA_SOURCE = digest(Path(synthetic.__file__))


class Estimate(NamedTuple):
    """A number, and whether a law gave it."""

    value: float
    extrapolated: bool = False

    def __truediv__(self, other: Estimate) -> Estimate:
        return Estimate(self.value / other.value, self.extrapolated or other.extrapolated)


@dataclass(frozen=True)
class Bench:
    """One benchmark on one machine.

    Attributes:
        store: What is measured so far.
        quick: Whether sizes are small.
        threads: Of every contestant.
        device: Where the features are.
        machine: Name of processor and accelerator; those of other machines do not count.
        wait_policy: Of idle threads, as OpenMP names it.
        limit_s: Expected seconds beyond which a contestant does not run.
        limit_bytes: Expected bytes beyond the features, likewise.
        rounds: Largest number of rounds, where fewer than the sections' own are wanted.
        busy: Number of neighbours in the sections that have some.
    """

    store: Store
    quick: bool
    threads: int
    device: str
    machine: str
    wait_policy: str
    limit_s: float
    limit_bytes: float
    rounds: int | None = None
    busy: int = 3

    def sizes(self, section: Section) -> tuple[Size, ...]:
        """Return the sizes of a section."""
        return section.quick_sizes if self.quick else section.sizes

    def names(self, section: Section) -> list[str]:
        """Return the contestants of a section that can run here."""
        usable = (CONTESTANTS[name] for name in section.contestants)
        device = section.device or self.device
        return [each.name for each in usable if each.installed and device in each.devices]

    def run(self, section: Section) -> None:
        """Measure what is not in the store yet, contestants in turns; goes on where an earlier run ended."""
        # Libraries read these when they are loaded, so that they must be there before a process is.
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(self.threads)))
        for size in self.sizes(section):
            names = self.names(section)
            # A quick run spends its time better than on starting processes.
            for group in [[name] for name in names] if section.fresh and not self.quick else [names]:
                with (
                    neighbours(section.beside, self.busy, self.threads),
                    worker(size, self.threads, section.device or self.device, trim=section.fresh) as held,
                ):
                    self._run_rounds(section, size, group, held)

    def _run_rounds(self, section: Section, size: Size, names: list[str], held: Worker) -> None:
        for turn in range(min(filter(None, (self.rounds, section.rounds, QUICK_ROUNDS if self.quick else None)))):
            for name in names:
                if self._is_due(section, size, name, turn):
                    row = held.measure(name)
                    identity = {"section": section.name, "size": size, "contestant": name, "round": turn}
                    self.store.add({"key": self._key(section, size, name, turn), **identity, **row})
                    print(f"{section.name}, {size}: {name} {row['seconds']:.3f} s", file=sys.stderr)

    def _is_due(self, section: Section, size: Size, name: str, turn: int) -> bool:
        rows = self.rows(section, size, name)
        if not rows and self.obstacle(section, size, name):
            return False
        return len(rows) == turn and sum(row["seconds"] for row in rows) < ENOUGH_S

    def _key(self, section: Section, size: Size, name: str, turn: int) -> str:
        where = f"{self.machine}/{section.device or self.device}/{self.threads}-{self.wait_policy}"
        where += f"/{self.busy}" if section.beside else ""
        what = f"{'x'.join(map(str, size))}/{name}/{turn}"
        return "/".join([section.name, what, where, CONTESTANTS[name].source, DATA_SOURCE])

    # --- Answers ------------------------------------------------------------------------------------------------------

    def rows(self, section: Section, size: Size, name: str) -> list[Row]:
        """Return the measurements of all rounds."""
        rows = []
        while row := self.store.rows.get(self._key(section, size, name, len(rows))):
            rows.append(row)
        return rows

    def obstacle(self, section: Section, size: Size, name: str) -> str:
        """Return why a contestant does not run, nothing if it does."""
        contestant = CONTESTANTS[name]
        if (peak := contestant.peak(size)) > self.limit_bytes:
            return f"needs about {peak / GIB:.0f} GiB; limit: {self.limit_bytes / GIB:.0f} GiB"
        limit = min(self.limit_s, section.limit_s)
        known = [
            (contestant.work(measured), self.measured(other, measured, name, "seconds"))
            for other in SECTIONS.values()
            if not other.beside and other.device == section.device
            for measured in self.sizes(other)
        ]
        work = contestant.work(size)
        below = [pair for pair in known if pair[1] is not None and pair[0] <= work]
        if not below:
            return ""
        base, seconds = max(below)
        expected = seconds * work / base
        return f"would take about {expected:,.0f} s; limit: {limit:.0f} s" if expected > limit else ""

    def measured(self, section: Section, size: Size, name: str, field: str) -> float | None:
        """Return the median over rounds, `None` if not measured."""
        rows = self.rows(section, size, name)
        return statistics.median(row[field] for row in rows) if rows else None

    def estimate(self, section: Section, size: Size, name: str, field: str = "seconds") -> Estimate | None:
        """Return the median of ``"seconds"`` or ``"peak_bytes"``, or what the law makes of the next smaller size's."""
        value = self.measured(section, size, name, field)
        if value is not None:
            return Estimate(value)
        law = CONTESTANTS[name].work if field == "seconds" else CONTESTANTS[name].peak
        for smaller in reversed(self.sizes(section)):
            value = self.measured(section, smaller, name, field)
            if value is not None and law(smaller) <= law(size):
                return Estimate(value * law(size) / law(smaller), extrapolated=True)
        return None

    def ratio(self, section: Section, size: Size, slower: str, faster: str) -> Estimate | None:
        """Return how many times longer one takes than another."""
        pair = self.estimate(section, size, slower), self.estimate(section, size, faster)
        return pair[0] / pair[1] if pair[0] and pair[1] else None

    def costs(self, name: str) -> dict[int, float]:
        """Return seconds per assessed sample by number of references, as far as measured."""
        medians = {size: self.measured(GROWTH, size, name, "seconds") for size in self.sizes(GROWTH)}
        return {size.real: seconds / size.samples for size, seconds in medians.items() if seconds is not None}

    def exponent(self, name: str) -> Estimate | None:
        """Return the slope of the logarithm of the cost per sample over that of the number of references."""
        costs = self.costs(name)
        return Estimate(slope(list(costs), list(costs.values()))) if len(costs) > 1 else None


def slope(x: list[int], y: list[float]) -> float:
    """Return the slope of the least-squares line through logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
