"""Several feature spaces in one call: their values, and how these compare with those of real samples.

One space may be blind to what another sees. Of a call with several feature extractors each value has the key
``SPACE/KEY``. ``SPACE/KEY_ratio`` is the value of generated samples against one half of the real ones, divided by that
of the other half against it, as many samples being taken of both. So it is about 1 for samples as good as real ones,
however few they are and whatever the unit of the space. ``mean/KEY_ratio`` is the mean over the spaces, as in FDr6
(arXiv 2604.28190).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from torch_fidelity_lsh.fidelity.registry import ACCOMPANY
from torch_fidelity_lsh.metric.members import content_hash
from torch_fidelity_lsh.metric.reduction import ReducedFeatures

MEAN = "mean"
_RATIO = "_ratio"
# Unbiased, and so 0 but for chance between real samples: nothing to divide by.
_NO_RATIO = ("kernel_inception_distance_mean",)


def in_space(space: str, key: str) -> str:
    """Return the key of a value in a space; the key itself where there is one space alone."""
    return f"{space}/{key}" if space else key


def is_value(key: str) -> bool:
    """Tell whether a key is that of a value, and not of what says how sure it is."""
    return not key.endswith(ACCOMPANY)


def ratios(
    found: Mapping[str, float], looks: Sequence[Any], measure: Callable[[list[Any]], dict[str, float]]
) -> dict[str, float]:
    """Return the values of a metric in units of those of real samples, under their keys.

    Args:
        found: Result of the metric on all samples.
        looks: What it looked at of generated and real samples; nothing is returned where that is one side alone.
        measure: Calculates it on other samples.

    Raises:
        ValueError: The halves are too small for the metric.
    """
    keys = [key for key in found if is_value(key) and key not in _NO_RATIO]
    if len(looks) == 1 or not keys:
        return {}
    generated, real = looks
    order = _order(real)
    others, half = order[::2], order[1::2]
    number = min(len(generated), len(half))
    try:
        of_real = measure([_rows(real, half[:number]), _rows(real, others)])
        of_generated = measure([_rows(generated, _order(generated)[:number]), _rows(real, others)])
    except ValueError as error:
        raise ValueError(f"halves of input2, which values in several spaces are compared with: {error}") from error
    return {f"{key}{_RATIO}": of_generated[key] / of_real[key] for key in keys if of_real[key] > 0}


def mean_ratios(results: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each ratio over the spaces that have it; nothing where there is one space alone."""
    by_key: dict[str, list[float]] = {}
    for name, value in results.items():
        _, slash, key = name.rpartition("/")
        if slash and key.endswith(_RATIO):
            by_key.setdefault(key, []).append(value)
    return {in_space(MEAN, key): float(np.mean(values)) for key, values in by_key.items()}


def as_table(results: Mapping[str, float]) -> str:
    """Return the values of several spaces as text: a line for each space, and one for the mean.

    What says how sure values are is left out.
    """
    cells: dict[str, dict[str, str]] = {}
    for name, value in results.items():
        space, _, key = name.rpartition("/")
        if is_value(key):
            cells.setdefault(space, {})[key] = f"{value:.4g}"
    keys = list(dict.fromkeys(key for row in cells.values() for key in row))
    form = "  ".join([f"{{:{max(map(len, cells))}}}", *(f"{{:>{len(key)}}}" for key in keys)])
    lines = [
        form.format("", *keys),
        *(form.format(space, *(row.get(key, "") for key in keys)) for space, row in cells.items()),
    ]
    return "\n".join(lines)


def _order(look: Any) -> torch.Tensor:
    """Return the rows in an order that depends on them alone."""
    return content_hash(look.values if isinstance(look, ReducedFeatures) else look).argsort(stable=True)


def _rows(look: Any, rows: torch.Tensor) -> Any:
    return replace(look, values=look.values[rows]) if isinstance(look, ReducedFeatures) else look[rows]
