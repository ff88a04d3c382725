"""Checks of arguments: each error names the argument, what was given, what is accepted, and the nearest name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compressors.errors import CompressionError


def check_bits(argument: str, bits: Any) -> None:
    """Raise `CompressionError` unless `bits` is an integer from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise CompressionError(f"{argument} must be an integer from 2 to 8; got {bits!r}")


def check_share(argument: str, share: Any, end: bool = True) -> None:
    """Raise `CompressionError` unless `share` is a number from 0 to 1; `end` tells whether 1 itself is accepted."""
    if not _is_number(share) or not 0 <= share <= 1 or (share == 1 and not end):
        raise CompressionError(f"{argument} must be a number from 0 to 1{'' if end else ' (exclusive)'}; got {share!r}")


def check_density(argument: str, density: Any) -> None:
    """Raise `CompressionError` unless `density` is a number above 0, at most 1."""
    if not _is_number(density) or not 0 < density <= 1:
        raise CompressionError(f"{argument} must be a number above 0, at most 1; got {density!r}")


def check_number(argument: str, value: Any) -> None:
    """Raise `CompressionError` unless `value` is a finite number."""
    if not _is_number(value) or not math.isfinite(value):
        raise CompressionError(f"{argument} must be a finite number; got {value!r}")


def check_weight(argument: str, weight: Any) -> None:
    """Raise `CompressionError` unless `weight` is a finite number of at least 0."""
    if not _is_number(weight) or not 0 <= weight < math.inf:
        raise CompressionError(f"{argument} must be a weight of at least 0; got {weight!r}")


def check_count(argument: str, count: Any, least: int = 1) -> None:
    """Raise `CompressionError` unless `count` is an integer of at least `least`."""
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise CompressionError(f"{argument} must be an integer of at least {least}; got {count!r}")


def check_choice(argument: str, choice: Any, choices: Sequence[str]) -> None:
    """Raise `CompressionError` unless `choice` is one of `choices`."""
    if choice not in choices:
        raise CompressionError(
            f"{argument} must be one of {', '.join(choices)}; got {choice!r}{did_you_mean(choice, choices)}"
        )


def check_patterns(argument: str, patterns: Any) -> None:
    """Raise `CompressionError` unless `patterns` is a list or tuple of strings."""
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise CompressionError(f"{argument} must be a tuple of layer names or glob patterns; got {patterns!r}")


def check_inputs(argument: str, inputs: Any) -> tuple[Any, ...]:
    """Return `inputs` if it is a non-empty tuple of forward arguments, else raise `CompressionError`."""
    if not isinstance(inputs, tuple) or not inputs:
        raise CompressionError(
            f"{argument} must be a non-empty tuple of the model's forward arguments, such as (z,) or (z, labels); "
            f"got {type(inputs).__name__}"
        )
    return inputs


def check_module(argument: str, model: Any, kind: str = "a torch.nn.Module") -> nn.Module:
    """Return `model` if it is a module, else raise `CompressionError` with the way to make it one."""
    if isinstance(model, nn.Module):
        return model
    parts = [name for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)]
    if isinstance(model, type):
        got, hint = f"the class {model.__name__}", f"; pass an instance of it, {model.__name__}(...)"
    elif callable(model) and not parts:
        name = getattr(model, "__name__", type(model).__name__)
        got, hint = (
            f"the function {name}",
            "; write a torch.nn.Module whose forward calls it and that holds its networks",
        )
    else:
        got = f"{type(model).__name__}"
        hint = f"; it holds the modules {', '.join(parts)}: pass the one that is to be compressed" if parts else ""
    raise CompressionError(f"{argument} must be {kind}; got {got}{hint}")


def check_replaceable(argument: str, model: nn.Module) -> None:
    """Raise `CompressionError`, with the way out, for a model whose layers cannot be replaced or have no values yet."""
    wrapped = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    if wrapped:
        raise CompressionError(f"{argument} is wrapped in {type(model).__name__}: pass {argument}.module")
    for name, module in model.named_modules():
        where, path = (f"{argument}'s layer {name}", f"{argument}.{name}") if name else (argument, argument)
        if type(module).__name__ == "OptimizedModule":
            raise CompressionError(
                f"{where} is compiled by torch.compile: compress {path}._orig_mod in its place, and compile the result"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise CompressionError(
                f"{where} is TorchScript, whose layers cannot be replaced: pass the Python module that it was made from"
            )
    check_values(argument, model)


def check_values(argument: str, model: nn.Module) -> None:
    """Raise `CompressionError` for a model with weights that have no values yet."""
    for name, module in model.named_modules():
        where = f"{argument}'s layer {name}" if name else argument
        if any(is_lazy(value) for value in (*module._parameters.values(), *module._buffers.values())):
            raise CompressionError(
                f"{where} ({type(module).__name__}) has no weights yet: run the model once, or load a state dict"
            )
        if any(value.is_meta for value in module.parameters(recurse=False)):
            raise CompressionError(f"{where} is on the meta device, where weights have no values: load them before")


def matching(argument: str, patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """Return the names that match one of the glob `patterns`; raise `CompressionError` for a pattern without match."""
    found: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise CompressionError(
                f"{argument}: {pattern!r} matches no layer; the layers are {', '.join(names)}"
                f"{did_you_mean(pattern, names)}"
            )
        found.update(matches)
    return found


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Return the end of an error message that names the known name nearest to `name`; "" where none is near."""
    nearest = get_close_matches(str(name), list(known), n=1)
    return f'; did you mean "{nearest[0]}"?' if nearest else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
