"""What becomes of a sparse network after training: plain weights, and a file that leaves out the zeros."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compressors.common.bake import baked_copy
from compressors.common.bits import pack_bits, unpack_bits
from compressors.common.files import read_file, write_file
from compressors.errors import CompressionError
from compressors.sparse.masks import MaskSet

_KIND = "sparse network"


@dataclass(frozen=True)
class SparseSize:
    """Size of a network: its parameters, those that are not zero, and bytes of its tensors with and without zeros.

    Without zeros a tensor is stored as one bit per element and the values that are not zero, where that is smaller.
    """

    parameters: int
    nonzero: int
    dense_bytes: int
    sparse_bytes: int


def hand_over(model: nn.Module, masks: MaskSet | None = None) -> nn.Module:
    """Return a plain copy of a sparse network in eval mode, its zeros made permanent.

    Spectral norm is replaced by the weight it yields. The copy is an ordinary network: `Quantizer` quantizes it and
    keeps the zeros, `sparse_size` tells its size, `save_sparse` stores it.

    Args:
        model: the trained network, or its average; left as it is.
        masks: of a network of the same structure, whose zeros `model` must have; None: taken as they are.

    Raises:
        CompressionError: a weight that is off in `masks` is not zero in `model`.
    """
    if masks is not None:
        weights = dict(model.named_parameters())
        for name, mask in masks.masks.items():
            if name not in weights or bool(weights[name].detach().cpu()[~mask.cpu()].any()):
                raise CompressionError(
                    f"model is not sparse as masks say: {name} is absent, or not zero where it is off"
                )
    return baked_copy(model)


def sparse_size(model: nn.Module) -> SparseSize:
    """Return the size of a network, as `save_sparse` would store it."""
    state = model.state_dict()
    return SparseSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        nonzero=sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        dense_bytes=sum(value.nbytes for value in state.values()),
        sparse_bytes=sum(value.nbytes for value in _stored(state).values()),
    )


def save_sparse(model: nn.Module, path: str | Path) -> None:
    """Write a network of `hand_over` as one safetensors file without its zeros, whole or not at all."""
    state = model.state_dict()
    write_file(path, _KIND, _stored(state), {"sparse_shapes": {key: list(value.shape) for key, value in state.items()}})


def load_sparse(path: str | Path, factory: Callable[[], nn.Module]) -> nn.Module:
    """Read a file of `save_sparse`: the network in eval mode, with the same weights to the bit.

    `factory` builds the network as it was before training, with any weights, on the wanted device. Raises
    `CompressionError` for a damaged or foreign file, or a `factory` that builds another network.
    """
    tensors, content = read_file(path, _KIND)
    state = {key: _dense(tensors, key, shape) for key, shape in content["sparse_shapes"].items()}
    model = baked_copy(factory())
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CompressionError(f"factory builds another model: {error}") from error
    return model


def _stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for key, value in state.items():
        plain = value.detach().cpu().contiguous()
        on = plain != 0
        parts = {f"{key}.bits": pack_bits(on, 1), f"{key}.values": plain[on]}
        smaller = sum(part.nbytes for part in parts.values()) < plain.nbytes
        stored |= parts if smaller else {key: plain}
    return stored


def _dense(tensors: dict[str, Tensor], key: str, shape: list[int]) -> Tensor:
    if key in tensors:
        return tensors[key]
    on = unpack_bits(tensors[f"{key}.bits"], 1, math.prod(shape)).bool()
    values = tensors[f"{key}.values"]
    return torch.zeros(len(on), dtype=values.dtype).masked_scatter_(on, values).view(shape)
