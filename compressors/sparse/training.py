"""Sparse training of a GAN in the user's own loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from compressors.common.average import finished_average, moving_average
from compressors.common.checks import check_module, check_values
from compressors.common.measure import device_of
from compressors.errors import CompressionError
from compressors.sparse.balance import BalanceMeter, Scores, measured_scores
from compressors.sparse.checkpoint import read_checkpoint, write_checkpoint
from compressors.sparse.config import SparseConfig
from compressors.sparse.density import Action, Decision, DensityControl
from compressors.sparse.distributed import from_first_rank
from compressors.sparse.drop_grow import drop, exchange, grow, reset_optimizer_state
from compressors.sparse.masks import MaskSet
from compressors.sparse.schedule import due
from compressors.sparse.spectral import refresh_spectral_norm


@dataclass(frozen=True)
class Status:
    """Where a training stands after an iteration.

    `balance` is the balance ratio over the window so far (NaN before the first measurement), `action` what happened
    to the discriminator's weights in this iteration.
    """

    iteration: int
    balance: float
    generator_density: float
    discriminator_density: float
    action: Action


class SparseTraining:
    """Keeps two networks sparse while the user's own loop trains them.

    Two calls go into the loop, each right after an optimizer's step and before the next ``zero_grad()``:
    `step_discriminator` with the images it was trained on, and `step_generator` with the latents and the scores of the
    generator's loss. The loop, the data and the optimizers stay the user's. Weights that are off become zero when the
    object is made: make it before state dicts are loaded.

    In a distributed training every rank makes one, around the same networks, wrapped or not; the ratio is averaged over
    all ranks and the first rank's masks hold everywhere.

    Args:
        generator: the network to make sparse.
        discriminator: the other one; returns one tensor of scores, without sigmoid.
        config: what happens to both; see `SparseConfig`.
        optimizers: both, needed for ``optimizer_state="reset"`` only.

    Raises:
        CompressionError: `config` and `optimizers` do not go together.
        UnsupportedModule: a network has no layer to mask.

    Example:
        >>> generator, discriminator = nn.Linear(8, 32), nn.Linear(32, 1)
        >>> sparse = SparseTraining(generator, discriminator, SparseConfig.static(1000, 0.25))
        >>> sparse.generator_masks.active, sparse.generator_masks.total
        (64, 256)
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        config: SparseConfig,
        optimizers: Sequence[Optimizer] = (),
    ) -> None:
        if not isinstance(config, SparseConfig):
            raise CompressionError(f"config must be a SparseConfig; got {config!r}")
        if config.optimizer_state == "reset" and not optimizers:
            raise CompressionError('optimizer_state="reset" needs optimizers: those of both networks; got none')
        self.config, self.optimizers = config, optimizers
        self.generator, self.discriminator = (
            _unwrapped("generator", generator),
            _unwrapped("discriminator", discriminator),
        )
        # Before masks are drawn: weights zeroed by masks that differed between ranks would differ for good.
        seed = int(from_first_rank(torch.tensor(config.seed), device_of(self.generator)))
        self.generator_masks = MaskSet(
            self.generator, config.generator_density, config.allocation, seed, config.generator_exclude
        )
        self.discriminator_masks = MaskSet(
            self.discriminator, config.discriminator_density, config.allocation, seed + 1, config.discriminator_exclude
        )
        self.iteration = 0
        self.discriminator_density = config.discriminator_density
        self.meter = BalanceMeter(config.balance)
        self.average = moving_average(self.generator, config.average) if config.average is not None else None
        self._random = torch.Generator().manual_seed(seed)
        self._real: tuple[Any, ...] | None = None
        self._gradients: Tensor | None = None

    def step_discriminator(self, *real: Any) -> None:
        """Zero the discriminator's weights that are off; call it after each step of its optimizer.

        Args:
            real: the forward arguments of the discriminator for the real images of this step, such as ``images`` or
                ``images, labels``; not needed where the balance ratio is not measured.
        """
        self.discriminator_masks.apply()
        self._real = real
        control = self.config.density_control
        if control is None or control.growth != "gradient":
            return
        # Kept, because the generator's loss is about to add its own to the discriminator's gradients.
        if control.due(self.iteration + 1, self.config.iterations):
            self._gradients = self.discriminator_masks.flat_gradients()

    def step_generator(self, latents: Any = None, scores: Tensor | None = None) -> Status:
        """Finish an iteration: zero weights, measure the balance, and change masks where that is due.

        Args:
            latents: the forward arguments of the generator in its loss, a tensor or a tuple such as ``(z, labels)``;
                what follows the first is given to the discriminator too. Not needed, as `scores`, where the balance
                ratio is not measured.
            scores: the discriminator's scores in the generator's loss, before the step.

        Raises:
            CompressionError: an argument is missing or holds NaN, or gradients that growth needs are gone.
        """
        self.generator_masks.apply()
        self.iteration += 1
        self._measure(latents, scores)
        self._change_generator()
        action = self._change_discriminator()
        if self.average is not None:
            self.average.update_parameters(self.generator)
        return Status(
            self.iteration,
            self.meter.ratio,
            self.generator_masks.density,
            self.discriminator_masks.density,
            action,
        )

    def finished_generator(self, batches: Iterable[Any]) -> nn.Module:
        """Return a copy of the averaged generator in eval mode, its batch norms measured on `batches` of arguments.

        Raises `CompressionError` where no average is kept, or there is no batch.
        """
        if self.average is None:
            raise CompressionError("config keeps no average of the generator: average must be a decay; got None")
        return finished_average(self.average, batches)

    def _measure(self, latents: Any, scores: Tensor | None) -> None:
        if self.config.balance is None or self.iteration % self.config.balance.every:
            return
        if latents is None or not isinstance(scores, Tensor):
            raise CompressionError(
                "the balance ratio needs step_generator(latents, scores): the arguments of the generator and the "
                f"discriminator's scores in the generator's loss; got {type(latents).__name__}, {type(scores).__name__}"
            )
        if not self._real:
            raise CompressionError("the balance ratio needs step_discriminator(real) before step_generator()")
        if not scores.isfinite().all():
            raise CompressionError(
                f"scores must be finite; they hold NaN or infinity at iteration {self.iteration}: training diverged"
            )
        arguments = latents if isinstance(latents, tuple) else (latents,)
        self.meter.push(measured_scores(self.generator, self.discriminator, arguments, self._real, scores.detach()))

    def _change_generator(self) -> None:
        topology, iterations = self.config.generator_topology, self.config.iterations
        if topology is None or not due(self.iteration, topology.interval, iterations):
            return
        masks = self.generator_masks
        gradients = masks.flat_gradients() if topology.growth == "gradient" else None
        share = topology.schedule.at(self.iteration, iterations)
        self._assign(self.generator, masks, exchange(masks, share, gradients, self._random))
        if self.average is not None:
            masks.apply(self.average.module)

    def _change_discriminator(self) -> Action:
        control = self.config.density_control
        if control is None or not control.due(self.iteration, self.config.iterations):
            return "none"
        decision = control.decide(self.meter.full_ratio, self.discriminator_density)
        if decision.action != "none":
            flat = self._decided(decision, control)
            self._assign(self.discriminator, self.discriminator_masks, flat)
        self.discriminator_density, self._gradients = decision.density, None
        return decision.action

    def _decided(self, decision: Decision, control: DensityControl) -> Tensor:
        """Return the discriminator's masks, flat, after a decision."""
        masks = self.discriminator_masks
        missing = decision.active(masks.total) - masks.active
        if decision.action != "drop" and control.growth == "gradient" and self._gradients is None:
            raise CompressionError(
                f"the discriminator's weights are to grow by gradients at iteration {self.iteration}, and there was no "
                'step_discriminator() since the last step_generator(); growth="random" needs none'
            )
        if decision.action == "drop":
            return drop(masks, -missing, self._random)
        if decision.action == "grow":
            return grow(masks.flat(), missing, self._gradients, self._random)
        assert control.exchange is not None
        share = control.exchange.at(self.iteration, self.config.iterations)
        return exchange(masks, share, self._gradients, self._random)

    def _assign(self, network: nn.Module, masks: MaskSet, flat: Tensor) -> None:
        before, after = masks.flat(), from_first_rank(flat, device_of(network))
        masks.assign(after)
        if self.config.optimizer_state == "reset":
            reset_optimizer_state(self.optimizers, masks, before ^ after)
        refresh_spectral_norm(network)

    def state_dict(self) -> dict[str, Tensor]:
        """Return masks, average, measurements, counters and random state as tensors on the CPU, copies."""
        state = {f"generator_masks.{name}": mask for name, mask in self.generator_masks.state_dict().items()}
        state |= {f"discriminator_masks.{name}": mask for name, mask in self.discriminator_masks.state_dict().items()}
        if self.average is not None:
            state |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        state["balance"] = torch.tensor(list(self.meter.scores), dtype=torch.float64).view(-1, 3)
        state["iteration"] = torch.tensor(self.iteration)
        state["discriminator_density"] = torch.tensor(self.discriminator_density, dtype=torch.float64)
        state["random"] = self._random.get_state()
        return {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned; load the networks and the optimizers as well, in any order.

        Raises `CompressionError` where it belongs to other networks or settings.
        """
        missing = sorted(set(self.state_dict()) ^ set(state))
        if missing:
            raise CompressionError(f"state belongs to other networks or settings: {', '.join(missing)} do not match")
        self.generator_masks.load_state_dict(_under(state, "generator_masks"))
        self.discriminator_masks.load_state_dict(_under(state, "discriminator_masks"))
        if self.average is not None:
            self.average.load_state_dict(_under(state, "average"))
        self.meter.scores.clear()
        self.meter.scores.extend(Scores(*row) for row in state["balance"].tolist())
        self.iteration = int(state["iteration"])
        self.discriminator_density = float(state["discriminator_density"])
        self._random.set_state(state["random"])
        self._real = self._gradients = None

    def save(self, path: str | Path) -> None:
        """Write `state_dict` and settings as one safetensors file, whole or not at all."""
        write_checkpoint(Path(path), self.state_dict(), self.config, (self.generator, self.discriminator))

    def load(self, path: str | Path) -> None:
        """Continue from a file of `save`, after the networks' own state was loaded.

        Raises:
            CompressionError: the file is damaged, of other settings, or of other weights than the networks have now.
        """
        self.load_state_dict(read_checkpoint(Path(path), self.config, (self.generator, self.discriminator)))


def _unwrapped(argument: str, network: Any) -> nn.Module:
    wrapped = isinstance(network, DataParallel | DistributedDataParallel)
    module = check_module(argument, network.module if wrapped else network)
    check_values(argument, module)
    return module


def _under(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
