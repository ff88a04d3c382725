"""The one place that touches torch-fidelity's internals.

What the installed torch-fidelity can do is found by looking for names, never by reading its version number: its
development state has carried the number of the last release.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from types import FunctionType, ModuleType
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from safetensors.torch import load_file
from torch.utils.data import Dataset

from torch_fidelity_lsh.fidelity.statistics import Statistics
from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.metric.messages import first_line

try:
    import torch_fidelity.metrics
    from torch_fidelity.defaults import DEFAULTS
    from torch_fidelity.deprecations import DEPRECATIONS
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torch_fidelity.generative_model_base import GenerativeModelBase
    from torch_fidelity.generative_model_modulewrapper import GenerativeModelModuleWrapper
    from torch_fidelity.generative_model_onnx import GenerativeModelONNX
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.registry import DATASETS_REGISTRY, FEATURE_EXTRACTORS_REGISTRY, NOISE_SOURCE_REGISTRY
    from torch_fidelity.utils import DEFAULT_FEATURE_EXTRACTOR, prepare_input_from_descriptor
    from torch_fidelity.utils import create_feature_extractor as _create_feature_extractor
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
    "LEAST_SETTINGS",
    "NETWORK_ERRORS",
    "NOISE_SOURCE_REGISTRY",
    "GenerativeModelBase",
    "calculate_metrics",
    "create_feature_extractor",
    "default_cache_root",
    "feature_metrics",
    "featuresdict_to_metric",
    "fid_statistics",
    "is_builtin",
    "is_unary",
    "least_samples",
    "metric_flags",
    "open_registered_dataset",
    "read_model",
    "read_weights",
    "result_keys",
    "translate_deprecations",
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
    **kwargs: Any,
) -> dict[str, float]:
    """Compute an upstream metric from features with upstream's own functions, as its ``calculate_metrics`` does.

    Args:
        name: One of :func:`feature_metrics`.
        featuresdict_1: Layer name to features of ``input1``, each N x D.
        featuresdict_2: The same for ``input2``; not used by unary metrics.
        layer: Name of the layer the metric looks at.
        **kwargs: The call's upstream keywords.

    Returns:
        The metric's part of the result.
    """
    if name == "fid":
        return _fid(featuresdict_1[layer], (featuresdict_2 or {})[layer], kwargs.get("verbose", DEFAULTS["verbose"]))
    sides = (featuresdict_1,) if is_unary(name) else (featuresdict_1, featuresdict_2)
    return _featuresdict_function(name)(*sides, layer, **kwargs)  # type: ignore[no-any-return]


def fid_statistics(features: torch.Tensor | Statistics) -> Statistics:
    """Return mean and covariance of features N x D, as upstream computes them, in float64."""
    if isinstance(features, Statistics):
        return features
    found = fid_features_to_statistics(features)
    return Statistics(found["mu"].astype("float64"), found["sigma"].astype("float64"))


def _fid(one: Any, other: Any, verbose: bool) -> dict[str, float]:
    if any(isinstance(each, Statistics) for each in (one, other)):
        statistics = [vars(fid_statistics(each)) for each in (one, other)]
    else:
        statistics = [fid_features_to_statistics(each) for each in (one, other)]
    return fid_statistics_to_metric(*statistics, verbose)  # type: ignore[no-any-return]


LEAST_SETTINGS = {
    "isc": {"isc_splits": 1},
    "kid": {"kid_subsets": 1, "kid_subset_size": 2},
    "prc": {"prc_neighborhood": 1, "prc_batch_size": 1},
}
"""Settings of upstream's metrics that it does not check, and the least with which they give a number."""


def least_samples(name: str, call: Mapping[str, Any]) -> tuple[int, str]:
    """Return how many samples of each input an upstream metric needs to give a number, and why."""
    if name == "fid":
        return 2, "a covariance"
    if name == "isc":
        return call["isc_splits"], f"isc_splits={call['isc_splits']}"
    if name == "kid":
        return call["kid_subset_size"], f"kid_subset_size={call['kid_subset_size']}"
    if name == "prc":
        return call["prc_neighborhood"] + 1, f"prc_neighborhood={call['prc_neighborhood']}"
    return 1, "anything"


def is_builtin(extractor: type) -> bool:
    """Tell whether a class of feature extractors is torch-fidelity's or this package's."""
    return extractor.__module__.partition(".")[0] in ("torch_fidelity", "torch_fidelity_lsh")


def create_feature_extractor(name: str, layers: list[str], cuda: bool = True, **kwargs: Any) -> Any:
    """Create a feature extractor of torch-fidelity's registry.

    Weights are read without running code that a file may hold.

    Args:
        name: Name in the registry.
        layers: Names of the layers.
        cuda: Whether to use the GPU. Default: `True`.
        **kwargs: Upstream's keywords.

    Raises:
        ValueError: The weights cannot be fetched, or the file named as ``feature_extractor_weights_path`` cannot be
            read as those of the extractor.
    """
    path = kwargs.get("feature_extractor_weights_path")
    reads_pickles = is_builtin(FEATURE_EXTRACTORS_REGISTRY[name]) and name in _WEIGHTS
    if path is not None and reads_pickles:
        read_weights(path, name)
    # Not for others: CLIP's own weights, for one, are an archive that the safe way of loading refuses.
    safely = _loading_safely() if reads_pickles else nullcontext()
    try:
        with default_modes(), safely:
            return _create_feature_extractor(name, layers, cuda, **kwargs)
    except NETWORK_ERRORS as error:
        raise ValueError(_no_network(name, error)) from error
    except (RuntimeError, EOFError, UnpicklingError) as error:
        if not reads_pickles:
            raise
        where = f'"{path}"' if path is not None else f"the file of {_WEIGHTS[name]} in {_checkpoints()}"
        advice = "" if path is not None else "; delete it to have it fetched again"
        raise ValueError(f"{where} does not hold the weights of {name} ({first_line(error)}){advice}") from error


def read_weights(path: str, name: str) -> dict[str, Any]:
    """Read a state dictionary, ``.safetensors`` or as ``torch.save`` writes it, without running code of the file.

    Args:
        path: The file, given as ``feature_extractor_weights_path``.
        name: The extractor that it is for.

    Raises:
        ValueError: The file is not there, or is damaged or of another kind.
    """
    if not Path(path).is_file():
        raise ValueError(f'feature_extractor_weights_path: there is no file "{path}"')
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The parser raises what it likes on damaged files.
        raise ValueError(
            f'feature_extractor_weights_path: "{path}" cannot be read as the weights of {name} '
            f"({type(error).__name__}: {first_line(error)}); it takes a state dictionary as torch.save writes it"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f'feature_extractor_weights_path: "{path}" holds a {type(state).__name__}, not a state dictionary of {name}'
        )
    return state


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


@contextmanager
def _loading_safely() -> Iterator[None]:
    before = os.environ.get(_SAFE_LOADING)
    os.environ[_SAFE_LOADING] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_LOADING]
        else:
            os.environ[_SAFE_LOADING] = before


_SAFE_LOADING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
NETWORK_ERRORS = (URLError, ConnectionError, TimeoutError, HTTPException)
_WEIGHTS = {"inception-v3-compat": URL_INCEPTION_V3, "vgg16": torchvision.models.VGG16_Weights.IMAGENET1K_V1.url}


def _no_network(name: str, error: Exception) -> str:
    reason = getattr(error, "reason", None) or first_line(error)
    where = f"the folder {_checkpoints()}"
    what = f"{_WEIGHTS[name]} goes into {where}" if name in _WEIGHTS else f"they go into {where}"
    return (
        f'A download failed ({reason}): the weights of feature extractor "{name}" are fetched when first used; {what}, '
        "or any file of them is given as feature_extractor_weights_path. "
        'feature_extractor="efficientnet-lite0" needs no download'
    )


def open_registered_dataset(name: str, call: Mapping[str, Any]) -> Dataset[Any]:
    """Open a data set of torch-fidelity's registry, downloading it if the call allows that."""
    settings = {keyword: call[keyword] for keyword in ("datasets_root", "datasets_download")}
    return prepare_input_from_descriptor({"input": name}, **settings)  # type: ignore[no-any-return]


def read_model(path: str, z_size: int, z_type: str, num_classes: int) -> Any:
    """Read a generative model, ``.onnx`` or ``.pth`` (TorchScript), as torch-fidelity does."""
    if path.endswith(".onnx"):
        with redirect_stdout(io.StringIO()):  # A missing package is explained there, in a frame of equals signs.
            return GenerativeModelONNX(path, z_size, z_type, num_classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return GenerativeModelModuleWrapper(module, z_size, z_type, num_classes)


def default_cache_root() -> Path:
    """Return the folder of torch-fidelity's cache."""
    return Path(torch.hub._get_torch_home()) / "fidelity_cache"  # type: ignore[no-untyped-call]


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
