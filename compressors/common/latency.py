"""How long a model takes for a batch."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from compressors.common.measure import Inputs, copied, cuda_devices

_BATCHES = 5


def batch_ms(model: nn.Module, inputs: Inputs, device: torch.device) -> float:
    """Return the milliseconds of a forward pass on `inputs`, the median of 5; the caller's random state stays."""
    with torch.random.fork_rng(devices=cuda_devices(model)):
        return 1000 * statistics.median(_seconds(model, inputs, device) for _ in range(_BATCHES))


@torch.no_grad()
def _seconds(model: nn.Module, inputs: Inputs, device: torch.device) -> float:
    arguments = copied(inputs)
    _wait(device)
    started = time.perf_counter()
    model(*arguments)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
