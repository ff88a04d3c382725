"""Checks of settings that several modules of this package share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from compressors.errors import CompressionError
from torch_fidelity_lsh.metric.messages import did_you_mean


def check_density(argument: str, density: Any) -> None:
    """Raise `CompressionError` unless `density` is a number above 0, at most 1."""
    if not _is_number(density) or not 0 < density <= 1:
        raise CompressionError(f"{argument} must be a number above 0, at most 1; got {density!r}")


def check_number(argument: str, value: Any) -> None:
    """Raise `CompressionError` unless `value` is a finite number."""
    if not _is_number(value) or not math.isfinite(value):
        raise CompressionError(f"{argument} must be a finite number; got {value!r}")


def check_count(argument: str, count: Any, least: int = 1) -> None:
    """Raise `CompressionError` unless `count` is an integer of at least `least`."""
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise CompressionError(f"{argument} must be an integer of at least {least}; got {count!r}")


def check_choice(argument: str, choice: Any, choices: Sequence[str]) -> None:
    """Raise `CompressionError` unless `choice` is one of `choices`."""
    if choice not in choices:
        raise CompressionError(
            f"{argument} must be one of {', '.join(choices)}; got {choice!r}{did_you_mean(str(choice), choices)}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
