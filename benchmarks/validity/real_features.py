"""Features of real images, extracted once and kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from compressors.common.files import whole_file
from torch_fidelity_lsh.fidelity.feature_extractor_efficientnet_lite0 import NAME, FeatureExtractorEfficientNetLite0

# As many known digits as two sides of 10,000 need.
IMAGES = {"full": 60_000, "quick": 4_000}
CONTRASTS = (0.0, 0.5, 1.0, 1.5, 2.0)
CONTRAST_IMAGES = 1000


def features_file(folder: Path, data_root: Path | None, quick: bool) -> Path:
    """Return where the features are kept."""
    size = "quick" if quick else "full"
    return folder / (f"features-mnist-{IMAGES[size]}.npz" if data_root else "features-digits.npz")


def extract(path: Path, data_root: Path | None, quick: bool) -> None:
    """Extract the features of images as they are and at other contrasts, unless the file is there."""
    if path.is_file():
        return
    images, digits = load_images(data_root, IMAGES["quick" if quick else "full"])
    changed = images[: min(CONTRAST_IMAGES, len(images) // 2)]
    arrays = {f"contrast {c}": network_features(with_contrast(changed, c)) for c in CONTRASTS}
    save_features(path, {**arrays, "features": network_features(images), "digits": digits.numpy()})


def save_features(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file that is whole or not there."""
    with whole_file(path, ".npz") as temporary:
        np.savez(temporary, **arrays)


def load_images(data_root: Path | None, limit: int) -> tuple[Tensor, Tensor]:
    """Return uint8 images, N x 1 x H x W, and their digits.

    Raises:
        FileNotFoundError: `data_root` holds no MNIST/raw.
    """
    if data_root is None:
        from sklearn.datasets import load_digits

        images, digits = load_digits(return_X_y=True)
        images = torch.from_numpy(images).reshape(-1, 1, 8, 8).mul(255 / 16).to(torch.uint8)
        return images, torch.from_numpy(digits)
    from torchvision.datasets import MNIST

    try:
        mnist = MNIST(data_root)
    except RuntimeError:
        raise FileNotFoundError(f"{data_root} holds no MNIST/raw") from None
    return mnist.data[:limit, None], mnist.targets[:limit]


def with_contrast(images: Tensor, contrast: float) -> Tensor:
    """Stretch images about their own mean."""
    mean = images.float().mean((1, 2, 3), keepdim=True)
    return (mean + contrast * (images - mean)).clamp(0, 255).round().to(torch.uint8)


def network_features(images: Tensor) -> np.ndarray:
    """Return the features of uint8 images, N x 1 x H x W: float32, N x 1,280."""
    network = FeatureExtractorEfficientNetLite0(NAME, ["pooled"])
    batches = tqdm(images.expand(-1, 3, -1, -1).split(64), desc="Features", unit="batch", leave=False)
    with torch.inference_mode():
        return torch.cat([network(batch)[0] for batch in batches]).numpy()
