"""Reparametrised weights (spectral norm, weight norm, masks) turned into plain parameters, on a copy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from compressors.common.foreign import copied_foreign, is_foreign
from compressors.common.text import described
from compressors.errors import CompressionError


def baked_copy(model: nn.Module) -> nn.Module:
    """Return an independent copy in eval mode that computes what `model.eval()` computes, with plain parameters only.

    `torch.nn.utils.parametrize` (spectral, weight and orthogonal norm, own parametrisations), the older hooks of
    `spectral_norm` and `weight_norm`, and the masks of `torch.nn.utils.prune` are replaced by the weight they yield.
    `model` is left as it was.
    """
    copied = independent_copy(model).eval()
    for module in list(copied.modules()):
        _bake_hooks(module)
        if parametrize.is_parametrized(module):
            _bake_parametrizations(module)
    return copied


def independent_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy, also of a model with computed tensors and random generators, which `copy.deepcopy` refuses.

    Raises `CompressionError` where the model holds something else that cannot be copied.
    """
    memo: dict[int, Any] = {}
    # The older hooks leave their result behind as a plain, non-leaf attribute; others do so in lists and dicts.
    for value in tree_leaves([dict(vars(module)) for module in model.modules()]):
        if isinstance(value, Tensor) and is_foreign(value):
            memo[id(value)] = copied_foreign(value)
        elif isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
        elif isinstance(value, torch.Generator):
            memo[id(value)] = torch.Generator(value.device).set_state(value.get_state())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise CompressionError(
            f"model cannot be copied: {described(error)}; take out of it what copy.deepcopy refuses, such as locks, "
            "open files or handles, or give the class that holds it a method __deepcopy__"
        ) from error


def _bake_hooks(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        name = getattr(hook, "name", None)
        trainable = any(p.requires_grad for n, p in module.named_parameters(recurse=False) if n.startswith(f"{name}_"))
        if isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            module.get_parameter(hook.name).requires_grad_(trainable)
            # torch wraps this hook and does not recognise it when it removes the others.
            for key, wrapped in list(module._load_state_dict_pre_hooks.items()):
                if isinstance(getattr(wrapped, "hook", wrapped), SpectralNormLoadStateDictPreHook):
                    del module._load_state_dict_pre_hooks[key]
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
            module.get_parameter(hook.name).requires_grad_(trainable)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


def _bake_parametrizations(module: nn.Module) -> None:
    """Do what `remove_parametrizations` does, which edits a class that the copy shares with the original model."""
    weights = {
        name: (getattr(module, name).detach().clone(), list(parametrization.parameters()))
        for name, parametrization in module.parametrizations.items()  # type: ignore[union-attr, operator]
    }
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, (weight, parameters) in weights.items():
        if parameters:
            trainable = any(parameter.requires_grad for parameter in parameters)
            module.register_parameter(name, nn.Parameter(weight, trainable))
        else:
            module.register_buffer(name, weight)
