"""Tensors of others' quantizers (torchao, optimum-quanto), which hold their values in tensors of another type."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_foreign(value: Tensor) -> bool:
    """Tell whether a tensor stands for values that it holds in other tensors."""
    return is_traceable_wrapper_subclass(value)


def has_foreign_tensors(model: nn.Module) -> bool:
    """Tell whether a model holds such tensors."""
    return any(is_foreign(value) for value in (*model.parameters(), *model.buffers()))


def nbytes(value: Tensor) -> int:
    """Return the bytes of a tensor, or of what it holds."""
    return sum(map(nbytes, _held(value).values())) if is_foreign(value) else value.nbytes


def copied_foreign(value: Any) -> Tensor:
    """Return a copy of such a tensor; `copy.deepcopy` refuses those of optimum-quanto."""
    inner = {name: copied_foreign(each) if is_foreign(each) else each.clone() for name, each in _held(value).items()}
    _, context = value.__tensor_flatten__()
    made: Tensor = type(value).__tensor_unflatten__(inner, context, value.size(), value.stride())
    return nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made


def _held(value: Any) -> dict[str, Tensor]:
    names, _ = value.__tensor_flatten__()
    return {name: getattr(value, name) for name in names}
