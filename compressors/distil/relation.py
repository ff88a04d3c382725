"""Content relationship distillation (CRD): how the pieces of one image relate to each other, kept in the student."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors.common.checks import check_count, check_number, check_weight
from compressors.errors import CompressionError

# Added to squared distances: per element of an item, in squared units of the images. It only matters where all items
# are equal, and bounds the gradient there.
_FLOOR = 1e-14

# Elements of the cosines that exist at a time; a few megabytes stay in the cache, which is fastest too.
_ELEMENTS = 2**19


class Slices(ABC):
    """Items of an image: equal blocks of pixels, side by side; a remainder at the right or bottom edge is dropped."""

    @abstractmethod
    def block(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of one item of a height x width image."""

    @abstractmethod
    def thicker(self, height: int, width: int) -> Slices:
        """Return the next larger slices, for a height x width image."""

    def count(self, height: int, width: int) -> int:
        """Return the number of items of a height x width image."""
        rows, columns = self.block(height, width)
        return (height // rows) * (width // columns)

    def items(self, images: Tensor) -> Tensor:
        """Cut images B x C x H x W into items B x n x d of raw values."""
        batch, channels, height, width = images.shape
        rows, columns = self.block(height, width)
        down, across = height // rows, width // columns
        blocks = images[:, :, : down * rows, : across * columns].reshape(batch, channels, down, rows, across, columns)
        return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, down * across, -1)


@dataclass(frozen=True)
class Rows(Slices):
    """Strips of the full width, `thickness` pixels high."""

    thickness: int = 1

    def __post_init__(self) -> None:
        check_count("thickness", self.thickness)

    def block(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of one item of a height x width image."""
        return self.thickness, width

    def thicker(self, height: int, width: int) -> Rows:
        """Return the next larger slices, for a height x width image."""
        return Rows(self.thickness + 1)


@dataclass(frozen=True)
class Columns(Slices):
    """Strips of the full height, `thickness` pixels wide."""

    thickness: int = 1

    def __post_init__(self) -> None:
        check_count("thickness", self.thickness)

    def block(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of one item of a height x width image."""
        return height, self.thickness

    def thicker(self, height: int, width: int) -> Columns:
        """Return the next larger slices, for a height x width image."""
        return Columns(self.thickness + 1)


@dataclass(frozen=True)
class Patches(Slices):
    """Squares of `size` x `size` pixels; None (default) is an eighth of the shorter side: 32 in images of 256 x 256."""

    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            check_count("size", self.size)

    def block(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of one item of a height x width image."""
        size = self.size or max(1, min(height, width) // 8)
        return size, size

    def thicker(self, height: int, width: int) -> Patches:
        """Return the next larger slices, for a height x width image."""
        return Patches(self.block(height, width)[0] + 1)


class RelationLoss(nn.Module):
    """Difference between student and teacher in the relations among the items of each of their images.

    Items z_1 ... z_n are slices of one image. Their distances d_ij = |z_i - z_j| over the mean distance, and the
    cosines of the angles at z_i between z_j and z_k, are compared by the Huber loss h (threshold 1):

        sum over slices: distance_weight mean_ij h(d_ij^S - d_ij^T) + angle_weight mean_ijk h(c_ijk^S - c_ijk^T)

    averaged over the images. Relations ignore gain, offset, sign and rotations of colour: a student needs a loss beside
    them that fixes those, such as the distance of the pixels.

    Time grows as n^3, and memory as n^2. Computed in float64, also under autocast, since distances of near-equal
    items cancel. Finite, with a finite gradient, for constant images and repeated items. The gradient reaches the
    student alone, once (no second derivatives).

    Args:
        slices: what the items are; default rows and columns of one pixel, and 8 x 8 patches, as in the paper. Each must
            give at least 3 items.
        distance_weight: weight of the distances, default 1.
        angle_weight: weight of the angles, default 2; 0 saves the time.
        vertices: compare the angles at so many items only, drawn anew in every call from torch's random numbers: an
            unbiased estimate in time n^2 `vertices`. None (default) takes all.
        max_items: slices that give more items are made thicker, with a warning, which changes the loss; default 256.
        eps: added to squared distances, relative to their mean: bounds the gradient of repeated items. Default 1e-8.

    Raises:
        CompressionError: settings out of range; in a call, images of unequal shapes or with fewer than 3 items.

    Source: You et al. 2022, arXiv 2212.11091; relations after Park et al. 2019, arXiv 1904.05068.
    """

    def __init__(
        self,
        slices: Sequence[Slices] = (Rows(), Columns(), Patches()),
        distance_weight: float = 1.0,
        angle_weight: float = 2.0,
        vertices: int | None = None,
        max_items: int = 256,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        if not slices or not all(isinstance(item, Slices) for item in slices):
            raise CompressionError(f"slices must be Rows, Columns or Patches, one or more; got {slices!r}")
        weights = {"distance_weight": distance_weight, "angle_weight": angle_weight}
        for name, weight in weights.items():
            check_weight(name, weight)
        if not any(weights.values()):
            raise CompressionError("distance_weight and angle_weight are both 0: nothing is left to compare")
        if vertices is not None:
            check_count("vertices", vertices)
        check_count("max_items", max_items, least=3)
        check_number("eps", eps)
        if not 0 < eps < 1:
            raise CompressionError(f"eps must be above 0 and below 1; got {eps!r}")
        self.slices = tuple(slices)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.vertices, self.max_items, self.eps = vertices, max_items, eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a float64 scalar.

        Args:
            student: float B x C x H x W.
            teacher: of the same shape, images of the same inputs.
        """
        return torch.stack(list(self.terms(student, teacher).values())).sum()

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return the parts of "rows", "columns" and "patches", of those that there are; see `forward`."""
        if student.shape != teacher.shape or student.dim() != 4:
            raise CompressionError(
                "student and teacher must be images of one shape, B x C x H x W; "
                f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        found: dict[str, Tensor] = {}
        for slices in self.slices:
            name = type(slices).__name__.lower()
            found[name] = found.get(name, 0) + self._term(slices, student, teacher.detach())
        return found

    def _term(self, slices: Slices, student: Tensor, teacher: Tensor) -> Tensor:
        slices = self._within_bounds(slices, *student.shape[2:])
        # Autocast leaves float64 alone.
        gram_s, distance_s = self._distances(slices.items(student.double()))
        gram_t, distance_t = self._distances(slices.items(teacher.double()))
        loss = student.new_zeros((), dtype=torch.float64)
        if self.distance_weight:
            loss = loss + self.distance_weight * functional.huber_loss(_over_mean(distance_s), _over_mean(distance_t))
        if self.angle_weight:
            inverse_s, inverse_t = _inverse(distance_s), _inverse(distance_t)
            vertices = self._chosen(gram_s)
            loss = loss + self.angle_weight * _Angles.apply(gram_s, inverse_s, gram_t, inverse_t, vertices)
        return loss

    def _within_bounds(self, slices: Slices, height: int, width: int) -> Slices:
        """Return `slices`, or thicker ones that give at most `max_items`; raise `CompressionError` below 3 items."""
        count = slices.count(height, width)
        if count < 3:
            raise CompressionError(
                f"{slices} cuts images of {height} x {width} into {count} items; relations need at least 3: "
                "use smaller ones"
            )
        used = slices
        while used.count(height, width) > self.max_items:
            used = used.thicker(height, width)
        if used != slices:
            warnings.warn(
                f"{slices} cuts images of {height} x {width} into {count} items, and time grows as their third power: "
                f"using {used}; raise max_items={self.max_items} to keep {slices}",
                stacklevel=5,
            )
        return used

    def _distances(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return products and distances of items B x n x d, each B x n x n."""
        items = items - items.mean(1, keepdim=True)
        gram = items @ items.mT
        norms = gram.diagonal(dim1=1, dim2=2)
        squared = (norms[:, :, None] + norms[:, None, :] - 2 * gram).clamp_min(0)
        floor = self.eps * squared.mean((1, 2), keepdim=True) + _FLOOR * items.shape[2]
        return gram, (squared + floor).sqrt()

    def _chosen(self, gram: Tensor) -> Tensor:
        count = gram.shape[1]
        if self.vertices is None or self.vertices >= count:
            return torch.arange(count, device=gram.device)
        return torch.randperm(count)[: self.vertices].to(gram.device)


def _off_diagonal(square: Tensor) -> Tensor:
    return 1 - torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)


def _over_mean(distances: Tensor) -> Tensor:
    """Return distances over their mean, the distances of items to themselves being 0 and not counted."""
    count = distances.shape[1]
    distances = distances * _off_diagonal(distances)
    return distances / (distances.sum((1, 2), keepdim=True) / (count * (count - 1)))


def _inverse(distances: Tensor) -> Tensor:
    """Return the inverse of distances; 0 for those of items to themselves."""
    return _off_diagonal(distances) / distances


class _Angles(torch.autograd.Function):
    """Mean Huber loss of the cosines at some vertices, with its gradient, a few vertices at a time.

    By the law of cosines c_ijk = N_ijk r_ij r_ik with N_ijk = G_jk - G_ij - G_ik + G_ii, where G are the products of
    the items and r the inverse distances. The loss is a sum over vertices i: one pass finds value and gradient, and
    never holds all n^3 cosines.
    """

    @staticmethod
    def forward(
        ctx: Any, gram_s: Tensor, inverse_s: Tensor, gram_t: Tensor, inverse_t: Tensor, vertices: Tensor
    ) -> Tensor:
        batch, count, _ = gram_s.shape
        total = batch * len(vertices) * count**2
        loss = gram_s.new_zeros(())
        grad_gram, grad_inverse = torch.zeros_like(gram_s), torch.zeros_like(inverse_s)
        for some in torch.split(vertices, max(1, _ELEMENTS // (batch * count**2))):
            products, near = _products(gram_s, some), inverse_s[:, some]
            scaled = products * near[:, :, None, :]
            difference = scaled * near[:, :, :, None]
            difference -= _products(gram_t, some) * inverse_t[:, some, None, :] * inverse_t[:, some, :, None]
            slope = difference.clamp(-1, 1)
            # h(u) = s (u - s / 2) with s = clamp(u, -1, 1).
            loss += (slope * (difference - slope / 2)).sum()
            if ctx.needs_input_grad[0]:
                grad_inverse[:, some] += 2 * (slope * scaled).sum(3)
                slope *= near[:, :, None, :]
                slope *= near[:, :, :, None]
                grad_gram += slope.sum(1)
                along = slope.sum(3)
                grad_gram[:, some] -= 2 * along
                grad_gram[:, some, some] += along.sum(2)
        ctx.save_for_backward(grad_gram / total, grad_inverse / total)
        return loss / total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_gram, grad_inverse = ctx.saved_tensors
        return grad * grad_gram, grad * grad_inverse, None, None, None


def _products(gram: Tensor, vertices: Tensor) -> Tensor:
    """Return <z_j - z_i, z_k - z_i> for each vertex i, B x vertices x n x n."""
    near = gram[:, vertices]
    return gram[:, None] - near[:, :, None, :] - near[:, :, :, None] + gram[:, vertices, vertices][:, :, None, None]
