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
MULTIPLIERS = 2**31

CALIBRATION_TABLES = 4
WIDTHS_PER_OCTAVE = 8


@dataclass(frozen=True)
class HashFamily:
    """L tables of keys made of K values ``floor(a.x / w + b)`` each, with ``a ~ N(0, I)`` and ``b ~ U[0, 1)``.

    Attributes:
        directions: P x (L K) whole multiples of ``DIRECTION_UNIT``.
        offsets: L x K.
        multipliers: L x K whole numbers below 2^31 that mix the values into one key.
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
        multipliers = rng.integers(MULTIPLIERS, size=shape).astype(np.float64)
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
        """Return the L x N keys, whole numbers in float64, of N x P coordinates, one tensor for each bucket width."""
        blocks = [self._keys_of_block(block, widths) for block in torch.split(coordinates, self.batch_size)]
        return [torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True)]

    def _keys_of_block(self, block: torch.Tensor, widths: tuple[float, ...]) -> list[torch.Tensor]:
        projected = (block @ self.directions).view(len(block), *self.offsets.shape)
        return [self._mix(projected, width) for width in widths]

    def _mix(self, projected: torch.Tensor, width: float) -> torch.Tensor:
        cells = projected.mul(UNIT * DIRECTION_UNIT / width).add_(self.offsets).floor_()
        # Exact, in any order of summation, up to 2^53: with a dozen hashes for cells up to 2^18.
        return torch.einsum("nlk,lk->ln", cells, self.multipliers).contiguous()

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


@dataclass(frozen=True)
class Buckets:
    """The buckets of N samples in L tables.

    Places are positions in sorted order; a bucket lies from its start up to its end.

    Attributes:
        keys: L x N, sorted in each row.
        order: L x N rows of the samples in that order.
        starts: L x N places where the bucket of the sample in each place starts.
        ends: L x N places where it ends.
    """

    keys: torch.Tensor
    order: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(cls, keys: torch.Tensor) -> Buckets:
        """Sort L x N keys."""
        keys, order = keys.sort(dim=1, stable=True)
        size = keys.shape[1]
        places = torch.arange(size, device=keys.device).expand_as(keys)
        is_edge = torch.nn.functional.pad(keys[:, 1:] != keys[:, :-1], (1, 1), value=True)
        starts = places.masked_fill(~is_edge[:, :-1], 0).cummax(1).values
        ends = (places + 1).masked_fill(~is_edge[:, 1:], size).flip(1).cummin(1).values.flip(1)
        return cls(keys, order, starts, ends)

    def find(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the L x M starts and ends of the buckets that belong to L x M keys.

        Example:
            >>> start, end = Buckets.of(torch.tensor([[3, 5, 5]])).find(torch.tensor([[5, 4, 3]]))
            >>> end - start
            tensor([[2, 0, 1]])
        """
        start = torch.searchsorted(self.keys, keys)
        place = start.clamp(max=self.keys.shape[1] - 1)
        end = torch.where(self.keys.gather(1, place) == keys, self.ends.gather(1, place), start)
        return start, end

    def find_own(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the L x N starts and ends of the samples' own buckets."""
        return self._by_sample(self.starts), self._by_sample(self.ends)

    @property
    def collisions(self) -> float:
        """Probability in [0, 1] that two of the samples share a bucket."""
        tables, size = self.keys.shape
        return int((self.ends - self.starts - 1).sum()) / (tables * size * max(1, size - 1))

    def sums(self, values: torch.Tensor, found: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Sum N values, whole multiples of a unit, over each of the L x M buckets found."""
        start, end = found
        running = torch.nn.functional.pad(values[self.order].cumsum(1), (1, 0))
        return running.gather(1, end) - running.gather(1, start)

    def _by_sample(self, by_place: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(by_place).scatter_(1, self.order, by_place)


def others_in_bucket(keys: torch.Tensor) -> torch.Tensor:
    """Count, table by table, the other samples of a set that share each sample's key: L x N from L x N keys."""
    start, end = Buckets.of(keys).find_own()
    return end - start - 1


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
