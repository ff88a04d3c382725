"""DCGANs that others trained: faces of 64 x 64 and eyes of 128 x 128 pixels (Radford et al. 2015, arXiv 1511.06434)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class DCGAN(nn.Module):
    """A chain of transposed convolutions, batch norms and ReLU; tanh at the end.

    Args:
        widths: channels from the latent to the image; each layer but the first, 4 x 4, doubles the size.
        dropout: behind the first ReLU, or None.
    """

    def __init__(self, widths: Sequence[int], dropout: float | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(widths)):
            layers.append(nn.ConvTranspose2d(before, after, 4, 2 if index else 1, 1 if index else 0, bias=False))
            if index < len(widths) - 2:
                layers += [nn.BatchNorm2d(after), nn.ReLU()]
            if not index and dropout is not None:
                layers.append(nn.Dropout(dropout))
        self.main = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map latents B x 100, and one-hot labels B x 8 where the model is conditional, to images."""
        code = z if label is None else torch.cat([z, label], 1)
        return self.main(code[:, :, None, None])


def face_dcgan() -> DCGAN:
    """Build the generator of face-dcgan-64.safetensors: latents B x 100 to faces B x 3 x 64 x 64."""
    return DCGAN((100, 512, 256, 128, 64, 3))


def eye_dcgan() -> DCGAN:
    """Build the generator of eye-cdcgan-128.safetensors: latents B x 100, colours B x 8 to eyes B x 3 x 128 x 128."""
    return DCGAN((108, 1024, 512, 256, 128, 64, 3), dropout=0.2)


def load_dcgan(path: Path, model: DCGAN) -> nn.Module:
    """Load weights, in single or half precision, and return `model` in eval mode."""
    model.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    )
    return model.eval()
