"""The discriminator of Pix2Pix and CycleGAN: one score for each patch of 70 x 70 pixels (arXiv 1611.07004)."""

from __future__ import annotations

from torch import nn


def patchgan(channels: int = 3, width: int = 64, layers: int = 3) -> nn.Sequential:
    """Build the discriminator: images B x channels x H x W to scores B x 1 x h x w.

    Args:
        channels: 3, or 6 for pairs of input and output.
        width: channels of the first layer (ndf).
        layers: layers of stride 2; with 3 (default) a score sees 70 x 70 pixels.
    """
    body: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    before = width
    for level in range(1, layers + 1):
        after = width * min(2**level, 8)
        stride = 2 if level < layers else 1
        body += [nn.Conv2d(before, after, 4, stride, 1), nn.InstanceNorm2d(after), nn.LeakyReLU(0.2)]
        before = after
    return nn.Sequential(*body, nn.Conv2d(before, 1, 4, 1, 1))
