"""From a generator to images: draw its forward arguments, run it, convert what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from compressors.common.checks import check_inputs
from compressors.common.measure import Inputs, forward
from compressors.common.text import described
from compressors.errors import CompressionError, ContractBroken

SEED = 2020
"""The default seed everywhere, that of torch-fidelity."""

Draw: TypeAlias = Callable[[int, torch.Generator], Inputs]
"""Draws the forward arguments for a number of samples; all randomness comes from the (CPU) generator it is given."""

OutputRange: TypeAlias = tuple[float, float]

OUTPUT_RANGES: tuple[OutputRange, ...] = ((-1, 1), (0, 1))

# An output layer without a saturating activation may overshoot a little; a wrong declaration does so by far.
_OVERSHOOT = 0.05


def drawn_batches(draw: Draw, count: int, batch_size: int, seed: int, device: torch.device) -> Iterator[Inputs]:
    """Yield the forward arguments of `count` samples on `device`, the same on every call; see `drawn`."""
    random = torch.Generator().manual_seed(seed)
    for start in range(0, count, batch_size):
        yield drawn(draw, min(batch_size, count - start), random, device)


def drawn(draw: Draw, count: int, random: torch.Generator, device: torch.device) -> Inputs:
    """Return the forward arguments of `count` samples on `device`.

    Raises `CompressionError` where `draw` fails or returns no tuple.
    """
    try:
        found = draw(count, random)
    except Exception as error:
        raise CompressionError(f"draw({count}, random) fails: {described(error)}") from error
    arguments: Inputs = tree_map(
        lambda item: item.to(device) if isinstance(item, Tensor) else item, check_inputs("what draw returns", found)
    )
    return arguments


def generated(
    model: nn.Module, batches: Iterable[Inputs], output_range: OutputRange | None, seed: int
) -> Iterator[Tensor]:
    """Yield the images, uint8 B x 3 x H x W, that `model` makes of each batch of forward arguments.

    Noise drawn inside the model is the same for the same `seed`. Raises `ContractBroken` for NaN.
    """
    for index, inputs in enumerate(batches):
        yield to_images(forward(model, inputs, seed + index), output_range)


def to_images(output: Any, output_range: OutputRange | None) -> Tensor:
    """Return images as torch-fidelity takes them: uint8 B x 3 x H x W.

    Args:
        output: uint8, or float with its range declared; B x 1 x H x W or B x 3 x H x W.
        output_range: the values of black and white in a float `output`, which is clamped to them; None for uint8.

    Raises:
        CompressionError: `output` is of another type or shape than declared.
        ContractBroken: `output` holds NaN or infinite values.
    """
    if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[1] not in (1, 3):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise CompressionError(f"the generator must return images B x 1 x H x W or B x 3 x H x W; got {got}")
    if output_range is None:
        if output.dtype != torch.uint8:
            raise CompressionError(
                f"the generator returns {output.dtype} and torch-fidelity takes uint8: declare output_range=(-1, 1) "
                "or (0, 1) to have it converted"
            )
        return output.clone().expand(-1, 3, -1, -1)
    if not output.is_floating_point():
        raise CompressionError(f"output_range={output_range} is for float images; the generator returns {output.dtype}")
    if not output.isfinite().all():
        raise ContractBroken("the model returns non-finite values")
    low, high = output_range
    scaled = (output.float() - low) / (high - low) * 255
    return scaled.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def check_range(output: Tensor, output_range: OutputRange | None) -> None:
    """Raise `CompressionError` where most of a float `output` contradicts its declared range."""
    if output_range is None:
        return
    low, high = output_range
    margin = _OVERSHOOT * (high - low)
    outside = ((output < low - margin) | (output > high + margin)).float().mean()
    if outside > _OVERSHOOT:
        raise CompressionError(
            f"output_range={output_range} is declared, but {outside:.0%} of the generator's values are outside: "
            f"they go from {output.min():.3g} to {output.max():.3g}"
        )


def image_batches(images: Tensor | Dataset[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Yield real images in batches uint8 B x 3 x H x W; raises `CompressionError` for images of another kind."""
    # A tensor serves as data set. The generator is not used, but without it the random state of the caller would be.
    loader = DataLoader(images, batch_size=batch_size, generator=torch.Generator())  # type: ignore[arg-type]
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise CompressionError(
                f"reference cannot be read as images of one size: {described(error).strip()}"
            ) from error
        if not isinstance(batch, Tensor) or batch.dtype != torch.uint8:
            got = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
            raise CompressionError(f"reference must hold images as uint8 tensors C x H x W; got {got}")
        yield to_images(batch, None)
