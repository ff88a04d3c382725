"""What is measured at which sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from contestants import FLOOR, ONE_THREAD, OURS, RIVALS, Size
from neighbours import KINDS


@dataclass(frozen=True)
class Section:
    """One part of the benchmark.

    Attributes:
        name: Under which it is asked for and kept.
        title: Heading of its table.
        sizes: In growing order.
        quick_sizes: Those of a quick run.
        contestants: Names, in the order of a round.
        rounds: How often each runs at most, in turns.
        fresh: Whether each has a process of its own, so that none leaves memory to the next.
        limit_s: Expected seconds beyond which a contestant does not run here.
        beside: Kind of the neighbours that keep the cores busy.
        device: Where the features are, if not where the command says.
    """

    name: str
    title: str
    sizes: tuple[Size, ...]
    quick_sizes: tuple[Size, ...]
    contestants: tuple[str, ...]
    rounds: int
    fresh: bool = False
    limit_s: float = math.inf
    beside: str = ""
    device: str = ""


SIZES = Size(10_000, 10_000, 2048), Size(20_000, 20_000, 2048), Size(50_000, 50_000, 4096)
QUICK_SIZES = Size(1000, 1000, 256), Size(2000, 2000, 256)
REFERENCES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
# Beyond the reduction to a few components, which the other sections time, dimension costs nothing.
GROWTH_DIMENSION = 64


def _against(references: int) -> Size:
    return Size(10_000, references, GROWTH_DIMENSION)


_OURS, _ONE_THREAD, _RIVALS = (tuple(contestant.name for contestant in group) for group in (OURS, ONE_THREAD, RIVALS))
_EVERYONE = *_OURS, *_ONE_THREAD, *_RIVALS

PEERS = Section("peers", "Time", SIZES, QUICK_SIZES, _EVERYONE, rounds=5)
BUSY = tuple(
    Section(kind, f"Time beside {words}", SIZES[:1], QUICK_SIZES[-1:], _EVERYONE, rounds=3, beside=kind)
    for kind, (words, _) in KINDS.items()
)
MEMORY = Section(
    "memory",
    "Peak memory beyond the features",
    (SIZES[0], SIZES[-1]),
    QUICK_SIZES[-1:],
    (*_OURS, *_RIVALS),
    rounds=1,
    fresh=True,
    limit_s=90,  # Memory follows its law more closely than time does: a long run tells little.
)
GROWTH = Section(
    "growth",
    "Cost per assessed sample",
    tuple(map(_against, REFERENCES)),
    tuple(map(_against, REFERENCES[:2])),
    _OURS,
    rounds=3,
)
FLOOR_SECTION = Section("floor", "Floor", SIZES, QUICK_SIZES, (FLOOR.name, *_OURS), rounds=9)
GPU = Section("gpu", "Time on a GPU", SIZES, QUICK_SIZES, ("prc_full", "prc_batched", *_OURS), rounds=5, device="cuda")
SECTIONS = {section.name: section for section in (PEERS, *BUSY, MEMORY, GROWTH, FLOOR_SECTION, GPU)}
