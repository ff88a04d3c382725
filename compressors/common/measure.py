"""Measurements of a model on example inputs: its outputs, checks of them, the error in them, and MACs."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from compressors.common.text import described
from compressors.errors import CompressionError, ContractBroken

Inputs: TypeAlias = tuple[Any, ...]
"""The arguments of one forward pass."""


def copied(inputs: Inputs) -> Inputs:
    """Return copies of forward arguments, of what lists and dicts in them hold too: a forward may write into them."""
    arguments: Inputs = tree_map(_copied, inputs)
    return arguments


def _copied(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.detach().clone()
    try:
        return copy.deepcopy(item)
    except Exception:  # An object that cannot be copied, such as a lock, is passed on as it is.
        return item


@torch.no_grad()
def forward(model: nn.Module, inputs: Inputs, seed: int | None = None) -> Any:
    """Return `model(*inputs)`, run on copies of `inputs` and without gradients.

    All passes that only measure go through here. With a `seed` noise drawn inside the model is the same on every call,
    and the random state of the caller stays as it was.
    """
    arguments = copied(inputs)
    if seed is None:
        return model(*arguments)
    with seeded(seed, *cuda_devices(model)):
        return model(*arguments)


@contextmanager
def seeded(seed: int, *devices: torch.device) -> Iterator[None]:
    """Seed torch's random numbers on the CPU and, of `devices`, on those of CUDA, inside the block alone.

    `torch.manual_seed` seeds all GPUs there are, which would initialise them for a model on the CPU.
    """
    cuda = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for device in cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU where it has none."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def cuda_devices(model: nn.Module) -> list[torch.device]:
    """Return the GPUs that a model is on; the current one, if any is in use, for a model that shows no tensors."""
    devices = dict.fromkeys(tensor.device for tensor in chain(model.parameters(), model.buffers()))
    if not devices and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return [torch.device("cuda", torch.cuda.current_device())]
    return [device for device in devices if device.type == "cuda"]


def batch_size(inputs: Any) -> int | None:
    """Return the length of the first tensor with dimensions in forward arguments, in lists and dicts too, or None."""
    return next((len(item) for item in tree_leaves(inputs) if isinstance(item, Tensor) and item.dim()), None)


def run(model: nn.Module, inputs: Inputs, seed: int = 0) -> list[Tensor]:
    """Return copies of the tensors in `model(*inputs)`, in order; see `forward`."""
    return [output.clone() for output in tensors_of(forward(model, inputs, seed))]


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a model returned, in order: itself, or those in dicts, lists, tuples, dataclasses."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from tensors_of(list(output.values()))
    elif isinstance(output, list | tuple):
        for item in output:
            yield from tensors_of(item)
    elif is_dataclass(output):
        yield from tensors_of([getattr(output, field.name) for field in fields(output)])


def called_layers(model: nn.Module, inputs: Inputs) -> set[str]:
    """Return the names of the modules whose forward runs in a pass; a layer's weight may be used without the layer."""
    called: set[str] = set()
    replaced = []
    # Not by hooks: where there are some, nn.TransformerEncoderLayer takes another way through its layers.
    for name, module in model.named_modules():
        if "forward" not in vars(module) and not isinstance(module, torch.jit.ScriptModule):
            vars(module)["forward"] = _noting(name, module.forward, called)
            replaced.append(module)
    try:
        run(model, inputs)
    finally:
        for module in replaced:
            del vars(module)["forward"]
    return called


def _noting(name: str, method: Callable[..., Any], called: set[str]) -> Callable[..., Any]:
    def noting(*arguments: Any, **keywords: Any) -> Any:
        called.add(name)
        return method(*arguments, **keywords)

    return noting


def reference_outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return `run(model, inputs)`; raise `CompressionError` where that fails or yields no finite tensors."""
    try:
        output = forward(model, inputs, seed=0)
    except Exception as error:
        raise CompressionError(f"model does not run on example_inputs: {described(error)}") from error
    outputs = [tensor.clone() for tensor in tensors_of(output)]
    if not outputs:
        raise CompressionError(
            f"model returns no tensor on example_inputs, but {type(output).__name__}: return tensors, or lists, "
            "tuples, dicts or dataclasses of tensors"
        )
    if not all(output.isfinite().all() for output in outputs):
        raise CompressionError("model returns non-finite values on example_inputs, before any compression")
    return outputs


def checked_outputs(model: nn.Module, inputs: tuple[Any, ...], reference: Sequence[Tensor]) -> list[Tensor]:
    """Return `run(model, inputs)`; raise `ContractBroken` unless shapes and dtypes equal `reference`, all finite."""
    hint = "a channel count written into forward, as in view(-1, 64, 4, 4), can be kept by exclude=('layer name',)"
    try:
        outputs = run(model, inputs)
    except Exception as error:
        raise ContractBroken(
            f"the compressed model does not run on example_inputs: {described(error)}; {hint}"
        ) from error
    got, expected = ([(tuple(o.shape), o.dtype) for o in side] for side in (outputs, reference))
    if got != expected:
        raise ContractBroken(f"the outputs changed from {expected} to {got}; {hint}")
    if not all(output.isfinite().all() for output in outputs):
        raise ContractBroken("the compressed model returns non-finite values on example_inputs")
    return outputs


def sqnr_db(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float | None:
    """Return the signal to quantization noise ratio of outputs y for a reference r, in dB; None where both are equal.

    10 log10(sum r^2 / sum (r - y)^2), summed over all tensors and elements, in float64; a reference of zeros counts as
    the smallest number above 0.
    """
    pairs = [(_wide(r), _wide(o)) for r, o in zip(reference, outputs, strict=True)]
    signal = sum(float(r.square().sum()) for r, _ in pairs)
    noise = sum(float((r - o).square().sum()) for r, o in pairs)
    if not noise:
        return None
    if not signal:
        return 10 * (math.log10(sys.float_info.min) - math.log10(noise))
    return 10 * math.log10(signal / noise)


def _wide(values: Tensor) -> Tensor:
    return (torch.view_as_real(values) if values.is_complex() else values).double()


def count_macs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of one forward pass per module name, with "" for the whole model.

    Counts convolutions (transposed ones at their input resolution), matrix products and attention, functional calls
    included, for the batch in `inputs`; source: `torch.utils.flop_counter`.
    """
    # The counter hooks into autograd wherever a parameter wants a gradient, and fails there under no_grad.
    with _frozen(model), FlopCounterMode(display=False) as counter:
        run(model, inputs)
    root = type(model).__name__
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {module: name for name, module in model.named_modules()}
    macs = {"": 0}
    for name, flops in counter.get_flop_counts().items():
        # The counter calls a module that has several names by the last of them.
        module = modules.get(name.removeprefix(f"{root}.")) if name != "Global" else model
        if module is not None:
            macs[first[module]] = macs.get(first[module], 0) + sum(flops.values()) // 2
    return macs


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
