"""From reduced features to the positions between which distances are taken.

Positions are whole numbers of a fine unit. Sums of their products are then exact in floating point, so that distances
and results are the same to the last digit whatever the order of rows, the number of threads or the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from torch_fidelity_lsh.metric.parallel import mapped, shared

# A coordinate holds up to 2^24 units, which float32 does exactly.
UNIT = 2.0**-18
CLAMP = 64.0
ROWS_AT_ONCE = 1024
SUMMED_AT_ONCE = 4096

NORM_WEIGHT = 0.1  # spread of the norm coordinate in the fitted set, where the others have length about 1

# More than these are rounded to a thousandth of the typical distance to the centre: squared distances are then whole
# numbers that are exact in float32, unless they are far out.
FEW_DIMENSIONS = 17
COARSE = 2.0**-8


@dataclass(frozen=True)
class Coordinates:
    """A map from reduced features to positions: features about their centre, and how unusual their norm is.

    In many dimensions distances hardly change with the norm; the further coordinate keeps what the norm tells.

    Attributes:
        centre: P centre of the fitted set, outliers left out.
        norm: Median distance to the centre.
        norm_spread: Half the distance between the 16 % and 84 % quantiles of that distance.
    """

    centre: torch.Tensor
    norm: float
    norm_spread: float

    @classmethod
    def fit(cls, values: torch.Tensor) -> Coordinates:
        """Fit the map on N x P reduced features."""
        centre = _robust_mean(values)
        norms = distances_to(centre, values)
        norm = _quantile(norms, 0.5)
        spread = (_quantile(norms, 0.84) - _quantile(norms, 0.16)) / 2
        tiny = torch.finfo(torch.float64).tiny
        return cls(centre, max(norm, tiny), max(spread, 0.01 * norm, tiny))

    @property
    def unit(self) -> float:
        """Unit of positions, in those of coordinates."""
        return 1.0 if len(self.centre) < FEW_DIMENSIONS else 1 / COARSE

    def __call__(self, reduced: torch.Tensor) -> torch.Tensor:
        """Return the B x (P + 1) positions of B x P reduced features, float32 whole numbers."""
        centred = reduced - self.centre
        excess = NORM_WEIGHT * (_norms(centred) - self.norm) / self.norm_spread
        positions = torch.empty(len(reduced), len(self.centre) + 1, device=reduced.device)
        limit = CLAMP / UNIT
        positions[:, :-1] = centred.div_(self.norm * UNIT).clamp_(-limit, limit).round_()
        positions[:, -1] = excess.div_(UNIT).clamp_(-limit, limit).round_()
        return positions if self.unit == 1 else positions.div_(self.unit).round_()


def _robust_mean(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean of the rows within three median distances of the mean, in two rounds."""
    chosen = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    mean = _mean(rows, chosen)
    for _ in range(2):
        distances = distances_to(mean, rows)
        mean = _mean(rows, (distances <= 3 * _quantile(distances, 0.5)).double())
    return mean


def _mean(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    blocks = zip(torch.split(rows, SUMMED_AT_ONCE), torch.split(weights, SUMMED_AT_ONCE), strict=True)
    return torch.stack(mapped(lambda block: block[1] @ block[0].double(), blocks)).sum(0) / weights.sum()


def by_blocks(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Apply a function to some rows at a time, so that what it needs on the way stays small."""
    return torch.cat(shared(function, torch.split(rows, ROWS_AT_ONCE)))


def distances_to(centre: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the N distances of N x P rows to one place."""
    return by_blocks(lambda block: _norms(block - centre), rows)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    return rows.square().sum(1).sqrt()


def _quantile(values: torch.Tensor, q: float) -> float:
    return values.kthvalue(1 + round(q * (len(values) - 1))).values.item()
