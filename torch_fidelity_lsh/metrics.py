"""``calculate_metrics``: torch-fidelity's call with the registered metrics added, features extracted once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import torch

from torch_fidelity_lsh import inputs, upstream
from torch_fidelity_lsh.messages import did_you_mean
from torch_fidelity_lsh.registry import METRICS_REGISTRY, plugin_keywords, refuse_unknown_keywords

FeaturesDict = dict[str, torch.Tensor]

# What feature extractors raise when asked for the layer of a metric they do not know.
_METRIC_UNKNOWN_ERRORS = (LookupError, ValueError, NotImplementedError)


def calculate_metrics(**kwargs: Any) -> dict[str, float]:
    """Calculate torch-fidelity's metrics and the registered ones in one call.

    Accepts every keyword of ``torch_fidelity.calculate_metrics``, where they are documented, and those listed here.
    Metrics that use the same feature extractor share one pass over each input. Upstream's own metrics come out as
    upstream computes them; the feature cache has upstream's file names.

    Args:
        input1: The generated samples: whatever torch-fidelity takes, or ready features: a float tensor or array
            N x D, or the path of a ``.npy``, ``.npz`` or ``.safetensors`` file. A file of several arrays may hold one
            per layer, by the layer's name, or the one to use as ``"features"``.
        input2: The real samples, likewise. Where one input holds ready features and the other images, both must have
            the same D. Where both hold ready features no extractor is created and no weights are needed.
        lsh: Calculate precision and recall by hashing alone. Default: `False`.
        lsh_knn: Calculate precision and recall by nearest neighbours found by hashing. Default: `False`.
        feature_layer_lsh: Name of the feature layer for both. Default: `None`, the layer of ``prc`` in the chosen
            extractor; the extractor is ``vgg16`` unless ``feature_extractor`` names one.
        lsh_*: Options of both metrics, the fields of :class:`LSHConfig`.
        cuda: As upstream, default `True`; an error without a GPU, except where it is left at its default and no
            features need to be extracted.
        **kwargs: Flag, layer and options of any metric added with :func:`register_metric`, and torch-fidelity's other
            keywords.

    Returns:
        Result key to value, for all requested metrics.

    Raises:
        ValueError: A keyword is unknown, an input is missing, unusable or at odds with the other one, or no metric is
            requested. The message names the keyword, what was given, and what is accepted.
    """
    given = {name: _as_text(value) for name, value in upstream.translate_deprecations(kwargs).items()}
    refuse_unknown_keywords(given)
    call = {**upstream.DEFAULTS, **plugin_keywords(), **given}
    requested = _requested_metrics(call)
    _check_options(requested, call)
    sides = _sides(requested)
    ready_sides = [side for side in sides if inputs.is_ready(call[f"input{side}"])]
    _check_inputs(call, sides, ready_sides)
    call["cuda"] = _usable_cuda(call, needed="cuda" in given or ready_sides != sides)

    jobs = _shared_jobs(requested, call, ready_sides)
    ready = {side: _read_ready(side, jobs, call) for side in ready_sides}
    results: dict[str, float] = {}
    # The last go first: registered metrics check their features and should refuse bad ones before the slow rest.
    for extractor in reversed(dict.fromkeys(job.extractor for job in jobs)):
        group = [job for job in jobs if job.extractor == extractor]
        results = {**_run_group(group, ready, call), **results}
    return {**_delegate(requested, jobs, given, call), **results}


@dataclass(frozen=True)
class _Job:
    """A metric on features, bound to the feature extractor and the layer that serve it."""

    metric: str
    extractor: str | None
    layer: str


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


def _sides(metrics: Iterable[str]) -> list[int]:
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


def _shared_jobs(requested: list[str], call: dict[str, Any], ready_sides: list[int]) -> list[_Job]:
    """Choose what runs here: all metrics of an extractor that a registered metric uses, or all on ready features."""
    on_features = (*upstream.feature_metrics(), *METRICS_REGISTRY)
    names = [name for name in requested if name in on_features]
    if 1 in ready_sides and names != requested:
        others = ", ".join(name for name in requested if name not in names)
        raise ValueError(f"{others} cannot be calculated from ready features; input1 must be a generative model")
    extract = ready_sides != _sides(requested)
    extractors = {name: _extractor(name, call, extract) for name in names}
    shared = {extractors[name] for name in names if ready_sides or name in METRICS_REGISTRY}
    return [_Job(name, fe, _layer(name, fe, call)) for name, fe in extractors.items() if fe in shared]


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


def _read_ready(side: int, jobs: list[_Job], call: dict[str, Any]) -> FeaturesDict:
    layers = {job.layer for job in jobs if side in _sides([job.metric])}
    return inputs.read_features(call[f"input{side}"], layers, f"input{side}")


def _run_group(jobs: list[_Job], ready: dict[int, FeaturesDict], call: dict[str, Any]) -> dict[str, float]:
    """Run the metrics that share an extractor, extracting their layers once from each input."""
    call = {**call, "feature_extractor": jobs[0].extractor}
    settings = {name: call[name] for name in upstream.DEFAULTS}
    features = dict(ready)
    feat_extractor = None
    to_extract = [side for side in _sides(job.metric for job in jobs) if side not in ready]
    if to_extract:
        with _failures_explained(call):
            layers = sorted({job.layer for job in jobs})
            feat_extractor = upstream.create_feature_extractor(jobs[0].extractor, layers, **settings)
            for side in to_extract:
                features[side] = upstream.extract_featuresdict_from_input_id_cached(side, feat_extractor, **settings)
    _refuse_different_dimensions(jobs, features, ready)
    results: dict[str, float] = {}
    for job in reversed(jobs):
        if job.metric in METRICS_REGISTRY:
            values = _run_registered(job, features, call)
        else:
            values = upstream.featuresdict_to_metric(
                job.metric, features[1], features.get(2), job.layer, feat_extractor, **settings
            )
        results = {**values, **results}
    return results


def _refuse_different_dimensions(
    jobs: list[_Job], features: dict[int, FeaturesDict], ready: dict[int, FeaturesDict]
) -> None:
    for job in jobs:
        if _sides([job.metric]) == [1]:
            continue
        dimensions = [features[side][job.layer].shape[-1] for side in (1, 2)]
        if dimensions[0] != dimensions[1]:
            extracted = f'layer "{job.layer}" of {job.extractor}'
            first, second = (
                f"input{side} has {dimension} features a sample ({'ready' if side in ready else extracted})"
                for side, dimension in enumerate(dimensions, start=1)
            )
            raise ValueError(f"{job.metric} needs features of one kind, but {first} and {second}")


def _run_registered(job: _Job, features: dict[int, FeaturesDict], call: dict[str, Any]) -> dict[str, float]:
    entry = METRICS_REGISTRY[job.metric]
    values = entry.fn_featuresdict_to_metric(features[1], features[2], job.layer, **call)
    undeclared = values.keys() - set(entry.keys)
    if undeclared:  # The declared keys are known not to collide with those of other metrics.
        raise ValueError(f"{job.metric} returned result keys it did not declare: {', '.join(sorted(undeclared))}")
    return values


def _delegate(requested: list[str], jobs: list[_Job], given: dict[str, Any], call: dict[str, Any]) -> dict[str, float]:
    """Let upstream calculate the rest in its own call."""
    done = {job.metric for job in jobs}
    if done.issuperset(requested):
        return {}
    # Upstream takes no ready features, and what is left to it does not look at them.
    ready = {argument for argument in ("input1", "input2") if inputs.is_ready(call[argument])}
    keywords = {name: value for name, value in given.items() if name in upstream.DEFAULTS and name not in done | ready}
    with _failures_explained(call):
        return upstream.calculate_metrics(**keywords)  # type: ignore[no-any-return]


@contextmanager
def _failures_explained(call: dict[str, Any]) -> Iterator[None]:
    """Turn failures of upstream's extraction whose cause is the user's data or network into one clear error."""
    try:
        yield
    except URLError as error:
        raise ValueError(
            f"A download failed ({error.reason}): weights of feature extractors and registered data sets are fetched "
            'when first used. feature_extractor="efficientnet-lite0" needs no download, nor does an extractor whose '
            "weights file is given as feature_extractor_weights_path"
        ) from None
    except Exception:
        for argument in ("input1", "input2"):
            problem = inputs.find_image_problem(call[argument], argument, call)
            if problem:
                raise ValueError(problem) from None
        raise
