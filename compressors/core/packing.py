"""A model as the tensors of its file: weights as integers of their bit width; and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.bits import pack_bits, unpack_bits
from compressors.core.recipe import LayerQuantization, Recipe
from compressors.errors import CompressionError


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
