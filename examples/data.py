"""Images of the compression study at 32 x 32 pixels: MNIST, emoji, and the digits of scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

DATA = ("mnist", "emoji", "digits")


def load_images(data: str, root: Path) -> Tensor:
    """Load all training images of a data set.

    Args:
        data: "mnist" (60,000 images), "emoji" (3,786) or "digits" (1,797).
        root: folder that holds MNIST in torchvision's layout, or emoji/emoji64.npz with the array "google", uint8
            N x 3 x 64 x 64; not used by "digits", which are part of scikit-learn.

    Returns:
        uint8 N x C x 32 x 32 with 1 channel, for emoji 3.

    Raises:
        FileNotFoundError: the data are not in `root`.
    """
    return {"mnist": _mnist, "emoji": _emoji, "digits": _digits}[data](root)


def _mnist(root: Path) -> Tensor:
    from torchvision.datasets import MNIST

    try:
        images = MNIST(str(root), train=True).data
    except RuntimeError:
        raise FileNotFoundError(f"{root} holds no MNIST/raw: name the folder with --data-root") from None
    return functional.pad(images[:, None], (2, 2, 2, 2))


def _emoji(root: Path) -> Tensor:
    path = root / "emoji" / "emoji64.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name the folder above it with --data-root")
    images = torch.from_numpy(np.load(path)["google"])
    return functional.avg_pool2d(images.float(), 2).round().to(torch.uint8)


def _digits(root: Path) -> Tensor:
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).float()[:, None] / 16
    larger = functional.interpolate(images, scale_factor=4, mode="bilinear")
    return (larger * 255).round().to(torch.uint8)
