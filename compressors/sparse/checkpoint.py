"""Files that a sparse training goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressors.common.files import digest, read_file, write_file
from compressors.errors import CompressionError
from compressors.sparse.config import SparseConfig

_KIND = "sparse training"


def write_checkpoint(
    path: Path, state: Mapping[str, Tensor], config: SparseConfig, networks: Iterable[nn.Module]
) -> None:
    """Write the state of a training with its settings and a hash of its networks' weights."""
    write_file(path, _KIND, state, _identity(config, networks))


def read_checkpoint(path: Path, config: SparseConfig, networks: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Return the state that `write_checkpoint` wrote.

    Raises `CompressionError` where the file is damaged, or of other settings or weights than these.
    """
    state, saved = read_file(path, _KIND)
    now = _identity(config, networks)
    if saved["config"] != now["config"]:
        differing = sorted(key for key in now["config"] if now["config"][key] != saved["config"].get(key))
        raise CompressionError(f"path: {path} is of a training with other settings: {', '.join(differing)} differ")
    if saved["weights"] != now["weights"]:
        raise CompressionError(
            f"path: {path} was saved with other weights than generator and discriminator have: make SparseTraining "
            "first, then load their state dicts, saved at the same iteration, then call load()"
        )
    return state


def _identity(config: SparseConfig, networks: Iterable[nn.Module]) -> dict[str, Any]:
    weights = (parameter for network in networks for parameter in network.parameters())
    return {"config": json.loads(json.dumps(asdict(config))), "weights": digest(weights)}
