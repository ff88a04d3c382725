"""Extracted features kept on disk under a name that the caller gives, with all that they depend on.

A file is used only where the present call would make the same features: same samples, extractor, weights, layer, size
and type. Else they are extracted again, and a warning says what differs. Nothing here can run code. Files kept by
torch-fidelity itself do not tell what they were made from; they are read only if asked for (``cache="upstream"``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.datasets import FULLY
from torch_fidelity_lsh.fidelity.feature_extractors_onnx import OnnxExtractor
from torch_fidelity_lsh.fidelity.samples import Samples
from torch_fidelity_lsh.metric.files import digest_of, digest_of_file, read_tensors, write_tensors

FeaturesDict = dict[str, torch.Tensor]

KIND = "torch-fidelity-lsh features"
VERSION = 1
UPSTREAM = "upstream"
"""Value of the keyword ``cache`` that lets torch-fidelity's own files be read."""

_SETTINGS = ("samples_resize_and_crop", "feature_extractor_internal_dtype", "feature_extractor_compile")


def cache_name(side: int, call: Mapping[str, Any]) -> str | None:
    """Return the name under which features of ``input1`` or ``input2`` are kept, `None` if they are not."""
    source = call[f"input{side}"]
    if not call["cache"]:
        return None
    if isinstance(source, str) and source in upstream.DATASETS_REGISTRY:
        return source
    name: str | None = call[f"input{side}_cache_name"]
    return name


def check_cache(call: Mapping[str, Any], sides: list[int]) -> None:
    """Refuse names and places that cannot serve, before anything is extracted.

    Raises:
        ValueError: A name is no file name, two inputs have one name, or the folder cannot be one.
    """
    if call["cache"] not in (True, False, UPSTREAM):
        raise ValueError(f'cache must be True, False or "{UPSTREAM}"; got {call["cache"]!r}')
    names = {side: cache_name(side, call) for side in sides}
    for side, name in names.items():
        if name is not None and (not isinstance(name, str) or not name or Path(name).name != name or "\0" in name):
            raise ValueError(f"input{side}_cache_name must be a name without folders; got {name!r}")
    if len(sides) == 2 and names[1] is not None and names[1] == names[2] and not _same_source(call):
        raise ValueError(
            f'input1_cache_name and input2_cache_name are both "{names[1]}", and the inputs differ: one would get the '
            "features of the other; give each a name of its own"
        )
    if any(names.values()):
        nearest = next(parent for parent in (_folder(call), *_folder(call).parents) if parent.exists())
        if not nearest.is_dir():
            raise ValueError(f'cache_root: "{nearest}" is a file, not a folder')


def read_features_kept(side: int, samples: Samples, extractor: Any, call: Mapping[str, Any]) -> FeaturesDict | None:
    """Return the kept features of an input, `None` unless all layers are there, undamaged and made of the same."""
    name = cache_name(side, call)
    if name is None:
        return None
    features = {}
    for layer in extractor.get_requested_features_list():
        kept = _read_upstream(name, extractor, layer, call) if call["cache"] == UPSTREAM else None
        kept = _read(side, name, samples, extractor, layer, call) if kept is None else kept
        if kept is None:
            return None
        features[layer] = kept
    return features


def keep_features(side: int, samples: Samples, extractor: Any, features: FeaturesDict, call: Mapping[str, Any]) -> None:
    """Write the features of an input to the cache; where that fails, a warning says so, since they are at hand."""
    name = cache_name(side, call)
    if name is None:
        return
    try:
        _folder(call).mkdir(parents=True, exist_ok=True)
        for layer, values in features.items():
            facts = _made_from(samples, extractor, layer, call)
            write_tensors(_path(name, extractor, layer, call), KIND, VERSION, {layer: values}, facts)
    except OSError as error:
        warnings.warn(f"input{side}: its features could not be kept in the cache: {error}", stacklevel=2)


def _read(
    side: int, name: str, samples: Samples, extractor: Any, layer: str, call: Mapping[str, Any]
) -> torch.Tensor | None:
    path = _path(name, extractor, layer, call)
    if not path.is_file():
        return None
    try:
        tensors, facts = read_tensors(path, KIND, VERSION)
    except (OSError, ValueError) as error:
        warnings.warn(f"input{side}_cache_name: {error}; the features are extracted again", stacklevel=2)
        return None
    wanted = _made_from(samples, extractor, layer, call)
    if not wanted["samples"]:
        warnings.warn(
            f"input{side} does not exist; what is used are features kept as {name}, of {facts.get('samples')}",
            stacklevel=2,
        )
        wanted["samples"] = facts.get("samples", "")
    differing = [fact for fact, value in wanted.items() if facts.get(fact) != value]
    if differing:
        changes = ", ".join(f"{fact} {facts.get(fact)!r} then, {wanted[fact]!r} now" for fact in differing)
        warnings.warn(
            f"input{side}_cache_name: what is kept as {name} was made of something else ({changes}); the features are "
            "extracted again",
            stacklevel=2,
        )
        return None
    return tensors[layer]


def _read_upstream(name: str, extractor: Any, layer: str, call: Mapping[str, Any]) -> torch.Tensor | None:
    path = _folder(call) / f"{name}-{extractor.get_name()}-features-{layer}.pt"
    if not path.is_file():
        return None
    try:
        features = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f'"{path}" cannot be read as features that torch-fidelity has kept: {error}') from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or features.dtype != torch.float32:
        raise ValueError(f'"{path}" does not hold features, float32, N x D')
    return features


def _made_from(samples: Samples, extractor: Any, layer: str, call: Mapping[str, Any]) -> dict[str, str]:
    """Return all that the features of a layer depend on."""
    settings = {name: str(call[name]) for name in _SETTINGS}
    return {
        **settings,
        "samples": samples.identity(FULLY),
        "feature_extractor": extractor.get_name(),
        "feature_layer": layer,
        "weights": _weights(extractor, call),
    }


def _weights(extractor: Any, call: Mapping[str, Any]) -> str:
    path = call["feature_extractor_weights_path"]
    if path is not None:
        return digest_of_file(path)
    if type(extractor).__module__.partition(".")[0] == "torch_fidelity":  # Each has one file of weights, for good.
        return "default"
    if isinstance(extractor, OnnxExtractor):
        return digest_of_file(extractor.path)
    # Weights of an installed package, which others replace, or somebody's class of this name with whatever it holds.
    state = {name: value for name, value in extractor.state_dict().items() if torch.is_tensor(value)}
    return f"{type(extractor).__module__}.{type(extractor).__qualname__} {digest_of(state)}"


def _path(name: str, extractor: Any, layer: str, call: Mapping[str, Any]) -> Path:
    safe_layer = layer.replace("/", "_").replace(os.sep, "_")
    return _folder(call) / f"{name}-{extractor.get_name()}-features-{safe_layer}.safetensors"


def _folder(call: Mapping[str, Any]) -> Path:
    root = call["cache_root"]
    return Path(root if root is not None else upstream.default_cache_root()).absolute()


def _same_source(call: Mapping[str, Any]) -> bool:
    one, other = call["input1"], call["input2"]
    return one is other or (
        isinstance(one, str) and isinstance(other, str) and os.path.realpath(one) == os.path.realpath(other)
    )
