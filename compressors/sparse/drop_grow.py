"""Drop and grow: which weights become inactive (zero) and which active, with exact counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from compressors.common.checks import check_choice, check_count, check_density
from compressors.errors import CompressionError
from compressors.sparse.masks import MaskSet
from compressors.sparse.schedule import Schedule

GROWTHS = ("gradient", "random")


@dataclass(frozen=True)
class DropGrow:
    """Dynamic sparse training: every `interval` iterations active weights are dropped and as many inactive ones grown.

    The smallest weights of the whole network are dropped, and as many grow where the loss gradient is largest (RigL,
    Evci et al. 2020, arXiv 1911.11134) or at random (SET, Mocanu et al. 2018, arXiv 1707.04780). A weight that was
    just dropped may grow again at once and then keeps its value; the others start at 0.

    Attributes:
        interval: iterations between changes. Default 500.
        schedule: share of the active weights that is dropped.
        growth: "gradient" (default) or "random".
    """

    interval: int = 500
    schedule: Schedule = field(default_factory=Schedule)
    growth: str = "gradient"

    def __post_init__(self) -> None:
        check_count("interval", self.interval)
        check_choice("growth", self.growth, GROWTHS)


def highest(scores: Tensor, candidates: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return a mask of the `count` candidates with the highest scores, of all candidates if there are fewer.

    Ties are broken at random, so that equal scores make a uniform draw.

    Args:
        scores: float of N elements on the CPU; what is not finite counts as 0.
        candidates: bool of N elements.
        count: how many; none if it is below 0.
        random: source of the tie-breaks.
    """
    places = candidates.nonzero().flatten()
    places = places[torch.randperm(len(places), generator=random)]
    ranked = scores[places].nan_to_num(nan=0, posinf=0, neginf=0).argsort(descending=True, stable=True)
    chosen = torch.zeros_like(candidates)
    chosen[places[ranked[: max(count, 0)]]] = True
    return chosen


def drop(masks: MaskSet, count: int, random: torch.Generator) -> Tensor:
    """Return all masks, flat, without the `count` smallest active weights of the whole network.

    The largest active weight of each layer stays, so that no layer empties.
    """
    active, sizes = masks.flat(), masks.flat_weights().abs()
    candidates = active.clone()
    for magnitude, mask, candidate in zip(*map(masks.split, (sizes, active, candidates)), strict=True):
        candidate.view(-1)[torch.where(mask, magnitude, -1.0).argmax()] = False
    return active & ~highest(-sizes, candidates, count, random)


def grow(active: Tensor, count: int, gradients: Tensor | None, random: torch.Generator) -> Tensor:
    """Return flat masks with `count` more weights on: by the largest gradients, or at random without gradients."""
    scores = torch.zeros(active.shape) if gradients is None else gradients.abs()
    return active | highest(scores, ~active, count, random)


def exchange(masks: MaskSet, share: float, gradients: Tensor | None, random: torch.Generator) -> Tensor:
    """Return flat masks after one step of dropping ``int(share * active)`` weights and growing as many."""
    before = masks.active
    kept = drop(masks, int(share * before), random)
    return grow(kept, before - int(kept.sum()), gradients, random)


def prune_by_magnitude(masks: MaskSet, density: float) -> None:
    """Drop the smallest weights of a trained network until ``round(density * total)`` are left, and zero them.

    Raises `CompressionError` where `density` is not above 0 and at most 1, or more than there is now.

    Source: Han et al. 2015 (arXiv 1506.02626), with one threshold for the network, and without retraining.
    """
    check_density("density", density)
    count = masks.active - round(density * masks.total)
    if count < 0:
        raise CompressionError(
            f"density must be at most that of the network, {masks.density:.4g}, from which weights are dropped; "
            f"got {density!r}"
        )
    masks.assign(drop(masks, count, torch.Generator().manual_seed(0)))


def reset_optimizer_state(optimizers: Iterable[Optimizer], masks: MaskSet, changed: Tensor) -> None:
    """Zero the optimizers' state (momenta, second moments) of the weights that `changed`, a flat mask."""
    parts = dict(zip(masks.parameters.values(), masks.split(changed), strict=True))
    for optimizer in optimizers:
        for parameter, part in parts.items():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(part.to(value.device), 0)
