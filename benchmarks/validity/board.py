"""Measures metrics on checks, keeps every measurement, and judges what is kept."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from checks import NUMBERS, Check, seed_of
from columns import METRICS, Metric, to_tensors
from criteria import Curve, Group, Outcome
from demo import demo_check, demo_file
from intervals import interval_checks
from mixtures import real_checks
from ordinary import ORDINARY
from protocols import PROTOCOLS
from storage import Row, Store
from suite import SUITE
from threadpoolctl import threadpool_limits
from tqdm import tqdm


class Task(NamedTuple):
    """One metric on one draw of a check's data, by name: workers look the functions up themselves."""

    check: str
    metric: str
    repeat: int


@dataclass(frozen=True)
class Board:
    """The checks and metrics of one run.

    Attributes:
        features: File with features of real images; must exist when checks that need it are measured.
        quick: Whether sweeps are short and repeats few.
        repeats: Largest number of repeats, where fewer than the checks' own are wanted.
    """

    features: Path
    quick: bool
    repeats: int | None = None

    @property
    def checks(self) -> dict[str, Check]:
        """All checks by name, those of the first page first."""
        return {name: check for checks in self.pages.values() for name, check in checks.items()}

    @property
    def pages(self) -> dict[str, dict[str, Check]]:
        """All checks by page and name."""
        return _pages(self.features, self.demo)

    @property
    def demo(self) -> Path:
        """File with features of the demonstration's generator, beside those of real images."""
        return demo_file(self.features, self.quick)

    @property
    def metrics(self) -> dict[str, Metric]:
        """All metrics by name."""
        return _metrics()

    def repeats_of(self, check: Check) -> int:
        """Return the number of draws of a check."""
        return min(filter(None, (self.repeats, check.repeats[self.quick])))

    def tasks(self, checks: Sequence[str], metrics: Sequence[str]) -> list[Task]:
        """Return all measurements of some checks and metrics, the first repeat of each first."""
        tasks = [
            Task(check, metric, repeat)
            for check in checks
            for metric in metrics
            if self.metrics[metric].ours or not self.checks[check].ours_only
            for repeat in range(self.repeats_of(self.checks[check]))
        ]
        return sorted(tasks, key=lambda task: task.repeat)

    def key(self, task: Task) -> str:
        """Return under which a measurement is kept; it changes with the code of the check and of the metric."""
        sources = self.checks[task.check].source, self.metrics[task.metric].source
        return "/".join([task.check, "quick" if self.quick else "full", str(task.repeat), task.metric, *sources])

    def measure(self, task: Task) -> Row:
        """Measure all points of a check's sweeps."""
        points = [
            {"group": group, "x": x, **self._measure_point(task, group, x)}
            for group, sweep in self.checks[task.check].grid(self.quick).items()
            for x in sweep
        ]
        return {"key": self.key(task), "points": points}

    def _measure_point(self, task: Task, group: Group, x: float) -> Row:
        check, metric = self.checks[task.check], self.metrics[task.metric]
        if _is_too_expensive(check, metric, group, x):
            return {"too_expensive": True}
        generated, real = to_tensors(*check.data(group, x, task.repeat))
        start = time.perf_counter()
        # One seed for a whole sweep, as in a comparison of models.
        result = metric.measure(generated, real, seed_of(task.check, task.repeat, "metric"))
        return {**result._asdict(), "seconds": round(time.perf_counter() - start, 4)}

    def _points(self, store: Store, check: Check, metric: Metric) -> list[list[Row]] | None:
        """Return the measured points of all repeats, `None` if a repeat is missing."""
        keys = [self.key(Task(check.name, metric.name, repeat)) for repeat in range(self.repeats_of(check))]
        if not all(key in store.rows for key in keys):
            return None
        return [[p for p in store.rows[key]["points"] if "too_expensive" not in p] for key in keys]

    def seconds(self, store: Store, check: Check, metric: Metric) -> float | None:
        """Return the time of all sweeps of one repeat, on average."""
        repeats = self._points(store, check, metric)
        return None if repeats is None else sum(p["seconds"] for repeat in repeats for p in repeat) / len(repeats)

    def curves(self, store: Store, check: Check, metric: Metric) -> dict[str, list[Curve]]:
        """Return what is measured of a check by number, nothing if a repeat is missing."""
        repeats = self._points(store, check, metric)
        if repeats is None:
            return {}
        curves: dict[str, list[Curve]] = {number: [] for number in NUMBERS}
        for group in check.grid(self.quick):
            points = [[p for p in repeat if tuple(p["group"]) == group] for repeat in repeats]
            x = np.array([p["x"] for p in points[0]])
            if not len(x):
                continue
            for number in NUMBERS:
                values = {
                    name: np.array([[p[number + name] for p in repeat] for repeat in points])
                    for name in ("", "_interval", "_stderr", "_unclipped")
                    if points[0][0][number + name] is not None
                }
                known = [values.get(name) for name in ("_interval", "_stderr", "_unclipped")]
                curves[number].append(Curve(group, check.label(group), x, values[""], *known))
        return curves

    def judge(self, store: Store, check: Check, metric: Metric) -> dict[str, dict[str, Outcome]]:
        """Return the outcomes by cell and number, as far as measured."""
        curves = self.curves(store, check, metric)
        outcomes: dict[str, dict[str, Outcome]] = {}
        for cell, judges in check.cells.items():
            given = {number: judge(curves[number]) for number, judge in judges.items() if curves.get(number)}
            outcomes[cell] = {number: outcome for number, outcome in given.items() if outcome is not None}
        return outcomes

    def too_expensive(self, check: Check, metric: Metric) -> list[str]:
        """Return the points of a check that are not measured."""
        return [
            f"{check.label(group)}, {x:g}"
            for group, sweep in check.grid(self.quick).items()
            for x in sweep
            if _is_too_expensive(check, metric, group, x)
        ]


def _is_too_expensive(check: Check, metric: Metric, group: Group, x: float) -> bool:
    samples, dimension = check.size(group, x)
    return samples**2 * (dimension + 100) > metric.max_cost


@lru_cache
def _pages(features: Path, demo: Path) -> dict[str, dict[str, Check]]:
    pages = {
        "sanity": (*SUITE, *PROTOCOLS, *real_checks(features)),
        "ordinary": (*ORDINARY, demo_check(demo), *interval_checks(features)),
    }
    return {page: {check.name: check for check in checks} for page, checks in pages.items()}


@lru_cache
def _metrics() -> dict[str, Metric]:
    return {metric.name: metric for metric in METRICS}


T = TypeVar("T", contravariant=True)


class Study(Protocol[T]):
    """What measures tasks, each kept under a key."""

    def key(self, task: T, /) -> str:
        """Return under which a measurement is kept."""

    def measure(self, task: T, /) -> Row:
        """Measure."""


def run(study: Study[T], tasks: Sequence[T], store: Store, jobs: int) -> None:
    """Measure what the store does not have yet."""
    missing = [task for task in tasks if study.key(task) not in store.rows]
    with tqdm(total=len(missing), desc="Measurements", unit="run") as progress:
        for row in _rows(study, missing, jobs):
            store.add(row)
            progress.update()


def _rows(study: Study[T], tasks: Sequence[T], jobs: int) -> Iterator[Row]:
    if jobs == 1:
        torch.set_num_threads(1)
        return map(study.measure, tasks)
    return in_processes(study, tasks, jobs)


def in_processes(study: Study[T], tasks: Sequence[T], jobs: int) -> Iterator[Row]:
    """Measure in processes of one thread each, which end with the iteration, however it ends."""
    # Not fork: the threads of torch do not survive one.
    with multiprocessing.get_context("spawn").Pool(jobs, _start_worker) as pool:
        yield from pool.imap_unordered(study.measure, tasks)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent stops its workers.
    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy's
