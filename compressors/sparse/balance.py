"""The balance ratio: how much of the gap between real and generated scores one step of the generator closes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compressors.common.checks import check_choice, check_count
from compressors.common.measure import copied
from compressors.errors import CompressionError
from compressors.sparse.distributed import mean_over_ranks
from compressors.sparse.spectral import without_power_iteration

ESTIMATORS = ("ratio_of_means", "mean_ratio")

# A gap this small beside the scores themselves is rounding of float32.
_SMALLEST_GAP = 1e-6


@dataclass(frozen=True)
class BalanceConfig:
    """How the balance ratio is measured.

    Attributes:
        every: iterations between measurements. Default 10.
        window: measurements that make one estimate. Default 100.
        estimator: "ratio_of_means" (default): gain over gap, both averaged over the window; "mean_ratio": the mean of
            the window's ratios, as in the authors' code, which single measurements with a small gap dominate.
    """

    every: int = 10
    window: int = 100
    estimator: str = "ratio_of_means"

    def __post_init__(self) -> None:
        check_count("every", self.every)
        check_count("window", self.window)
        check_choice("estimator", self.estimator, ESTIMATORS)


class Scores(NamedTuple):
    """Mean scores of generated images before and after a step of the generator, same latents, and of real images."""

    before: float
    after: float
    real: float


def balance_ratio(scores: Sequence[Scores], estimator: str = "ratio_of_means") -> float:
    """Return (after - before) / (real - before) over some measurements.

    0: the step of the generator changed nothing; 1: it closed the gap. High values mean that the discriminator is too
    weak, low values that it is too strong. The ratio is the same for any positive multiple of the scores and any
    offset to them.

    Returns:
        NaN where there is no measurement, or one is not finite: nothing is known. Infinity where real images do not
        score higher than generated ones: the discriminator is too weak to tell them apart. "mean_ratio" leaves out
        single measurements of this kind.

    Source: Wang et al. 2023, "Balanced Training for Sparse GANs" (NeurIPS 2023), balance ratio.

    Example:
        >>> balance_ratio([Scores(before=-1.0, after=0.0, real=1.0)])
        0.5
    """
    if not scores or not all(map(math.isfinite, (value for row in scores for value in row))):
        return math.nan
    before, after, real = (fmean(column) for column in zip(*scores, strict=True))
    if not _separated(Scores(before, after, real)):
        return math.inf
    if estimator == "ratio_of_means":
        return (after - before) / (real - before)
    return fmean((s.after - s.before) / (s.real - s.before) for s in scores if _separated(s))


def _separated(scores: Scores) -> bool:
    return scores.real - scores.before > _SMALLEST_GAP * (abs(scores.real) + abs(scores.before))


class BalanceMeter:
    """The last measurements, and the balance ratio over them."""

    def __init__(self, config: BalanceConfig | None = None) -> None:
        self.config = config or BalanceConfig()
        self.scores: deque[Scores] = deque(maxlen=self.config.window)

    def push(self, scores: Scores) -> None:
        """Add a measurement; the oldest goes when the window is full."""
        self.scores.append(scores)

    @property
    def ratio(self) -> float:
        """The balance ratio over the measurements so far; NaN without any."""
        return balance_ratio(self.scores, self.config.estimator)

    @property
    def full_ratio(self) -> float | None:
        """The balance ratio that decisions are made on: None until the window is full."""
        return self.ratio if len(self.scores) == self.config.window else None


@torch.no_grad()
def measured_scores(
    generator: nn.Module,
    discriminator: nn.Module,
    latents: tuple[Any, ...],
    real: tuple[Any, ...],
    scores_before: Tensor,
) -> Scores:
    """Score the generator after its step, and real images, without side effects.

    Both networks stay in their mode, so that batch norm uses batches as in the loss, but parameters, buffers, singular
    vectors of spectral norm and random state are afterwards what they were.

    Args:
        generator: after its step.
        discriminator: as it was when `scores_before` came about; returns one tensor of scores, without sigmoid.
        latents: forward arguments of the generator, the same as for `scores_before`; what follows the first is given to
            the discriminator as well, as in ``discriminator(generator(z, labels), labels)``.
        real: forward arguments of the discriminator for real images.
        scores_before: the discriminator's scores of what the generator made of `latents` before its step.

    Returns:
        Means over the batch, and over all ranks where training is distributed.

    Raises:
        CompressionError: the discriminator does not return one tensor.
    """
    networks = generator, discriminator
    cuda = {tensor.device for network in networks for tensor in network.parameters() if tensor.is_cuda}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(cuda)))
        for network in networks:
            stack.enter_context(without_power_iteration(network))
        fake = _untouched(generator, latents)
        after = _untouched(discriminator, (fake, *latents[1:]))
        truth = _untouched(discriminator, real)
    return Scores(*mean_over_ranks([_mean(scores_before), _mean(after), _mean(truth)], scores_before.device))


def _untouched(network: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """Return a forward pass on copies of the buffers and of the arguments."""
    copies = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return torch.func.functional_call(network, copies, copied(arguments))


def _mean(scores: Any) -> float:
    if not isinstance(scores, Tensor):
        raise CompressionError(f"the discriminator must return one tensor of scores; got {type(scores).__name__}")
    return float(scores.double().mean())
