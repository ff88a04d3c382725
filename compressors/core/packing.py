"""Packed files: weights as integers of their bit width in one safetensors file, with the recipe and the report."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from compressors.core.recipe import LayerQuantization, Recipe
from compressors.errors import CompressionError

FORMAT = "compressors-1"


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack integers 0 ... 2**bits - 1 (any shape) into ceil(numel * bits / 8) bytes (uint8, one dimension)."""
    flat = codes.flatten().to("cpu", torch.uint8).numpy()
    return torch.from_numpy(np.packbits(np.unpackbits(flat[:, None], axis=1)[:, 8 - bits :]))


def unpack_bits(packed: Tensor, bits: int, numel: int) -> Tensor:
    """Undo `pack_bits`; returns `numel` integers (uint8, one dimension)."""
    stream = np.unpackbits(packed.numpy(), count=numel * bits).reshape(numel, bits)
    return torch.from_numpy(np.packbits(np.pad(stream, ((0, 0), (8 - bits, 0))), axis=1)[:, 0])


def pack(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Return all that the file stores of `model`, by state_dict key, on the CPU.

    Weights of quantized layers are bit streams, everything else (scales, biases, batch statistics) is as in
    `model.state_dict()`. A module used under several names is stored once.
    """
    owners = {name for name, _ in model.named_modules()}
    tensors = {key: value for key, value in model.state_dict().items() if key.rpartition(".")[0] in owners}
    for name, layer in recipe.quantized.items():
        from compressors.core._brevitas import integer_weight

        codes, _, _ = integer_weight(model.get_submodule(name))
        tensors[f"{name}.weight"] = pack_bits(codes.short() + _offset(layer), layer.bits)
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def unpack(model: nn.Module, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
    """Fill `model`, which has the structure of `recipe`, with what `pack` gave."""
    packed = {f"{name}.weight": name for name in recipe.quantized}
    try:
        loaded = model.load_state_dict({k: v for k, v in tensors.items() if k not in packed}, strict=False)
    except RuntimeError as error:
        raise CompressionError(f"factory builds another model: {error}") from error
    owners = {name for name, _ in model.named_modules()}
    # Not stored: packed weights, further names of shared modules, and ranges of quantizers that never ran.
    missing = [
        key
        for key in loaded.missing_keys
        if key not in packed and key.rpartition(".")[0] in owners and not _inside(key, recipe.quantized)
    ]
    if missing or loaded.unexpected_keys:
        raise CompressionError(
            f"factory builds another model: the file lacks {missing}, the model lacks {loaded.unexpected_keys}"
        )
    for key, name in packed.items():
        from compressors.core._brevitas import set_weight

        module, layer = model.get_submodule(name), recipe.quantized[name]
        weight = module.get_parameter("weight")
        if tuple(weight.shape) != layer.shape:
            raise CompressionError(
                f"factory builds another model: {key} has shape {tuple(weight.shape)}, in the file {layer.shape}"
            )
        codes = unpack_bits(tensors[key], layer.bits, weight.numel()).to(weight.device).view_as(weight)
        set_weight(module, codes.short() - _offset(layer))


def _offset(layer: LayerQuantization) -> int:
    return 2 ** (layer.bits - 1) if layer.symmetric else 0


def _inside(key: str, quantized: Mapping[str, Any]) -> bool:
    return any(key.startswith((f"{name}.weight_quant.", f"{name}.input_quant.")) for name in quantized)


def rebuild(model: nn.Module, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
    """Turn `model`, a baked instance of the original class, into the compressed one, in place."""
    modules = dict(model.named_modules())
    absent = sorted({*recipe.sizes, *recipe.quantized} - set(modules))
    if absent:
        raise CompressionError(f"factory builds another model: it has no {', '.join(absent)}")
    for name, size in recipe.sizes.items():
        size.apply(modules[name])
    # A bias that bias correction added has no counterpart in the original class.
    for name in recipe.quantized:
        module = modules[name]
        if f"{name}.bias" in tensors and getattr(module, "bias", None) is None:
            bias = torch.empty_like(tensors[f"{name}.bias"], device=module.get_parameter("weight").device)
            module.register_parameter("bias", nn.Parameter(bias))
    if recipe.quantized:
        from compressors.core._brevitas import replace_layers

        replace_layers(model, recipe.quantized, "max")  # any range: the stored scales take its place
    unpack(model, recipe, tensors)


def write_file(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and JSON `content` as one safetensors file, whole or not at all."""
    text = json.dumps(content)
    data = to_safetensors(dict(tensors), {"format": FORMAT, "content": text, "sha256": _digest(tensors, text)})
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_file` wrote; raises `CompressionError` where that is not what the file holds."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CompressionError(f"path: {path} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CompressionError(f"path: {path} has format {metadata.get('format')!r}; this version reads {FORMAT!r}")
    if metadata.get("sha256") != _digest(tensors, metadata.get("content", "")):
        raise CompressionError(f"path: {path} is damaged: its checksum does not fit its content")
    return tensors, json.loads(metadata["content"])


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes `path` if no exception is raised."""
    if not path.parent.is_dir():
        raise CompressionError(f"path: the folder {path.parent} does not exist")
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        temporary = Path(directory, path.name)
        yield temporary
        temporary.replace(path)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
