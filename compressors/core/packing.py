"""A model as the tensors of its file: weights as integers of their bit width; and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.bake import independent_copy
from compressors.common.bits import pack_bits, packed_bytes, unpack_bits
from compressors.common.files import digest
from compressors.core.recipe import LayerQuantization, Recipe
from compressors.errors import CompressionError, UnsupportedModule


def pack(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Return all that the file stores of `model`, by state_dict key, on the CPU.

    Weights of quantized layers are bit streams, everything else (scales, biases, batch statistics) is as in
    `model.state_dict()`. In a sparse model each of the latter is two tensors where they are smaller: ``<key>.bits``,
    one bit per element that tells whether it is not zero, and ``<key>.values``, those that are not, in order. What has
    several keys, as in a module used under several names or in layers that share a weight, is stored once. Buffers that
    `state_dict` leaves out are stored too.

    Raises `UnsupportedModule` where a module keeps state that is no tensor.
    """
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
            found[key] = min(value.nbytes, _sparse_bytes(value)) if recipe.sparse else value.nbytes
    return found


def _state(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Return the tensors of `model`, by key, each under the first of its keys; see `_first_keys`."""
    first = _first_keys(model, recipe)
    state = model.state_dict(keep_vars=True)
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise UnsupportedModule(
            f"state of the model that is no tensor, which files cannot hold: {', '.join(odd)}; keep it in a buffer"
        )
    absent = {key: model.get_buffer(key) for key in _unsaved_buffers(model, recipe)}
    return {key: value for key, value in {**state, **absent}.items() if first.get(key, key) == key}


def _first_keys(model: nn.Module, recipe: Recipe) -> dict[str, str]:
    """Return for the key of each parameter and buffer the first key of the same one; a quantized layer's goes first."""
    keys: dict[int, list[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, value in {**module._parameters, **module._buffers}.items():
            if value is not None:
                keys.setdefault(id(value), []).append(f"{prefix}.{name}".lstrip("."))
    found: dict[str, str] = {}
    for names in keys.values():
        first = next((key for key in names if _quantized(key, recipe)), names[0])
        found |= dict.fromkeys(names, first)
    return found


def _unsaved_buffers(model: nn.Module, recipe: Recipe) -> list[str]:
    """Return the names of buffers that `state_dict` leaves out, those of quantizers excepted."""
    return [
        key
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
        if module._buffers.get(name) is not None
        and not _inside(key := f"{prefix}.{name}".lstrip("."), recipe.quantized)
    ]


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
    first, state = _first_keys(model, recipe), _state(model, recipe)
    # The ranges of quantizers that never ran are not stored, and show in no state before they are set.
    missing, unexpected = (
        sorted(key for key in keys if not _inside(key, recipe.quantized))
        for keys in (set(state) - set(tensors), set(tensors) - set(state))
    )
    if missing or unexpected:
        raise CompressionError(
            f"factory builds another model: the file lacks {missing}, the model lacks {unexpected}; layers and weights "
            "that are shared must be shared in both"
        )
    # Under all of its keys: brevitas forgets the ranges of a layer whenever the layer is met without them.
    buffers = _unsaved_buffers(model, recipe)
    sources = {key: first.get(key, key) for key in {*first, *state} - {*buffers}}
    found = {key: tensors[source] for key, source in sources.items() if source in tensors and source not in packed}
    targets = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    for key, value in {**found, **{key: tensors[key] for key in buffers}}.items():
        if key in targets and targets[key].dtype != value.dtype:
            raise CompressionError(
                f"factory builds another model: {key} is {targets[key].dtype}, in the file {value.dtype}; convert the "
                "model in factory, as in make_generator().half()"
            )
    try:
        model.load_state_dict(found, strict=False)
        for key in buffers:
            model.get_buffer(key).copy_(tensors[key])
    except RuntimeError as error:
        raise CompressionError(f"factory builds another model: {error}") from error
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
