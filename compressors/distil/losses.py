"""The distance of a student's images from the teacher's: pixels, style, content, and total variation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors.common.checks import check_choice, check_weight
from compressors.distil.features import Features
from compressors.errors import CompressionError

Norm = Literal["l1", "mse"]

# Largest absolute values that tell images in -1 ... 1 or 0 ... 1 from those in 0 ... 255.
_UNIT, _BYTES = 1.05, 50.0


class DistillDistance(nn.Module):
    """A weighted sum of distances between the images of a student and of its teacher.

        pixel |s - t| + style sum_l |Gram_l(s) - Gram_l(t)| + content sum_l |phi_l(s) - phi_l(t)| + tv TV(s)

    where phi_l are feature maps, Gram_l = F F^T / (C_l H_l W_l) per image, and |.| is the mean absolute or the mean
    squared difference. TV is the mean absolute difference of neighbouring pixels, down plus across.

    Args:
        pixel: weight of the pixels, default 1.
        style: weight of the Gram matrices, default 0; needs `features`.
        content: weight of the feature maps, default 0; needs `features`.
        tv: weight of the total variation, default 0. It smooths the student whatever the teacher does.
        features: maps images to feature maps, such as `vgg16` or `efficientnet_lite0` of `compressors.distil`.
        content_layers: positions in the list that `features` gives; None (default) takes all. (1,) is CRD's and AGD's.
        pixel_norm: "l1" (default) or "mse".
        style_norm: "l1" (default, CRD's) or "mse" (AGD's).

    Raises:
        CompressionError: settings out of range; in a call, outputs of unequal shapes, or `content_layers` that
            `features` does not give.

    Sources: You et al. 2022, arXiv 2212.11091; Fu et al. 2020, arXiv 2006.08198; Johnson et al. 2016, arXiv 1603.08155.
    """

    def __init__(
        self,
        pixel: float = 1.0,
        style: float = 0.0,
        content: float = 0.0,
        tv: float = 0.0,
        features: Features | None = None,
        content_layers: Sequence[int] | None = None,
        pixel_norm: Norm = "l1",
        style_norm: Norm = "l1",
    ) -> None:
        super().__init__()
        self.weights = {"pixel": pixel, "style": style, "content": content, "tv": tv}
        for name, weight in self.weights.items():
            check_weight(name, weight)
        if not any(self.weights.values()):
            raise CompressionError("pixel, style, content and tv are all 0: nothing is left to compare")
        if (style or content) and features is None:
            raise CompressionError(
                "style and content need features, such as compressors.distil.vgg16() or efficientnet_lite0(); got None"
            )
        for argument, norm in (("pixel_norm", pixel_norm), ("style_norm", style_norm)):
            check_choice(argument, norm, get_args(Norm))
        self.features, self.content_layers = features, content_layers
        self.pixel_norm, self.style_norm = pixel_norm, style_norm

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance, a scalar; student and teacher B x C x H x W, or of any shape with pixels alone."""
        return _sum(self.terms(student, teacher).values())

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return the weighted parts of weight above 0, by name; the gradient reaches the student alone."""
        teacher = teacher.detach()
        if student.shape != teacher.shape:
            raise CompressionError(
                f"student and teacher must be of one shape; got {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        found = {}
        if self.weights["pixel"]:
            found["pixel"] = _difference(self.pixel_norm, student, teacher)
        if self.features is not None and (self.weights["style"] or self.weights["content"]):
            maps_s = self.features(student)
            with torch.no_grad():
                maps_t = self.features(teacher)
            if self.weights["style"]:
                pairs = zip(maps_s, maps_t, strict=True)
                found["style"] = _sum(_difference(self.style_norm, gram(s), gram(t)) for s, t in pairs)
            if self.weights["content"]:
                chosen = range(len(maps_s)) if self.content_layers is None else self.content_layers
                if not all(-len(maps_s) <= layer < len(maps_s) for layer in chosen):
                    raise CompressionError(
                        f"content_layers must be positions of the {len(maps_s)} feature maps; got {chosen!r}"
                    )
                found["content"] = _sum(_difference("l1", maps_s[layer], maps_t[layer]) for layer in chosen)
        if self.weights["tv"]:
            found["tv"] = total_variation(student)
        return {name: self.weights[name] * value for name, value in found.items()}


def check_outputs(student: Tensor, teacher: Tensor) -> None:
    """Raise `CompressionError` where outputs differ in shape or dtype, or plainly in range (bytes against units)."""
    if student.shape != teacher.shape or student.dtype != teacher.dtype:
        got = (f"{tuple(side.shape)} {side.dtype}" for side in (student, teacher))
        raise CompressionError(
            "student and teacher must give outputs of one shape and dtype; got {} and {}".format(*got)
        )
    largest = {name: float(side.detach().abs().max()) for name, side in (("student", student), ("teacher", teacher))}
    low, high = sorted(largest, key=largest.__getitem__)
    if largest[low] <= _UNIT and largest[high] >= _BYTES:
        raise CompressionError(
            f"the outputs of the {high} reach {largest[high]:.3g} and those of the {low} {largest[low]:.3g}: "
            "they must be in one range, such as -1 to 1"
        )


def gram(maps: Tensor) -> Tensor:
    """Return the Gram matrices B x C x C of feature maps B x C x H x W, over C H W, in float32 or more."""
    with torch.autocast(maps.device.type, enabled=False):
        flat = maps.flatten(2)
        flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
        return flat @ flat.mT / (flat.shape[1] * flat.shape[2])


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels of B x C x H x W, down plus across."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


def _difference(norm: Norm, first: Tensor, second: Tensor) -> Tensor:
    return functional.l1_loss(first, second) if norm == "l1" else functional.mse_loss(first, second)


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()
