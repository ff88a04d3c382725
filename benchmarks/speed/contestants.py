"""What is measured: our metrics, their floor, and others' nearest-neighbour precision and recall."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import rivals
import torch
from rivals import Values
from storage import digest, digest_of_metrics
from torch import Tensor

from torch_fidelity_lsh import LSHConfig, PrecisionRecall, lsh_knn_precision_recall, lsh_precision_recall

CPU, ANY = ("cpu",), ("cpu", "cuda")


class Size(NamedTuple):
    """Numbers of samples, and their dimension."""

    generated: int
    real: int
    dimension: int

    def __str__(self) -> str:
        if self.generated == self.real:
            return f"{self.real:,} x {self.dimension:,}"
        return f"{self.generated:,} against {self.real:,} x {self.dimension:,}"

    @property
    def samples(self) -> int:
        """Number of assessed samples: those of both sides."""
        return self.generated + self.real


@dataclass(frozen=True)
class Contestant:
    """One row of the tables.

    Attributes:
        name: Under which it is kept.
        title: In tables and pictures.
        run: (generated, real) to precision and recall, or to `None` if it has none.
        source: Digest of the code and versions; measurements of others do not count.
        work: The law of its time, up to a factor.
        peak: The law of its memory beyond the features, about, in bytes.
        law: The law of its time in words.
        devices: On which it takes features.
        package: Optional package that it needs.
        exact: Whether its values are those of the definition in `rivals`.
    """

    name: str
    title: str
    run: Callable[[Tensor, Tensor], Values | None]
    source: str
    work: Callable[[Size], float]
    peak: Callable[[Size], float]
    law: str
    devices: tuple[str, ...] = CPU
    package: str = ""
    exact: bool = False

    @property
    def installed(self) -> bool:
        """Whether the package it needs is there."""
        return not self.package or importlib.util.find_spec(self.package) is not None


def _linear(size: Size) -> float:
    return size.samples * size.dimension


def _all_pairs(size: Size) -> float:
    return size.samples**2 * size.dimension


def _graph(size: Size) -> float:
    return size.samples * math.log(size.samples) * size.dimension


def _read_and_multiply(generated: Tensor, real: Tensor) -> None:
    """Read the features once, and multiply them by a D x P matrix."""
    for side in (generated, real):
        matrix = torch.ones(side.shape[1], LSHConfig().num_components, device=side.device)
        side.sum()
        side @ matrix


OURS_SOURCE = f"{digest_of_metrics()}-torch{version('torch')}"
RIVALS_SOURCE = digest(Path(rivals.__file__))


def _ours(name: str, function: Callable[[Tensor, Tensor], PrecisionRecall]) -> Contestant:
    def run(generated: Tensor, real: Tensor) -> Values:
        result = function(generated, real)
        return result.precision, result.recall

    # 2 kB a sample: its reduced features, coordinates and keys.
    return Contestant(name, name, run, OURS_SOURCE, _linear, lambda s: 2e3 * s.samples, "n d", ANY)


def _rival(
    name: str,
    title: str,
    package: str,
    distribution: str,
    peak: Callable[[Size], float],
    devices: tuple[str, ...] = CPU,
) -> Contestant:
    found = importlib.util.find_spec(package) is not None
    source = f"{RIVALS_SOURCE}-{distribution}{version(distribution) if found else ''}-torch{version('torch')}"
    return Contestant(
        name, title, getattr(rivals, name), source, _all_pairs, peak, "n² d", devices, package, exact=True
    )


def _approximate(name: str, title: str, work: Callable[[Size], float], law: str, links: int) -> Contestant:
    found = importlib.util.find_spec("faiss") is not None
    source = f"{RIVALS_SOURCE}-faiss-cpu{version('faiss-cpu') if found else ''}"

    def peak(size: Size) -> float:
        return 4 * (size.dimension + links) * max(size[:2])

    return Contestant(name, title, getattr(rivals, name), source, work, peak, law, CPU, "faiss")


FLOOR = Contestant(
    "floor",
    "floor: one read, one product",
    _read_and_multiply,
    f"{digest(Path(__file__))}-torch{version('torch')}",
    _linear,
    lambda size: 4 * LSHConfig().num_components * max(size[:2]),
    "n d",
    ANY,
)


def _with_one_thread(ours: Contestant) -> Contestant:
    def run(generated: Tensor, real: Tensor) -> Values | None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return ours.run(generated, real)
        finally:
            torch.set_num_threads(before)

    return replace(ours, name=f"{ours.name}_one", title=f"{ours.title}, one thread", run=run)


OURS = (_ours("lsh", lsh_precision_recall), _ours("lsh_knn", lsh_knn_precision_recall))
ONE_THREAD = tuple(_with_one_thread(each) for each in OURS)
RIVALS = (
    # Four matrices of all pairs; five of a batch and all; distances and their int64 order.
    _rival(
        "prc_full", "torch-fidelity prc", "torch_fidelity", "torch-fidelity", lambda s: 16 * s.generated * s.real, ANY
    ),
    _rival(
        "prc_batched",
        "torch-fidelity prc, save_cpu_ram",
        "torch_fidelity",
        "torch-fidelity",
        lambda s: 20 * min(10_000, s.generated) * s.real,
        ANY,
    ),
    _rival("prdc", "prdc", "prdc", "prdc", lambda s: 12 * s.real**2),
    _rival(
        "faiss_exact",
        "faiss IndexFlatL2",
        "faiss",
        "faiss-cpu",
        lambda s: 4 * (s.dimension + rivals.BLOCK_ROWS) * max(s[:2]),
    ),
    _approximate("faiss_hnsw", "faiss HNSW", _graph, "n log n d", 3 * rivals.HNSW_LINKS),
    # 25 rounds of k-means beside the search.
    _approximate("simet_ivf", "simet, IVF", _linear, "n d", 0),
)
CONTESTANTS = {contestant.name: contestant for contestant in (*OURS, *ONE_THREAD, FLOOR, *RIVALS)}
