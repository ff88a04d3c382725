"""Coverage: the share of parameters in layers that a compressor can treat. Both backends ignore the others silently."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from compressors.errors import UnsupportedModule

# Their few parameters follow the channels of their neighbours and stay in float.
_PASSIVE_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


def check_coverage(model: nn.Module, supported: tuple[type[nn.Module], ...], minimum: float) -> float:
    """Return the share of parameters in layers of exactly the `supported` types, or in layers that follow them.

    Raises `UnsupportedModule`, with all parameters elsewhere, where the share is below `minimum`.
    """
    elsewhere = uncovered_parameters(model, supported)
    total = sum(parameter.numel() for parameter in model.parameters())
    coverage = 1 - sum(parameter.numel() for parameter in elsewhere.values()) / max(total, 1)
    if coverage < minimum:
        raise UnsupportedModule(
            f"only {coverage:.0%} of the parameters are in layers that can be treated (at least {minimum:.0%} wanted); "
            f"not covered: {describe(elsewhere)}; "
            "weights used by functional calls must move into standard layers, as in a twin of the model that runs "
            "nn.Conv2d on modulated inputs"
        )
    return coverage


def uncovered_parameters(model: nn.Module, supported: tuple[type[nn.Module], ...]) -> dict[str, nn.Parameter]:
    """Return the parameters of `model`, by name, that are in none of these layers, each under its first name."""
    inside: set[nn.Parameter] = set()
    outside: dict[nn.Parameter, str] = {}
    for prefix, module in model.named_modules():
        known = type(module) in supported or isinstance(module, _PASSIVE_LAYERS)
        for name, parameter in module.named_parameters(recurse=False):
            if known:
                inside.add(parameter)
            else:
                outside.setdefault(parameter, f"{prefix}.{name}".lstrip("."))
    return {name: parameter for parameter, name in outside.items() if parameter not in inside}


def describe(parameters: Mapping[str, nn.Parameter]) -> str:
    """Return names and shapes for an error message."""
    return ", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in parameters.items())
