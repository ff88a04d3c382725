"""The training loop of `Distiller`: a student imitates its teacher on drawn inputs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from compressors.common.average import moving_average
from compressors.common.files import read_file, write_file
from compressors.common.generation import Draw, drawn
from compressors.common.measure import copied, seeded, tensors_of
from compressors.distil.losses import check_outputs
from compressors.errors import CompressionError

HELD_OUT = 2**31
"""Held-out inputs are drawn as those of this step, which training never reaches."""
_WARM_UP = 0.05
# Weights with a larger share of exact zeros are sparse. Biases are not: fresh ones are zero.
_SPARSE = 0.25
_RATE_PER_ERROR = 1 / 200
_LOWEST_RATE, _HIGHEST_RATE, _HIGHEST_QUANTIZED = 1e-4, 1e-3, 3e-4
_KIND = "distillation checkpoint"
# Losses before training that differ by less, in parts of them, may be those of one training, on a GPU say.
_SAME_LOSS = 1e-3

Loss = Callable[[Tensor, Tensor], Tensor]
Losses = Sequence[tuple[float, Loss]]
"""Losses with their weights."""


@dataclass(frozen=True)
class Plan:
    """What a training run does; see `compressors.Distiller` for the meaning."""

    draw: Draw
    steps: int
    batch_size: int
    held_out: int
    rate: float | None
    quantized: bool
    losses: Losses
    clip_norm: float
    average: float | None
    train_norms: bool
    seed: int
    checkpoint: Path | None
    progress: bool

    @property
    def interval(self) -> int:
        """Steps between two looks at the held-out inputs."""
        return max(1, min(250, self.steps // 20))


@dataclass
class Course:
    """How far training has come; JSON of it is kept in checkpoints and in the recipe.

    Attributes:
        rate: the highest learning rate.
        step: steps done.
        best_step: the step of the best state, 0 for the state before training.
        best_loss: its loss on the held-out inputs.
        start_loss: the loss on them before training.
        history: step, mean loss since the last look, loss on the held-out inputs, at each look.
        note: why training ended early; "" where it did not.
    """

    rate: float = 0.0
    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    start_loss: float = math.inf
    history: list[list[float]] = field(default_factory=list)
    note: str = ""


class Diverged(Exception):
    """The loss is not finite."""


class Training:
    """A student in training: `run` trains it, and leaves it in its best state.

    Args:
        student: trained in place, in eval mode but for what `Plan.train_norms` asks.
        teacher: runs in eval mode and is left alone.
        parameters: those of `student` that are trained, by name.
        plan: what to do.
        identity: a digest of all that the result depends on; a checkpoint of another one is refused.

    A subclass trains several networks in one by a `_loss` of its own.
    """

    label = "distill"
    """What the bar says."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, parameters: Mapping[str, nn.Parameter], plan: Plan, identity: str
    ) -> None:
        self.student, self.teacher, self.plan, self.identity = student, teacher, plan, identity
        self.parameters = list(parameters.values())
        self.device = self.parameters[0].device
        # The zeros of a sparse network are what makes it small.
        zeros = [(parameter, parameter.detach() == 0) for parameter in self.parameters]
        self.zeros = [(p, mask) for p, mask in zeros if p.dim() > 1 and mask.float().mean() > _SPARSE]
        self.optimizer = torch.optim.Adam(self.parameters, lr=1.0)  # set in each step
        self.average: AveragedModel | None = None
        if plan.average is not None:
            self.average = moving_average(student, plan.average)
        move_losses(plan.losses, self.device)
        self.course = Course()
        self.first_loss = math.nan
        self.held_out = self._batch(HELD_OUT, plan.held_out)
        self.best = self._snapshot()

    def run(self) -> Course:
        """Train; return the course. `student` then is in its best state, also where this raises.

        Raises:
            Diverged: the loss is NaN or infinite.
            CompressionError: `draw` or the outputs are unusable, or the memory does not suffice.
        """
        try:
            with _memory_errors(self.plan.batch_size), torch.enable_grad():
                self._resume()
                if not self.course.history:
                    self._look(0.0)
                self.course.rate = self.course.rate or self.plan.rate or self._suggested_rate()
                self._train()
        except KeyboardInterrupt:
            self.course.note = f"interrupted at step {self.course.step} of {self.plan.steps}"
        finally:
            self.student.load_state_dict(self.best)
            self.student.eval()
        return self.course

    def _train(self) -> None:
        plan, course = self.plan, self.course
        self.student.eval()
        if plan.train_norms:
            for module in self.student.modules():
                module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
        bar = tqdm(
            total=plan.steps,
            initial=course.step,
            unit="step",
            file=sys.stderr,
            desc=self.label,
            leave=None,
            disable=not plan.progress,
        )
        total, count = 0.0, 0
        with bar:
            while course.step < plan.steps:
                inputs, targets = self._batch(course.step, plan.batch_size)
                loss = self._loss(self.student, inputs, targets, course.step)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise Diverged(f"the loss is {value} at step {course.step}, at a rate of {self._rate():.2g}")
                self.student.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.parameters, plan.clip_norm)
                for group in self.optimizer.param_groups:
                    group["lr"] = self._rate()
                self.optimizer.step()
                for parameter, mask in self.zeros:
                    parameter.data[mask] = 0
                if self.average is not None:
                    self.average.update_parameters(self.student)
                course.step += 1
                total, count = total + value, count + 1
                bar.update()
                bar.set_postfix(loss=f"{value:.4g}", best=f"{course.best_loss:.4g}", **self.postfix(), refresh=False)
                if course.step % plan.interval == 0 or course.step == plan.steps:
                    self._look(total / count)
                    total, count = 0.0, 0

    def _look(self, mean_loss: float) -> None:
        """Measure the loss on the held-out inputs, keep the state if it is the best, write the checkpoint."""
        course = self.course
        value = self._held_out_loss(self.student if self.average is None else self.average.module)
        if not math.isfinite(value):
            raise Diverged(f"the loss on held-out inputs is {value} at step {course.step}")
        if not course.step:
            course.start_loss = value
        course.history.append([course.step, mean_loss, value])
        if value < course.best_loss:
            course.best_loss, course.best_step = value, course.step
            self.best = self._snapshot()
        self._save()

    def _held_out_loss(self, model: nn.Module) -> float:
        """Return the loss of `model` in eval mode on the held-out inputs."""
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.eval()
            with torch.no_grad():
                return float(self._loss(model, *self.held_out, HELD_OUT))
        finally:
            for module, mode in modes:
                module.training = mode

    def _loss(self, model: nn.Module, inputs: tuple[Any, ...], targets: Sequence[Tensor], step: int) -> Tensor:
        with self._noise(step), self._autocast():
            outputs = self._outputs(model, inputs)
        if len(outputs) != len(targets):
            raise CompressionError(f"student and teacher return {len(outputs)} and {len(targets)} tensors")
        loss = torch.zeros((), device=self.device)
        for output, target in zip(outputs, targets, strict=True):
            loss = loss + self.distance(output, target)
        return loss

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum of the losses for one output of the student and of the teacher."""
        return weighted(self.plan.losses, output, target)

    def postfix(self) -> dict[str, str]:
        """Return what the bar shows beside the loss."""
        return {}

    def _batch(self, step: int, count: int) -> tuple[tuple[Any, ...], list[Tensor]]:
        """Return `count` drawn inputs of a step, and the teacher's outputs for them."""
        random = torch.Generator().manual_seed(self._seed(step))
        inputs = drawn(self.plan.draw, count, random, self.device)
        with torch.no_grad(), self._noise(step), self._autocast():
            targets = self._outputs(self.teacher, inputs)
        if not targets or any(len(target) != count for target in targets):
            shapes = ", ".join(str(tuple(target.shape)) for target in targets) or "none"
            raise CompressionError(
                f"draw({count}, random) at step {step} led to outputs {shapes} of the teacher: "
                f"it must return inputs for {count} samples each time it is called"
            )
        return inputs, targets

    def _outputs(self, model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
        found = [output for output in tensors_of(model(*copied(inputs))) if output.is_floating_point()]
        return [output.float() if output.dtype in (torch.float16, torch.bfloat16) else output for output in found]

    def _noise(self, step: int) -> Any:
        """Give both networks the same random numbers, the same ones when training is resumed."""
        return seeded(self._seed(step), self.device)

    def _seed(self, step: int) -> int:
        """Mix seed and step: torch's generator on the CPU looks at 32 bits only."""
        return int(np.random.SeedSequence((self.plan.seed, step)).generate_state(1)[0])

    def _autocast(self) -> Any:
        half = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast("cuda", torch.bfloat16) if half else nullcontext()

    def _rate(self) -> float:
        """Return the learning rate of the next step: a short rise to the peak, then half a cosine to a hundredth."""
        step, steps, peak = self.course.step, self.plan.steps, self.course.rate
        rise = max(1, round(_WARM_UP * steps))
        if step < rise:
            return peak * (step + 1) / rise
        return peak * (0.505 + 0.495 * math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    def _suggested_rate(self) -> float:
        """Return a rate that suits the damage: a part of the error of the outputs, relative to their mean deviation.

        A network that is nearly right is moved away from it by a rate that repairs a broken one quickly.
        """
        inputs, targets = self.held_out
        with torch.no_grad(), self._noise(HELD_OUT), self._autocast():
            outputs = self._outputs(self.student, inputs)
        error = sum(float((output - target).abs().mean()) for output, target in zip(outputs, targets, strict=False))
        deviation = sum(float((target - target.mean()).abs().mean()) for target in targets)
        highest = _HIGHEST_QUANTIZED if self.plan.quantized else _HIGHEST_RATE
        return min(max(_RATE_PER_ERROR * error / deviation, _LOWEST_RATE), highest) if deviation else _LOWEST_RATE

    def _snapshot(self) -> dict[str, Tensor]:
        model = self.student if self.average is None else self.average.module
        return {key: value.detach().clone() for key, value in model.state_dict().items()}

    def _save(self) -> None:
        if self.plan.checkpoint is None:
            return
        groups: dict[str, Mapping[str, Tensor]] = {"student": self.student.state_dict(), "best": self.best}
        if self.average is not None:
            groups["average"] = self.average.state_dict()
        for index, moments in self.optimizer.state_dict()["state"].items():
            groups[f"adam {index}"] = moments
        tensors = {
            f"{group}/{key}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for group, state in groups.items()
            for key, value in state.items()
        }
        content = {"identity": self.identity, "first_loss": self.first_loss, "course": vars(self.course)}
        write_file(self.plan.checkpoint, _KIND, tensors, content)

    def _resume(self) -> None:
        path = self.plan.checkpoint
        if path is None:
            return
        # Names of functions tell two lambdas from each other as little as two closures. What they do here does; where a
        # loss draws random numbers, the same ones each time.
        with self._noise(HELD_OUT):
            self.first_loss = self._held_out_loss(self.student)
        if not path.exists():
            return
        tensors, content = read_file(path, _KIND)
        if content.get("identity") != self.identity:
            raise CompressionError(
                f"checkpoint: {path} belongs to another training (other models, settings or software): "
                "name another file, or delete this one"
            )
        first = content.get("first_loss", self.first_loss)  # which older files do not have
        if not math.isclose(self.first_loss, first, rel_tol=_SAME_LOSS, abs_tol=1e-9):
            raise CompressionError(
                f"checkpoint: {path} belongs to a training with another draw, loss or terms (the loss before training "
                f"was {first:.6g}, and is {self.first_loss:.6g} now): name another file, or delete this one"
            )
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, key = name.split("/", 1)
            groups.setdefault(group, {})[key] = value.to(self.device)
        self.student.load_state_dict(groups["student"])
        self.best = groups["best"]
        if self.average is not None:
            self.average.load_state_dict(groups["average"])
        moments = {int(name[5:]): state for name, state in groups.items() if name.startswith("adam ")}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.course = Course(**content["course"])


def move_losses(losses: Losses, device: torch.device) -> None:
    """Move what losses compute with, such as networks of features, to a device."""
    for _, loss in losses:
        if isinstance(loss, nn.Module):
            loss.to(device)


def weighted(losses: Losses, output: Tensor, target: Tensor) -> Tensor:
    """Return the weighted sum of losses for one output of the student and of the teacher."""
    check_outputs(output, target)
    total = torch.zeros((), device=output.device)
    for weight, term in losses:
        value = term(output, target)
        _check_loss(term, value, output)
        total = total + weight * value.to(total.dtype)
    return total


def _check_loss(term: Loss, value: Any, output: Tensor) -> None:
    """Raise `CompressionError` unless a loss is a scalar that follows the student's output."""
    if not isinstance(value, Tensor) or value.dim():
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise CompressionError(f"loss and terms must return a scalar tensor; {_name_of(term)} returned {found}")
    if output.requires_grad and not value.requires_grad:
        raise CompressionError(
            f"loss and terms must have a gradient by the student's output; {_name_of(term)} returned none: "
            "compute them by torch, without detach or no_grad"
        )


def _name_of(term: Loss) -> str:
    """Return the name of a loss."""
    return getattr(term, "__qualname__", type(term).__name__)


@contextmanager
def _memory_errors(batch_size: int) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text:
            raise CompressionError(
                f"out of memory with batch_size={batch_size}: use a smaller one ({error})"
            ) from error
        raise
