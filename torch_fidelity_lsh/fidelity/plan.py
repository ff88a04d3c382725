"""What a fidelity call asks for: its keywords checked, its metrics bound to extractors and layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from torch_fidelity_lsh.fidelity import inputs, upstream
from torch_fidelity_lsh.fidelity.distributed import rank_and_size
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY, plugin_keywords, refuse_unknown_keywords
from torch_fidelity_lsh.metric.messages import did_you_mean
from torch_fidelity_lsh.metric.reduction import ReducedFeatures

Features = torch.Tensor | ReducedFeatures

# What feature extractors raise when asked for the layer of a metric they do not know.
_METRIC_UNKNOWN_ERRORS = (LookupError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class Job:
    """A metric on features, bound to the feature extractor and the layer that serve it."""

    metric: str
    extractor: str | None
    layer: str

    @property
    def fn_reduce(self) -> Callable[..., ReducedFeatures] | None:
        """What makes the features the metric needs, `None` for all features."""
        entry = METRICS_REGISTRY.get(self.metric)
        return entry.fn_reduce if entry else None


@dataclass(frozen=True)
class Plan:
    """A checked call: what runs here on ready or extracted features, and what is left to upstream."""

    requested: list[str]
    given: dict[str, Any]
    call: dict[str, Any]
    jobs: list[Job]
    ready: dict[int, dict[str, Features]]


def make_plan(kwargs: dict[str, Any]) -> Plan:
    """Check the keywords of a fidelity call and read the inputs that are ready features.

    Raises:
        ValueError: As :func:`~torch_fidelity_lsh.calculate_metrics`.
    """
    given = {name: _as_text(value) for name, value in upstream.translate_deprecations(kwargs).items()}
    refuse_unknown_keywords(given)
    call = {**upstream.DEFAULTS, **plugin_keywords(), **given}
    requested = _requested_metrics(call)
    _check_options(requested, call)
    sides = sides_of(requested)
    ready_sides = [side for side in sides if inputs.is_ready(call[f"input{side}"])]
    _check_inputs(call, sides, ready_sides)
    call["cuda"] = _usable_cuda(call, needed="cuda" in given or ready_sides != sides)
    call["verbose"] = call["verbose"] and rank_and_size()[0] == 0
    jobs = _shared_jobs(requested, call, ready_sides)
    ready = {side: _read_ready(side, jobs, call) for side in ready_sides}
    _refuse_other_sources(jobs, ready)
    return Plan(requested, given, call, jobs, ready)


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _requested_metrics(call: dict[str, Any]) -> list[str]:
    names = (*upstream.metric_flags(), *METRICS_REGISTRY)
    requested = [name for name in names if call[name]]
    if not requested:
        raise ValueError(f"At least one metric must be requested, by setting one of these to True: {', '.join(names)}")
    return requested


def _check_options(requested: list[str], call: dict[str, Any]) -> None:
    for name in requested:
        entry = METRICS_REGISTRY.get(name)
        if entry and entry.check_options:
            entry.check_options(call)


def sides_of(metrics: Iterable[str]) -> list[int]:
    """Return the numbers of the inputs the metrics look at."""
    return [1] if all(name not in METRICS_REGISTRY and upstream.is_unary(name) for name in metrics) else [1, 2]


def _check_inputs(call: dict[str, Any], sides: list[int], ready_sides: list[int]) -> None:
    for side in sides:
        argument, cache_name = f"input{side}", call[f"input{side}_cache_name"]
        if call[argument] is None:
            raise ValueError(f"{argument} is missing: input1 takes the generated samples, input2 the real ones")
        if side in ready_sides and cache_name is not None:
            raise ValueError(f"{argument}_cache_name names a cache of extracted features, but {argument} is features")
        if side not in ready_sides and cache_name is None:  # What is cached may be gone by now.
            inputs.check_source(call[argument], argument, call)


def _usable_cuda(call: dict[str, Any], needed: bool) -> bool:
    if call["cuda"] and needed and not torch.cuda.is_available():
        raise ValueError("cuda=True (the default) needs a GPU and none is available; pass cuda=False to use the CPU")
    return bool(call["cuda"]) and torch.cuda.is_available()


def _shared_jobs(requested: list[str], call: dict[str, Any], ready_sides: list[int]) -> list[Job]:
    """Choose what runs here: all metrics of an extractor that a registered metric uses, or all on ready features."""
    on_features = (*upstream.feature_metrics(), *METRICS_REGISTRY)
    names = [name for name in requested if name in on_features]
    if 1 in ready_sides and names != requested:
        others = ", ".join(name for name in requested if name not in names)
        raise ValueError(f"{others} cannot be calculated from ready features; input1 must be a generative model")
    extract = ready_sides != sides_of(requested)
    extractors = {name: _extractor(name, call, extract) for name in names}
    shared = {extractors[name] for name in names if ready_sides or name in METRICS_REGISTRY}
    return [Job(name, fe, _layer(name, fe, call)) for name, fe in extractors.items() if fe in shared]


def _extractor(metric: str, call: dict[str, Any], extract: bool) -> str | None:
    """Name the metric's extractor; `None` if there is nothing to extract and the call does not say whose features."""
    name: str | None = call["feature_extractor"]
    if name is None and extract:
        entry = METRICS_REGISTRY.get(metric)
        name = entry.default_feature_extractor if entry else upstream.DEFAULT_FEATURE_EXTRACTOR[metric]
    known = upstream.FEATURE_EXTRACTORS_REGISTRY
    if name is not None and name not in known:
        raise ValueError(f'feature_extractor: "{name}" is not one of {", ".join(known)}{did_you_mean(name, known)}')
    return name


def _layer(metric: str, extractor: str | None, call: dict[str, Any]) -> str:
    entry = METRICS_REGISTRY.get(metric)
    keyword = entry.feature_layer_key if entry else f"feature_layer_{metric}"
    if call[keyword] is not None:
        return str(call[keyword])
    if extractor is None:
        return inputs.READY_LAYER
    cls = upstream.FEATURE_EXTRACTORS_REGISTRY[extractor]
    for name in (metric, entry.default_layer_as, "fid") if entry else (metric,):
        with suppress(*_METRIC_UNKNOWN_ERRORS):
            return str(cls.get_default_feature_layer_for_metric(name))
    provided = ", ".join(cls.get_provided_features_list())
    raise ValueError(f'Feature extractor "{extractor}" has no layer for {metric}; set {keyword} to one of: {provided}')


def _read_ready(side: int, jobs: list[Job], call: dict[str, Any]) -> dict[str, Features]:
    layers = {job.layer for job in jobs if side in sides_of([job.metric])}
    return inputs.read_features(call[f"input{side}"], layers, f"input{side}")


def _refuse_other_sources(jobs: list[Job], ready: dict[int, dict[str, Features]]) -> None:
    """Refuse references of other features than a metric is about to extract, before that needs weights."""
    for side, features in ready.items():
        for job in jobs:
            reference, source = features.get(job.layer), f'layer "{job.layer}" of {job.extractor}'
            if not isinstance(reference, ReducedFeatures) or not job.extractor:
                continue
            if reference.source not in ("", source):
                raise ValueError(
                    f"input{side} was made from {reference.source}, and {job.metric} is asked for with {source}; set "
                    f'feature_extractor="{reference.feature_extractor}", feature_layer_lsh="{reference.feature_layer}"'
                )
