"""The one place that touches torch-fidelity's internals.

What the installed torch-fidelity can do is found by looking for names, never by reading its version number: its
development state has carried the number of the last release.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

try:
    import torch_fidelity.metrics
    from torch_fidelity.defaults import DEFAULTS
    from torch_fidelity.deprecations import DEPRECATIONS
    from torch_fidelity.generative_model_base import GenerativeModelBase
    from torch_fidelity.metric_fid import fid_featuresdict_to_statistics_cached, fid_statistics_to_metric
    from torch_fidelity.registry import DATASETS_REGISTRY, FEATURE_EXTRACTORS_REGISTRY
    from torch_fidelity.utils import (
        DEFAULT_FEATURE_EXTRACTOR,
        cache_lookup_group_recompute_all_on_any_miss,
        create_feature_extractor,
        extract_featuresdict_from_input_id,
        extract_featuresdict_from_input_id_cached,
        get_cacheable_input_name,
        get_featuresdict_from_dataset,
        glob_samples_paths,
        prepare_input_from_id,
    )
except ImportError as error:
    raise ImportError(
        f"torch-fidelity-lsh cannot work with the installed torch-fidelity: {error}. "
        'Install a newer one: pip install "torch-fidelity>=0.4"'
    ) from error

__all__ = [
    "DATASETS_REGISTRY",
    "DEFAULTS",
    "DEFAULT_FEATURE_EXTRACTOR",
    "FEATURE_EXTRACTORS_REGISTRY",
    "GenerativeModelBase",
    "calculate_metrics",
    "create_feature_extractor",
    "extract_featuresdict_from_input_id_cached",
    "extract_share",
    "feature_metrics",
    "featuresdict_to_metric",
    "glob_samples_paths",
    "is_cacheable",
    "is_unary",
    "metric_flags",
    "read_cache",
    "result_keys",
    "translate_deprecations",
    "write_cache",
]


def _copy_function(function: FunctionType) -> FunctionType:
    return FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )


# A copy, because hook.install() swaps the code of upstream's own function object.
calculate_metrics = _copy_function(torch_fidelity.metrics.calculate_metrics)


def metric_flags() -> tuple[str, ...]:
    """Return the names of upstream's metrics: the off-by-default keywords that have a module of their own."""
    return tuple(name for name, default in DEFAULTS.items() if default is False and _metric_module(name))


def feature_metrics() -> tuple[str, ...]:
    """Return the names of the upstream metrics that are computed from extracted features (all but ``ppl``)."""
    return tuple(name for name in metric_flags() if name == "fid" or _featuresdict_function(name))


def is_unary(name: str) -> bool:
    """Tell whether an upstream metric looks at ``input1`` alone (``isc``, ``ppl``)."""
    if name == "fid":  # It goes through cached statistics and has no function of both sides.
        return False
    function = _featuresdict_function(name)
    return function is None or "featuresdict_2" not in inspect.signature(function).parameters


def result_keys() -> frozenset[str]:
    """Return every key that an upstream metric may put into the result."""
    return frozenset(
        key
        for name in metric_flags()
        for constant, key in vars(_metric_module(name)).items()
        if constant.startswith("KEY_METRIC_")
    )


def featuresdict_to_metric(
    name: str,
    featuresdict_1: dict[str, torch.Tensor],
    featuresdict_2: dict[str, torch.Tensor] | None,
    layer: str,
    feat_extractor: Any,
    **kwargs: Any,
) -> dict[str, float]:
    """Compute an upstream metric from features with upstream's own functions, as its ``calculate_metrics`` does.

    Args:
        name: One of :func:`feature_metrics`.
        featuresdict_1: Layer name to features of ``input1``, each N x D.
        featuresdict_2: The same for ``input2``; not used by unary metrics.
        layer: Name of the layer the metric looks at.
        feat_extractor: The extractor, whose name becomes part of the name of the cached FID statistics.
        **kwargs: The call's upstream keywords.

    Returns:
        The metric's part of the result.
    """
    if name == "fid":
        statistics = (
            fid_featuresdict_to_statistics_cached(
                featuresdict, get_cacheable_input_name(side, **kwargs), feat_extractor, layer, **kwargs
            )
            for side, featuresdict in ((1, featuresdict_1), (2, featuresdict_2))
        )
        return fid_statistics_to_metric(*statistics, kwargs.get("verbose", DEFAULTS["verbose"]))  # type: ignore[no-any-return]
    sides = (featuresdict_1,) if is_unary(name) else (featuresdict_1, featuresdict_2)
    return _featuresdict_function(name)(*sides, layer, **kwargs)  # type: ignore[no-any-return]


def extract_share(
    side: int, feat_extractor: Any, rank: int, size: int, **kwargs: Any
) -> dict[str, torch.Tensor] | None:
    """Extract one of ``size`` shares of the batches of an input, without cache.

    Args:
        side: 1 or 2.
        feat_extractor: The extractor.
        rank: Which share. The first is never empty, and is all of a generative model's samples.
        size: Number of shares.
        **kwargs: The call's upstream keywords.

    Returns:
        Layer name to features, `None` if the share is empty.
    """
    source = prepare_input_from_id(side, **kwargs)
    if not isinstance(source, Dataset):
        return extract_featuresdict_from_input_id(side, feat_extractor, **kwargs) if rank == 0 else None
    batch_size = kwargs["batch_size"]
    num_batches = -(-len(source) // batch_size)  # type: ignore[arg-type]
    first, end = (batch_size * -(-num_batches * r // size) for r in (rank, rank + 1))
    own = range(len(source))[first:end]  # type: ignore[arg-type]
    if not own:
        return None
    options = (kwargs[name] for name in ("batch_size", "cuda", "save_cpu_ram", "verbose"))
    return get_featuresdict_from_dataset(Subset(source, own), feat_extractor, *options)  # type: ignore[no-any-return]


def is_cacheable(side: int, **kwargs: Any) -> bool:
    """Tell whether features of an input are kept in the cache."""
    return kwargs["cache"] and get_cacheable_input_name(side, **kwargs) is not None


def read_cache(side: int, feat_extractor: Any, **kwargs: Any) -> dict[str, torch.Tensor] | None:
    """Return the cached features of an input, `None` if a layer is missing."""

    def report_miss() -> None:
        raise _CacheMissError

    try:
        return _cached(side, feat_extractor, report_miss, **kwargs)
    except _CacheMissError:
        return None


def write_cache(side: int, feat_extractor: Any, features: dict[str, torch.Tensor], **kwargs: Any) -> None:
    """Write features of an input to the cache, which must not have them."""
    _cached(side, feat_extractor, lambda: features, **kwargs)


class _CacheMissError(Exception):
    pass


def _cached(side: int, feat_extractor: Any, fn_recompute: Callable[[], Any], **kwargs: Any) -> dict[str, torch.Tensor]:
    prefix = f"{get_cacheable_input_name(side, **kwargs)}-{feat_extractor.get_name()}-features-"
    layers = feat_extractor.get_requested_features_list()
    return cache_lookup_group_recompute_all_on_any_miss(prefix, layers, fn_recompute, **kwargs)  # type: ignore[no-any-return]


def translate_deprecations(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Rename upstream's deprecated keywords, with upstream's warning.

    Upstream's own translation changes a dictionary while it iterates over it, which raises on every Python in use.

    Args:
        kwargs: Keywords of ``calculate_metrics``.

    Returns:
        The keywords under their current names.
    """
    translated = {}
    for name, value in kwargs.items():
        deprecation = DEPRECATIONS.get(name)
        if deprecation:
            warnings.warn(
                f'Argument "{name}" is deprecated since {deprecation["since"]}; use "{deprecation["new_name"]}" '
                f"instead. Reason: {deprecation['reason']}",
                FutureWarning,
                stacklevel=3,
            )
        translated[deprecation["new_name"] if deprecation else name] = value
    return translated


def _metric_module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"torch_fidelity.metric_{name}")
    except ModuleNotFoundError:
        return None


def _featuresdict_function(name: str) -> Any:
    return getattr(_metric_module(name), f"{name}_featuresdict_to_metric", None)
