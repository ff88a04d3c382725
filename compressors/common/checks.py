"""Checks of arguments: each names the argument, what was given, and what is accepted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from compressors.errors import CompressionError


def check_bits(argument: str, bits: Any) -> None:
    """Raise `CompressionError` unless `bits` is an integer from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise CompressionError(f"{argument} must be an integer from 2 to 8; got {bits!r}")


def check_share(argument: str, share: Any, end: bool = True) -> None:
    """Raise `CompressionError` unless `share` is a number from 0 to 1; `end` tells whether 1 itself is accepted."""
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 <= share <= 1 or (share == 1 and not end):
        raise CompressionError(f"{argument} must be a number from 0 to 1{'' if end else ' (exclusive)'}; got {share!r}")


def check_patterns(argument: str, patterns: Any) -> None:
    """Raise `CompressionError` unless `patterns` is a list or tuple of strings."""
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise CompressionError(f"{argument} must be a tuple of layer names or glob patterns; got {patterns!r}")


def check_inputs(argument: str, inputs: Any) -> tuple[Any, ...]:
    """Return `inputs` if it is a non-empty tuple of forward arguments, else raise `CompressionError`."""
    if not isinstance(inputs, tuple) or not inputs:
        raise CompressionError(
            f"{argument} must be a non-empty tuple of the model's forward arguments, such as (z,) or (z, labels); "
            f"got {type(inputs).__name__}"
        )
    return inputs


def merged_calibration(calibration: Iterable[Any], arguments: int) -> tuple[Any, ...]:
    """Join calibration batches into one, tensors along dimension 0; each must be a tuple of `arguments` items.

    One batch, because brevitas averages the statistics of several, which narrows the ranges: on a small BigGAN 256
    latents gave 40 dB as one batch and 26 dB one by one.
    """
    if isinstance(calibration, Tensor) or not isinstance(calibration, Iterable):
        raise CompressionError(
            f"calibration must be a list of batches, such as [(z1,), (z2,)]; got {type(calibration).__name__}"
        )
    batches = [check_inputs("each calibration batch", batch) for batch in calibration]
    if not batches:
        raise CompressionError("calibration holds no batch")
    wrong = [len(batch) for batch in batches if len(batch) != arguments]
    if wrong:
        raise CompressionError(f"calibration has a batch of {wrong[0]} arguments; example_inputs has {arguments}")
    try:
        columns = zip(*batches, strict=True)
        return tuple(torch.cat(items) if isinstance(items[0], Tensor) else items[0] for items in columns)
    except (RuntimeError, TypeError) as error:
        raise CompressionError(f"calibration batches cannot be joined along dimension 0: {error}") from error


def matching(argument: str, patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """Return the names that match one of the glob `patterns`; raise `CompressionError` for a pattern without match."""
    found: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise CompressionError(f"{argument}: {pattern!r} matches no layer; the layers are {', '.join(names)}")
        found.update(matches)
    return found
