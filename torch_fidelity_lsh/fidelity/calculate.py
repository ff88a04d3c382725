"""``calculate_metrics``: torch-fidelity's call with the registered metrics added, features extracted once.

Under ``torchrun`` the ranks share the extraction; the first one has the features of all and calculates.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from torch_fidelity_lsh.fidelity import inputs, upstream
from torch_fidelity_lsh.fidelity.distributed import (
    alone,
    gather_rows,
    may_work_alone,
    meet,
    on_first,
    rank_and_size,
    refuse_differences,
    share_first,
    together,
)
from torch_fidelity_lsh.fidelity.extraction import Extracted, extract_features
from torch_fidelity_lsh.fidelity.image_arrays import save_images
from torch_fidelity_lsh.fidelity.networks import takes_modules
from torch_fidelity_lsh.fidelity.plan import Features, Job, Plan, make_plan, refuse_spaces, refuse_too_few, sides_of
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY
from torch_fidelity_lsh.fidelity.spaces import in_space, mean_ratios, ratios
from torch_fidelity_lsh.fidelity.statistics import Statistics
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.files import check_writable
from torch_fidelity_lsh.metric.functional import METRICS
from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.metric.memorization import FEWEST_HELD_OUT, memorization
from torch_fidelity_lsh.metric.messages import first_line
from torch_fidelity_lsh.metric.reduction import ReducedFeatures


@default_modes()
@may_work_alone
def calculate_metrics(**kwargs: Any) -> dict[str, float]:
    """Calculate torch-fidelity's metrics and the registered ones in one call.

    Accepts every keyword of ``torch_fidelity.calculate_metrics``, where they are documented, and those listed here.
    One pass over each input serves all metrics and extractors. Upstream's own metrics come out as
    upstream computes them. The caller's modes (autocast, inference mode, default device) change no digit, and the
    caller's random state is left as it was.

    Args:
        input1: The generated samples: whatever torch-fidelity takes, or ready features: a float tensor or array
            N x D, or the path of a ``.npy``, ``.npz`` or ``.safetensors`` file. A file of several arrays may hold one
            per layer, by the layer's name, or the one to use as ``"features"``. ``lsh`` and ``lsh_knn`` also take what
            :func:`create_reference` returns, or the file it was saved to. An ``.npz`` file may hold images instead, as
            ``arr_0``, uint8 N x H x W x 3; and ``fid`` takes mean and covariance, its arrays ``mu`` and ``sigma`` (in
            files of ADM, pytorch-fid, clean-fid), also where they stand beside images, which serve the other metrics.
        input2: The real samples, likewise. Where one input holds ready features and the other images, both must have
            the same D. Where both hold ready features no extractor is created and no weights are needed.
        input3: Real samples that the generator was not trained on, while ``input2`` holds those that it was. With
            ``lsh`` or ``lsh_knn`` the result then has :func:`~torch_fidelity_lsh.memorization`, the share of copies.
            Default: `None`.
        lsh: Calculate precision and recall by hashing alone. Default: `False`.
        lsh_knn: Calculate precision and recall by nearest neighbours found by hashing. Default: `False`.
        feature_layer_lsh: Name of the feature layer for both. Default: `None`, the layer of ``prc`` in the chosen
            extractor; the extractor is ``vgg16`` unless ``feature_extractor`` names one.
        lsh_*: Options of both metrics, the fields of :class:`LSHConfig`.
        feature_extractor: Name of a registered extractor; ``"timm:NAME"`` or ``"torchvision:NAME"``, a network of these
            packages; any of these with a layer that serves all metrics, ``"NAME/LAYER"``, where networks of the
            packages have each of their submodules as a layer; or a module from images, uint8 B x 3 x H x W, to
            features B x D. Or a list of such: each is a space of its own, one pass over the images serves all, and
            the result has the keys of :mod:`~torch_fidelity_lsh.fidelity.spaces`. Default: `None`, that of each metric.
        fid_statistics_file: File of ``mu`` and ``sigma`` that serves ``fid`` in place of ``input2``, and is ``input2``
            if that is not given. Default: `None`.
        features_max_bytes: Largest size of an array of an ``.npz`` file once it is unpacked. Default: `None`, 100 times
            that of the file, or 256 MiB.
        input1_cache_name: Name under which features of ``input1`` are kept in ``cache_root``, and found again where the
            samples, the extractor, its weights and settings are the same. Samples of a data set object are the same if
            1,000 of them, spread evenly, are; those of a folder if names, sizes and times of its files are.
        input2_cache_name: The same for ``input2``.
        cache: Keep features that have a name. `False` switches that off; ``"upstream"`` also reads, safely, files that
            torch-fidelity has kept, which do not tell what they were made from. Default: `True`.
        cuda: As upstream, default `True`; an error without a GPU, except where it is left at its default and no
            features need to be extracted.
        distributed: Where ``torch.distributed`` is initialised, share the extraction of features among the ranks, all
            of which must make this call and then get the same result. `False`: this process works alone, whether or
            not others call. Default: `True`.
        **kwargs: Flag, layer and options of any metric added with :func:`register_metric`, and torch-fidelity's other
            keywords.

    Returns:
        Result key to value, for all requested metrics.

    Raises:
        ValueError: A keyword is unknown, an input is missing, unusable or at odds with the other one, or no metric is
            requested. The message names the keyword, what was given, and what is accepted.
    """
    return calculate_watched(lambda job, looks, plan: None, **kwargs)


Watch = Callable[[Job, Mapping[int, Any], Plan], None]


@default_modes()
@takes_modules
def calculate_watched(watch: Watch, **kwargs: Any) -> dict[str, float]:
    """Calculate metrics as :func:`calculate_metrics`; on the first rank, show what each of them has looked at.

    Args:
        watch: Called after each metric on features with its job, what it looked at by side, and the plan of the call.
        **kwargs: As there.

    Raises:
        ValueError: As there.
    """
    plan = _agreed_plan("calculate_metrics", kwargs)
    held_out = _held_out(plan)
    results = {**on_first(lambda: _delegate(plan)), **_run_jobs(plan, watch, held_out)}
    _refuse_non_finite(results, plan)
    return results


@default_modes()
@may_work_alone
@takes_modules
def create_reference(**kwargs: Any) -> ReducedFeatures:
    """Reduce one set of samples to what ``lsh`` and ``lsh_knn`` need of it, to be compared with many others.

    Passed as ``input2`` (or ``input1``) it gives the numbers that the samples themselves give, to the last digit.

    Args:
        input: The samples, as ``input2`` of :func:`calculate_metrics`.
        feature_extractor: As there. Default: `None`, ``vgg16`` for images, unknown for ready features.
        feature_layer_lsh: As there. Default: `None`, the extractor's layer for ``prc``.
        rng_seed: Must be that of the comparisons. Default: 2020.
        lsh_num_components: Must be that of the comparisons. Default: 128.
        distributed: As there.
        **kwargs: Upstream's keywords of input and extraction; those of ``input2`` for the input.

    Raises:
        ValueError: As :func:`calculate_metrics`.
    """
    with _input_named("input"):
        plan = _agreed_plan("create_reference", _of_one_input(kwargs, "lsh"), [2])
        (reduced,) = _features(2, plan, _create_extractors(plan)).values()
    result: ReducedFeatures = share_first(reduced)
    return result


@default_modes()
@may_work_alone
@takes_modules
def create_statistics(**kwargs: Any) -> Statistics:
    """Extract mean and covariance of the features of one set of samples: all that ``fid`` needs of it.

    Passed as ``input2`` (or ``input1``), or kept by :func:`save_statistics` in a file that pytorch-fid reads too, it
    gives the ``fid`` of the samples themselves.

    Args:
        input: The samples, as ``input2`` of :func:`calculate_metrics`.
        feature_extractor: As there. Default: `None`, ``inception-v3-compat`` for images.
        feature_layer_fid: As there. Default: `None`, the extractor's layer for ``fid``.
        distributed: As there.
        **kwargs: Upstream's keywords of input and extraction; those of ``input2`` for the input.

    Raises:
        ValueError: As :func:`calculate_metrics`.
    """
    with _input_named("input"):
        plan = _agreed_plan("create_statistics", _of_one_input(kwargs, "fid"), [2])
        job = plan.jobs[0]
        look: Any = plan.at_hand(2, job)
        if look is None:
            (look,) = _features(2, plan, _create_extractors(plan)).values()
    if isinstance(look, ReducedFeatures):
        raise ValueError("input is a reference, which keeps less than the features that mean and covariance are of")
    found = on_first(lambda: upstream.fid_statistics(look))
    return replace(found, source=job.source or found.source)


@default_modes()
def save_samples(path: str | os.PathLike[str], **kwargs: Any) -> int:
    """Write samples to an ``.npz`` file as ADM's scripts do, ``arr_0``, uint8 N x H x W x 3; return their number.

    Args:
        path: File to write, ending in ``.npz``; an old file is replaced at once.
        input: The samples, whose items are images: as ``input2`` of :func:`calculate_metrics`. One batch at a time is
            held in memory.
        **kwargs: Upstream's keywords of the input; those of ``input2``.

    Raises:
        ValueError: The path cannot be written to, or the samples are no images of one size.
        OSError: The file cannot be written.
    """
    check_writable(path, "path", ".npz")
    with alone(), _input_named("input"):
        plan = _agreed_plan("save_samples", _of_one_input(kwargs, "fid"), [2])
        if 2 not in plan.samples:
            raise ValueError("input must be images, and holds features or statistics")
        samples = plan.samples[2]
        batches = samples.batches()
        first = next(batches)  # A data set that is registered by name has a length once it is open.
        count = samples.count() or 0
        save_images(itertools.chain([first], batches), count, path, samples.argument)
    return count


def _of_one_input(kwargs: dict[str, Any], metric: str) -> dict[str, Any]:
    source = kwargs.pop("input", None)
    if source is None:
        raise ValueError("input is missing: it takes the samples to be reduced")
    refuse_spaces(kwargs, "what is made of one input")
    return {**kwargs, "input2": source, metric: True}


def _agreed_plan(function: str, kwargs: dict[str, Any], sides: list[int] | None = None) -> Plan:
    """Make the plan of a call, the same on all ranks."""
    meet(function)
    plan = together(lambda: make_plan(kwargs, sides))
    if rank_and_size()[1] > 1:
        refuse_differences(together(lambda: {"function": function, **plan.facts()}))
    return plan


_NAME_OF_SIDE = re.compile(r'("[^"]*")|\binput[12]?\b')  # outside of what is quoted, such as paths


@contextmanager
def _input_named(name: str) -> Iterator[None]:
    """Let errors call the one input as the caller does."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_NAME_OF_SIDE.sub(lambda found: found[1] or name, str(error))) from error


def _held_out(plan: Plan) -> ReducedFeatures | None:
    """Return what memorization looks at of ``input3``; `None` where it is not given."""
    if plan.call["input3"] is None:
        return None
    job = next((job for job in plan.jobs if job.metric in METRICS), None)
    if job is None:
        raise ValueError(
            f"input3 is for memorization, which looks at the features of {' or '.join(METRICS)}: ask for one"
        )
    other = {*plan.requested, "fid_statistics_file"}
    kept = {name: value for name, value in plan.given.items() if name not in other and not name.startswith("input")}
    source = {"feature_extractor": job.extractor, "feature_layer_lsh": job.layer if job.extractor else None}
    with _input_named("input3"):
        found: ReducedFeatures = create_reference(**{**kept, **source, "input": plan.call["input3"]})
    if len(found) < FEWEST_HELD_OUT:
        raise ValueError(f"input3 must hold at least {FEWEST_HELD_OUT} samples for memorization; got {len(found)}")
    return found


def _memorization(
    looks: Sequence[ReducedFeatures], held_out: ReducedFeatures, call: dict[str, Any]
) -> dict[str, float]:
    try:
        generated, training = looks
        found = memorization(generated, training, held_out, LSHConfig.from_kwargs(call))
    except ValueError as error:
        raise ValueError(f"memorization (generated: input1, training: input2, held out: input3): {error}") from error
    low, high = found.interval
    name = "memorization"
    return {name: found.share, f"{name}_stderr": found.stderr, f"{name}_ci_low": low, f"{name}_ci_high": high}


def _run_jobs(plan: Plan, watch: Watch, held_out: ReducedFeatures | None) -> dict[str, float]:
    """Run the metrics on features, extracting all layers in one pass over each input."""
    features = {}
    if plan.jobs:
        extractors = _create_extractors(plan)
        features = {side: _features(side, plan, extractors) for side in sides_of(job.metric for job in plan.jobs)}

    def run() -> dict[str, float]:
        results: dict[str, float] = {}
        # The last go first: registered metrics check their features and should refuse bad ones before the slow rest.
        for job in reversed(plan.jobs):
            looks = [features[side][job] for side in sides_of([job.metric])]
            found = _run_job(job, looks, plan.call)
            if held_out is not None and job.metric in METRICS and "memorization" not in results:
                found |= _memorization(looks, held_out, plan.call)
            if job.space:
                found |= ratios(found, looks, partial(_run_job, job, call=plan.call))
            results = {**{in_space(job.space, key): value for key, value in found.items()}, **results}
            watch(job, {side: looks[job] for side, looks in features.items() if job in looks}, plan)
        return {**results, **mean_ratios(results)}

    return on_first(run)


def _create_extractors(plan: Plan) -> dict[str, Any]:
    layers: dict[str, set[str]] = {}
    for job in plan.jobs:
        if plan.extracts(job):
            layers.setdefault(job.extractor or "", set()).add(job.layer)
    settings = _upstream_settings(plan.call)
    return together(
        lambda: {name: upstream.create_feature_extractor(name, sorted(layers[name]), **settings) for name in layers}
    )


def _upstream_settings(call: dict[str, Any]) -> dict[str, Any]:
    return {name: call[name] for name in upstream.DEFAULTS}


# What each job looks at of a side, on the first rank; `None` on others.
_Looks = dict[Job, Any]


def _features(side: int, plan: Plan, extractors: dict[str, Any]) -> _Looks:
    """Return what the jobs look at of a side: features of their layer, or these reduced, gathered from all ranks."""

    def check(first: Extracted) -> None:
        for job in plan.jobs:
            other = plan.at_hand(3 - side, job) if 3 - side in sides_of([job.metric]) else None
            if other is not None and plan.extracts(job, side) and job.extractor in first:
                pair = [first[job.extractor][job.layer], other]
                _refuse_different_dimensions(job, pair if side == 1 else pair[::-1], plan.call)

    jobs = [job for job in plan.jobs if side in sides_of([job.metric])]
    wanted = {job.extractor for job in jobs if plan.extracts(job, side)}
    own: Extracted = {}
    if wanted:
        needed = {name: extractor for name, extractor in extractors.items() if name in wanted}
        own = extract_features(side, plan.samples[side], needed, plan.call, check)
    looks: dict[tuple[str | None, str, Any, bool], Any] = {}
    result: _Looks = {}
    for job in jobs:
        extracts = plan.extracts(job, side)
        key = job.extractor, job.layer, job.fn_reduce, extracts
        if key not in looks:
            extracted = own[job.extractor or ""][job.layer] if extracts and own else None
            features = extracted if extracts else plan.at_hand(side, job)
            reduced = together(lambda: _reduced(job, features, side, plan.call))  # noqa: B023
            looks[key] = _gathered(reduced) if extracts else reduced
        result[job] = looks[key]
    return result


def _reduced(job: Job, features: Features | None, side: int, call: dict[str, Any]) -> Features | None:
    """Reduce the features of one rank for a job that wants that."""
    argument = f"input{side}"
    if isinstance(features, ReducedFeatures):
        if job.fn_reduce is None:
            raise ValueError(f"{job.metric} needs features, and {argument} is a reference, which keeps less of them")
        return features
    if job.fn_reduce is None or features is None or isinstance(features, Statistics):
        return features
    try:
        reduced = job.fn_reduce(features, **call)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    return replace(reduced, feature_extractor=job.extractor, feature_layer=job.layer if job.extractor else None)


def _gathered(features: Any) -> Features | None:
    """Put the parts of all ranks together on the first one, which always has a part."""
    if not isinstance(features, ReducedFeatures):
        return gather_rows(features)
    values = gather_rows(features.values)
    return None if values is None else replace(features, values=values)


def _run_job(job: Job, looks: list[Any], call: dict[str, Any]) -> dict[str, float]:
    """Run one metric on what it looks at of each side."""
    _refuse_different_dimensions(job, looks, call)
    counts = {side: len(look) for side, look in enumerate(looks, start=1) if not isinstance(look, Statistics)}
    refuse_too_few([job], counts, call)
    dicts = [{job.layer: look} for look in looks]
    if job.metric in METRICS_REGISTRY:
        return _run_registered(job, dicts, call)
    second = dicts[1] if len(dicts) > 1 else None
    settings = _upstream_settings(call)
    return upstream.featuresdict_to_metric(job.metric, dicts[0], second, job.layer, **settings)


def _refuse_different_dimensions(job: Job, looks: list[Any], call: dict[str, Any]) -> None:
    dimensions = [look.shape[-1] if isinstance(look, torch.Tensor) else look.dimension for look in looks]
    if len(set(dimensions)) > 1:
        first, second = (
            f"input{side} has {dimension} features a sample "
            f"({'ready' if inputs.is_ready(call[f'input{side}']) else job.source})"
            for side, dimension in enumerate(dimensions, start=1)
        )
        raise ValueError(f"{job.metric} needs features of one kind, but {first} and {second}")


def _run_registered(job: Job, dicts: list[dict[str, Any]], call: dict[str, Any]) -> dict[str, float]:
    entry = METRICS_REGISTRY[job.metric]
    values = entry.fn_featuresdict_to_metric(*dicts, job.layer, **{**call, "feature_extractor": job.extractor})
    undeclared = values.keys() - set(entry.keys)
    if undeclared:  # The declared keys are known not to collide with those of other metrics.
        raise ValueError(f"{job.metric} returned result keys it did not declare: {', '.join(sorted(undeclared))}")
    return values


def _delegate(plan: Plan) -> dict[str, float]:
    """Let upstream calculate the rest, which does not look at features, in its own call."""
    done = {job.metric for job in plan.jobs}
    if done.issuperset(plan.requested):
        return {}
    # Upstream takes no ready features, and what is left to it does not look at them.
    passed_over = done | {argument for argument in ("input1", "input2") if inputs.is_ready(plan.call[argument])}
    settings = {name: plan.call[name] for name in plan.given if name in upstream.DEFAULTS}
    try:
        return upstream.calculate_metrics(  # type: ignore[no-any-return]
            **{name: value for name, value in settings.items() if name not in passed_over}
        )
    except upstream.NETWORK_ERRORS as error:
        left = ", ".join(name for name in plan.requested if name not in done)
        raise ValueError(f"A download failed ({first_line(error)}): {left} fetches weights of its own") from error


def _refuse_non_finite(results: dict[str, float], plan: Plan) -> None:
    for key, value in results.items():
        if np.all(np.isfinite(value)):
            continue
        sizes = {
            f"input{side}": f"{float(features.abs().max()):.2g}"
            for side, layers in plan.ready.items()
            for features in layers.values()
            if isinstance(features, torch.Tensor)
        }
        given = ", ".join(f"{argument} holds values up to {size}" for argument, size in sizes.items())
        raise ValueError(
            f"{key} came out as {value}, which is no number to report{f': {given}' if given else ''}; what is needed "
            "are features whose squares and products are finite in the metric's arithmetic, and enough samples"
        )
