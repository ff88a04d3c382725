"""p-stable locality-sensitive hashing (Datar et al., 2004): samples close together tend to share a key."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.config import ResolvedConfig
from torch_fidelity_lsh.coordinates import UNIT

# A hash direction is rounded to whole multiples of this, so that projections of whole coordinates are exact.
DIRECTION_UNIT = 2.0**-12

PROBABILITY_UNIT = 2.0**-20

CALIBRATION_TABLES = 4
WIDTHS_PER_OCTAVE = 8


@dataclass(frozen=True)
class HashFamily:
    """L tables of keys made of K values ``floor(a.x / w + b)`` each, with ``a ~ N(0, I)`` and ``b ~ U[0, 1)``.

    Attributes:
        directions: P x (L K) whole multiples of ``DIRECTION_UNIT``.
        offsets: L x K.
        multipliers: L x K odd 64-bit numbers that mix the values into one key.
        batch_size: Rows hashed at a time.
    """

    directions: torch.Tensor
    offsets: torch.Tensor
    multipliers: torch.Tensor
    batch_size: int

    @classmethod
    def sample(cls, dimension: int, config: ResolvedConfig, device: torch.device) -> HashFamily:
        """Draw a family for P-dimensional coordinates; the same seed gives the same family on every device."""
        rng = np.random.default_rng([config.seed, 1])
        shape = config.num_tables, config.num_hashes
        directions = np.rint(rng.standard_normal((dimension, math.prod(shape))) / DIRECTION_UNIT)
        offsets = rng.random(shape)
        multipliers = rng.integers(-(2**63), 2**63, shape, dtype=np.int64) | 1
        return cls(
            torch.from_numpy(directions).to(device),
            torch.from_numpy(offsets).to(device),
            torch.from_numpy(multipliers).to(device),
            config.batch_size,
        )

    @property
    def num_tables(self) -> int:
        """Number L of tables."""
        return len(self.offsets)

    def head(self, num_tables: int) -> HashFamily:
        """Return the family of the first tables only."""
        columns = num_tables * self.offsets.shape[1]
        return HashFamily(
            self.directions[:, :columns], self.offsets[:num_tables], self.multipliers[:num_tables], self.batch_size
        )

    def keys(self, coordinates: torch.Tensor, *widths: float) -> list[torch.Tensor]:
        """Return the L x N int64 keys of N x P coordinates, one tensor for each bucket width."""
        blocks = [self._keys_of_block(block, widths) for block in torch.split(coordinates, self.batch_size)]
        return [torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True)]

    def _keys_of_block(self, block: torch.Tensor, widths: tuple[float, ...]) -> list[torch.Tensor]:
        projected = (block @ self.directions).view(len(block), *self.offsets.shape)
        return [self._mix(projected, width) for width in widths]

    def _mix(self, projected: torch.Tensor, width: float) -> torch.Tensor:
        cells = torch.floor(projected / (width / (UNIT * DIRECTION_UNIT)) + self.offsets)
        return (cells.long() * self.multipliers).sum(-1).T.contiguous()

    def find_width(self, coordinates: torch.Tensor, reaches: Callable[[torch.Tensor], bool]) -> float:
        """Return the smallest of the widths 2^(i/8) that satisfies a condition wider buckets satisfy too.

        A coarse grid, so that single samples, outliers above all, hardly ever move all the buckets.

        Args:
            coordinates: N x P.
            reaches: Judges the keys, 4 x N, that a width gives in the first tables.
        """
        if len(coordinates) == 1:
            return 1.0  # Any width will do.
        family = self.head(min(CALIBRATION_TABLES, self.num_tables))

        def is_enough(step: int) -> bool:
            return reaches(family.keys(coordinates, 2 ** (step / WIDTHS_PER_OCTAVE))[0])

        high, stride = 0, 2 * WIDTHS_PER_OCTAVE
        while not is_enough(high):
            high += stride
        low = high - stride
        while is_enough(low):
            high, low = low, low - stride
        while high - low > 1:
            middle = (low + high) // 2
            if is_enough(middle):
                high = middle
            else:
                low = middle
        return float(2 ** (high / WIDTHS_PER_OCTAVE))


def counts_in(sorted_keys: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Count, table by table, the samples of an index that share each key.

    Args:
        sorted_keys: L x N, ascending in each row.
        keys: L x M.

    Returns:
        L x M counts, int64.

    Example:
        >>> counts_in(torch.tensor([[3, 5, 5]]), torch.tensor([[5, 4, 3]]))
        tensor([[2, 0, 1]])
    """
    return torch.searchsorted(sorted_keys, keys, right=True) - torch.searchsorted(sorted_keys, keys)


def others_in_bucket(keys: torch.Tensor) -> torch.Tensor:
    """Count, table by table, the other samples of a set that share each sample's key: L x N from L x N keys."""
    return counts_in(keys.sort(dim=1).values, keys) - 1


def occupancy(counts: torch.Tensor, share: float) -> torch.Tensor:
    """Return the probability that a bucket still holds a sample when the index is thinned to a share of its samples.

    Args:
        counts: Samples in the bucket.
        share: In (0, 1]; at 1 the result is 1 for every bucket that is not empty.
    """
    return rounded(1 - (1 - share) ** counts.double())


def rounded(probabilities: torch.Tensor) -> torch.Tensor:
    """Round to a millionth or so: sums are then exact, and do not depend on the order of summation."""
    return (probabilities / PROBABILITY_UNIT).round() * PROBABILITY_UNIT
