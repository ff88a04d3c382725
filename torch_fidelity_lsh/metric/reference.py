"""Reference files: the real side of many comparisons, reduced once and kept."""

from __future__ import annotations

import os

from torch_fidelity_lsh.metric.files import check_writable, kind_of, read_tensors, write_tensors
from torch_fidelity_lsh.metric.reduction import ReducedFeatures

KIND = "torch-fidelity-lsh reference"
VERSION = 2
SUFFIX = ".safetensors"
_VALUES = "reduced_features"
_NUMBERS = ("dimension", "num_components", "seed")
_NAMES = ("feature_extractor", "feature_layer")


def save_reference(reference: ReducedFeatures, path: str | os.PathLike[str]) -> None:
    """Write reduced features to a safetensors file, 512 bytes a sample by default; an old file is replaced at once.

    Args:
        reference: What to keep.
        path: File to write, ending in ``.safetensors``; its folder must exist.

    Raises:
        ValueError: The path has another ending or is a folder, or its folder is missing or not to be written to.
        OSError: The file cannot be written.
    """
    check_writable(path, "path", SUFFIX)
    facts = {name: str(getattr(reference, name)) for name in _NUMBERS}
    facts |= {name: getattr(reference, name) or "" for name in _NAMES}
    write_tensors(path, KIND, VERSION, {_VALUES: reference.values}, facts)


def load_reference(path: str | os.PathLike[str]) -> ReducedFeatures:
    """Read a file of :func:`save_reference`.

    Raises:
        ValueError: The file is damaged, of another kind, or of a format version this release does not know.
        OSError: There is no such file, or it cannot be read.
    """
    try:
        tensors, facts = read_tensors(path, KIND, VERSION)
    except ValueError as error:
        raise ValueError(f"{error}; `fidelity-lsh index` makes a reference file") from error
    try:
        numbers = {name: int(facts[name]) for name in _NUMBERS}
        names = {name: facts[name] or None for name in _NAMES}
        return ReducedFeatures(tensors[_VALUES], **numbers, **names)  # type: ignore[arg-type]
    except (KeyError, ValueError) as error:
        raise ValueError(f'"{os.fspath(path)}" is no sound reference file: {error}') from error


def is_reference_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file says that it was written by :func:`save_reference`."""
    return kind_of(path) == KIND
