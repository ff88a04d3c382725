"""Ready features as inputs of ``calculate_metrics``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.array_files import open_arrays
from torch_fidelity_lsh.fidelity.image_arrays import images_in
from torch_fidelity_lsh.fidelity.statistics import Statistics, holds_statistics, read_statistics
from torch_fidelity_lsh.metric.arrays import as_features
from torch_fidelity_lsh.metric.reduction import ReducedFeatures
from torch_fidelity_lsh.metric.reference import is_reference_file, load_reference

FEATURE_SUFFIXES = (".npy", ".npz", ".safetensors")
READY_LAYER = "features"
"""Layer name of ready features whose extractor is not stated, and fallback key in files of several arrays."""
_NAMES_OF_FEATURES = (READY_LAYER, "reps", "feats")  # the latter as dgm-eval and clean-fid call them


def is_ready(source: object) -> bool:
    """Tell whether nothing needs to be extracted of an input: it holds ready features, or statistics of such alone.

    It is a tensor, an array, reduced features, statistics, or a path of a file that is not one of images.
    """
    if isinstance(source, str):
        is_array_file = source not in upstream.DATASETS_REGISTRY and source.lower().endswith(FEATURE_SUFFIXES)
        return is_array_file and images_in(source) is None
    return isinstance(source, (torch.Tensor, np.ndarray, ReducedFeatures, Statistics))


def read_statistics_of(source: object, argument: str, max_bytes: int | None = None) -> Statistics | None:
    """Return the mean and covariance that an input holds, be it beside images, `None` if it holds none.

    Raises:
        ValueError: They are unsound.
    """
    if isinstance(source, Statistics):
        return source
    if not isinstance(source, str) or source in upstream.DATASETS_REGISTRY or not holds_statistics(source):
        return None
    return read_statistics(source, f'{argument}, file "{source}"', max_bytes)


def read_features(
    source: str | torch.Tensor | np.ndarray | ReducedFeatures,
    layers: Iterable[str],
    argument: str,
    max_bytes: int | None = None,
) -> dict[str, torch.Tensor | ReducedFeatures]:
    """Read ready features.

    A file of several arrays (``.npz``, ``.safetensors``) may hold one array per layer, by the layer's name. A layer
    that is not there is served by the file's only array, or else by the one called ``"features"``, ``"reps"`` (as in
    files of dgm-eval) or ``"feats"`` (clean-fid).

    Args:
        source: A float tensor or array N x D, reduced features, or the path of a ``.npy``, ``.npz`` or ``.safetensors``
            file, which may be a reference file.
        layers: Names of the layers asked for.
        argument: Name of the keyword that gave the source, for error messages.
        max_bytes: Largest size of an array once it is unpacked. Default: `None`, 100 times its file, or 256 MiB.

    Returns:
        Layer name to features: float32 tensors N x D on the CPU, as feature extractors deliver them, or reduced ones.

    Raises:
        ValueError: The file cannot be read, does not say which array is meant, or the features are not N x D finite
            floats.
    """
    if isinstance(source, ReducedFeatures):
        return dict.fromkeys(layers, source)
    if not isinstance(source, str):
        return dict.fromkeys(layers, _as_extracted(source, argument))
    where = f'{argument}, file "{source}"'
    if not Path(source).is_file():
        raise ValueError(f"{where}: there is no such file")
    if is_reference_file(source):
        return dict.fromkeys(layers, _load_reference(source, where))
    with open_arrays(source, where, max_bytes) as arrays:
        keys = {layer: _key_of_layer(layer, arrays.names, where) for layer in layers}
        features = {key: _as_extracted(arrays.read(key), where) for key in sorted(set(keys.values()))}
    return {layer: features[key] for layer, key in keys.items()}


def _load_reference(path: str, where: str) -> ReducedFeatures:
    try:
        return load_reference(path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _as_extracted(values: torch.Tensor | np.ndarray, where: str) -> torch.Tensor:
    """Return features as extractors deliver them, float32 on the CPU."""
    features = as_features(values, where)
    if features.dtype == torch.float64:
        limit = torch.finfo(torch.float32).max
        if features.amin() < -limit or features.amax() > limit:
            raise ValueError(f"{where} holds values over {limit:.2g}, the largest of float32; scale them down")
    return features.to("cpu", torch.float32)


def _key_of_layer(layer: str, names: Collection[str], where: str) -> str:
    if layer in names:
        return layer
    if len(names) == 1:
        return next(iter(names))
    for name in _NAMES_OF_FEATURES:
        if name in names:
            return name
    listed = ", ".join(sorted(names)) or "none"
    if {"mu", "sigma"} <= set(names):
        raise ValueError(
            f"{where}: holds the mean and covariance of features (its arrays are {listed}), of which only fid can be "
            "calculated; what is needed here are the features themselves, N x D"
        )
    wanted = f'"{layer}"' if layer == READY_LAYER else f'"{layer}" or "{READY_LAYER}"'
    raise ValueError(
        f"{where}: none of its arrays ({listed}) is called {wanted}; name the one to use with the metric's "
        "feature_layer_* keyword"
    )
