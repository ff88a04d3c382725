"""Scores of pairs: images of a compressed model beside those of the uncompressed one from the same latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from compressors.common.extras import extra
from compressors.common.text import described
from compressors.errors import CompressionError

PAIRS = 256
"""Images of each model that are compared, at most."""


def paired_scores(names: Sequence[str], images: Tensor, originals: Tensor) -> dict[str, float]:
    """Return scores of images and those they should equal.

    Args:
        names: of `PAIRED`.
        images: uint8 N x 3 x H x W.
        originals: the same.

    Raises:
        CompressionError: torchmetrics refuses the images, or cannot fetch the weights of LPIPS.
        ImportError: torchmetrics is not installed.
    """
    found = {}
    for name in names:
        try:
            found[name] = PAIRED[name](images, originals)
        except (ValueError, RuntimeError, OSError, IndexError) as error:
            raise CompressionError(f"paired: {name} cannot be calculated: {described(error)}") from error
    # PSNR of images that are all the same.
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _psnr(images: Tensor, originals: Tensor) -> float:
    with extra("torchmetrics"):
        from torchmetrics.functional.image import peak_signal_noise_ratio
    return float(peak_signal_noise_ratio(images.float(), originals.float(), data_range=255.0))


def _ssim(images: Tensor, originals: Tensor) -> float:
    with extra("torchmetrics"):
        from torchmetrics.functional.image import structural_similarity_index_measure
    found = structural_similarity_index_measure(images.float(), originals.float(), data_range=255.0)
    assert isinstance(found, Tensor)
    return float(found)


def _lpips(images: Tensor, originals: Tensor) -> float:
    with extra("torchmetrics"):
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
    sides = (images.float() / 255, originals.float() / 255)
    return float(learned_perceptual_image_patch_similarity(*sides, net_type="alex", normalize=True))


PAIRED: dict[str, Callable[[Tensor, Tensor], float]] = {"psnr": _psnr, "ssim": _ssim, "lpips": _lpips}
"""By name: PSNR in dB over all pixels; SSIM; LPIPS with AlexNet, whose weights torchvision downloads."""
