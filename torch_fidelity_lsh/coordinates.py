"""From features to the coordinates that are hashed, fitted on the real features alone.

Coordinates are whole numbers (of a fine unit) held in float64, and hash directions are whole numbers too. All sums of
products that follow are then exact, so that keys, distances and results are the same to the last digit whatever the
order of rows, the batch size, the number of threads or the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.config import ResolvedConfig

UNIT = 2.0**-18  # of a coordinate; squared distances of clamped coordinates stay below 2**53 units
CLAMP = 64.0

# Spread of the norm coordinate among real samples, where the others have length about 1.
NORM_WEIGHT = {"polar": 0.5, "radial": 0.1, "euclidean": 0.0}
SOFTENING = 1.5  # samples within so many spreads of the centre keep a direction shorter than 1


@dataclass(frozen=True)
class Coordinates:
    """A fitted map from features to coordinates.

    Attributes:
        projection: D x P random projection, or `None` to keep the D features.
        centre: P centre of the real samples, outliers left out.
        norm: Median distance of real samples to the centre.
        norm_spread: Half the distance between the 16 % and 84 % quantiles of that distance.
        config: Settings in force.
    """

    projection: torch.Tensor | None
    centre: torch.Tensor
    norm: float
    norm_spread: float
    config: ResolvedConfig

    @classmethod
    def fit(cls, features_real: torch.Tensor, config: ResolvedConfig) -> tuple[Coordinates, torch.Tensor]:
        """Fit the map on N x D real features; return it with their N x P' coordinates.

        The random projection does not look at the data: directions fitted on the real samples, as principal
        components are, would describe those better than any other draw of the same distribution.
        """
        dimension = features_real.shape[1]
        projection = None
        if dimension > config.num_components:
            rng = np.random.default_rng([config.seed, 0])
            matrix = rng.standard_normal((dimension, config.num_components)) / np.sqrt(config.num_components)
            projection = torch.from_numpy(matrix).to(features_real.device)
        projected = _project(features_real, projection, config.batch_size)
        centre = _robust_mean(projected)
        norms = _norms(projected - centre)
        norm = _quantile(norms, 0.5)
        spread = (_quantile(norms, 0.84) - _quantile(norms, 0.16)) / 2
        tiny = torch.finfo(torch.float64).tiny
        fitted = cls(projection, centre, max(norm, tiny), max(spread, 0.01 * norm, tiny), config)
        return fitted, fitted._from_projected(projected)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the N x P' coordinates of N x D features, in units of ``UNIT``, as float64 whole numbers."""
        return self._from_projected(_project(features, self.projection, self.config.batch_size))

    def _from_projected(self, projected: torch.Tensor) -> torch.Tensor:
        centred = projected - self.centre
        norms = _norms(centred)[:, None]
        length: torch.Tensor | float = self.norm
        if self.config.coordinates == "polar":
            length = torch.hypot(norms, norms.new_tensor(SOFTENING * self.norm_spread))
        excess = NORM_WEIGHT[self.config.coordinates] * (norms - self.norm) / self.norm_spread
        return torch.cat([centred / length, excess], dim=1).clamp_(-CLAMP, CLAMP).div_(UNIT).round_()


def _project(features: torch.Tensor, projection: torch.Tensor | None, batch_size: int) -> torch.Tensor:
    # In float64: differences in the order of summation then stay far below the unit of the coordinates.
    blocks = (block.double() for block in torch.split(features, batch_size))
    return torch.cat([block if projection is None else block @ projection for block in blocks])


def _robust_mean(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean of the rows within three median distances of the mean, in two rounds."""
    mean = rows.mean(0)
    for _ in range(2):
        distances = _norms(rows - mean)
        mean = rows[distances <= 3 * _quantile(distances, 0.5)].mean(0)
    return mean


def _norms(rows: torch.Tensor) -> torch.Tensor:
    return rows.square().sum(1).sqrt()


def _quantile(values: torch.Tensor, q: float) -> float:
    return values.kthvalue(1 + round(q * (len(values) - 1))).values.item()


def content_hash(coordinates: torch.Tensor) -> torch.Tensor:
    """Return N int64 numbers, pseudo-random but the same for equal rows of N x P coordinates."""
    rng = np.random.default_rng(coordinates.shape[1])
    multipliers = torch.from_numpy(rng.integers(-(2**63), 2**63, coordinates.shape[1], dtype=np.int64) | 1)
    return (coordinates.long() * multipliers.to(coordinates.device)).sum(1)


def distinct(coordinates: torch.Tensor) -> torch.Tensor:
    """Return the rows of N x P coordinates, of equal ones only one, in an order that depends on the rows alone."""
    hashes, order = content_hash(coordinates).sort()
    is_first = torch.ones_like(hashes, dtype=torch.bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    return coordinates[order[is_first]]
