"""Networks that a step uses and must not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from compressors.common.measure import cuda_devices


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep parameters and buffers of `model` as they are: what runs inside gives them no gradient and no statistics.

    Gradients still pass through to the inputs, also in a backward after the block. Every ``requires_grad``, training
    mode and buffer is what it was when the block ends, also by an error. Blocks may be nested.
    """
    with ExitStack() as restore:
        for module in model.modules():
            restore.callback(setattr, module, "training", module.training)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    # A copy takes the updates. Writing old values back would touch what a backward still needs.
                    restore.callback(module._buffers.__setitem__, name, buffer)
                    module._buffers[name] = buffer.clone()
            for parameter in module._parameters.values():
                if parameter is not None:
                    restore.callback(parameter.requires_grad_, parameter.requires_grad)
                    parameter.requires_grad_(False)
        yield


@contextmanager
def same_noise(model: nn.Module) -> Iterator[None]:
    """Draw the same random numbers inside as after the block: two networks then get the same noise."""
    with torch.random.fork_rng(devices=cuda_devices(model)):
        yield


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Run the dropout layers of `model` in eval mode, everything else as it is."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer in layers:
            layer.training = True
