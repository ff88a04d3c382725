"""Reference files: the real side of many comparisons, reduced once and kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from torch_fidelity_lsh.metric.reduction import ReducedFeatures

FORMAT = "torch-fidelity-lsh reference"
FORMAT_VERSION = "1"
_VALUES = "reduced_features"
_NUMBERS = ("dimension", "num_components", "seed")


def save_reference(reference: ReducedFeatures, path: str | os.PathLike[str]) -> None:
    """Write reduced features to a safetensors file, 512 bytes a sample by default; an old file is replaced at once.

    Args:
        reference: What to keep.
        path: File to write, ending in ``.safetensors``; its folder must exist.

    Raises:
        ValueError: The path has another ending.
        OSError: The file cannot be written.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f'path: a reference file must end in .safetensors; got "{target}"')
    values = reference.values.cpu().contiguous()
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "checksum": _checksum(values)}
    metadata |= {name: str(getattr(reference, name)) for name in _NUMBERS}
    metadata |= {"feature_extractor": reference.feature_extractor or "", "feature_layer": reference.feature_layer or ""}
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file({_VALUES: values}, temporary, metadata)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def load_reference(path: str | os.PathLike[str]) -> ReducedFeatures:
    """Read a file of :func:`save_reference`.

    Raises:
        ValueError: The file is damaged, of another kind, or of a format version this release does not know.
        OSError: There is no such file, or it cannot be read.
    """
    metadata = _metadata(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f'"{os.fspath(path)}" is no reference file; `fidelity-lsh index` makes one')
    if metadata["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f'"{os.fspath(path)}" has format version {metadata["format_version"]}, and this release reads version '
            f"{FORMAT_VERSION}; make it again with `fidelity-lsh index`"
        )
    values = _read_whole(path)
    if _checksum(values) != metadata["checksum"]:
        raise ValueError(f'"{os.fspath(path)}" is damaged: its checksum does not fit its contents')
    numbers = {name: int(metadata[name]) for name in _NUMBERS}
    source = {name: metadata[name] or None for name in ("feature_extractor", "feature_layer")}
    return ReducedFeatures(values, **numbers, **source)  # type: ignore[arg-type]


def is_reference_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file says that it was written by :func:`save_reference`."""
    try:
        return _metadata(path).get("format") == FORMAT
    except (OSError, ValueError):
        return False


def _metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f'"{os.fspath(path)}" is damaged, or no safetensors file: {error}') from None


def _read_whole(path: str | os.PathLike[str]) -> torch.Tensor:
    try:
        return load_file(path)[_VALUES]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f'"{os.fspath(path)}" is damaged: {error}') from None


def _checksum(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()
