"""Spectral norm of either kind: where the trained weight is, when its singular vectors move.

Source: Miyato et al. 2018 (arXiv 1802.05957); `torch.nn.utils.spectral_norm` (hooks) and
`torch.nn.utils.parametrizations.spectral_norm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm


def trained_weight(layer: nn.Module) -> str | None:
    """Return the name, within `layer`, of the parameter its weight is computed from; None if there are several."""
    names = {name for name, _ in layer.named_parameters()}
    return next((name for name in ("weight", "weight_orig", "parametrizations.weight.original") if name in names), None)


@contextmanager
def without_power_iteration(model: nn.Module) -> Iterator[None]:
    """Keep the singular vectors as they are in forward passes; everything else stays in its mode."""
    normed = [module for module in model.modules() if module.training and (_hooks(module) or _is_norm(module))]
    try:
        for module in normed:
            module.training = False
        yield
    finally:
        for module in normed:
            module.training = True


@torch.no_grad()
def refresh_spectral_norm(model: nn.Module, iterations: int = 5) -> None:
    """Let the singular vectors follow weights that changed at once, by as many power iterations."""
    for module in model.modules():
        for hook in _hooks(module):
            for _ in range(iterations):
                weight = hook.compute_weight(module, do_power_iteration=True)
            setattr(module, hook.name, weight)
        if parametrize.is_parametrized(module, "weight"):
            chain = module.parametrizations["weight"]  # type: ignore[index]
            weight = module.get_parameter("parametrizations.weight.original")
            for step in chain:
                if _is_norm(step):
                    step._power_method(step._reshape_weight_to_matrix(weight), iterations)
                weight = step(weight)


def _hooks(module: nn.Module) -> list[SpectralNorm]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _SpectralNorm)
