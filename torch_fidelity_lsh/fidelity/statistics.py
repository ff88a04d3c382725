"""Mean and covariance of features: all that FID needs of a set, as ADM, pytorch-fid and clean-fid keep it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_fidelity_lsh.fidelity.array_files import look_at_npz, open_arrays
from torch_fidelity_lsh.metric.files import check_writable, whole_file

SUFFIX = ".npz"
_SYMMETRIC = 1e-5  # of the largest entry; covariances summed in float32 are off by less
_SOURCE = "source"
# clean-fid names its files so: `<data set>_<mode>_<split>_<resolution>.npz`.
_OTHER_RESIZING = ("_clean_", "_legacy_pytorch_")


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features.

    Attributes:
        mu: Mean, D numbers.
        sigma: Covariance, D x D.
        source: Extractor and layer the features come from, empty if that is not known.

    Raises:
        ValueError: The arrays are of another type or shape, hold NaN or infinite values, or ``sigma`` is not symmetric
            or has a negative variance.
    """

    mu: npt.NDArray[np.float64]
    sigma: npt.NDArray[np.float64]
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("mu", "sigma"):
            values = getattr(self, name)
            if not np.issubdtype(values.dtype, np.floating):
                raise ValueError(f"{name} must hold floating-point numbers; got {values.dtype}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds NaN or infinite values")
        if self.mu.ndim != 1 or self.sigma.shape != (len(self.mu), len(self.mu)) or not len(self.mu):
            raise ValueError(f"mu must be D numbers and sigma D x D; got {self.mu.shape} and {self.sigma.shape}")
        asymmetry, largest = np.abs(self.sigma - self.sigma.T).max(), np.abs(self.sigma).max()
        if asymmetry > _SYMMETRIC * largest:
            raise ValueError(f"sigma is not symmetric: entries differ from their mirrors by up to {asymmetry:.3g}")
        if self.sigma.diagonal().min() < 0:
            raise ValueError(f"sigma has a negative variance on its diagonal, {self.sigma.diagonal().min():.3g}")

    @property
    def dimension(self) -> int:
        """Number of features."""
        return len(self.mu)


def holds_statistics(path: str) -> bool:
    """Tell whether a file is an ``.npz`` with arrays ``mu`` and ``sigma``."""
    return path.lower().endswith(SUFFIX) and {"mu", "sigma"} <= look_at_npz(path).keys()


def read_statistics(path: str, where: str, max_bytes: int | None = None) -> Statistics:
    """Read ``mu`` and ``sigma`` of an ``.npz`` file, and what :func:`save_statistics` has kept of their source.

    Args:
        path: The file.
        where: What it is called in error messages.
        max_bytes: As :func:`~torch_fidelity_lsh.fidelity.array_files.open_arrays`.

    Raises:
        ValueError: The file is damaged, or holds no sound statistics.
    """
    kept = look_at_npz(path).get(_SOURCE)
    knows_source = kept is not None and kept.dtype == np.uint8  # Another tool's array of this name is something else.
    with open_arrays(path, where, max_bytes) as arrays:
        mu, sigma = (np.asarray(arrays.read(name)) for name in ("mu", "sigma"))
        source = np.asarray(arrays.read(_SOURCE)).tobytes().decode(errors="replace") if knows_source else ""
    try:
        Statistics(mu, sigma)  # as they are
        return Statistics(mu.astype(np.float64), sigma.astype(np.float64), source)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def save_statistics(statistics: Statistics, path: str | os.PathLike[str]) -> None:
    """Write statistics to an ``.npz`` file that pytorch-fid and clean-fid read; an old file is replaced at once.

    Raises:
        ValueError: The path has another ending or is a folder, or its folder is missing or not to be written to.
        OSError: The file cannot be written.
    """
    check_writable(path, "path", SUFFIX)
    # As numbers, which every reader of the format takes, and none of theirs looks at.
    source: Any = np.frombuffer(statistics.source.encode(), np.uint8)
    with whole_file(path) as file:
        np.savez_compressed(file, mu=statistics.mu, sigma=statistics.sigma, **{_SOURCE: source})


def resizes_otherwise(path: str) -> bool:
    """Tell whether clean-fid's name of a file says that images were resized in another way than torch-fidelity's."""
    return any(mode in Path(path).name for mode in _OTHER_RESIZING)
