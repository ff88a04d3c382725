"""From features to a few numbers each, by a random projection that is exact in single precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.metric.parallel import mapped

# A row is rounded to whole multiples of a power of two, of which its largest value holds up to 2^11. Sums of 2^13 such
# numbers are exact in float32, in any order, so that no reduced value depends on batch, thread, rank or device.
BITS = 11
SUMMANDS = 2**13
IN_CACHE = 256  # rows
LARGEST_EXPONENT = 126  # of float32
LARGEST = 1e150  # whose squares can still be added up in float64
RESOLUTION = 2.0**-BITS  # of a row's values, in units of the largest


def in_words(extractor: str | None, layer: str | None) -> str:
    """Say where features come from; empty if no extractor is known."""
    return f'layer "{layer}" of {extractor}' if extractor else ""


@dataclass(frozen=True)
class ReducedFeatures:
    """What both metrics keep of a set of samples: a few numbers each, enough for precision and for recall.

    Features of more than P dimensions are projected on P random sign vectors (Achlioptas, 2003). That does not look at
    the data: directions fitted on the real samples, as principal components are, would describe those better than any
    other draw of the same distribution.

    Attributes:
        values: N x min(D, P), float64 if the features are, else float32. A row depends on its own features alone.
        dimension: Dimension D of the features.
        num_components: P.
        seed: Seed of the signs.
        feature_extractor: Name of the extractor the features come from, `None` if that is not known.
        feature_layer: Name of its layer.

    Raises:
        ValueError: The values are of another type or shape, or some are NaN, infinite, or over ``LARGEST`` in size.
    """

    values: torch.Tensor
    dimension: int
    num_components: int
    seed: int
    feature_extractor: str | None = None
    feature_layer: str | None = None

    def __post_init__(self) -> None:
        values, kept = self.values, min(self.dimension, self.num_components)
        if values.dtype not in (torch.float32, torch.float64) or values.ndim != 2 or values.shape[1] != kept:
            raise ValueError(
                f"reduced features must be N x {kept}, float32 or float64; got {values.dtype}, {tuple(values.shape)}"
            )
        if len(values) and not (values.amin() >= -LARGEST and values.amax() <= LARGEST):
            raise ValueError("reduced features hold NaN, or values too large to measure distances between")

    @classmethod
    @default_modes()
    def of(
        cls, features: torch.Tensor, num_components: int = 128, seed: int = 2020, batch_size: int = 1024
    ) -> ReducedFeatures:
        """Reduce N x D finite features of any floating-point type, ``batch_size`` rows at a time.

        Example:
            >>> features = torch.randn(5, 300)
            >>> together, alone = (ReducedFeatures.of(features, batch_size=size).values for size in (5, 1))
            >>> together.shape, bool((together == alone).all())
            (torch.Size([5, 128]), True)
        """
        kept = torch.float64 if features.dtype == torch.float64 else torch.float32
        dimension = features.shape[1]
        if dimension <= num_components:
            return cls(features.to(kept), dimension, num_components, seed)
        drawn = np.random.default_rng([seed, 0]).integers(2, size=(dimension, num_components))
        signs = torch.from_numpy(2 * drawn - 1).to(features.device, torch.float32)
        values = torch.empty(len(features), num_components, dtype=kept, device=features.device)
        rows = min(batch_size, IN_CACHE)

        def reduce_block(start: int) -> None:
            values[start : start + rows] = _project(features[start : start + rows].to(kept), signs)

        mapped(reduce_block, range(0, len(features), rows))
        return cls(values, dimension, num_components, seed)

    @property
    def source(self) -> str:
        """Where the features come from, in words; empty if that is not known."""
        return in_words(self.feature_extractor, self.feature_layer)

    @property
    def shape(self) -> torch.Size:
        """N x min(D, P)."""
        return self.values.shape

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def __len__(self) -> int:
        return len(self.values)


def _project(block: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    largest = torch.maximum(block.amax(1), -block.amin(1))
    exponent = (BITS - largest.frexp().exponent).clamp(max=LARGEST_EXPONENT)
    scale = torch.ldexp(torch.ones_like(largest), exponent)[:, None]
    whole = (block * scale).round_().float()
    parts = zip(torch.split(whole, SUMMANDS, dim=1), torch.split(signs, SUMMANDS), strict=True)
    total = sum(((part @ s).to(block.dtype) for part, s in parts), start=block.new_zeros(()))
    return total / SUMMANDS / scale
