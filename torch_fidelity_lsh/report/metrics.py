"""The report of a fidelity call: its numbers, what they mean, and the samples furthest from the other side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch_fidelity_lsh.fidelity.calculate import calculate_watched
from torch_fidelity_lsh.fidelity.classes import ByClass, Labels, deep_if_sorted, measure_classes
from torch_fidelity_lsh.fidelity.datasets import DatasetSamples, FolderSamples, GoneSamples
from torch_fidelity_lsh.fidelity.distributed import may_work_alone
from torch_fidelity_lsh.fidelity.plan import Job, Plan, refuse_spaces
from torch_fidelity_lsh.fidelity.registry import ACCOMPANY
from torch_fidelity_lsh.fidelity.samples import Samples
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.files import check_writable
from torch_fidelity_lsh.metric.functional import MEASURES, PrecisionRecall
from torch_fidelity_lsh.metric.reduction import ReducedFeatures
from torch_fidelity_lsh.report.page import SUFFIX, as_source, write_page

SHOWN = 12
"""Samples of each side in a report."""
_CANDIDATES = 64  # with the lowest memberships, of which those furthest away are shown
_LARGEST_BATCH = 10_000  # rows of the other side whose distances are held at a time

_PRECISION = "share of generated samples where real ones are; falls with noise and artefacts"
_RECALL = "share of real samples where generated ones are; falls with dropped modes and lost variety"
_F_SCORE = "harmonic mean of precision and recall"
_MEANINGS = {
    "frechet_inception_distance": ("FID", "distance between means and covariances; lower is better"),
    "kernel_inception_distance_mean": ("KID", "distance between feature distributions; lower is better"),
    "inception_score_mean": ("Inception score", "how sure and how varied the classes are; higher is better"),
    "perceptual_path_length_mean": ("PPL", "change of the image along the latent space; lower is smoother"),
    "memorization": ("Memorisation", "share of generated samples that are copies of training ones; lower is better"),
    "precision": ("Precision (kNN)", _PRECISION),
    "recall": ("Recall (kNN)", _RECALL),
    "f_score": ("F-score (kNN)", _F_SCORE),
    **{
        f"{metric}_{name}": (f"{title} ({metric})", meaning)
        for metric in MEASURES
        for name, title, meaning in (
            ("precision", "Precision", _PRECISION),
            ("recall", "Recall", _RECALL),
            ("f_score", "F-score", _F_SCORE),
        )
    },
}


@dataclass(frozen=True)
class _Seen:
    """What a metric on reduced features looked at."""

    metric: str
    sides: Mapping[int, ReducedFeatures]
    plan: Plan


@may_work_alone
def write_report(
    path: str | os.PathLike[str],
    *,
    by_class: bool = False,
    labels1: Labels | None = None,
    labels2: Labels | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Calculate metrics as :func:`~torch_fidelity_lsh.calculate_metrics`, and write a page that shows them.

    The page is one HTML file without scripts: the numbers with intervals and meanings; with ``lsh`` or ``lsh_knn`` the
    samples of each side that are furthest from the other, each beside its nearest there; and the protocol.

    Args:
        path: File to write, ending in ``.html``.
        by_class: Show precision and recall of each class too, by ``lsh_knn`` if that is asked for, else by ``lsh``.
            Default: `False`.
        labels1: As :func:`~torch_fidelity_lsh.fidelity.classes.calculate_by_class`.
        labels2: As there.
        **kwargs: Keywords of :func:`~torch_fidelity_lsh.calculate_metrics`.

    Returns:
        The metrics.

    Raises:
        ValueError: As :func:`~torch_fidelity_lsh.calculate_metrics`, or the path cannot be written to.
        OSError: The file cannot be written.
    """
    check_writable(path, "report", SUFFIX)
    refuse_spaces(kwargs, "a report")
    if by_class:
        if not any(kwargs.get(metric) for metric in MEASURES):
            raise ValueError(f"by_class needs one of {', '.join(MEASURES)} to be asked for")
        kwargs = deep_if_sorted(kwargs, labels1, labels2)
    seen: dict[str, _Seen] = {}
    plans: list[Plan] = []

    def watch(job: Job, looks: Mapping[int, Any], plan: Plan) -> None:
        plans.append(plan)
        if job.metric in MEASURES:
            seen[job.metric] = _Seen(job.metric, looks, plan)

    metrics = calculate_watched(watch, **kwargs)
    if not plans:  # Another rank writes the page, or the metrics look at no features.
        return metrics
    plan = plans[0]
    found = seen.get("lsh_knn", seen.get("lsh"))
    result = _measured(found) if found else None
    classes = measure_classes(found.metric, found.sides, found.plan, labels1, labels2) if found and by_class else None
    write_page(
        path,
        "metrics.html",
        title="Generated against real samples",
        inputs={side: _in_words(plan, side) for side in (1, 2)},
        numbers=_numbers(metrics),
        extremes=_extremes(found, result) if found and result else [],
        classes=_classes(classes) if classes else None,
        protocol=_protocol(plan, result),
    )
    return metrics


def _measured(seen: _Seen) -> PrecisionRecall:
    return MEASURES[seen.metric](seen.sides[1], seen.sides[2], LSHConfig.from_kwargs(seen.plan.call))


def _numbers(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    shown = []
    for key, value in metrics.items():
        if key not in _MEANINGS and key.endswith(ACCOMPANY):
            continue
        title, meaning = _MEANINGS.get(key, (key, ""))
        low, high = metrics.get(f"{key}_ci_low"), metrics.get(f"{key}_ci_high")
        spread = metrics.get(f"{key.removesuffix('_mean')}_std") if key.endswith("_mean") else None
        text = str(value) if not isinstance(value, (int, float)) else f"{value:.4g}"
        if low is not None and high is not None:
            text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
        elif spread is not None:
            text = f"{value:.4g} ± {spread:.2g}"
        bounds = {"low": low, "high": high if high is None else min(1.0, high)}
        shown.append({"title": title, "meaning": meaning, "text": text, "value": value, **bounds})
    return shown


def _classes(found: ByClass) -> dict[str, Any]:
    rows = [
        {
            **{name: getattr(row, name) for name in ("name", "num_generated", "num_real")},
            **{name: _bar(row.result, name) for name in ("precision", "recall") if row.result},
        }
        for row in found.worst(len(found.rows))
    ]
    return {"metric": found.metric, "rows": rows, "missing": [str(row) for row in found.rows if row.result is None]}


def _bar(result: PrecisionRecall, name: str) -> tuple[float, float, float]:
    low, high = result.interval(name)
    return low, getattr(result, name), min(1.0, high)


def _protocol(plan: Plan, result: PrecisionRecall | None) -> dict[str, str]:
    jobs = {job.metric: job.source or "ready features" for job in plan.jobs}
    return {**jobs, **({name: str(value) for name, value in result.protocol.items()} if result else {})}


def _in_words(plan: Plan, side: int) -> str:
    source = plan.call[f"input{side}"]
    named = source if isinstance(source, str) else type(source).__name__
    count = plan.samples[side].count() if side in plan.samples else None
    return f"{named}{f', {count:,} samples' if count else ''}"


def _extremes(seen: _Seen, result: PrecisionRecall) -> list[dict[str, Any]]:
    generated = _furthest(seen, 1, result.precision_memberships)
    real = _furthest(seen, 2, result.recall_memberships)
    return [
        {
            "title": "Generated samples furthest from the real ones",
            "text": "Left: a generated sample; right: the real one nearest to it. These cost precision.",
            "pairs": generated,
        },
        {
            "title": "Real samples furthest from the generated ones",
            "text": "Left: a real sample; right: the generated one nearest to it. These cost recall.",
            "pairs": real,
        },
    ]


def _furthest(seen: _Seen, side: int, memberships: torch.Tensor) -> list[dict[str, Any]]:
    """Return the samples of a side with the lowest memberships, those furthest from the other side first."""
    candidates = memberships.argsort(stable=True)[:_CANDIDATES]
    distances, nearest = _nearest(seen.sides[side].values[candidates], seen.sides[3 - side].values)
    order = distances.argsort(descending=True, stable=True)[:SHOWN]
    own, other = candidates[order].tolist(), nearest[order].tolist()
    pictured = {side: _pictures(seen.plan, side, own), 3 - side: _pictures(seen.plan, 3 - side, other)}
    return [
        {
            "membership": float(memberships[here]),
            "sides": [{"index": row, **pictured[which][row]} for which, row in ((side, here), (3 - side, there))],
        }
        for here, there in zip(own, other, strict=True)
    ]


def _nearest(rows: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = [
        torch.cdist(rows.double(), part.double()).min(dim=1)
        for part in torch.split(others.to(rows.device), _LARGEST_BATCH)
    ]
    distances, part = torch.stack([each.values for each in found]).min(dim=0)
    within = torch.stack([each.indices for each in found]).gather(0, part[None])[0]
    return distances.cpu(), (part * _LARGEST_BATCH + within).cpu()


def _pictures(plan: Plan, side: int, indices: Sequence[int]) -> dict[int, dict[str, str]]:
    """Return name and source of the pictures of some samples; without a source where they are no pictures."""
    samples = plan.samples.get(side)
    if samples is None or isinstance(samples, GoneSamples):
        return {index: {"name": f"row {index}", "source": ""} for index in indices}
    images = _pick(samples, set(indices))
    return {
        index: {"name": _name(samples, index), "source": as_source(image) if _is_picture(image) else ""}
        for index, image in images.items()
    }


def _pick(samples: Samples, indices: set[int]) -> dict[int, torch.Tensor]:
    if isinstance(samples, DatasetSamples):
        return {index: samples.item(index) for index in sorted(indices)}
    found: dict[int, torch.Tensor] = {}
    start = 0
    for batch in samples.batches():
        found |= {index: batch[index - start].cpu() for index in indices if start <= index < start + len(batch)}
        start += len(batch)
    return found


def _name(samples: Samples, index: int) -> str:
    return Path(samples.files[index]).name if isinstance(samples, FolderSamples) else f"sample {index}"


def _is_picture(image: Any) -> bool:
    return isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) in (1, 3)
