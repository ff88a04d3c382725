"""How many weights each layer keeps: Erdős-Rényi-Kernel and uniform densities, as exact counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from compressors.errors import CompressionError

ALLOCATIONS = ("erk", "uniform")

Shapes = Mapping[str, Sequence[int]]


def erk_densities(shapes: Shapes, density: float) -> dict[str, float]:
    """Return the density of each layer: min(1, s * sum(shape) / prod(shape)).

    The scale s is the one at which all layers together keep the share `density` of their weights.

    Source: Evci et al. 2020 (arXiv 1911.11134), section 3; a convolution's kernel counts among its dimensions.

    Args:
        shapes: shape of each weight by name, two dimensions or more.
        density: share of all weights that is kept, above 0, at most 1.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    sparse = set(shapes)
    while sparse:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in shapes if name not in sparse)
        scale = budget / sum(raw[name] * sizes[name] for name in shapes if name in sparse)
        largest = max(raw[name] for name in sparse)
        if scale * largest <= 1:
            break
        sparse = {name for name in sparse if raw[name] != largest}
    return {name: scale * raw[name] if name in sparse else 1.0 for name in shapes}


def exact_counts(shapes: Shapes, density: float, allocation: str) -> dict[str, int]:
    """Return how many weights each layer keeps: at least one, ``round(density * size of all)`` together.

    Args:
        shapes: shape of each weight by name.
        density: share of all weights that is kept, above 0, at most 1.
        allocation: "erk", see `erk_densities`, or "uniform", the same density everywhere.

    Raises:
        CompressionError: fewer weights would be kept than there are layers.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = round(density * sum(sizes.values()))
    if total < len(sizes):
        raise CompressionError(
            f"density={density!r} keeps {total} of {sum(sizes.values()):,} weights; {len(sizes)} layers need one each"
        )
    densities = erk_densities(shapes, density) if allocation == "erk" else dict.fromkeys(shapes, density)
    wanted = {name: densities[name] * sizes[name] for name in shapes}
    counts = {name: min(max(int(wanted[name]), 1), sizes[name]) for name in shapes}
    while missing := total - sum(counts.values()):
        step = 1 if missing > 0 else -1
        movable = [name for name in shapes if 1 <= counts[name] + step <= sizes[name]]
        movable.sort(key=lambda name: step * (counts[name] - wanted[name]))
        for name in movable[: abs(missing)]:
            counts[name] += step
    return counts
