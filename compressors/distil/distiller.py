"""`Distiller`: a stage of a pipeline that repairs what the stages before it broke."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from compressors.common.bake import baked_copy
from compressors.common.checks import check_choice, check_count, check_number
from compressors.common.files import check_target, digest
from compressors.common.generation import SEED, Draw
from compressors.common.measure import run
from compressors.common.text import versions
from compressors.core.model import CompressedModel
from compressors.core.recipe import settings
from compressors.core.stage import Stage, Work, finish
from compressors.distil.losses import DistillDistance
from compressors.distil.training import Course, Diverged, Loss, Losses, Plan, Training
from compressors.errors import CompressionError, TrainingDiverged

_LOSSES: dict[str, Callable[[], Loss]] = {
    "l1": DistillDistance,
    "mse": lambda: DistillDistance(pixel_norm="mse"),
}


@dataclass(frozen=True)
class Distiller(Stage):
    """Train a compressed generator to give what its teacher gives for the same inputs: no data, no discriminator.

    As a stage of a `Pipeline` its teacher is the model that the pipeline was given::

        Pipeline(ChannelPruner(0.5), Distiller(draw, steps=1000), Quantizer(4), Distiller(draw, steps=300))

    After a `Quantizer` it is quantization-aware training: gradients pass straight through the rounding (brevitas), the
    scales stay, training starts from the weights before rounding (or from those that a training of your own made of
    the rounded ones), and the stored codes are those of the result. A parameter of which more than a quarter is exactly
    zero keeps its zeros: a sparse network stays as sparse.

    Adam; the rate rises over 5 % of the steps and falls as a cosine; gradients are clipped. Held-out inputs are looked
    at 20 times or more, and the state that is best on them is kept, the one before training included. Dropout is off.
    On a GPU with bfloat16, forward passes use it.

    Args:
        draw: called as ``draw(n, random)``, returns the forward arguments of n samples as a tuple, such as ``(z,)``,
            drawn with the `torch.Generator` it is given.
        steps: batches to train on, at least 1.
        seed: of everything that is drawn; the same one gives the same model.
        batch_size: samples in a batch, default 32.
        rate: the highest learning rate; None (default) chooses it by the damage: 1/200 of the error of the outputs over
            their mean deviation, at least 1e-4 and at most 1e-3, for a quantized model 3e-4.
        loss: "l1" (default), "mse", or a function from student's and teacher's output to a scalar; summed over the
            outputs of a model with several.
        terms: more losses with their weights, such as ``((0.5, RelationLoss(angle_weight=0)),)``.
        average: decay of a moving average of the weights, 0 to 1 (exclusive), such as 0.999, which is then the result;
            None (default) goes without.
        train_norms: let batch norms measure their statistics anew during training; default False keeps them.
        clip_norm: largest norm of the gradients; default 1.
        held_out: samples the states are compared on, default 64.
        checkpoint: a .safetensors file that is written at every look and resumed from: a killed run then ends with the
            same weights as one that was not. That of another training is refused. None (default) writes nothing.
        progress: show a bar with the loss on stderr; default True.

    Source: distillation by outputs, Hinton et al. 2015, arXiv 1503.02531; straight-through estimators, Bengio et al.
    2013, arXiv 1308.3432.

    Raises:
        CompressionError: a setting is unusable. `compress` raises it also where there is no teacher, nothing to train,
            `draw` returns too little, outputs do not fit, or the memory does not suffice.
        TrainingDiverged: from `compress`; the loss is NaN. The error holds the best state before.
    """

    draw: Draw
    steps: int
    seed: int = SEED
    batch_size: int = 32
    rate: float | None = None
    loss: Literal["l1", "mse"] | Loss = "l1"
    terms: Sequence[tuple[float, Loss]] = ()
    average: float | None = None
    train_norms: bool = False
    clip_norm: float = 1.0
    held_out: int = 64
    checkpoint: str | Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if not callable(self.draw):
            raise CompressionError(
                "draw must be a function draw(n, random) that returns the forward arguments of n samples; "
                f"got {type(self.draw).__name__}"
            )
        for name in ("steps", "batch_size", "held_out"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, least=0)
        for name in ("rate", "clip_norm"):
            value = getattr(self, name)
            if name == "rate" and value is None:
                continue
            check_number(name, value)
            if not 0 < value < 1e9:
                raise CompressionError(f"{name} must be a number above 0; got {value!r}")
        if not callable(self.loss):
            check_choice("loss", self.loss, list(_LOSSES))
        for term in self.terms if isinstance(self.terms, list | tuple) else [self.terms]:
            pair = isinstance(term, tuple) and len(term) == 2
            if not (pair and isinstance(term[0], int | float) and 0 < term[0] < math.inf and callable(term[1])):
                raise CompressionError(f"terms must be pairs of a weight above 0 and a function; got {term!r}")
        if self.average is not None:
            check_number("average", self.average)
        if self.average is not None and not 0 < self.average < 1:
            raise CompressionError(f"average must be a decay above 0 and below 1, or None; got {self.average!r}")
        if self.checkpoint is not None:
            check_target(self.checkpoint, ".safetensors")

    @property
    def name(self) -> str:
        """A short label, such as "distill 1000"."""
        return f"distill {self.steps}"

    @property
    def accepts_quantized(self) -> bool:
        """True: training goes through the quantizers."""
        return True

    def _apply(self, work: Work) -> Work:
        if work.teacher is None:
            raise CompressionError(
                "teacher: Distiller needs the model to imitate, as in compress(small, inputs, teacher=generator); "
                "a Pipeline passes the model that it was given"
            )
        teacher = work.teacher.model if isinstance(work.teacher, CompressedModel) else work.teacher
        guide = baked_copy(teacher).requires_grad_(False)
        if work.float_weights:
            from compressors.core._brevitas import unround_weights

            unround_weights(work.model, work.float_weights)
        plan = self.plan(bool(work.recipe.quantized))
        parameters = _trainable(work.model, work.recipe.quantized)
        training = Training(work.model, guide, parameters, plan, self._identity(work.model, guide))
        try:
            course = training.run()
        except Diverged as error:
            course = training.course
            course.note = str(error)
            raise TrainingDiverged(
                f"{error}: look at the loss{f', or lower rate={course.rate:g}' if course.rate else ''}; "
                f"the best state before, of step {course.best_step}, is in the .result of this error",
                finish(self._trained(work, guide, course).done(self.name, settings(self))),
            ) from None
        if course.note:
            warnings.warn(f"{self.name}: {course.note}; the best state is kept", stacklevel=4)
        return self._trained(work, guide, course)

    @property
    def losses(self) -> Losses:
        """What is minimised."""
        loss = self.loss if callable(self.loss) else _LOSSES[self.loss]()
        return ((1.0, loss), *self.terms)

    def plan(self, quantized: bool) -> Plan:
        """Return what the training loop gets."""
        return Plan(
            draw=self.draw,
            steps=self.steps,
            batch_size=self.batch_size,
            held_out=self.held_out,
            rate=self.rate,
            quantized=quantized,
            losses=self.losses,
            clip_norm=self.clip_norm,
            average=self.average,
            train_norms=self.train_norms,
            seed=self.seed,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint),
            progress=self.progress,
        )

    def _identity(self, student: nn.Module, teacher: nn.Module) -> str:
        """Return all that the result depends on, as far as it can be told, in one hash."""
        described = {**settings(self), "versions": versions()}
        for name in ("checkpoint", "progress"):  # which change no number
            del described[name]
        text = json.dumps(described, sort_keys=True)
        return digest([text, *student.state_dict().values(), *teacher.state_dict().values()])

    def _trained(self, work: Work, guide: nn.Module, course: Course) -> Work:
        """Return `work` after the training, its quantized weights rounded again."""
        quantized = work.recipe.quantized
        float_weights: dict[str, Tensor] = {}
        if quantized:
            from compressors.core._brevitas import round_weights

            float_weights = round_weights(work.model, quantized)
        frozen = {name for name, p in work.model.named_parameters() if not p.requires_grad}
        layers = {name.rpartition(".")[0] for name in frozen if not _in_quantizer(name, quantized)}
        summary = f"{self.name}: loss {course.start_loss:.4g} -> {course.best_loss:.4g} on held-out inputs"
        details = f"best of step {course.best_step} of {self.steps}, rate {course.rate:.2g}"
        note = ", ".join(filter(None, (summary, details, course.note)))
        return replace(
            work.changed(dict.fromkeys(layers, "not trained: frozen")),
            outputs=run(guide, work.inputs),
            report=replace(work.report, notes=(*work.report.notes, note)),
            float_weights=float_weights,
            outcome={"training": asdict(course)},
        )


def _in_quantizer(name: str, quantized: Iterable[str]) -> bool:
    return any(f"{name}.".startswith((f"{layer}.weight_quant.", f"{layer}.input_quant.")) for layer in quantized)


def _trainable(model: nn.Module, quantized: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the parameters to train: not the scales of quantizers, where a step that suits weights is too large."""
    found = {n: p for n, p in model.named_parameters() if p.requires_grad and not _in_quantizer(n, quantized)}
    if not found:
        raise CompressionError(
            "model has no parameter to train: all are frozen (requires_grad=False), or there are none"
        )
    return found
