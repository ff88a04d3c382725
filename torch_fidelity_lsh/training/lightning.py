"""The monitor as a callback of Lightning; needs the package ``lightning``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(f'This needs lightning ({error}): pip install "torch-fidelity-lsh[training]"') from error

from torch_fidelity_lsh.streaming import LSHPrecisionRecall
from torch_fidelity_lsh.training.monitor import TrainingMonitor


class LightningMonitor(Callback):  # type: ignore[misc]
    """Scores samples of a module at the end of training epochs, and logs the scores with the module's loggers.

    The trainer knows the scores, as ``ModelCheckpoint(monitor="fidelity/lsh_f_score", mode="max")`` wants them.

    Args:
        metric: As that of :class:`TrainingMonitor`; it is moved to the module's device.
        real: As there.
        sample: Called as ``sample(module, n, random)``, returns n images of the module, which is in eval mode.
        every_n_epochs: Epochs between two scores. Default: 1.
        **settings: ``samples``, ``batch_size``, ``prefix`` and ``seed``, as there.

    Raises:
        ValueError: As there.
    """

    def __init__(
        self,
        metric: LSHPrecisionRecall,
        real: Iterable[Any],
        sample: Callable[[Any, int, torch.Generator], Tensor],
        every_n_epochs: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not isinstance(every_n_epochs, int) or every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be an integer of at least 1; got {every_n_epochs!r}")
        self.every_n_epochs = every_n_epochs
        self._module: LightningModule | None = None
        self._monitor = TrainingMonitor(metric, real, lambda n, random: sample(self._module, n, random), **settings)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score and log."""
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        self._monitor.metric.to(pl_module.device)
        modes = [(module, module.training) for module in pl_module.modules()]
        self._module = pl_module.eval()
        try:
            scores = self._monitor(trainer.global_step)
        finally:
            self._module = None
            for module, training in modes:
                module.training = training
        # Equal on all ranks, and told to all, since each chooses checkpoints.
        pl_module.log_dict(scores, on_epoch=True, sync_dist=trainer.world_size > 1)
