"""Measurements of a model on example inputs: its outputs, checks of them, the error in them, and MACs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(*arguments)


def run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return copies of the tensors in `model(*inputs)`, in order; see `forward`."""
    return [output.clone() for output in tensors_of(forward(model, inputs, seed=0))]


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a model returned, in order: itself, or those in dicts, lists and tuples."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from tensors_of(list(output.values()))
    elif isinstance(output, list | tuple):
        for item in output:
            yield from tensors_of(item)


def reference_outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return `run(model, inputs)`; raise `CompressionError` where that fails or yields no finite tensors."""
    try:
        outputs = run(model, inputs)
    except Exception as error:
        raise CompressionError(f"model does not run on example_inputs: {error}") from error
    if not outputs:
        raise CompressionError("model returns no tensor on example_inputs")
    if not all(output.isfinite().all() for output in outputs):
        raise CompressionError("model returns non-finite values on example_inputs, before any compression")
    return outputs


def checked_outputs(model: nn.Module, inputs: tuple[Any, ...], reference: Sequence[Tensor]) -> list[Tensor]:
    """Return `run(model, inputs)`; raise `ContractBroken` unless shapes and dtypes equal `reference`, all finite."""
    hint = "a channel count written into forward, as in view(-1, 64, 4, 4), can be kept by exclude=('layer name',)"
    try:
        outputs = run(model, inputs)
    except Exception as error:
        raise ContractBroken(f"the compressed model does not run on example_inputs: {error}; {hint}") from error
    got, expected = ([(tuple(o.shape), o.dtype) for o in side] for side in (outputs, reference))
    if got != expected:
        raise ContractBroken(f"the outputs changed from {expected} to {got}; {hint}")
    if not all(output.isfinite().all() for output in outputs):
        raise ContractBroken("the compressed model returns non-finite values on example_inputs")
    return outputs


def sqnr_db(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float | None:
    """Return the signal to quantization noise ratio of outputs y for a reference r, in dB; None where both are equal.

    10 log10(sum r^2 / sum (r - y)^2), summed over all tensors and elements, in float64.
    """
    signal = sum(float(r.double().square().sum()) for r in reference)
    noise = sum(float((r.double() - o.double()).square().sum()) for r, o in zip(reference, outputs, strict=True))
    return 10 * math.log10(signal / noise) if noise and signal else None


def count_macs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of one forward pass per module name, with "" for the whole model.

    Counts convolutions (transposed ones at their input resolution), matrix products and attention, functional calls
    included, for the batch in `inputs`; source: `torch.utils.flop_counter`.
    """
    # The counter hooks into autograd wherever a parameter wants a gradient, and fails there under no_grad.
    with _frozen(model), FlopCounterMode(display=False) as counter:
        run(model, inputs)
    root = type(model).__name__
    totals = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    per_module = {name[len(root) + 1 :]: macs for name, macs in totals.items() if name.startswith(f"{root}.")}
    return {**per_module, "": totals.get("Global", 0)}


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
