"""The 13 generator families every compressor is tested on: small and randomly initialised, images of 8 to 16 pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

LATENT = 16
CLASSES = 5
Wrap = Callable[[nn.Module], nn.Module]


def plain(layer: nn.Module) -> nn.Module:
    return layer


class DCGAN(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(LATENT, 2 * width, 4, 1, 0, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(width, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class ResBlock(nn.Module):
    """Upsampling residual block; `norms` makes the two normalisations, which may take a condition."""

    def __init__(self, width_in: int, width_out: int, norm: Callable[[int], nn.Module], wrap: Wrap = plain) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width_in), norm(width_out)
        self.conv1 = wrap(nn.Conv2d(width_in, width_out, 3, padding=1))
        self.conv2 = wrap(nn.Conv2d(width_out, width_out, 3, padding=1))
        self.skip = wrap(nn.Conv2d(width_in, width_out, 1))

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x, *condition)), scale_factor=2)
        h = self.conv2(F.relu(self.norm2(self.conv1(h), *condition)))
        return h + self.skip(F.interpolate(x, scale_factor=2))


class SNGAN(nn.Module):
    def __init__(self, width: int = 16, wrap: Wrap = plain) -> None:
        super().__init__()
        self.fc = wrap(nn.Linear(LATENT, width * 16))
        self.blocks = nn.ModuleList(
            [ResBlock(width, width, nn.BatchNorm2d, wrap), ResBlock(width, width, nn.BatchNorm2d, wrap)]
        )
        self.norm = nn.BatchNorm2d(width)
        self.rgb = wrap(nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.fc(z).view(z.size(0), -1, 4, 4)
        for block in self.blocks:
            x = block(x)
        return torch.tanh(self.rgb(F.relu(self.norm(x))))


class LinearCBN(nn.Module):
    """BigGAN's conditional batch norm: gain and bias are linear in the condition."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.gain = nn.Linear(condition, width, bias=False)
        self.bias = nn.Linear(condition, width, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.norm(x) * (1 + self.gain(condition)[:, :, None, None]) + self.bias(condition)[:, :, None, None]


class BigGAN(nn.Module):
    """Hierarchical latent: one chunk for the first layer, one for each block beside the class embedding."""

    def __init__(self, width: int = 16, embedding: int = 8) -> None:
        super().__init__()
        self.chunk = LATENT // 2
        condition = self.chunk + embedding
        self.embedding = nn.Embedding(CLASSES, embedding)
        self.fc = nn.Linear(self.chunk, width * 16)
        self.block = ResBlock(width, width, lambda channels: LinearCBN(channels, condition))
        self.norm = nn.BatchNorm2d(width)
        self.rgb = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        first, second = z.split(self.chunk, 1)
        condition = torch.cat([second, self.embedding(label)], 1)
        x = self.fc(first).view(z.size(0), -1, 4, 4)
        return torch.tanh(self.rgb(F.relu(self.norm(self.block(x, condition)))))


class EmbeddingCBN(nn.Module):
    """Conditional batch norm from two embeddings, or from one that is split in two."""

    def __init__(self, width: int, chunked: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.embeddings = nn.ModuleList(
            [nn.Embedding(CLASSES, 2 * width)] if chunked else [nn.Embedding(CLASSES, width) for _ in range(2)]
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        rows = [embedding(label) for embedding in self.embeddings]
        gain, bias = rows[0].chunk(2, 1) if len(rows) == 1 else rows
        return self.norm(x) * (1 + gain[:, :, None, None]) + bias[:, :, None, None]


class ConditionalGAN(nn.Module):
    def __init__(self, chunked: bool, width: int = 16) -> None:
        super().__init__()
        self.fc = nn.Linear(LATENT, width * 16)
        self.block = ResBlock(width, width, lambda channels: EmbeddingCBN(channels, chunked))
        self.rgb = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x = self.fc(z).view(z.size(0), -1, 4, 4)
        return torch.tanh(self.rgb(F.relu(self.block(x, label))))


class ModulatedConv(nn.Module):
    """StyleGAN2's convolution: the weight is a bare parameter, scaled per sample and used by a functional call."""

    def __init__(self, width_in: int, width_out: int, style: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in, kernel, kernel) / (width_in * kernel**2) ** 0.5)
        self.affine = nn.Linear(style, width_in)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = 1 + self.affine(w)
        weight = self.weight[None] * style[:, None, :, None, None]
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        n, width_out, width_in, *kernel = weight.shape
        out = F.conv2d(x.reshape(1, n * width_in, *x.shape[2:]), weight.flatten(0, 1), padding=kernel[0] // 2, groups=n)
        return out.view(n, width_out, *x.shape[2:])


class ModulatedConvTwin(nn.Module):
    """The same function with the weight in an nn.Conv2d: scale the input, convolve, demodulate the output.

    The demodulation is no_grad, so that torch-pruning sees the convolution and nothing else.
    """

    def __init__(self, width_in: int, width_out: int, style: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, bias=False)
        self.affine = nn.Linear(style, width_in)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = 1 + self.affine(w)
        out = self.conv(x * style[:, :, None, None])
        with torch.no_grad():
            energy = style.square() @ self.conv.weight.square().sum((2, 3)).T
        return out * (energy + 1e-8).rsqrt()[:, :, None, None]


class StyleGAN2(nn.Module):
    def __init__(self, conv: type[nn.Module] = ModulatedConv, width: int = 16, style: int = 12) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(LATENT, style), nn.LeakyReLU(0.2), nn.Linear(style, style))
        self.const = nn.Parameter(torch.randn(1, width, 4, 4))
        self.c1, self.c2 = conv(width, width, style), conv(width, width, style)
        self.rgb = nn.Conv2d(width, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        w = self.mapping(z)
        x = self.const.expand(z.size(0), -1, -1, -1)
        for conv in (self.c1, self.c2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2), w), 0.2)
        return torch.tanh(self.rgb(x))

    def twin(self) -> StyleGAN2:
        """Return the same generator with its weights in nn.Conv2d layers."""
        twin = StyleGAN2(ModulatedConvTwin)
        names = {name.replace(".conv.weight", ".weight"): name for name in twin.state_dict()}
        twin.load_state_dict({names[name]: value for name, value in self.state_dict().items()})
        return twin


class InstanceResBlock(nn.Module):
    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.InstanceNorm2d(width, affine=affine),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.InstanceNorm2d(width, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class CycleGAN(nn.Module):
    def __init__(self, affine: bool, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.InstanceNorm2d(width, affine=affine),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.InstanceNorm2d(2 * width, affine=affine),
            nn.ReLU(inplace=True),
            InstanceResBlock(2 * width, affine),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1),
            nn.InstanceNorm2d(width, affine=affine),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 3, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class Pix2Pix(nn.Module):
    """U-Net: every decoder layer sees the encoder layer of its size by concatenation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, width, 4, 2, 1)
        self.down2 = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.down3 = nn.Conv2d(2 * width, 2 * width, 4, 2, 1)
        self.norm2, self.norm3 = nn.BatchNorm2d(2 * width), nn.BatchNorm2d(2 * width)
        self.up3 = nn.ConvTranspose2d(2 * width, 2 * width, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(4 * width, width, 4, 2, 1)
        self.up1 = nn.ConvTranspose2d(2 * width, 3, 4, 2, 1)
        self.norm_up3, self.norm_up2 = nn.BatchNorm2d(2 * width), nn.BatchNorm2d(width)

    def forward(self, image: Tensor) -> Tensor:
        d1 = self.down1(image)
        d2 = self.norm2(self.down2(F.leaky_relu(d1, 0.2)))
        d3 = self.norm3(self.down3(F.leaky_relu(d2, 0.2)))
        u3 = self.norm_up3(self.up3(F.relu(d3)))
        u2 = self.norm_up2(self.up2(F.relu(torch.cat([u3, d2], 1))))
        return torch.tanh(self.up1(F.relu(torch.cat([u2, d1], 1))))


class DenseBlock(nn.Module):
    """ESRGAN's residual dense block."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(width + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(width + 2 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.conv1(x), 0.2)
        b = F.leaky_relu(self.conv2(torch.cat([x, a], 1)), 0.2)
        return x + 0.2 * self.conv3(torch.cat([x, a, b], 1))


class ESRGAN(nn.Module):
    def __init__(self, shuffle: bool, width: int = 16, growth: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(DenseBlock(width, growth), DenseBlock(width, growth))
        self.up = (
            nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
            if shuffle
            else nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1))
        )
        self.high = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        x = F.leaky_relu(self.up(x + self.body(x)), 0.2)
        return self.last(F.leaky_relu(self.high(x), 0.2))


def latents(n: int) -> tuple[Tensor, ...]:
    return (torch.randn(n, LATENT),)


def labelled_latents(n: int) -> tuple[Tensor, ...]:
    return torch.randn(n, LATENT), torch.randint(CLASSES, (n,))


def images(n: int) -> tuple[Tensor, ...]:
    return (torch.rand(n, 3, 8, 8) * 2 - 1,)


@dataclass(frozen=True)
class Family:
    """One generator architecture, how to draw its inputs, and the options its pruning needs."""

    name: str
    create: Callable[[], nn.Module]
    draw: Callable[[int], tuple[Tensor, ...]] = latents
    pruning: dict[str, Any] | None = None

    def build(self, seed: int = 0) -> nn.Module:
        """Return the generator in eval mode, with settled batch statistics and random affine parameters."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.create()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d) and module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.2)
            with torch.no_grad():
                for _ in range(3):
                    model(*self.draw(16))
        return model.eval()

    def inputs(self, n: int = 2, seed: int = 1) -> tuple[Tensor, ...]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.draw(n)


FAMILIES = (
    Family("dcgan", DCGAN),
    Family("sngan", SNGAN),
    Family("legacy_spectral_norm", lambda: SNGAN(wrap=spectral_norm)),
    Family("parametrized_spectral_norm", lambda: SNGAN(wrap=parametrizations.spectral_norm)),
    Family("biggan", BigGAN, labelled_latents),
    Family("two_embeddings_cbn", lambda: ConditionalGAN(chunked=False), labelled_latents),
    Family("chunked_embedding_cbn", lambda: ConditionalGAN(chunked=True), labelled_latents),
    Family("stylegan2_twin", lambda: StyleGAN2().twin(), pruning={"param_dims": {"const": 1}}),
    Family("cyclegan", lambda: CycleGAN(affine=False), images),
    Family("cyclegan_affine", lambda: CycleGAN(affine=True), images),
    Family("pix2pix", Pix2Pix, images),
    Family("esrgan_nearest", lambda: ESRGAN(shuffle=False), images),
    Family("esrgan_pixelshuffle", lambda: ESRGAN(shuffle=True), images),
)
