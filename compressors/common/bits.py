"""Integers of a few bits as a dense stream of bytes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def packed_bytes(numel: int, bits: int) -> int:
    """Return the length of what `pack_bits` gives: ceil(numel * bits / 8)."""
    return -(-numel * bits // 8)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack integers 0 ... 2**bits - 1 (any shape) into ceil(numel * bits / 8) bytes (uint8, one dimension)."""
    flat = codes.flatten().to("cpu", torch.uint8).numpy()
    return torch.from_numpy(np.packbits(np.unpackbits(flat[:, None], axis=1)[:, 8 - bits :]))


def unpack_bits(packed: Tensor, bits: int, numel: int) -> Tensor:
    """Undo `pack_bits`; returns `numel` integers (uint8, one dimension)."""
    stream = np.unpackbits(packed.numpy(), count=numel * bits).reshape(numel, bits)
    return torch.from_numpy(np.packbits(np.pad(stream, ((0, 0), (8 - bits, 0))), axis=1)[:, 0])
