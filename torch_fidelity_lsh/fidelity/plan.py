"""What a fidelity call asks for: its keywords checked, its metrics bound to extractors and layers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_fidelity_lsh.fidelity import inputs, upstream
from torch_fidelity_lsh.fidelity.cache import check_cache
from torch_fidelity_lsh.fidelity.distributed import rank_and_size
from torch_fidelity_lsh.fidelity.networks import extractor_class
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY, plugin_keywords, refuse_unknown_keywords
from torch_fidelity_lsh.fidelity.samples import Samples, open_samples
from torch_fidelity_lsh.fidelity.statistics import Statistics, resizes_otherwise
from torch_fidelity_lsh.metric.files import digest_of, digest_of_file
from torch_fidelity_lsh.metric.reduction import ReducedFeatures, in_words

Features = torch.Tensor | ReducedFeatures | Statistics

# What feature extractors raise when asked for the layer of a metric they do not know.
_METRIC_UNKNOWN_ERRORS = (LookupError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class Job:
    """A metric on features, bound to the feature extractor and the layer that serve it."""

    metric: str
    extractor: str | None
    layer: str
    space: str = ""
    """The name it was asked for by, where there are several."""

    @property
    def source(self) -> str:
        """Where its features come from, in words; empty if they are ready and nothing says whose they are."""
        return in_words(self.extractor, self.layer)

    @property
    def fn_reduce(self) -> Callable[..., ReducedFeatures] | None:
        """What makes the features the metric needs, `None` for all features."""
        entry = METRICS_REGISTRY.get(self.metric)
        return entry.fn_reduce if entry else None


@dataclass(frozen=True)
class Plan:
    """A checked call: what runs here on ready or extracted features, and what is left to upstream."""

    sides: list[int]
    requested: list[str]
    given: dict[str, Any]
    call: dict[str, Any]
    jobs: list[Job]
    ready: dict[int, dict[str, Features]]
    samples: dict[int, Samples]
    statistics: dict[int, Statistics]

    def at_hand(self, side: int, job: Job) -> Features | None:
        """Return what a job looks at of a side, `None` if features must be extracted."""
        if job.metric == _FID and side in self.statistics:
            return self.statistics[side]
        return self.ready[side][job.layer] if side in self.ready else None

    def extracts(self, job: Job, side: int | None = None) -> bool:
        """Tell whether a job needs features to be extracted, of a side or of any."""
        sides = (each for each in sides_of([job.metric]) if each in self.sides and side in (None, each))
        return any(self.at_hand(each, job) is None for each in sides)

    def facts(self) -> dict[str, str]:
        """Return what must be alike on all ranks, by keyword, in words."""
        facts = {name: repr(value) for name, value in self.call.items() if name not in _MAY_DIFFER}
        weights = self.call["feature_extractor_weights_path"]
        if weights is not None and Path(weights).is_file():
            facts["feature_extractor_weights_path"] = f"file {digest_of_file(weights)[:16]}"
        for side, layers in self.ready.items():
            facts[f"input{side}"] = "; ".join(f"{layer}: {_in_words(layers[layer])}" for layer in sorted(layers))
        for side, samples in self.samples.items():
            facts[f"input{side}"] = samples.identity(_COMPARED_BY_RANKS)
        for side, statistics in self.statistics.items():
            facts[f"mean and covariance of input{side}"] = _in_words(statistics)
        return facts


# Where files are and how they are read is each machine's own.
_MAY_DIFFER = (
    *("input1", "input2", "input3", "fid_statistics_file", "verbose", "save_cpu_ram"),
    *("cache_root", "datasets_root", "datasets_download", "feature_extractor_weights_path"),
)
_FID = "fid"  # the one metric that mean and covariance are enough for
_COMPARED_BY_RANKS = 16  # items of a data set


def _in_words(features: Features) -> str:
    if isinstance(features, Statistics):
        arrays = {name: torch.from_numpy(getattr(features, name)) for name in ("mu", "sigma")}
        return f"of {features.dimension} features, {digest_of(arrays)[:16]}"
    if isinstance(features, ReducedFeatures):
        kind = f"{len(features)} x {features.dimension} reduced with {features.num_components}, {features.seed}"
        return f"{kind}, {digest_of({'': features.values})[:16]}"
    return f"{' x '.join(map(str, features.shape))}, {digest_of({'': features})[:16]}"


def make_plan(kwargs: dict[str, Any], sides: list[int] | None = None) -> Plan:
    """Check the keywords of a fidelity call and read the inputs that are ready features.

    Args:
        kwargs: The keywords.
        sides: Numbers of the inputs that are looked at. Default: `None`, those that the metrics need.

    Raises:
        ValueError: As :func:`~torch_fidelity_lsh.calculate_metrics`.
    """
    given = {name: _plain(value) for name, value in upstream.translate_deprecations(kwargs).items()}
    refuse_unknown_keywords(given)
    call = {**upstream.DEFAULTS, **plugin_keywords(), **given}
    requested = _requested_metrics(call)
    _check_options(requested, call)
    sides = sides or sides_of(requested)
    _check_spaces(requested, call, sides)
    statistics = _read_statistics(requested, sides, call)
    ready_sides = [side for side in sides if inputs.is_ready(call[f"input{side}"])]
    samples = _open_inputs(call, sides, ready_sides)
    call["cuda"] = _usable_cuda(call, needed="cuda" in given or ready_sides != sides)
    call["verbose"] = call["verbose"] and rank_and_size()[0] == 0
    jobs = _jobs(requested, call, sides, ready_sides, statistics)
    looking = [job for job in jobs if job.metric != _FID]
    ready = {side: _read_ready(side, looking if side in statistics else jobs, call) for side in ready_sides}
    ready = {side: layers for side, layers in ready.items() if layers}
    _refuse_other_sources(jobs, ready, statistics)
    counts = {side: len(next(iter(layers.values()))) for side, layers in ready.items()}  # type: ignore[arg-type]
    counts |= {side: count for side, each in samples.items() if (count := each.count()) is not None}
    plan = Plan(sides, requested, given, call, jobs, ready, samples, statistics)
    _look(plan)
    refuse_too_few(looking, counts, call)
    counts = {side: count for side, count in counts.items() if side not in statistics}
    refuse_too_few([job for job in jobs if job.metric == _FID], counts, call)
    return plan


def refuse_too_few(jobs: Iterable[Job], counts: Mapping[int, int], call: Mapping[str, Any]) -> None:
    """Refuse fewer samples than one of torch-fidelity's metrics needs to give a number.

    Raises:
        ValueError: Names the input, how many it has, and how many are needed.
    """
    for job in jobs:
        if job.metric in METRICS_REGISTRY:  # These look at their features themselves.
            continue
        least, reason = upstream.least_samples(job.metric, call)
        for side in sides_of([job.metric]):
            if counts.get(side, least) < least:
                raise ValueError(
                    f"{job.metric} needs at least {least} samples for {reason}, and input{side} has {counts[side]}"
                )


def _look(plan: Plan) -> None:
    for side, each in plan.samples.items():
        looking = [job for job in plan.jobs if plan.extracts(job, side)]
        extractors = [extractor_class(job.extractor) for job in looking if job.extractor]
        if extractors and (each.is_divisible or rank_and_size()[0] == 0):
            each.look(only_rgb=any(upstream.is_builtin(extractor) for extractor in extractors))


def _plain(value: Any) -> Any:
    """Turn paths into text, and numbers of numpy into those of Python."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _requested_metrics(call: dict[str, Any]) -> list[str]:
    names = (*upstream.metric_flags(), *METRICS_REGISTRY)
    requested = [name for name in names if call[name]]
    if not requested:
        raise ValueError(f"At least one metric must be requested, by setting one of these to True: {', '.join(names)}")
    return requested


def _check_options(requested: list[str], call: dict[str, Any]) -> None:
    for name in requested:
        for setting, least in upstream.LEAST_SETTINGS.get(name, {}).items():
            _check_whole_number(setting, call, least)
        entry = METRICS_REGISTRY.get(name)
        if entry and entry.check_options:
            entry.check_options(call)


def sides_of(metrics: Iterable[str]) -> list[int]:
    """Return the numbers of the inputs the metrics look at."""
    return [1] if all(name not in METRICS_REGISTRY and upstream.is_unary(name) for name in metrics) else [1, 2]


def _read_statistics(requested: list[str], sides: list[int], call: dict[str, Any]) -> dict[int, Statistics]:
    """Read the means and covariances that serve fid, and refuse what they cannot serve."""
    named = call["fid_statistics_file"]
    if named is not None and _FID not in requested:
        raise ValueError("fid_statistics_file is for fid, which is not requested")
    if call["input2"] is None:
        call["input2"] = named
    found: dict[int, Statistics] = {}
    for side in sides:
        source = call[f"input{side}"]
        statistics = inputs.read_statistics_of(source, f"input{side}", call["features_max_bytes"])
        if statistics is None:
            continue
        others = [name for name in requested if name != _FID and side in sides_of([name])]
        if inputs.is_ready(source) and others:
            raise ValueError(
                f"{', '.join(others)} cannot be calculated from mean and covariance of features, which are all that "
                f"input{side} holds: of these only fid can be; what is needed are images, or the features themselves"
            )
        # Those of one network are not for several; the images beside them are.
        if _FID in requested and not isinstance(call["feature_extractor"], list):
            found[side] = statistics
            if source is not named:
                _warn_of_other_resizing(source, f"input{side}")
    if named is not None:
        given = inputs.read_statistics_of(named, "fid_statistics_file", call["features_max_bytes"])
        if given is None:
            there = Path(named).is_file() if isinstance(named, str) else False
            why = "holds no arrays mu and sigma" if there else "does not exist"
            raise ValueError(f'fid_statistics_file: "{named}" {why}; it takes an .npz file with arrays mu and sigma')
        found[2] = given
        _warn_of_other_resizing(named, "fid_statistics_file")
    return found


def _warn_of_other_resizing(source: Any, argument: str) -> None:
    if isinstance(source, str) and resizes_otherwise(source):
        warnings.warn(
            f'{argument}: "{Path(source).name}" is named as statistics of clean-fid, whose images were resized '
            "in another way than torch-fidelity resizes them: FID is comparable only where both sides were made alike",
            stacklevel=2,
        )


def _open_inputs(call: dict[str, Any], sides: list[int], ready_sides: list[int]) -> dict[int, Samples]:
    _check_whole_number("batch_size", call, 1)
    samples = {}
    for side in sides:
        argument, cache_name = f"input{side}", call[f"input{side}_cache_name"]
        if call[argument] is None:
            raise ValueError(f"{argument} is missing: input1 takes the generated samples, input2 the real ones")
        if side in ready_sides and cache_name is not None:
            raise ValueError(f"{argument}_cache_name names a cache of extracted features, but {argument} is features")
        if side not in ready_sides:
            samples[side] = open_samples(side, call)
    check_cache(call, list(samples))
    return samples


def _check_whole_number(name: str, call: dict[str, Any], least: int) -> None:
    value = call[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")


def _usable_cuda(call: dict[str, Any], needed: bool) -> bool:
    if call["cuda"] and needed and not torch.cuda.is_available():
        raise ValueError("cuda=True (the default) needs a GPU and none is available; pass cuda=False to use the CPU")
    return bool(call["cuda"]) and torch.cuda.is_available()


def _jobs(
    requested: list[str],
    call: dict[str, Any],
    sides: list[int],
    ready_sides: list[int],
    statistics: Mapping[int, Statistics],
) -> list[Job]:
    """Choose what runs here: all metrics on features, in each space; the others are left to torch-fidelity."""
    on_features = (*upstream.feature_metrics(), *METRICS_REGISTRY)
    names = [name for name in requested if name in on_features]
    if 1 in ready_sides and names != requested:
        others = ", ".join(name for name in requested if name not in names)
        raise ValueError(f"{others} cannot be calculated from ready features; input1 must be a generative model")
    extract = ready_sides != sides
    spaces = call["feature_extractor"] if isinstance(call["feature_extractor"], list) else [call["feature_extractor"]]
    jobs = []
    for space in spaces:
        for metric in names:
            needed = extract and not (metric == _FID and set(sides) <= statistics.keys())
            extractor, layer = _extractor(metric, space, needed)
            shown = space if len(spaces) > 1 else ""
            jobs.append(Job(metric, extractor, _layer(metric, extractor, layer, call), shown))
    return jobs


def refuse_spaces(kwargs: Mapping[str, Any], what: str) -> None:
    """Raise `ValueError` where a call names several feature extractors, for what shows one."""
    given = kwargs.get("feature_extractor")
    if isinstance(given, (list, tuple)) and len(given) > 1:
        raise ValueError(f"feature_extractor names {len(given)} extractors, and {what} has one")


def _check_spaces(requested: list[str], call: dict[str, Any], sides: list[int]) -> None:
    """Check the list of feature extractors of a call that has one; make it plain where it holds one alone."""
    spaces = call["feature_extractor"]
    if not isinstance(spaces, (list, tuple)):
        return
    if len(spaces) < 2:
        call["feature_extractor"] = spaces[0] if spaces else None
        return
    call["feature_extractor"] = spaces = list(spaces)
    if not all(isinstance(space, str) for space in spaces) or len(set(spaces)) < len(spaces):
        raise ValueError(f"feature_extractor must be different names of extractors, or modules; got {spaces!r}")
    for side in sides:
        if inputs.is_ready(call[f"input{side}"]):
            raise ValueError(
                f"feature_extractor names {len(spaces)} extractors, and input{side} holds no images for them to look at"
            )
    names = {*upstream.feature_metrics(), *METRICS_REGISTRY}
    layers = [keyword for keyword in call if keyword.startswith("feature_layer_") and call[keyword] is not None]
    for keyword in [*layers, "feature_extractor_weights_path", "fid_statistics_file", "input3"]:
        if call[keyword] is not None:
            advice = '; name layers as "NAME/LAYER"' if keyword in layers else ""
            raise ValueError(f"{keyword} is for one feature_extractor, and there are {len(spaces)}{advice}")
    others = [name for name in requested if name not in names]
    if others:
        raise ValueError(f"{', '.join(others)} looks at no features: it goes with one feature_extractor, or none")


def _extractor(metric: str, name: str | None, extract: bool) -> tuple[str | None, str | None]:
    """Name the metric's extractor and its layer.

    Both are `None` if there is nothing to extract and the call does not say whose features; the layer also where
    nothing names it.
    """
    if name is None and extract:
        entry = METRICS_REGISTRY.get(metric)
        name = entry.default_feature_extractor if entry else upstream.DEFAULT_FEATURE_EXTRACTOR[metric]
    if name is None:
        return None, None
    extractor, _, layer = name.partition("/")
    extractor_class(extractor)
    return extractor, layer or None


def _layer(metric: str, extractor: str | None, named: str | None, call: dict[str, Any]) -> str:
    entry = METRICS_REGISTRY.get(metric)
    keyword = entry.feature_layer_key if entry else f"feature_layer_{metric}"
    given = call[keyword]
    if named is not None and given not in (None, named):
        raise ValueError(f'feature_extractor names layer "{named}", and {keyword} "{given}"')
    if named is not None or given is not None:
        return str(given if named is None else named)
    if extractor is None:
        return inputs.READY_LAYER
    cls = extractor_class(extractor)
    for name in (metric, entry.default_layer_as, "fid") if entry else (metric,):
        with suppress(*_METRIC_UNKNOWN_ERRORS):
            return str(cls.get_default_feature_layer_for_metric(name))
    layers = cls.get_provided_features_list()
    provided = ", ".join(layers[:_NAMED_LAYERS]) + (", ..." if len(layers) > _NAMED_LAYERS else "")
    raise ValueError(f'Feature extractor "{extractor}" has no layer for {metric}; set {keyword} to one of: {provided}')


_NAMED_LAYERS = 12  # in a message


def _read_ready(side: int, jobs: list[Job], call: dict[str, Any]) -> dict[str, Features]:
    layers = {job.layer for job in jobs if side in sides_of([job.metric])}
    if not layers:
        return {}
    return {**inputs.read_features(call[f"input{side}"], layers, f"input{side}", call["features_max_bytes"])}


def _refuse_other_sources(
    jobs: list[Job], ready: dict[int, dict[str, Features]], statistics: Mapping[int, Statistics]
) -> None:
    """Refuse references of other features than a metric is about to extract, before that needs weights."""
    for job in (job for job in jobs if job.metric == _FID and job.extractor):
        for side, known in statistics.items():
            if known.source not in ("", job.source):
                raise ValueError(
                    f"the mean and covariance of input{side} are of {known.source}, and fid is asked for with "
                    f"{job.source}; set feature_extractor and feature_layer_fid to these"
                )
            _refuse_other_layer(job, side, known)
    for side, features in ready.items():
        for job in jobs:
            reference, source = features.get(job.layer), job.source
            if not isinstance(reference, ReducedFeatures) or not job.extractor:
                continue
            if reference.source not in ("", source):
                raise ValueError(
                    f"input{side} was made from {reference.source}, and {job.metric} is asked for with {source}; set "
                    f'feature_extractor="{reference.feature_extractor}", feature_layer_lsh="{reference.feature_layer}"'
                )


def _refuse_other_layer(job: Job, side: int, statistics: Statistics) -> None:
    """Refuse a mean of another length than a layer has, where its name tells: those of Inception are numbers."""
    if job.layer.isdecimal() and int(job.layer) != statistics.dimension:
        raise ValueError(
            f"the mean and covariance of input{side} are of {statistics.dimension} features, and fid is asked for with "
            f"{job.source}; feature_extractor and feature_layer_fid name the one they were made with"
        )
