"""One decision for all ranks of a distributed training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def mean_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the means of numbers over all ranks, the same on each; the numbers themselves without ranks."""
    if not _active():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return (sums / distributed.get_world_size()).tolist()


def from_first_rank(values: Tensor, device: torch.device) -> Tensor:
    """Return the first rank's values, on the CPU, on every rank; `device` is where ranks communicate."""
    if not _active():
        return values
    sent = values.to(device, torch.uint8 if values.dtype == torch.bool else values.dtype, copy=True)
    distributed.broadcast(sent, src=0)
    return sent.to("cpu", values.dtype)


def _active() -> bool:
    return distributed.is_available() and distributed.is_initialized()
