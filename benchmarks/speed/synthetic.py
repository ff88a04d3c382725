"""Features to measure on, as fast to make as they are to hash."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

INTRINSIC = 16
NOISE = 0.1
SHIFT = 0.5
BLOCK_ROWS = 4096  # Beyond the features, only so many rows are ever in memory.
DESCRIPTION = (
    f"N(0, I) in {INTRINSIC} dimensions, embedded linearly with unit variance, plus N(0, {NOISE}²) in every dimension; "
    f"generated: shifted by {SHIFT} along one of the {INTRINSIC}; float32; seeds: numbers of samples, dimension, side"
)


def draw_features(generated: int, real: int, dimension: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Draw features of both sides.

    Args:
        generated: Number M of generated samples.
        real: Number N of real samples.
        dimension: D.

    Returns:
        M x D and N x D, which depend on the arguments alone.
    """
    seed = (generated, real, dimension)
    embedding = np.random.default_rng([*seed, 2]).standard_normal((INTRINSIC, dimension), dtype=np.float32)
    embedding /= np.float32(INTRINSIC**0.5)
    return (
        _draw_side(generated, embedding, SHIFT, np.random.default_rng([*seed, 0])),
        _draw_side(real, embedding, 0, np.random.default_rng([*seed, 1])),
    )


def _draw_side(
    rows: int, embedding: npt.NDArray[np.float32], shift: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    features = np.empty((rows, embedding.shape[1]), np.float32)
    for start in range(0, rows, BLOCK_ROWS):
        block = features[start : start + BLOCK_ROWS]
        rng.standard_normal(dtype=np.float32, out=block)
        block *= np.float32(NOISE)
        inner = rng.standard_normal((len(block), INTRINSIC), dtype=np.float32)
        inner[:, 0] += np.float32(shift)
        block += inner @ embedding
    return features
