"""Inputs of a search: drawn by a function, or from a data set whose outputs of the teacher are computed once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from compressors.common.checks import check_module
from compressors.common.files import digest, read_file, write_file
from compressors.common.generation import Draw, drawn
from compressors.common.measure import Inputs, device_of
from compressors.core.model import CompressedModel
from compressors.errors import CompressionError

_KIND = "teacher outputs"
_CHUNK = 16
_LEAST = 8


class DataDraw:
    """Draws inputs from some items of a data set, with replacement; of tuples the first part counts.

    Args:
        data: inputs C x H x W, of one size.
        first: the first item.
        end: behind the last one.
    """

    def __init__(self, data: Any, first: int, end: int) -> None:
        self.data, self.first, self.end = data, first, end

    def item(self, index: int) -> Tensor:
        """Return an input."""
        found = self.data[index]
        found = found[0] if isinstance(found, tuple | list) else found
        if not isinstance(found, Tensor) or found.dim() != 3:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise CompressionError(f"draw: items of the data set must be tensors C x H x W; number {index} is {got}")
        return found

    def __call__(self, n: int, random: torch.Generator) -> tuple[Tensor]:
        """Return n inputs as forward arguments."""
        chosen = torch.randint(self.first, self.end, (n,), generator=random)
        return (torch.stack([self.item(int(index)) for index in chosen]),)


def split(draw: Any) -> tuple[Draw, Draw]:
    """Return how to draw inputs to train on, and inputs to choose by: the last eighth of a data set.

    Raises `CompressionError` for what is no function and no data set of at least 8 items.
    """
    if hasattr(draw, "__getitem__") and hasattr(draw, "__len__"):
        count = len(draw)
        if count < _LEAST:
            raise CompressionError(f"draw: a data set needs at least {_LEAST} inputs; got {count}")
        middle = count - max(1, count // 8)
        return DataDraw(draw, 0, middle), DataDraw(draw, middle, count)
    if not callable(draw):
        raise CompressionError(
            "draw must be a function draw(n, random) that returns the forward arguments of n samples, or a data set of "
            f"inputs with a length; got {type(draw).__name__}, which may end early: pass the data set behind it"
        )
    return draw, draw


class KnownOutputs(nn.Module):
    """A teacher whose outputs for the inputs of a data set are known.

    Args:
        teacher: answers for other inputs.
        outputs: by the bytes of an input.
    """

    def __init__(self, teacher: nn.Module, outputs: Mapping[bytes, Tensor]) -> None:
        super().__init__()
        self.teacher, self.outputs = teacher, dict(outputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> KnownOutputs:
        return self  # Nothing in it changes, and it may be large.

    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's outputs for images B x C x H x W."""
        keys = [_key(image) for image in images.cpu()]
        if any(key not in self.outputs for key in keys):
            return self.teacher(images)  # type: ignore[no-any-return]
        return torch.stack([self.outputs[key] for key in keys]).to(images.device)


def known_outputs(
    teacher: nn.Module, draw: DataDraw, device: torch.device, path: Path | None, progress: bool
) -> nn.Module:
    """Return `teacher` with its outputs for all inputs of a data set, from the file `path` where there is one.

    Always in the same batches, so that a search that is resumed gets the same bits.
    """
    inputs = [draw.item(index) for index in range(len(draw.data))]
    identity = digest([*inputs, *teacher.state_dict().values()])
    if path is not None and path.exists():
        tensors, content = read_file(path, _KIND)
        if content["identity"] == identity:
            return KnownOutputs(teacher, dict(zip(map(_key, inputs), tensors["outputs"], strict=True)))
    chunks = []
    bar = tqdm(range(0, len(inputs), _CHUNK), desc="teacher", unit="batch", file=sys.stderr, disable=not progress)
    with torch.no_grad():
        for start in bar:
            chunks.append(teacher(torch.stack(inputs[start : start + _CHUNK]).to(device)).cpu())
    outputs = torch.cat(chunks).contiguous()
    if path is not None:
        write_file(path, _KIND, {"outputs": outputs}, {"identity": identity})
    return KnownOutputs(teacher, dict(zip(map(_key, inputs), outputs, strict=True)))


def example(draw: Any, model: nn.Module | CompressedModel, seed: int) -> Inputs:
    """Return the forward arguments of one sample on the device of `model`."""
    network = model.model if isinstance(model, CompressedModel) else check_module("teacher", model)
    return drawn(split(draw)[0], 1, torch.Generator().manual_seed(seed), device_of(network))


def _key(image: Tensor) -> bytes:
    return image.detach().cpu().contiguous().numpy().tobytes()
