"""The U-Net generator of Pix2Pix (Isola et al. 2017, arXiv 1611.07004)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class UNet(nn.Module):
    """Halve the image `downs` times, double it as often; each size sees the encoder's features of that size.

    Args:
        width: channels of the first layer (ngf); those behind it have 2, 4 and then 8 times as many. 54,413,955
            parameters at width 64, 3,404,451 at width 16, with 8 downs.
        downs: 8 for 256 x 256 pixels as in the paper, 6 for 64 x 64; image sides must be multiples of 2^downs.
    """

    def __init__(self, width: int = 64, downs: int = 8) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(downs)]
        inner = range(1, downs)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 4, 2, 1, bias=False) for a, b in zip([3, *widths], widths, strict=False)
        )
        self.down_norm = nn.ModuleList(nn.BatchNorm2d(widths[level]) for level in inner if level < downs - 1)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(widths[level] * (1 if level == downs - 1 else 2), widths[level - 1], 4, 2, 1, bias=False)
            for level in reversed(inner)
        )
        self.up_norm = nn.ModuleList(nn.BatchNorm2d(widths[level - 1]) for level in reversed(inner))
        self.rgb = nn.ConvTranspose2d(2 * width, 3, 4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map images B x 3 x H x W to images of the same shape, -1 to 1."""
        x = self.down[0](image)
        skips = [x]
        for level, conv in enumerate(self.down[1:]):
            x = conv(functional.leaky_relu(x, 0.2))
            if level < len(self.down_norm):
                x = self.down_norm[level](x)
                skips.append(x)
        for conv, norm in zip(self.up, self.up_norm, strict=True):
            x = torch.cat([skips.pop(), norm(conv(functional.relu(x)))], 1)
        return torch.tanh(self.rgb(functional.relu(x)))
