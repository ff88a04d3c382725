"""Inputs of ``calculate_metrics``: ready features, and what is wrong with an input, said in one sentence."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.data import Dataset

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.metric.reduction import ReducedFeatures
from torch_fidelity_lsh.metric.reference import is_reference_file, load_reference

FEATURE_SUFFIXES = (".npy", ".npz", ".safetensors")
READY_LAYER = "features"
"""Layer name of ready features whose extractor is not stated, and fallback key in files of several arrays."""

_READ_ERRORS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, SafetensorError)


def is_ready(source: object) -> bool:
    """Tell whether an input holds ready features: a tensor, an array, reduced features, or a path of such a file."""
    if isinstance(source, str):
        return source not in upstream.DATASETS_REGISTRY and source.lower().endswith(FEATURE_SUFFIXES)
    return isinstance(source, (torch.Tensor, np.ndarray, ReducedFeatures))


def read_features(
    source: str | torch.Tensor | np.ndarray | ReducedFeatures, layers: Iterable[str], argument: str
) -> dict[str, torch.Tensor | ReducedFeatures]:
    """Read ready features.

    A file of several arrays (``.npz``, ``.safetensors``) may hold one array per layer, by the layer's name. A layer
    that is not there is served by the file's only array, or else by the one called ``"features"``.

    Args:
        source: A float tensor or array N x D, reduced features, or the path of a ``.npy``, ``.npz`` or ``.safetensors``
            file, which may be a reference file.
        layers: Names of the layers asked for.
        argument: Name of the keyword that gave the source, for error messages.

    Returns:
        Layer name to features: float32 tensors N x D on the CPU, as feature extractors deliver them, or reduced ones.

    Raises:
        ValueError: The file cannot be read, does not say which array is meant, or the features are not N x D finite
            floats.
    """
    if isinstance(source, ReducedFeatures):
        return dict.fromkeys(layers, source)
    if not isinstance(source, str):
        features = _as_features(source, argument)
        return dict.fromkeys(layers, features)
    where = f'{argument}, file "{source}"'
    if not Path(source).is_file():
        raise ValueError(f"{where}: there is no such file")
    if is_reference_file(source):
        return dict.fromkeys(layers, load_reference(source))
    with _read_errors_named(where):
        arrays = _open_arrays(source)
    keys = {layer: _key_of_layer(layer, arrays, where) for layer in layers}
    with _read_errors_named(where):
        raw = {key: arrays[key] for key in set(keys.values())}
    features_by_key = {key: _as_features(values, where) for key, values in raw.items()}
    return {layer: features_by_key[key] for layer, key in keys.items()}


def check_source(source: Any, argument: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse an input that features cannot be extracted from, before the slow work starts.

    Args:
        source: Value of ``input1`` or ``input2``, not ready features.
        argument: Name of that keyword, for error messages.
        kwargs: Complete upstream keywords of the call.

    Raises:
        ValueError: The path does not exist or is of no accepted kind, the folder or data set is empty, or the type is
            wrong.
    """
    if isinstance(source, str):
        _check_path(source, argument, kwargs)
    elif not isinstance(source, (Dataset, upstream.GenerativeModelBase)):
        raise ValueError(f"{argument}: got {type(source).__name__}. {_accepted()}")
    elif isinstance(source, Sized) and len(source) == 0:
        raise ValueError(f"{argument}: the data set is empty")


def find_image_problem(source: Any, argument: str, kwargs: Mapping[str, Any]) -> str | None:
    """Look for the image that made the extraction of features from a folder fail.

    Args:
        source: Value of ``input1`` or ``input2``.
        argument: Name of that keyword.
        kwargs: Complete upstream keywords of the call.

    Returns:
        What is wrong and with which file, or `None` when the images are fine.
    """
    if not _is_image_folder(source):
        return None
    sizes: dict[tuple[int, int], str] = {}
    for path in _image_paths(source, kwargs):
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.convert("RGB").size, path)
        except Exception as error:  # Decoders raise whatever they like on broken files.
            return f'{argument}: cannot read image "{path}": {error}'
    if len(sizes) > 1 and not kwargs["samples_resize_and_crop"]:
        examples = ", ".join(f'{width}x{height} ("{path}")' for (width, height), path in list(sizes.items())[:2])
        return f"{argument}: images differ in size: {examples}; set samples_resize_and_crop to bring them to one size"
    return None


def _open_arrays(path: str) -> Mapping[str, Any]:
    if path.lower().endswith(".safetensors"):
        return load_file(path)
    loaded = np.load(path, allow_pickle=False)
    return loaded if isinstance(loaded, Mapping) else {READY_LAYER: loaded}  # An .npz reads its arrays when asked.


@contextmanager
def _read_errors_named(where: str) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        kind = type(error).__name__
        raise ValueError(f"{where}: damaged, or holds something other than arrays of numbers ({kind})") from None


def _key_of_layer(layer: str, arrays: Mapping[str, Any], where: str) -> str:
    if layer in arrays:
        return layer
    if len(arrays) == 1:
        return next(iter(arrays))
    if READY_LAYER in arrays:
        return READY_LAYER
    raise ValueError(
        f'{where}: none of its arrays ({", ".join(sorted(arrays))}) is called "{layer}" or "{READY_LAYER}"; name the '
        "one to use with the metric's feature_layer_* keyword"
    )


def _as_features(values: torch.Tensor | np.ndarray, where: str) -> torch.Tensor:
    shape = " x ".join(map(str, values.shape)) or "a single number"
    if values.ndim == 4:
        raise ValueError(
            f"{where}: an array of {shape} looks like images, and ready features are N x D; "
            "pass images as a folder or as a torch.utils.data.Dataset"
        )
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{where}: features must be N x D with at least one row and one column; got {shape}")
    if isinstance(values, torch.Tensor):
        is_float = values.is_floating_point()
    else:
        is_float = np.issubdtype(values.dtype, np.floating)
    if not is_float:
        raise ValueError(f"{where}: features must be floating point numbers; got {values.dtype}")
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
    features = values.detach().to("cpu", torch.float32)
    bad_rows = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad_rows:
        raise ValueError(f"{where}: {bad_rows} of {len(features)} rows hold NaN or infinite features")
    return features


def _check_path(path: str, argument: str, kwargs: Mapping[str, Any]) -> None:
    if path in upstream.DATASETS_REGISTRY or (path.endswith((".onnx", ".pth")) and Path(path).is_file()):
        return
    if not Path(path).exists():
        raise ValueError(f'{argument}: "{path}" does not exist. {_accepted()}')
    if not Path(path).is_dir():
        raise ValueError(f'{argument}: "{path}" is not of a known kind. {_accepted()}')
    if not _image_paths(path, kwargs):
        raise ValueError(
            f'{argument}: folder "{path}" holds no images with the extensions {kwargs["samples_find_ext"]}; '
            "samples_find_ext changes these, samples_find_deep=True looks into sub-folders too"
        )


def _is_image_folder(source: object) -> bool:
    return isinstance(source, str) and source not in upstream.DATASETS_REGISTRY and Path(source).is_dir()


def _image_paths(folder: str, kwargs: Mapping[str, Any]) -> list[str]:
    paths: list[str] = upstream.glob_samples_paths(
        folder, kwargs["samples_find_deep"], kwargs["samples_find_ext"], verbose=False
    )
    return paths


def _accepted() -> str:
    return (
        "Accepted are: a folder of images; ready features (.npy, .npz, .safetensors, or a float tensor or array "
        "N x D); a reference file; a generative model (.onnx, .pth, or a GenerativeModelBase); a "
        f"torch.utils.data.Dataset; a registered data set ({', '.join(upstream.DATASETS_REGISTRY)})"
    )
