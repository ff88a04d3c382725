"""Samples of a model in training, scored and logged now and then."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torch_fidelity_lsh.fidelity.distributed import rank_and_size
from torch_fidelity_lsh.streaming import LSHPrecisionRecall

Sample = Callable[[int, torch.Generator], Tensor]
Log = Callable[[dict[str, float], int], object]


class TrainingMonitor:
    """Scores samples of a model while it trains, and logs the scores.

    All ranks of ``torch.distributed`` must call it. They share the samples, which are the same for any number of ranks,
    and get the same scores; the first one logs.

    Args:
        metric: What scores them, on the device of the images; it must keep its real samples, which are added once.
        real: Batches of real images, as the metric takes them, or pairs that begin with such; under several ranks each
            gives its share, as a loader of a ``DistributedSampler`` or of accelerate does.
        sample: Called as ``sample(n, random)`` without gradients, returns n images. All its randomness comes from the
            ``torch.Generator``, of the CPU, that it is given.
        logs: Each is called as ``log(scores, step)``: ``accelerator.log``, ``wandb.log``, :func:`to_tensorboard`.
        samples: Number of samples. Default: 1000.
        batch_size: Samples at a time. Default: 64.
        prefix: Of the names of the scores. Default: ``"fidelity/"``.
        seed: Of the samples, the same at every step. Default: 2020.

    Raises:
        ValueError: A number is too small, or the metric forgets its real samples.

    Example:
        >>> from torch_fidelity_lsh.streaming import LSHPrecisionRecall
        >>> metric = LSHPrecisionRecall(feature=None, reset_real_features=False)
        >>> real = torch.randn(4, 100, 8, generator=torch.Generator().manual_seed(0))
        >>> draw = lambda n, random: torch.randn(n, 8, generator=random)
        >>> monitor = TrainingMonitor(metric, real, draw, logs=[lambda scores, step: print(step, *scores)], samples=400)
        >>> scores = monitor(step=10)
        10 fidelity/lsh_precision fidelity/lsh_recall fidelity/lsh_f_score
    """

    def __init__(
        self,
        metric: LSHPrecisionRecall,
        real: Iterable[Any],
        sample: Sample,
        logs: Sequence[Log] = (),
        samples: int = 1000,
        batch_size: int = 64,
        prefix: str = "fidelity/",
        seed: int = 2020,
    ) -> None:
        for name, value, least in (("samples", samples, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
        if metric.reset_real_features:
            raise ValueError("metric must keep its real samples: LSHPrecisionRecall(..., reset_real_features=False)")
        self.metric, self.sample, self.logs = metric, sample, tuple(logs)
        self.samples, self.batch_size, self.prefix, self.seed = samples, batch_size, prefix, seed
        self._real: Iterable[Any] | None = real

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """Score samples of the model as it is now, log the scores, and return them.

        Raises:
            ValueError: ``sample`` returns another number of images, or the metric refuses them.
        """
        self._add_real()
        rank, size = rank_and_size()
        try:
            for number, start in enumerate(range(0, self.samples, self.batch_size)):
                if number % size == rank:
                    self.metric.update(self._drawn(number, min(self.batch_size, self.samples - start)), real=False)
            scores = {f"{self.prefix}{name}": value.item() for name, value in self.metric.compute().items()}
        finally:  # What a failed call has drawn must not count in the next one.
            self.metric.reset()
        if rank == 0:
            for log in self.logs:
                log(dict(scores), step)
        return scores

    def _add_real(self) -> None:
        if self._real is None:
            return
        for batch in self._real:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            self.metric.update(_on(images, self.metric.device), real=True)
        self._real = None

    def _drawn(self, number: int, count: int) -> Tensor:
        images = self.sample(count, torch.Generator().manual_seed(seed_of_batch(self.seed, number)))
        if not isinstance(images, Tensor) or len(images) != count:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"sample(n, random) must return a tensor of n images; got {got} for n={count}")
        return images.to(self.metric.device)


def seed_of_batch(seed: int, number: int) -> int:
    """Return a seed that no batch of another seed has: those of neighbouring seeds must not share samples."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _on(images: Any, device: torch.device) -> Any:
    return images.to(device) if isinstance(images, Tensor) else images  # A wrong type is the metric's to refuse.


class Writer(Protocol):
    """What writes scalars: ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Write one."""
        ...


def to_tensorboard(writer: Writer | str | os.PathLike[str]) -> Log:
    """Return what logs scores to TensorBoard.

    Args:
        writer: A ``SummaryWriter``, or the folder of a new one.

    Raises:
        ImportError: tensorboard is not installed.
    """
    if isinstance(writer, (str, os.PathLike)):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(f"This needs tensorboard ({error}): pip install tensorboard") from error
        writer = SummaryWriter(os.fspath(writer))
    target: Any = writer

    def log(scores: dict[str, float], step: int) -> None:
        for name, value in scores.items():
            target.add_scalar(name, value, step)
        if hasattr(target, "flush"):
            target.flush()

    return log
