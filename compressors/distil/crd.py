"""Distillation of generators inside somebody's own GAN training: losses, freezing and schedules, but no loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors.common.checks import check_choice, check_count, check_weight
from compressors.distil.features import Features
from compressors.distil.freezing import dropout_off, frozen, same_noise
from compressors.distil.losses import DistillDistance, check_outputs
from compressors.distil.relation import RelationLoss
from compressors.errors import CompressionError

GAN_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "lsgan": lambda scores: (scores - 1).square().mean(),
    "hinge": lambda scores: -scores.mean(),
    "bce": lambda scores: functional.softplus(-scores).mean(),
}
"""What a generator minimises, given the scores of its images."""


@dataclass(frozen=True)
class Weights:
    """Weights of the student's losses, each at least 0.

    Attributes:
        relation: of `RelationLoss`, averaged over the images.
        style: of the Gram matrices of feature maps, mean absolute difference.
        content: of the feature maps, mean absolute difference.
        gan: of the discriminator's verdict.
        pixel: of the mean squared difference of the pixels.
    """

    relation: float = 0.0
    style: float = 0.0
    content: float = 0.0
    gan: float = 0.0
    pixel: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_weight(field.name, getattr(self, field.name))

    @classmethod
    def cyclegan(cls) -> Weights:
        """Return those of CRD's CycleGAN; the features are `vgg16`, the discriminator's loss is lsgan."""
        return cls(relation=25, style=1e4, content=10, gan=1)

    @classmethod
    def pix2pix(cls) -> Weights:
        """Return those of CRD's Pix2Pix as the paper has it, with the discriminator (hinge)."""
        return cls(relation=10, style=2e4, content=20, gan=1)

    @classmethod
    def pix2pix_released(cls, batch: int = 4) -> Weights:
        """Return those of CRD's released Pix2Pix: no discriminator, relations summed over the images of a batch.

        Its patch term, which compares colour planes of the first image only, is a defect and is not reproduced.
        """
        return cls(relation=2.5 * batch, style=2e4, content=20)

    @classmethod
    def small(cls) -> Weights:
        """Return those for small images on a CPU: pixels and relations, a little of the discriminator, no features."""
        return cls(relation=1, gan=0.05, pixel=10)


class CRDDistiller:
    """The student's loss for a training loop of one's own, where the teacher may still be in training.

    The loop trains teacher and discriminator as ever. Then, with the same inputs::

        loss, parts = distiller.student_loss(x)
        loss.backward()
        optimizer.step()  # of the student's parameters

    Teacher and discriminator keep their parameters, buffers, flags and modes; the student gets gradients through the
    discriminator, which never sees a student's image in a step of its own. Both networks see the same inputs and the
    same random numbers, and dropout is off in the teacher.

    Args:
        teacher: the generator to imitate, in the mode it is to run in (eval, unless it is in training).
        student: the generator to train; same inputs, outputs of the same shape.
        discriminator: the teacher's; None (default) goes without.
        weights: default `Weights.small()`. May be replaced during training, to warm a term up.
        relation: the relation loss; default `RelationLoss()`.
        features: maps images to feature maps, for style and content, such as `vgg16`.
        content_layers: positions of the feature maps compared as content; default (1,), as in CRD; None takes all.
        gan: "lsgan" (default), "hinge", "bce", or a function from the scores of images to a loss.
        output: picks the images out of what the generators return.
        judge: called as ``judge(discriminator, images, inputs)``, returns scores; a conditional discriminator may need
            the inputs. Default: ``discriminator(images)``.

    Raises:
        CompressionError: weights ask for features that are not there; in a call, outputs that do not fit each other.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        weights: Weights | None = None,
        relation: RelationLoss | None = None,
        features: Features | None = None,
        content_layers: tuple[int, ...] | None = (1,),
        gan: Literal["lsgan", "hinge", "bce"] | Callable[[Tensor], Tensor] = "lsgan",
        output: Callable[[Any], Tensor] = lambda returned: returned,
        judge: Callable[[nn.Module, Tensor, tuple[Any, ...]], Tensor] = lambda network, images, inputs: network(images),
    ) -> None:
        if not callable(gan):
            check_choice("gan", gan, list(GAN_LOSSES))
        self.teacher, self.student, self.discriminator = teacher, student, discriminator
        self.weights = weights or Weights.small()
        self.relation, self.features, self.content_layers = relation or RelationLoss(), features, content_layers
        self.gan = gan if callable(gan) else GAN_LOSSES[gan]
        self.output, self.judge = output, judge
        used = self.weights if discriminator is not None else replace(self.weights, gan=0.0)
        if used == Weights():
            raise CompressionError("weights are all 0, or only for a discriminator that is None: nothing to learn from")
        if used == Weights(relation=used.relation):
            warnings.warn(
                "only relation terms are left, which ignore colour, sign and contrast: give pixel, style, content or "
                "gan a weight as well",
                stacklevel=2,
            )
        self._distance()  # complains of missing features now

    def target(self, *inputs: Any) -> Tensor:
        """Return the teacher's images for `inputs`, without gradient and without effect on the teacher."""
        with torch.no_grad(), frozen(self.teacher), dropout_off(self.teacher), same_noise(self.teacher):
            return self.output(self.teacher(*inputs))

    def student_loss(self, *inputs: Any, target: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the student on a batch, and its weighted parts by name.

        Args:
            inputs: forward arguments of both generators.
            target: the teacher's images for them, of `target` before the teacher's own step, as co-training has it;
                None (default) runs the teacher now.
        """
        target = self.target(*inputs) if target is None else target.detach()
        images = self.output(self.student(*inputs))
        check_outputs(images, target)
        distance = self._distance()
        parts = {} if distance is None else distance.terms(images, target)
        if self.weights.relation:
            parts["relation"] = self.weights.relation * self.relation(images, target)
        if self.weights.gan and self.discriminator is not None:
            with frozen(self.discriminator):
                scores = self.judge(self.discriminator, images, inputs)
            parts["gan"] = self.weights.gan * self.gan(scores)
        return torch.stack(list(parts.values())).sum(), parts

    def _distance(self) -> DistillDistance | None:
        weights = self.weights
        if not (weights.pixel or weights.style or weights.content):
            return None
        return DistillDistance(
            weights.pixel,
            weights.style,
            weights.content,
            features=self.features,
            content_layers=self.content_layers,
            pixel_norm="mse",
        )


@dataclass(frozen=True)
class BlockSchedule:
    """Teacher and student in turns, as CRD trains CycleGAN.

    After every `interval` epochs of the teacher, and after its last one, the student is trained for `factor` x
    `interval` epochs on the best teacher so far (`loaded`), with the latest discriminator.

    Attributes:
        epochs: of the teacher's training; default 200.
        interval: default 10.
        factor: default 4.
    """

    epochs: int = 200
    interval: int = 10
    factor: int = 4

    def __post_init__(self) -> None:
        for field in fields(self):
            check_count(field.name, getattr(self, field.name))

    def student_epochs(self, epoch: int) -> int:
        """Return how many epochs of the student follow epoch 1 ... `epochs` of the teacher."""
        due = epoch % self.interval == 0 or epoch == self.epochs
        return self.factor * self.interval if due else 0


@dataclass(frozen=True)
class JointSchedule:
    """Teacher and student in every step, as CRD trains Pix2Pix: the student imitates the teacher from before its step.

    Attributes:
        interval: the teacher is trained in every so many steps; default 1.
    """

    interval: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            check_count(field.name, getattr(self, field.name))

    def trains_teacher(self, step: int) -> bool:
        """Tell whether teacher and discriminator are trained in step 0, 1, ..."""
        return step % self.interval == 0


@contextmanager
def loaded(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give `model` another state, such as that of the best teacher so far, and its own back when the block ends."""
    latest = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        model.load_state_dict(state)
        yield
    finally:
        model.load_state_dict(latest)
