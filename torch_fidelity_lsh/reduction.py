"""From features to a few numbers each, by a random projection that is exact in single precision."""

from __future__ import annotations

import numpy as np
import torch

# A row is rounded to whole multiples of a power of two, of which its largest value holds up to 2^11. Sums of 2^13 such
# numbers are exact in float32, in any order, so that no reduced value depends on batch, thread, rank or device.
BITS = 11
SUMMANDS = 2**13
LARGEST_EXPONENT = 126  # of float32


def reduce_features(features: torch.Tensor, num_components: int, seed: int, batch_size: int) -> torch.Tensor:
    """Project N x D features on ``num_components`` random sign vectors (Achlioptas, 2003), if D is larger.

    The projection does not look at the data: directions fitted on the real samples, as principal components are, would
    describe those better than any other draw of the same distribution.

    Args:
        features: N x D, finite, of any floating-point type.
        num_components: P.
        seed: Seed of the signs.
        batch_size: Rows processed at a time; changes no result.

    Returns:
        N x min(D, P), float64 if the features are, else float32. A row depends on nothing but its own features.

    Example:
        >>> features = torch.randn(5, 300)
        >>> together, alone = reduce_features(features, 128, 0, 5), reduce_features(features, 128, 0, 1)
        >>> bool((together == alone).all())
        True
    """
    kept = torch.float64 if features.dtype == torch.float64 else torch.float32
    dimension = features.shape[1]
    if dimension <= num_components:
        return features.to(kept)
    drawn = np.random.default_rng([seed, 0]).integers(2, size=(dimension, num_components))
    signs = torch.from_numpy(2 * drawn - 1).to(features.device, torch.float32)
    return torch.cat([_project(block.to(kept), signs) for block in torch.split(features, batch_size)])


def _project(block: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    largest = torch.maximum(block.amax(1), -block.amin(1))
    exponent = (BITS - largest.frexp().exponent).clamp(max=LARGEST_EXPONENT)
    scale = torch.ldexp(torch.ones_like(largest), exponent)[:, None]
    whole = (block * scale).round_().float()
    parts = zip(torch.split(whole, SUMMANDS, dim=1), torch.split(signs, SUMMANDS), strict=True)
    total = sum(((part @ s).to(block.dtype) for part, s in parts), start=block.new_zeros(()))
    return total / SUMMANDS / scale
