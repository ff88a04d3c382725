"""What the project asks of its metrics' speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import Bench, Estimate
from contestants import OURS
from neighbours import KINDS
from sections import BUSY, FLOOR_SECTION, MEMORY, PEERS, SIZES, Section

SMALL, _, LARGE = SIZES
MEGABYTE = 1e6


@dataclass(frozen=True)
class Target:
    """A limit on one number.

    Attributes:
        text: What the number is.
        limit: The limit.
        at_least: Whether it is a lower one.
        value: The number, `None` if it was not measured.
    """

    text: str
    limit: float
    at_least: bool
    value: Callable[[Bench], Estimate | None]

    def met(self, bench: Bench) -> bool | None:
        """Judge, `None` if not measured."""
        value = self.value(bench)
        if value is None:
            return None
        return value.value >= self.limit if self.at_least else value.value <= self.limit


def all_targets() -> list[Target]:
    """Return all targets."""
    return [*_faster(), *_threads(), *_growth(), *_memory(), *_floor()]


def _faster() -> Iterator[Target]:
    # Where all distances do not fit into memory, prc is what runs in their place.
    limits = {
        (PEERS, SMALL, "prc_full"): (40, 15),
        **{(section, SMALL, "prc_full"): (40, 15) for section in BUSY},
        (PEERS, SMALL, "faiss_exact"): (20, 8),
        (PEERS, LARGE, "prc_batched"): (400, 150),
    }
    for (section, size, rival), pair in limits.items():
        for ours, limit in zip(OURS, pair, strict=True):

            def ratio(bench: Bench, where=(section, size), rival=rival, ours=ours) -> Estimate | None:
                return bench.ratio(*where, rival, ours.name)

            yield Target(f"{ours.name} faster than {rival}, {size}{_beside(section)}, times", limit, True, ratio)


def _threads() -> Iterator[Target]:
    for section, limit in ((PEERS, 0.6), *((section, 1.2) for section in BUSY)):
        for ours in OURS:

            def ratio(bench: Bench, section=section, ours=ours.name) -> Estimate | None:
                return bench.ratio(section, SMALL, ours, f"{ours}_one")

            yield Target(f"{ours.name}: all threads over one, {SMALL}{_beside(section)}", limit, False, ratio)


def _beside(section: Section) -> str:
    return f", beside {KINDS[section.beside][0]}" if section.beside else ""


def _growth() -> Iterator[Target]:
    for ours, limit in (("lsh", 0.05), ("lsh_knn", 0.2)):
        text = f"{ours}: exponent of the cost per assessed sample"
        yield Target(text, limit, False, lambda bench, ours=ours: bench.exponent(ours))


def _memory() -> Iterator[Target]:
    for ours in ("lsh", "lsh_knn"):

        def megabytes(bench: Bench, ours=ours) -> Estimate | None:
            peak = bench.estimate(MEMORY, LARGE, ours, "peak_bytes")
            return peak and peak / Estimate(MEGABYTE)

        yield Target(f"{ours}: peak memory beyond the features, {LARGE}, MB", 300, False, megabytes)


def _floor() -> Iterator[Target]:
    for size in SIZES:

        def ratio(bench: Bench, size=size) -> Estimate | None:
            return bench.ratio(FLOOR_SECTION, size, "lsh", "floor")

        yield Target(f"lsh over its floor, {size}, times", 2, False, ratio)
