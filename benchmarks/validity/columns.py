"""The metrics that are compared, each giving a number for fidelity and one for diversity."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import gicdm
import peers
import torch
from storage import digest, digest_of_metrics
from torch import Tensor

from torch_fidelity_lsh import LSHConfig, PrecisionRecall, lsh_knn_precision_recall, lsh_precision_recall

Interval = tuple[float, float]


class Measurement(NamedTuple):
    """What a metric says about two sets, with 95 % confidence intervals, and what they come from, if it has any."""

    fidelity: float
    diversity: float
    fidelity_interval: Interval | None = None
    diversity_interval: Interval | None = None
    fidelity_stderr: float | None = None
    diversity_stderr: float | None = None
    fidelity_unclipped: float | None = None
    diversity_unclipped: float | None = None


@dataclass(frozen=True)
class Metric:
    """One pair of columns.

    Attributes:
        name: Under which it is asked for and kept.
        title: Names of fidelity and diversity.
        measure: (generated, real, seed) to measurement.
        source: Digest of the code; earlier measurements by other code do not count.
        max_cost: Largest number of samples squared times (dimension + 100) that is measured.
        ours: Whether it is this project's.
    """

    name: str
    title: tuple[str, str]
    measure: Callable[[Tensor, Tensor, int], Measurement]
    source: str
    max_cost: float = float("inf")
    ours: bool = False


# Read now: this is the code that is imported, whatever is edited while it measures.
OUR_SOURCE = digest_of_metrics()


def _ours(name: str, title: tuple[str, str], function: Callable[..., PrecisionRecall]) -> Metric:
    def measure(generated: Tensor, real: Tensor, seed: int) -> Measurement:
        result = function(generated, real, LSHConfig(seed=seed))
        return Measurement(
            result.precision,
            result.recall,
            result.interval("precision"),
            result.interval("recall"),
            result.precision_stderr,
            result.recall_stderr,
            result.precision_unclipped,
            result.recall_unclipped,
        )

    return Metric(name, title, measure, OUR_SOURCE, ours=True)


def _peer(name: str, title: tuple[str, str], function: Callable[[Tensor, Tensor], tuple[float, float]]) -> Metric:
    def measure(generated: Tensor, real: Tensor, seed: int) -> Measurement:
        return Measurement(*function(generated, real))

    files = sorted({Path(peers.__file__), Path(inspect.getfile(function))})
    source = "-".join([digest(*files), version("torch-fidelity"), version("prdc")])
    # 10,000 samples a side in 200 dimensions; time and memory grow with the square.
    return Metric(name, title, measure, source, max_cost=3e10)


METRICS = (
    _ours("lsh", ("lsh P", "lsh R"), lsh_precision_recall),
    _ours("lsh_knn", ("lsh_knn P", "lsh_knn R"), lsh_knn_precision_recall),
    _peer("knn", ("kNN P", "kNN R"), peers.knn),
    _peer("density_coverage", ("density", "coverage"), peers.density_coverage),
    _peer("clipped", ("clip D", "clip C"), peers.clipped),
    _peer("gicdm", ("GICDM D", "GICDM C"), gicdm.gicdm),
    _peer("symmetric", ("sym P", "sym R"), peers.symmetric),
    _peer("probabilistic", ("prob P", "prob R"), peers.probabilistic),
)


def to_tensors(*arrays: object) -> list[Tensor]:
    """Return contiguous tensors."""
    return [torch.as_tensor(array).contiguous() for array in arrays]
