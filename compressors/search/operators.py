"""What a layer of a student can be: one builder of plain torch layers for each operator.

A new operator is one function and a name, see `register_operator`. The supernet needs nothing else of it: it runs the
same layers on the first channels of shared weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors.common.checks import check_choice
from compressors.errors import CompressionError

SEARCHED = ("conv1x1", "conv3x3", "residual", "dws")
"""The operators of AGD's search, in the order of its code, where conv1x1 is called "skip" and dws "dwsblock"."""

RATIOS = (4 / 12, 6 / 12, 8 / 12, 10 / 12, 1.0)
"""AGD's widths as shares of the largest."""

ENLARGING = ("tconv", "upconv")
"""Operators that multiply the size of images by the stride of their layer; others divide it."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "none": nn.Identity,
}

NORMS: dict[str | None, Callable[[int], nn.Module]] = {
    "instance": nn.InstanceNorm2d,
    "batch": nn.BatchNorm2d,
    # Of the batch at hand: the statistics of one of many networks that share weights say nothing about the others.
    "batch, shared": lambda width: nn.BatchNorm2d(width, track_running_stats=False),
    None: lambda width: nn.Identity(),
}


@dataclass(frozen=True)
class Layer:
    """One place in the chain of a search space: what may stand there.

    Attributes:
        width: the largest number of output channels.
        operators: names of the operators to choose from, such as those of `SEARCHED` (default); one is no choice.
        ratios: widths to choose from, as shares of `width` above 0, at most 1; (1.0,) keeps it.
        kernel: side of the kernel of "conv", "tconv" and "upconv", odd; the searched operators have their own.
        stride: "conv" divides, "tconv" and "upconv" multiply the size of images by it; 1 for the searched ones.
        norm: whether convolutions are followed by the norm of the space; default True.
        bias: whether "conv", "tconv" and "upconv" have a bias; default False.
        activation: behind them: "relu" (default), "leaky_relu" (slope 0.2) or "none".
        expansion: of the depthwise layer of "dws", relative to its input; default 4.
    """

    width: int
    operators: tuple[str, ...] = SEARCHED
    ratios: tuple[float, ...] = RATIOS
    kernel: int = 3
    stride: int = 1
    norm: bool = True
    bias: bool = False
    activation: str = "relu"
    expansion: int = 4

    def __post_init__(self) -> None:
        whole = (self.width, self.kernel, self.stride, self.expansion)
        if any(not isinstance(value, int) or value < 1 for value in whole) or self.kernel % 2 == 0:
            raise CompressionError(
                f"width, kernel, stride and expansion must be integers above 0, kernel odd; got {whole}"
            )
        for field in ("operators", "ratios"):  # JSON has lists
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.operators or not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise CompressionError(
                f"operators must name one or more, ratios be shares above 0, at most 1; got {self.operators}, "
                f"{self.ratios}"
            )
        for name in self.operators:
            check_choice("operators", name, tuple(OPERATORS))
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        if self.stride > 1 and (len(self.operators) > 1 or self.operators[0] in SEARCHED):
            raise CompressionError(f"stride {self.stride} is for conv, tconv or upconv alone; got {self.operators}")


@dataclass(frozen=True)
class Slot:
    """A place to build an operator for.

    Attributes:
        layer: the options of the place.
        before: input channels.
        after: output channels.
        norm: a key of `NORMS`.
        project: whether a skip connection goes through a 1 x 1 convolution; it must where the widths differ.
    """

    layer: Layer
    before: int
    after: int
    norm: str | None
    project: bool

    def conv(self, before: int, after: int, kernel: int, groups: int = 1) -> list[nn.Module]:
        """Return a convolution that keeps the size of images, and the norm."""
        return [nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False), *self.norms(after)]

    def norms(self, width: int) -> list[nn.Module]:
        """Return the norm; nothing where the space, or the layer, has none."""
        return [NORMS[self.norm](width)] if self.norm is not None and self.layer.norm else []

    def skip(self) -> nn.Module:
        """Return a skip connection: the identity, or a 1 x 1 convolution with norm."""
        return nn.Sequential(*self.conv(self.before, self.after, 1)) if self.project else nn.Identity()

    def ended(self, *layers: nn.Module) -> nn.Module:
        """Return layers with norm and activation of the place behind them."""
        activation = [] if self.layer.activation == "none" else [ACTIVATIONS[self.layer.activation]()]
        return nn.Sequential(*layers, *self.norms(self.after), *activation)


class Added(nn.Module):
    """ReLU(main(x) + skip(x))."""

    def __init__(self, main: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.main, self.skip = main, skip

    def forward(self, x: Tensor) -> Tensor:
        """Map B x before x H x W to B x after x H x W."""
        return functional.relu(self.main(x) + self.skip(x))


def _conv1x1(slot: Slot) -> nn.Module:
    return nn.Sequential(*slot.conv(slot.before, slot.after, 1), nn.ReLU())


def _conv3x3(slot: Slot) -> nn.Module:
    return nn.Sequential(*slot.conv(slot.before, slot.after, 3), nn.ReLU())


def _residual(slot: Slot) -> nn.Module:
    first, second = slot.conv(slot.before, slot.after, 3), slot.conv(slot.after, slot.after, 3)
    return Added(nn.Sequential(*first, nn.ReLU(), *second), slot.skip())


def _dws(slot: Slot) -> nn.Module:
    """Inverted residual: 1 x 1 to `expansion` times the input's channels, 3 x 3 on each channel, 1 x 1."""
    middle = slot.layer.expansion * slot.before
    layers = (
        *slot.conv(slot.before, middle, 1),
        nn.ReLU(),
        *slot.conv(middle, middle, 3, groups=middle),
        nn.ReLU(),
        *slot.conv(middle, slot.after, 1),
    )
    return Added(nn.Sequential(*layers), slot.skip())


def _conv(slot: Slot) -> nn.Module:
    layer = slot.layer
    return slot.ended(
        nn.Conv2d(slot.before, slot.after, layer.kernel, layer.stride, layer.kernel // 2, bias=layer.bias)
    )


def _tconv(slot: Slot) -> nn.Module:
    layer, padding = slot.layer, slot.layer.kernel // 2
    # Sides become exactly stride times as large.
    missing = layer.stride - layer.kernel + 2 * padding
    return slot.ended(
        nn.ConvTranspose2d(slot.before, slot.after, layer.kernel, layer.stride, padding, missing, bias=layer.bias)
    )


def _upconv(slot: Slot) -> nn.Module:
    layer = slot.layer
    conv = nn.Conv2d(slot.before, slot.after, layer.kernel, padding=layer.kernel // 2, bias=layer.bias)
    return slot.ended(nn.Upsample(scale_factor=layer.stride, mode="nearest"), conv)


Builder: TypeAlias = Callable[[Slot], nn.Module]

OPERATORS: dict[str, Builder] = {
    "conv1x1": _conv1x1,
    "conv3x3": _conv3x3,
    "residual": _residual,
    "dws": _dws,
    "conv": _conv,
    "tconv": _tconv,
    "upconv": _upconv,
}


def register_operator(name: str, builder: Builder) -> None:
    """Make an operator known to search spaces, in this process; who loads its students registers it too.

    Args:
        name: for `Layer.operators`.
        builder: maps a `Slot` to a module that maps B x before x H x W to B x after x H x W. Its convolutions have
            group 1 or one for each channel, and each tensor grows with the widths, so that narrower layers are the
            first channels of wider ones.

    Raises:
        CompressionError: `name` is taken by another operator, or `builder` is no function.
    """
    if not callable(builder):
        raise CompressionError(f"builder must be a function from a Slot to an nn.Module; got {builder!r}")
    if OPERATORS.setdefault(name, builder) is not builder:
        raise CompressionError(f"name: {name!r} is taken by another operator")


@cache
def template(operator: str, slot: Slot) -> nn.Module:
    """Return an operator without values, for its shapes, and to run with the values of others."""
    with torch.device("meta"):
        return OPERATORS[operator](slot)


@cache
def positions(operator: str, slot: Slot, size: tuple[int, int]) -> tuple[dict[str, int], tuple[int, int]]:
    """Return how often each weight of an operator is used for one input of `size`, and the size of its output."""
    found: dict[str, int] = {}

    def count(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            place = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
            found[name] = found.get(name, 0) + place.shape[-2:].numel()

        return hook

    with torch.device("meta"), torch.no_grad():
        module = OPERATORS[operator](slot)
        for name, part in module.named_modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                part.register_forward_hook(count(f"{name}.weight"))
        output = module(torch.zeros(1, slot.before, *size))
    return found, (output.shape[-2], output.shape[-1])
