"""Memorisation: the share of generated samples that lie nearer to training samples than held-out real ones do."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.functional import Features, reduced_alike
from torch_fidelity_lsh.metric.guard import default_modes

LEVEL = 0.02
"""A sample is nearer than held-out ones if at most this share of them is as near."""
FEWEST_HELD_OUT = 100  # of which two are at least as near as the level
FEWEST_TRAINING = 20
_NEIGHBOUR = 5  # the distance to it among training samples is their unit of distance
_BLOCK = 2**22  # distances held at a time


@dataclass(frozen=True)
class Memorization:
    """The share of generated samples that are copies of training samples, more or less exact.

    Attributes:
        share: The share in [0, 1]; its expectation is 0 where generated samples are as near to training samples as
            held-out ones are, and less before it is clipped at 0 where they are further.
        stderr: Its standard error, over generated and held-out samples.
        pvalues: Conformal p-value in (0, 1) of each generated sample, float64: the share of held-out samples that are
            as near to training samples. Copies have the lowest.
        nearest: Row of the training sample that is nearest to each generated one.
        num_training: Number of training samples.
        num_held_out: Number of held-out samples.
    """

    share: float
    stderr: float
    pvalues: torch.Tensor = field(repr=False)
    nearest: torch.Tensor = field(repr=False)
    num_training: int
    num_held_out: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval, within [0, 1]."""
        return max(0.0, self.share - 1.96 * self.stderr), min(1.0, self.share + 1.96 * self.stderr)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as what JSON can hold."""
        low, high = self.interval
        sizes = {"num_training": self.num_training, "num_held_out": self.num_held_out}
        return {"memorization": self.share, "stderr": self.stderr, "ci_low": low, "ci_high": high, **sizes}

    def __str__(self) -> str:
        low, high = self.interval
        sizes = f"{len(self.pvalues)} generated, {self.num_training} training, {self.num_held_out} held-out samples"
        return f"memorization {self.share:.3f} [{low:.3f}, {high:.3f}] ({sizes})"


@default_modes()
def memorization(
    features_generated: Features,
    features_training: Features,
    features_held_out: Features,
    config: LSHConfig | None = None,
) -> Memorization:
    """Estimate the share of generated samples that are copies of training samples.

    A sample's distance to the nearest training sample y is measured in units of the distance of y to its fifth nearest
    other training sample. Its rank among those of held-out real samples, which cannot have been copied, is a conformal
    p-value (Vovk et al., 2005), uniform where the generator draws from the distribution. q, the share of generated
    samples with a p-value of at most t = .02, is t then; the share of copies is (q - t) / (1 - t).

    Distances are those of the reduced features, all pairs, a block at a time: minutes for 50,000 against 50,000.

    Args:
        features_generated: M x D, float tensor or array, or reduced.
        features_training: What the generator was trained on, N x D; N >= 20 distinct rows.
        features_held_out: Real samples that it was not trained on, drawn as those were; at least 100.
        config: Settings, of which ``num_components`` and ``seed`` matter. Default: ``LSHConfig()``.

    Raises:
        ValueError: Features have the wrong type or shape, hold NaN or infinite values, are too few, or differ in D,
            extractor or device.

    Warns:
        UserWarning: More held-out samples than t are themselves training samples, so that copies cannot be told.

    Example:
        >>> import torch
        >>> training, held_out, generated = torch.randn(3, 500, 16, generator=torch.Generator().manual_seed(0))
        >>> memorization(generated, training, held_out).interval[0]
        0.0
        >>> generated[:100] = training[:100]
        >>> 0.15 < memorization(generated, training, held_out).share < 0.25
        True
    """
    config = config or LSHConfig()
    sides = {"features_generated": features_generated, "features_training": features_training}
    sides["features_held_out"] = features_held_out
    generated, training, held_out = reduced_alike(sides, config)
    values = training.values.double()
    distinct, row_of = torch.unique(values, dim=0, return_inverse=True)
    if len(distinct) < FEWEST_TRAINING:
        raise ValueError(
            f"features_training must hold at least {FEWEST_TRAINING} distinct samples; got {len(distinct)}"
        )
    if len(held_out) < FEWEST_HELD_OUT:
        raise ValueError(f"features_held_out must hold at least {FEWEST_HELD_OUT} samples; got {len(held_out)}")
    units = _smallest(distinct, distinct, _NEIGHBOUR + 1)[0][:, -1]
    (near, found), (near_held_out, found_held_out) = (
        _smallest(side.values.double(), distinct, 1) for side in (generated, held_out)
    )
    scores = (near / units[found])[:, 0]
    calibration = (near_held_out / units[found_held_out])[:, 0].sort().values
    _warn_of_leaks(calibration)
    return _estimate(scores, calibration, _first_row(row_of, len(distinct))[found[:, 0]].cpu(), len(training))


def _estimate(scores: torch.Tensor, calibration: torch.Tensor, nearest: torch.Tensor, training: int) -> Memorization:
    n = len(calibration)
    low = torch.searchsorted(calibration, scores).double() / (n + 1)
    high = (torch.searchsorted(calibration, scores, right=True) + 1).double() / (n + 1)
    below = ((LEVEL - low) / (high - low)).clamp(0, 1)  # share of [low, high], over which ties are spread
    q = float(below.mean())
    share = (q - LEVEL) / (1 - LEVEL)
    # Of the generated samples, and of the place of the held-out ones' quantile, which those that are no copies feel.
    variance = q * (1 - q) / len(scores) + (1 - max(0.0, share)) ** 2 * LEVEL * (1 - LEVEL) / (n + 2)
    stderr = math.sqrt(variance) / (1 - LEVEL)
    return Memorization(max(0.0, share), stderr, ((low + high) / 2).cpu(), nearest, training, n)


def _smallest(rows: torch.Tensor, others: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest distances of each row to others, and whose they are."""
    parts = []
    for block in torch.split(rows, max(1, _BLOCK // len(others))):
        # Not by products, which lose the small distances that matter here.
        distances = torch.cdist(block, others, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(distances.topk(number, dim=1, largest=False))
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _first_row(row_of: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first row of each distinct one."""
    rows = torch.arange(len(row_of), device=row_of.device)
    first = torch.full((count,), len(row_of), device=row_of.device)
    return first.scatter_reduce(0, row_of, rows, "amin")


def _warn_of_leaks(calibration: torch.Tensor) -> None:
    leaked = float((calibration == 0).double().mean())
    if leaked > LEVEL:
        warnings.warn(
            f"{leaked:.0%} of the held-out samples are training samples: what they calibrate cannot tell copies; take "
            "them out of features_held_out",
            stacklevel=4,
        )
