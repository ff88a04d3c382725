"""A model as the tensors of its file: weights as integers of their bit width; and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compressors.common.bake import independent_copy
from compressors.common.bits import pack_bits, packed_bytes, unpack_bits
from compressors.common.files import digest
from compressors.common.foreign import nbytes
from compressors.core.recipe import LayerQuantization, Recipe
from compressors.errors import CompressionError, UnsupportedModule

_NO_EXTRA_STATE = nn.Module.get_extra_state


def pack(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Return all that the file stores of `model`, by state_dict key, on the CPU.

    Weights of quantized layers are bit streams, everything else (scales, biases, batch statistics) is as in
    `model.state_dict()`. In a sparse model each of the latter is two tensors where they are smaller: ``<key>.bits``,
    one bit per element that tells whether it is not zero, and ``<key>.values``, those that are not, in order. What has
    several keys, as in a module used under several names or in layers that share a weight, is stored once. Buffers that
    `state_dict` leaves out are stored too.

    Raises `UnsupportedModule` where a module has extra state, that of ``get_extra_state``.
    """
    odd = [name for name, module in model.named_modules() if type(module).get_extra_state is not _NO_EXTRA_STATE]
    if odd:
        raise UnsupportedModule(f"{', '.join(odd)}: extra state, which files cannot hold; keep it in a buffer")
    packed: dict[str, Tensor] = {}
    for key, value in _state(model, recipe).items():
        layer = _quantized(key, recipe)
        if layer is not None:
            from compressors.core._brevitas import integer_weight

            codes, _, _ = integer_weight(model.get_submodule(key.removesuffix(".weight")))
            packed[key] = pack_bits(codes.short() + _offset(layer), layer.bits)
        elif recipe.sparse and _sparse_bytes(value) < value.nbytes:
            nonzero = value.detach().cpu() != 0
            packed |= {f"{key}.bits": pack_bits(nonzero, 1), f"{key}.values": value.detach().cpu()[nonzero]}
        else:
            packed[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return packed


def stored_bytes(model: nn.Module, recipe: Recipe) -> dict[str, int]:
    """Return the bytes of what `pack` would give, by state_dict key, from shapes, bit widths and numbers of zeros.

    Of N elements of b bytes each: N b; quantized to q bits: ceil(N q / 8); sparse with M that are not zero:
    min(N b, ceil(N / 8) + M b).
    """
    found = {}
    for key, value in _state(model, recipe).items():
        layer = _quantized(key, recipe)
        if layer is not None:
            found[key] = packed_bytes(value.numel(), layer.bits)
        else:
            dense = nbytes(value)
            found[key] = min(dense, _sparse_bytes(value)) if recipe.sparse else dense
    return found


def _state(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Return the parameters and buffers of `model` by key, what has several keys under one, a quantized layer's first.

    Not ``model.state_dict()``, which leaves buffers out, and which hooks of a model may rename or cut.
    """
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if layer_of(f"{name}.", recipe) is not None:
            continue
        own = {**module._parameters, **module._buffers}
        found |= {f"{name}.{leaf}".lstrip("."): value for leaf, value in own.items() if value is not None}
        for part, quantizer in _quantizers(module, name, recipe).items():
            quantizer.state_dict(destination=found, prefix=part, keep_vars=True)
    first: dict[int, str] = {}
    for key, value in found.items():
        if id(value) not in first or (_quantized(key, recipe) and not _quantized(first[id(value)], recipe)):
            first[id(value)] = key
    return {key: value for key, value in found.items() if first[id(value)] == key}


def _quantizers(module: nn.Module, name: str, recipe: Recipe) -> dict[str, nn.Module]:
    """Return the quantizers of a layer, by the prefix of their keys."""
    if name not in recipe.quantized:
        return {}
    return {f"{name}.{part}.": module.get_submodule(part) for part in _QUANTIZERS if part in module._modules}


_QUANTIZERS = ("weight_quant", "input_quant", "bias_quant", "output_quant")


def layer_of(key: str, recipe: Recipe) -> str | None:
    """Return the quantized layer in whose quantizers the tensor `key` is; None for any other tensor."""
    for part in _QUANTIZERS:
        name, found, _ = key.partition(f".{part}.")
        if found and name in recipe.quantized:
            return name
    return None


def _quantized(key: str, recipe: Recipe) -> LayerQuantization | None:
    name, _, leaf = key.rpartition(".")
    return recipe.quantized.get(name) if leaf == "weight" else None


def _sparse_bytes(value: Tensor) -> int:
    return packed_bytes(value.numel(), 1) + int(value.count_nonzero()) * value.element_size()


def sparse_shapes(model: nn.Module, recipe: Recipe, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `pack` stored without zeros, by state_dict key."""
    return {key: tuple(value.shape) for key, value in _state(model, recipe).items() if f"{key}.bits" in tensors}


def check_packed(
    model: nn.Module, recipe: Recipe, tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Raise `CompressionError` unless a copy of `model` that lost its values gets them back from what `pack` gave."""
    copy = independent_copy(model)
    with torch.no_grad():
        for value in (*copy.parameters(), *copy.buffers()):
            value.zero_()
    _unpack(copy, recipe, _with_zeros(tensors, shapes))
    again = pack(copy, recipe)
    wrong = [key for key, value in tensors.items() if digest([value]) != digest([again[key]])]
    if wrong:
        raise CompressionError(f"the file would not give the model back: {', '.join(wrong)} would differ")


def _with_zeros(tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Put the zeros that `pack` left out back."""
    dense = dict(tensors)
    for key, shape in shapes.items():
        bits, values = dense.pop(f"{key}.bits"), dense.pop(f"{key}.values")
        nonzero = unpack_bits(bits, 1, math.prod(shape)).bool()
        dense[key] = torch.zeros(len(nonzero), dtype=values.dtype).masked_scatter_(nonzero, values).view(tuple(shape))
    return dense


def _unpack(model: nn.Module, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
    """Fill `model`, which has the structure of `recipe`, with what `pack` gave, zeros included."""
    packed = {key: name for name in recipe.quantized if (key := f"{name}.weight") in tensors}
    state = _state(model, recipe)
    # The ranges of quantizers that never ran are not stored, and show in no state before they are set.
    missing, unexpected = (
        sorted(key for key in keys if layer_of(key, recipe) is None)
        for keys in (set(state) - set(tensors), set(tensors) - set(state))
    )
    if missing or unexpected:
        raise CompressionError(
            f"factory builds another model: the file lacks {missing}, the model lacks {unexpected}; layers and weights "
            "that are shared must be shared in both"
        )
    for key, target in state.items():
        if key not in packed and layer_of(key, recipe) is None:
            _fill(key, target, tensors[key])
    ranges: dict[str, dict[str, Tensor]] = {name: {} for name in recipe.quantized}
    for key in tensors:
        if (name := layer_of(key, recipe)) is not None:
            ranges[name][key.removeprefix(f"{name}.")] = tensors[key]
    for name, found in ranges.items():
        for part, quantizer in _quantizers(model.get_submodule(name), name, recipe).items():
            prefix = part.removeprefix(f"{name}.")
            values = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
            if values:
                quantizer.load_state_dict(values, strict=False)
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


def _fill(key: str, target: Tensor, value: Tensor) -> None:
    for what, got, stored in (("shape", tuple(target.shape), tuple(value.shape)), ("dtype", target.dtype, value.dtype)):
        if got != stored:
            raise CompressionError(f"factory builds another model: {key} has {what} {got}, in the file {stored}")
    target.detach().copy_(value)


def rebuild(
    model: nn.Module, recipe: Recipe, tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Turn `model`, a baked instance of the original class, into the compressed one, in place.

    Args:
        model: as the recipe's architecture or the original class makes it.
        recipe: of the compressed model.
        tensors: what `pack` gave.
        shapes: what `sparse_shapes` gave.

    Raises:
        CompressionError: `model` is of another class or size.
    """
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
    _unpack(model, recipe, _with_zeros(tensors, shapes))
