"""Precision and recall of each class: its generated samples against its real ones."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from torch_fidelity_lsh.fidelity.array_files import look_at_npz, open_arrays
from torch_fidelity_lsh.fidelity.calculate import calculate_watched
from torch_fidelity_lsh.fidelity.datasets import DatasetSamples, FolderSamples
from torch_fidelity_lsh.fidelity.distributed import may_work_alone, on_first
from torch_fidelity_lsh.fidelity.generators import GeneratorSamples
from torch_fidelity_lsh.fidelity.image_arrays import ImageArraySamples
from torch_fidelity_lsh.fidelity.plan import Job, Plan, refuse_spaces
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.functional import MEASURES, PrecisionRecall
from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.metric.messages import did_you_mean
from torch_fidelity_lsh.metric.reduction import ReducedFeatures

Labels: TypeAlias = "Sequence[Any] | npt.NDArray[Any] | torch.Tensor | str | os.PathLike[str]"
"""One label for each sample, integers or names; or the path of an ``.npy`` file of integers."""

FEWEST = 20  # samples of a class and side; of less, intervals say nothing
LABELS = "arr_1"
"""Name of the labels in a file of samples, as ADM's sampler writes them."""


@dataclass(frozen=True)
class ClassResult:
    """Precision and recall of a class.

    Attributes:
        name: The class.
        num_generated: Number of its generated samples.
        num_real: Number of its real ones.
        result: What was measured; `None` where a side has too few samples.
        note: Why there is no result, or what has to be known of it.
    """

    name: str
    num_generated: int
    num_real: int
    result: PrecisionRecall | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it under the keys of fidelity calls."""
        numbers = self.result.to_dict() if self.result else {}
        sizes = {"num_generated": self.num_generated, "num_real": self.num_real}
        return {"class": self.name, **sizes, **numbers, "note": self.note}

    def __str__(self) -> str:
        sizes = f"{self.name}: {self.num_generated} generated, {self.num_real} real"
        if self.result is None:
            return f"{sizes}: {self.note}"
        numbers = ", ".join(
            f"{name} {getattr(self.result, name):.3f} [{low:.3f}, {high:.3f}]"
            for name in ("precision", "recall")
            for low, high in [self.result.interval(name)]
        )
        return f"{sizes}: {numbers}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class ByClass:
    """Precision and recall by class.

    Attributes:
        metric: ``"lsh_knn"`` or ``"lsh"``.
        rows: The classes; integers in their order, names in that of the alphabet.
    """

    metric: str
    rows: tuple[ClassResult, ...]

    def worst(self, number: int = 5) -> tuple[ClassResult, ...]:
        """Return the classes with the lowest F-scores, the lowest first, those without a result left out."""
        measured = [
            (row.result.f_score, row.result.precision + row.result.recall, row) for row in self.rows if row.result
        ]
        return tuple(row for *_, row in sorted(measured, key=lambda entry: entry[:2])[:number])

    def to_dict(self) -> dict[str, Any]:
        """Return the rows and the names of the worst classes as what JSON can hold."""
        worst = [row.name for row in self.worst()]
        return {"metric": self.metric, "worst": worst, "classes": [row.to_dict() for row in self.rows]}

    def __str__(self) -> str:
        missing = [row for row in self.rows if row.result is None]
        lines = [f"{self.metric}, lowest F-scores of {len(self.rows)} classes:", *map(str, self.worst())]
        return "\n".join([*lines, *map(str, missing)])


@default_modes()
@may_work_alone
def calculate_by_class(
    *, labels1: Labels | None = None, labels2: Labels | None = None, metric: str = "lsh_knn", **kwargs: Any
) -> ByClass:
    """Measure precision and recall of each class, its generated samples against its real ones.

    Features are extracted once. Labels that are not given are found where the samples come from: sub-folders of a
    folder, ``arr_1`` beside the images of an ``.npz`` file, the attribute ``targets`` of a data set, the classes that
    a conditional generative model was asked for.

    Args:
        labels1: One label for each sample of ``input1``: integers or names, or the path of an ``.npy`` file. Default:
            `None`, those of the input.
        labels2: The same for ``input2``.
        metric: ``"lsh_knn"`` (default) or ``"lsh"``.
        **kwargs: Inputs, and keywords of :func:`~torch_fidelity_lsh.calculate_metrics` for them and for the metric.

    Raises:
        ValueError: As there; or there are no labels, or not one for each sample, or the sides share no class.
    """
    if metric not in MEASURES:
        raise ValueError(f"metric must be one of {', '.join(MEASURES)}; got {metric!r}{did_you_mean(metric, MEASURES)}")
    refuse_spaces(kwargs, "a table of classes")
    seen: list[tuple[Mapping[int, ReducedFeatures], Plan]] = []

    def watch(job: Job, looks: Mapping[int, Any], plan: Plan) -> None:
        seen.append((looks, plan))

    calculate_watched(watch, **deep_if_sorted(kwargs, labels1, labels2), **{metric: True})
    return on_first(lambda: measure_classes(metric, *seen[0], labels1, labels2))


def deep_if_sorted(kwargs: dict[str, Any], labels1: Labels | None, labels2: Labels | None) -> dict[str, Any]:
    """Return the keywords of a call, with sub-folders looked into where they say the classes."""
    given = {1: labels1, 2: labels2}
    deep = any(labels is None and _has_subfolders(kwargs.get(f"input{side}")) for side, labels in given.items())
    return {**kwargs, "samples_find_deep": kwargs.get("samples_find_deep") or deep}


def measure_classes(
    metric: str, looks: Mapping[int, ReducedFeatures], plan: Plan, labels1: Labels | None, labels2: Labels | None
) -> ByClass:
    """Measure each class on what a metric has looked at; see :func:`calculate_by_class`."""
    labels = {side: _labels(side, given, plan, len(looks[side])) for side, given in ((1, labels1), (2, labels2))}
    if not set(labels[1]) & set(labels[2]):
        shown = " and ".join(", ".join(sorted(set(labels[side]))[:3]) + ", ..." for side in (1, 2))
        raise ValueError(f"input1 and input2 have no class in common: their labels are {shown}")
    config = LSHConfig.from_kwargs(plan.call)
    names = sorted({*labels[1], *labels[2]}, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))
    rows = []
    for name in names:
        sides = [
            replace(looks[side], values=looks[side].values[[label == name for label in labels[side]]])
            for side in (1, 2)
        ]
        rows.append(_measure_class(metric, name, sides[0], sides[1], config))
    return ByClass(metric, tuple(rows))


def _measure_class(
    metric: str, name: str, generated: ReducedFeatures, real: ReducedFeatures, config: LSHConfig
) -> ClassResult:
    sizes = len(generated), len(real)
    if min(sizes) < FEWEST:
        return ClassResult(name, *sizes, None, f"not measured: {FEWEST} samples of each side are needed")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = MEASURES[metric](generated, real, config)
    return ClassResult(name, *sizes, result, "; ".join(str(warning.message) for warning in caught))


def _has_subfolders(source: object) -> bool:
    is_folder = isinstance(source, (str, os.PathLike)) and Path(source).is_dir()
    return is_folder and any(path.is_dir() for path in Path(source).iterdir())  # type: ignore[arg-type]


def _labels(side: int, given: Labels | None, plan: Plan, count: int) -> list[str]:
    argument = f"labels{side}" if given is not None else f"the labels of input{side}"
    values = _as_list(f"labels{side}", given) if given is not None else _own_labels(side, plan)
    if len(values) != count:
        raise ValueError(f"{argument} must be one for each of the {count} samples of input{side}; got {len(values)}")
    return [str(value) for value in values]


def _as_list(argument: str, labels: Labels) -> list[Any]:
    if isinstance(labels, (str, os.PathLike)):
        path = os.fspath(labels)
        if not path.endswith(".npy") or not Path(path).is_file():
            raise ValueError(f'{argument}: "{path}" is no .npy file of labels')
        with open_arrays(path, f'{argument}, file "{path}"') as arrays:
            labels = np.asarray(arrays.read(arrays.names[0]))
    if not isinstance(labels, (torch.Tensor, np.ndarray)):
        return list(labels)
    if labels.ndim != 1 or not _is_whole(labels):
        raise ValueError(
            f"{argument} must be integers or names, one for each sample; got {labels.dtype}, {tuple(labels.shape)}"
        )
    return list(labels.tolist())


def _is_whole(labels: torch.Tensor | npt.NDArray[Any]) -> bool:
    if isinstance(labels, torch.Tensor):
        return not labels.is_floating_point() and not labels.is_complex()
    return labels.dtype.kind in "iuUS"


def _own_labels(side: int, plan: Plan) -> list[Any]:
    """Return the labels that an input brings along."""
    samples = plan.samples.get(side)
    found: Any = None
    if isinstance(samples, FolderSamples):
        return _subfolders(samples)
    if isinstance(samples, DatasetSamples):
        found = getattr(samples.dataset, "targets", None)
    elif isinstance(samples, ImageArraySamples) and LABELS in look_at_npz(samples.path):
        with open_arrays(samples.path, f'input{side}, file "{samples.path}"') as arrays:
            found = np.asarray(arrays.read(LABELS))
    elif isinstance(samples, GeneratorSamples):
        found = samples.labels()
    if found is None:
        raise ValueError(
            f"input{side} brings no labels along: pass labels{side}, one for each sample, or sort its images into "
            "sub-folders, one for each class"
        )
    return _as_list(f"the labels of input{side}", found)


def _subfolders(samples: FolderSamples) -> list[str]:
    names = []
    for path in samples.files:
        parts = Path(path).parts[len(samples.folder.parts) :] if Path(path).is_relative_to(samples.folder) else ()
        if len(parts) < 2:
            raise ValueError(
                f'{samples.argument}: "{path}" lies in no sub-folder of "{samples.folder}", whose name would be its '
                f"class; pass labels{samples.argument[-1]}, one for each image"
            )
        names.append(parts[0])
    return names
