"""What the project asks of its metrics' speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import Bench, Estimate
from sections import FLOOR_SECTION, MEMORY, PEERS, SIZES

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
    return [*_faster(), *_growth(), *_memory(), *_floor()]


def _faster() -> Iterator[Target]:
    # Where all distances do not fit into memory, prc is what runs in their place.
    rivals = {SMALL: ("prc_full", "faiss_exact"), LARGE: ("prc_batched", "faiss_exact")}
    limits = {
        (SMALL, "lsh"): (50, 20),
        (SMALL, "lsh_knn"): (10, 3),
        (LARGE, "lsh"): (300, 120),
        (LARGE, "lsh_knn"): (40, 15),
    }
    for (size, ours), pair in limits.items():
        for rival, limit in zip(rivals[size], pair, strict=True):

            def ratio(bench: Bench, size=size, rival=rival, ours=ours) -> Estimate | None:
                return bench.ratio(PEERS, size, rival, ours)

            yield Target(f"{ours} faster than {rival}, {size}, times", limit, True, ratio)


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
