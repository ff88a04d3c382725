"""The one reader of features that are given as tensors or arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torch_fidelity_lsh.metric.parallel import mapped

CHECKED_AT_ONCE = 1024  # rows


def as_features(values: torch.Tensor | npt.NDArray[Any], name: str) -> torch.Tensor:
    """Read features of any floating-point type and any layout in memory.

    Args:
        values: N x D, N >= 1 and D >= 1; a tensor, dense or sparse, on any device, or a numpy array of any byte order
            and strides, read-only or not.
        name: What the features are called in error messages.

    Returns:
        N x D, float64 if the values are of 64 bits or more, else float32, on the device they are on, without gradient.

    Raises:
        ValueError: The values are of another type or shape, are masked, or some are NaN or infinite, or do not fit in
            the type they are read as.
    """
    if isinstance(values, np.ndarray):
        tensor = _from_numpy(values, name)
    elif isinstance(values, torch.Tensor):
        tensor = _from_torch(values, name)
    else:
        raise ValueError(f"{name} must be a tensor or a numpy array; got {type(values).__name__}")
    _refuse_non_finite(tensor, name)
    return tensor


def _from_numpy(values: npt.NDArray[Any], name: str) -> torch.Tensor:
    _check_shape(tuple(values.shape), name)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(_not_floats(name, values.dtype))
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{name} holds masked values; fill them or leave their rows out")
    kept = np.float64 if values.dtype.itemsize >= 8 else np.float32
    # A copy of what torch does not take as it is: other byte orders, backward strides, memory it must not write to.
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.require(np.asarray(values), kept, ["C", "W"]))


def _from_torch(values: torch.Tensor, name: str) -> torch.Tensor:
    _check_shape(tuple(values.shape), name)
    if not values.is_floating_point():
        raise ValueError(_not_floats(name, values.dtype))
    if values.is_meta:
        raise ValueError(f"{name} is a tensor on the meta device, which holds no values")
    if values.layout != torch.strided:
        values = values.to_dense()
    return values.detach().to(torch.float64 if values.dtype == torch.float64 else torch.float32)


def _not_floats(name: str, dtype: object) -> str:
    return f"{name} must hold floating-point numbers; got dtype {dtype}, convert it on purpose"


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) == 4:
        raise ValueError(
            f"{name}: an array of {' x '.join(map(str, shape))} looks like images, and features are N x D; pass images "
            "as a folder or as a torch.utils.data.Dataset"
        )
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} must be N x D with N >= 1 and D >= 1; got shape {shape}")


def _refuse_non_finite(features: torch.Tensor, name: str) -> None:
    blocks = torch.split(features, CHECKED_AT_ONCE)
    # A finite sum needs finite summands; it may overflow without others.
    if not all(mapped(lambda block: bool(block.sum(1).isfinite().all()), blocks)):
        is_finite = torch.cat(mapped(lambda block: block.amax(1).isfinite() & block.amin(1).isfinite(), blocks))
        bad = (~is_finite).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"{name} holds NaN or infinite values in {len(bad)} of {len(features)} rows, first in row {int(bad[0])}"
            )
