"""The two generators of the compression study at 32 x 32 pixels, their discriminator, and their files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from compressors.common.files import read_file, write_file

ARCHITECTURES = ("dcgan", "sngan")

_KIND = "generator of train_gan.py"


@dataclass(frozen=True)
class GANSettings:
    """What it takes to build a generator.

    Attributes:
        arch: "dcgan" (Radford et al. 2015, arXiv 1511.06434) or "sngan", a ResNet (Miyato et al. 2018, arXiv
            1802.05957).
        channels: image channels, 1 or 3.
        width: channels of the layer before the image; inner layers have 2 and 4 times as many.
        latent: length of a latent vector.
    """

    arch: str = "dcgan"
    channels: int = 1
    width: int = 32
    latent: int = 64

    def generator(self) -> nn.Module:
        """Build an untrained generator: latents B x latent to images B x channels x 32 x 32, float, -1 to 1."""
        generators = {"dcgan": dcgan_generator, "sngan": SNGANGenerator}
        return generators[self.arch](self)

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor]:
        """Draw latents, float count x latent, as studies want the forward arguments of a generator."""
        return (torch.randn(count, self.latent, generator=random),)


def dcgan_generator(settings: GANSettings) -> nn.Module:
    """Build the generator of DCGAN: transposed convolutions and batch normalisation."""
    width = settings.width
    return nn.Sequential(
        nn.Unflatten(1, (-1, 1, 1)),
        nn.ConvTranspose2d(settings.latent, 4 * width, 4, bias=False),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, settings.channels, 4, stride=2, padding=1),
        nn.Tanh(),
    )


def discriminator(channels: int, width: int) -> nn.Module:
    """Build the discriminator of both: DCGAN's with spectral normalisation; images to scores B x 1.

    `width` is the number of channels of its first layer.
    """
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, width, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        spectral_norm(nn.Linear(4 * width * 16, 1)),
    )


class UpBlock(nn.Module):
    """Residual block that doubles the resolution."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map B x width_in x H x W to B x width_out x 2H x 2W."""
        h = functional.interpolate(functional.relu(self.bn1(x)), scale_factor=2)
        h = self.conv2(functional.relu(self.bn2(self.conv1(h))))
        return h + functional.interpolate(self.skip(x), scale_factor=2)


class SNGANGenerator(nn.Module):
    """The ResNet generator of SNGAN."""

    def __init__(self, settings: GANSettings) -> None:
        super().__init__()
        width = settings.width
        self.linear = nn.Linear(settings.latent, 4 * width * 16)
        self.blocks = nn.Sequential(
            UpBlock(4 * width, 4 * width), UpBlock(4 * width, 2 * width), UpBlock(2 * width, width)
        )
        self.bn = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, settings.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents B x latent to images."""
        h = self.blocks(self.linear(z).view(len(z), -1, 4, 4))
        return torch.tanh(self.conv(functional.relu(self.bn(h))))


def save_generator(path: Path, generator: nn.Module, settings: GANSettings, data: str) -> None:
    """Write weights and settings as one safetensors file; `data` names the images it was trained on."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in generator.state_dict().items()}
    write_file(path, _KIND, tensors, {"settings": asdict(settings), "data": data})


def load_generator(path: Path) -> tuple[nn.Module, GANSettings, str]:
    """Read a file of `save_generator`: the generator in eval mode, its settings, the name of its training data.

    Raises `CompressionError`, a `ValueError`, for a damaged file or one that was not written by it.
    """
    tensors, content = read_file(path, _KIND)
    settings = GANSettings(**content["settings"])
    generator = settings.generator()
    generator.load_state_dict(tensors)
    return generator.eval(), settings, content["data"]
