"""The chain of layers that students and the supernet share, and the student: a plain module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors.errors import CompressionError

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "half_tanh": lambda x: (torch.tanh(x) + 1) / 2,
    "none": lambda x: x,
}
"""What makes images of the last layer: -1 to 1, 0 to 1 (twice, the latter AGD's for super-resolution), or anything."""


@dataclass(frozen=True)
class Skip:
    """A skip connection over layers first ... last (from 0, both included): x + scale * layers(x)."""

    first: int
    last: int
    scale: float = 1.0


@dataclass(frozen=True)
class Chain:
    """How layers are put together.

    Attributes:
        skips: skip connections over several layers, one inside the other or apart.
        output: what makes images, see `OUTPUTS`.
        input_skip: add the input, enlarged bilinearly where outputs are larger, to what the last layer gives.
        multiple: sides of inputs must be multiples of this.
    """

    skips: tuple[Skip, ...]
    output: str
    input_skip: bool
    multiple: int

    def run(self, images: Tensor, apply: Callable[[int, Tensor], Tensor], layers: int) -> Tensor:
        """Return the output for `images` B x C x H x W of a chain whose layer number l is ``apply(l, x)``."""
        self.check_size(images)
        x, kept = images, dict[Skip, Tensor]()
        for layer in range(layers):
            kept.update({skip: x for skip in self.skips if skip.first == layer})
            x = apply(layer, x)
            for skip in sorted((s for s in self.skips if s.last == layer), key=lambda s: -s.first):
                x = kept.pop(skip) + skip.scale * x
        if self.input_skip:
            same = x.shape[-2:] == images.shape[-2:]
            x = x + (images if same else functional.interpolate(images, x.shape[-2:], mode="bilinear"))
        return OUTPUTS[self.output](x)

    def check_size(self, images: Tensor) -> None:
        """Raise `CompressionError` where sides of `images` are no multiples of `multiple`."""
        if images.shape[-2] % self.multiple or images.shape[-1] % self.multiple:
            raise CompressionError(
                f"sides of the input must be multiples of {self.multiple}, by the strides of the layers; got "
                f"{images.shape[-2]} x {images.shape[-1]}"
            )


class Student(nn.Module):
    """A derived network: its layers with their channels, and nothing of the search."""

    def __init__(self, layers: Sequence[nn.Module], chain: Chain) -> None:
        super().__init__()
        self.layers, self.chain = nn.ModuleList(layers), chain

    def forward(self, images: Tensor) -> Tensor:
        """Map images B x C x H x W to images; H and W multiples of ``chain.multiple``."""
        return self.chain.run(images, lambda layer, x: self.layers[layer](x), len(self.layers))
