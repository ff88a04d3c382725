"""Equalized channels: what one module makes larger, and the layer that reads it takes smaller, costs no bits.

Cross-layer equalization, Nagel et al. 2019, arXiv 1906.04721, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.measure import Inputs, run
from compressors.core.sharing import shared_parameters

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_TOLERANCE = 1e-4
# What lies between two layers is tried on larger values too: where a ReLU6 or a clamp ends may be beyond the examples.
_FACTORS = (10.0, 100.0)


def equalize(model: nn.Module, inputs: Inputs, readers: Container[str], norms_only: bool = False) -> list[str]:
    """Give all input channels of each layer one range of weights, in place; return the names of the layers.

    What makes a channel, a batch norm or a layer, is multiplied by its range, and the weights that read it are divided
    by it. That changes no output where a ReLU lies between, a LeakyReLU, or any f with f(a x) = a f(x) for a > 0. Pairs
    are found by trying: of modules that run one after the other, as wide as each other, those are equalized that leave
    the outputs on `inputs` as they were, if what the second one reads also becomes 10 and 100 times as large where what
    the first one makes does.

    Args:
        model: in eval mode.
        inputs: forward arguments, of a batch.
        readers: names of the layers to equalize the inputs of.
        norms_only: multiply batch norms alone, where layers have one scale for all of their channels.
    """
    shared = shared_parameters(model)
    tied = {name.rpartition(".")[0] for name in (*shared, *shared.values())}
    reference, found = run(model, inputs), []
    for (maker_name, maker), (name, reader) in pairwise(_called_once(model, inputs)):
        if name not in readers or tied & {name, maker_name} or (norms_only and type(maker) not in _NORMS):
            continue
        made = _by_output(maker)
        if type(reader) in _NORMS or getattr(reader, "groups", 1) > 1 or not made:
            continue
        weights = _by_input(reader)
        if len(weights) != len(made[0]) or not _homogeneous(model, inputs, maker, reader):
            continue
        before = [tensor.clone() for tensor in (weights, *made)]
        ranges = _ranges(weights)
        weights.div_(_beside(ranges, weights))
        for tensor in made:
            tensor.mul_(_beside(ranges, tensor))
        if _same(run(model, inputs), reference):
            found.append(name)
        else:
            for tensor, value in zip((weights, *made), before, strict=True):
                tensor.copy_(value)
    return found


def _called_once(model: nn.Module, inputs: Inputs) -> list[tuple[str, nn.Module]]:
    """Return the layers and batch norms that run exactly once, in the order in which they do."""
    calls: list[tuple[str, nn.Module]] = []

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, arguments, output: calls.append((name, module))

    named = [(name, module) for name, module in model.named_modules() if type(module) in (*_NORMS, *_LAYERS)]
    hooks = [module.register_forward_hook(noting(name)) for name, module in named]
    try:
        run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [call for call in calls if calls.count(call) == 1]


def _homogeneous(model: nn.Module, inputs: Inputs, maker: nn.Module, reader: nn.Module) -> bool:
    """Tell whether `reader` reads as many times as much as `maker` makes, for some factors."""
    expected = _read(model, inputs, maker, reader, 1.0)
    return all(_same([_read(model, inputs, maker, reader, factor)], [factor * expected]) for factor in _FACTORS)


def _read(model: nn.Module, inputs: Inputs, maker: nn.Module, reader: nn.Module, factor: float) -> Tensor:
    """Return what `reader` reads where what `maker` makes is multiplied by `factor`."""
    read: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        read.append((arguments[0] if arguments else keywords["input"]).clone())

    hooks = [
        maker.register_forward_hook(lambda module, arguments, output: output * factor),
        reader.register_forward_pre_hook(keep, with_kwargs=True),
    ]
    try:
        run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return read[0]


def _by_input(layer: nn.Module) -> Tensor:
    """Return a layer's weight as a view whose first dimension is that of input channels, the second of outputs."""
    weight = layer.get_parameter("weight").data
    return weight if type(layer) in _TRANSPOSED else weight.transpose(0, 1)


def _by_output(module: nn.Module) -> list[Tensor]:
    """Return views of all that sets the scale of a module's outputs, output channels first; empty if that is fixed."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is None or (type(module) in _TRANSPOSED and getattr(module, "groups", 1) > 1):
        return []
    rows = weight.data.transpose(0, 1) if type(module) in _TRANSPOSED else weight.data
    return [rows] if bias is None else [rows, bias.data]


def _ranges(weights: Tensor) -> Tensor:
    """Return the range of each input channel, mean 1; each output counts in parts of its own largest weight."""
    sizes = weights.abs()
    largest = sizes.amax((0, *range(2, sizes.dim())), keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)
    ranges = (sizes / largest).flatten(1).amax(1)
    ranges[ranges == 0] = 1  # nothing reads the channel
    return ranges / ranges.mean()


def _beside(ranges: Tensor, tensor: Tensor) -> Tensor:
    return ranges.reshape(-1, *[1] * (tensor.dim() - 1))


def _same(outputs: list[Tensor], reference: list[Tensor]) -> bool:
    """Tell whether outputs are equal but for rounding."""
    pairs = zip(outputs, reference, strict=True)
    return all(
        output.shape == expected.shape
        and float((output - expected).abs().max()) <= _TOLERANCE * float(expected.abs().max())
        for output, expected in pairs
    )
