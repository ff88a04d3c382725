"""From reduced features to the coordinates that are hashed, fitted on the real ones alone.

Coordinates are whole numbers of a fine unit, and hash directions are whole numbers too. All sums of products that
follow are then exact in float64, so that keys, distances and results are the same to the last digit whatever the order
of rows, the number of threads or the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

# A coordinate holds up to 2^24 units, which float32 does exactly.
UNIT = 2.0**-18
CLAMP = 64.0
ROWS_AT_ONCE = 4096

# Spread of the norm coordinate among real samples, where the others have length about 1.
NORM_WEIGHT = {"polar": 0.5, "radial": 0.1, "euclidean": 0.0}
SOFTENING = 1.5  # samples within so many spreads of the centre keep a direction shorter than 1


@dataclass(frozen=True)
class Coordinates:
    """A fitted map from reduced features to coordinates.

    Attributes:
        kind: ``LSHConfig.coordinates``.
        centre: P centre of the real samples, outliers left out.
        norm: Median distance of real samples to the centre.
        norm_spread: Half the distance between the 16 % and 84 % quantiles of that distance.
    """

    kind: str
    centre: torch.Tensor
    norm: float
    norm_spread: float

    @classmethod
    def fit(cls, real: torch.Tensor, kind: str) -> Coordinates:
        """Fit the map on N x P reduced features of the real samples."""
        centre = _robust_mean(real)
        norms = _distances(real, centre)
        norm = _quantile(norms, 0.5)
        spread = (_quantile(norms, 0.84) - _quantile(norms, 0.16)) / 2
        tiny = torch.finfo(torch.float64).tiny
        return cls(kind, centre, max(norm, tiny), max(spread, 0.01 * norm, tiny))

    def __call__(self, reduced: torch.Tensor) -> torch.Tensor:
        """Return the N x (P + 1) coordinates of N x P reduced features, float32 whole numbers of ``UNIT``."""
        return by_blocks(self._of_block, reduced)

    def _of_block(self, reduced: torch.Tensor) -> torch.Tensor:
        centred = reduced - self.centre
        norms = _norms(centred)[:, None]
        length: torch.Tensor | float = self.norm
        if self.kind == "polar":
            length = torch.hypot(norms, norms.new_tensor(SOFTENING * self.norm_spread))
        excess = NORM_WEIGHT[self.kind] * (norms - self.norm) / self.norm_spread
        return torch.cat([centred.div_(length), excess], dim=1).clamp_(-CLAMP, CLAMP).div_(UNIT).round_().float()


def _robust_mean(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean of the rows within three median distances of the mean, in two rounds."""
    chosen = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    mean = _mean(rows, chosen)
    for _ in range(2):
        distances = _distances(rows, mean)
        mean = _mean(rows, (distances <= 3 * _quantile(distances, 0.5)).double())
    return mean


def _mean(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    blocks = zip(torch.split(rows, ROWS_AT_ONCE), torch.split(weights, ROWS_AT_ONCE), strict=True)
    return torch.stack([w @ block.double() for block, w in blocks]).sum(0) / weights.sum()


def by_blocks(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Apply a function to some rows at a time, so that what it needs on the way stays small."""
    return torch.cat([function(block) for block in torch.split(rows, ROWS_AT_ONCE)])


def _distances(rows: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    return by_blocks(lambda block: _norms(block - centre), rows)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    return rows.square().sum(1).sqrt()


def _quantile(values: torch.Tensor, q: float) -> float:
    return values.kthvalue(1 + round(q * (len(values) - 1))).values.item()


def content_hash(coordinates: torch.Tensor) -> torch.Tensor:
    """Return N int64 numbers, pseudo-random but the same for equal rows of N x P coordinates."""
    rng = np.random.default_rng(coordinates.shape[1])
    multipliers = torch.from_numpy(rng.integers(-(2**63), 2**63, coordinates.shape[1], dtype=np.int64) | 1)
    multipliers = multipliers.to(coordinates.device)
    return by_blocks(lambda rows: (rows.long() * multipliers).sum(1), coordinates)


def distinct(coordinates: torch.Tensor) -> torch.Tensor:
    """Return the rows of N x P coordinates, of equal ones only one, in an order that depends on the rows alone."""
    hashes, order = content_hash(coordinates).sort()
    is_first = torch.ones_like(hashes, dtype=torch.bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    return coordinates[order[is_first]]
