"""p-stable locality-sensitive hashing (Datar et al., 2004): samples close together tend to share a key."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.coordinates import ROWS_AT_ONCE, UNIT

# A hash direction is rounded to whole multiples of this, so that projections of whole coordinates are exact.
DIRECTION_UNIT = 2.0**-12

MULTIPLIERS = 2**31

CALIBRATION_TABLES = 4
WIDTHS_PER_OCTAVE = 8
NARROWEST = WIDTHS_PER_OCTAVE * round(math.log2(UNIT))  # narrower cells separate no more coordinates


@dataclass(frozen=True)
class HashFamily:
    """L tables of keys made of K values ``floor(a.x / w + b)`` each, with ``a ~ N(0, I)`` and ``b ~ U[0, 1)``.

    Attributes:
        directions: K x L x P whole multiples of ``DIRECTION_UNIT``.
        offsets: K x L x 1.
        multipliers: K x L x 1 whole numbers below 2^31 that mix the values into one key.
    """

    directions: torch.Tensor
    offsets: torch.Tensor
    multipliers: torch.Tensor

    @classmethod
    def sample(cls, dimension: int, num_tables: int, num_hashes: int, seed: int, device: torch.device) -> HashFamily:
        """Draw a family for P-dimensional coordinates; the same seed gives the same family on every device."""
        rng = np.random.default_rng([seed, 1])
        shape = num_tables, num_hashes
        directions = np.rint(rng.standard_normal((dimension, *shape)) / DIRECTION_UNIT)
        offsets = rng.random((1, *shape))
        multipliers = rng.integers(MULTIPLIERS, size=(1, *shape)).astype(np.float64)
        drawn = (directions, offsets, multipliers)
        return cls(*(torch.from_numpy(each.T.copy()).to(device) for each in drawn))

    @property
    def num_tables(self) -> int:
        """Number L of tables."""
        return self.directions.shape[1]

    def keys(self, coordinates: torch.Tensor, width: float) -> torch.Tensor:
        """Return the L x N int32 keys of N x P coordinates."""
        blocks = torch.split(coordinates, ROWS_AT_ONCE)
        return torch.cat([self._mix(self._project(block), width) for block in blocks], dim=1)

    def _project(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Return the exact K x L x N projections of N x P coordinates."""
        projected = self.directions.flatten(0, 1) @ coordinates.double().T
        return projected.mul_(UNIT * DIRECTION_UNIT).view(*self.offsets.shape[:2], -1)

    def _mix(self, projected: torch.Tensor, width: float) -> torch.Tensor:
        keys = projected.new_zeros(projected.shape[1:])
        # Exact up to 2^53: with a dozen hashes for cells up to 2^18.
        for values, offsets, multipliers in zip(projected, self.offsets, self.multipliers, strict=True):
            keys.addcmul_((values * (1 / width)).add_(offsets).floor_(), multipliers)
        return keys.long().to(torch.int32)  # The lower half, in which keys differ as surely as needed.

    def find_width(self, coordinates: torch.Tensor, reaches: Callable[[torch.Tensor], bool]) -> float:
        """Return the smallest of the widths 2^(i/8) that satisfies a condition wider buckets satisfy too.

        A coarse grid, so that single samples, outliers above all, hardly ever move all the buckets.

        Args:
            coordinates: N x P.
            reaches: Judges the keys, 4 x N, that a width gives in the first tables.
        """
        if bool((coordinates == coordinates[0]).all()):
            return 1.0  # Any width will do.
        parts = (self.directions, self.offsets, self.multipliers)
        family = HashFamily(*(part[:, :CALIBRATION_TABLES] for part in parts))
        projected = torch.cat([family._project(block) for block in torch.split(coordinates, ROWS_AT_ONCE)], dim=2)

        def is_enough(step: int) -> bool:
            return reaches(family._mix(projected, 2 ** (step / WIDTHS_PER_OCTAVE)))

        high, stride = 0, 2 * WIDTHS_PER_OCTAVE
        while not is_enough(high):
            high += stride
        low = high - stride
        while low > NARROWEST and is_enough(low):
            high, low = low, low - stride
        while high - low > 1:
            middle = (low + high) // 2
            if is_enough(middle):
                high = middle
            else:
                low = middle
        return float(2 ** (high / WIDTHS_PER_OCTAVE))


def bucket_numbers(keys: torch.Tensor) -> torch.Tensor:
    """Number the buckets of each table: L x N int32 below N from L x N keys.

    Example:
        >>> bucket_numbers(torch.tensor([[5, 3, 5, 9]]))
        tensor([[1, 0, 1, 2]], dtype=torch.int32)
    """
    keys, order = keys.sort(dim=1)
    is_new = torch.zeros_like(keys, dtype=torch.int32)
    is_new[:, 1:] = keys[:, 1:] != keys[:, :-1]
    return torch.empty_like(is_new).scatter_(1, order, is_new.cumsum(1, dtype=torch.int32))


def others_in_bucket(keys: torch.Tensor) -> torch.Tensor:
    """Count, table by table, the other samples of a set that share each sample's key: L x N from L x N keys."""
    numbers = bucket_numbers(keys).long()
    sizes = torch.zeros_like(numbers).scatter_add_(1, numbers, torch.ones_like(numbers))
    return sizes.gather(1, numbers) - 1
