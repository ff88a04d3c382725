"""The ResNet generator of CycleGAN (Zhu et al. 2017, arXiv 1703.10593), and its mobile form of GAN Compression."""

from __future__ import annotations

from torch import Tensor, nn


def resnet_generator(width: int = 64, blocks: int = 9, mobile: bool = False) -> nn.Sequential:
    """Build the generator: images B x 3 x H x W to the same shape, -1 to 1; H and W multiples of 4.

    Args:
        width: channels of the first layer (ngf); inner layers have 2 and 4 times as many.
        blocks: residual blocks.
        mobile: split the convolutions of the blocks into one per channel and one per pixel (Li et al. 2020, arXiv
            2003.08936): 1,987,075 parameters instead of 11,378,179 at width 64 with 9 blocks, 137,347 at width 16.
    """
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, width, 7),
        *_norm_relu(width),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        *_norm_relu(2 * width),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        *_norm_relu(4 * width),
        *(ResBlock(4 * width, mobile) for _ in range(blocks)),
        nn.ConvTranspose2d(4 * width, 2 * width, 3, stride=2, padding=1, output_padding=1),
        *_norm_relu(2 * width),
        nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1),
        *_norm_relu(width),
        nn.ReflectionPad2d(3),
        nn.Conv2d(width, 3, 7),
        nn.Tanh(),
    )


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions, whole or separable, around a skip connection."""

    def __init__(self, width: int, mobile: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_conv3(width, mobile), *_norm_relu(width), *_conv3(width, mobile), _norm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map B x width x H x W to the same shape."""
        return x + self.layers(x)


def _conv3(width: int, mobile: bool) -> list[nn.Module]:
    if not mobile:
        return [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3)]
    return [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, groups=width), _norm(width), nn.Conv2d(width, width, 1)]


def _norm(width: int) -> nn.Module:
    return nn.InstanceNorm2d(width)


def _norm_relu(width: int) -> list[nn.Module]:
    return [_norm(width), nn.ReLU()]
