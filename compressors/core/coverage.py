"""Coverage: the share of parameters in layers that a compressor can treat. Both backends ignore the others silently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from compressors.errors import UnsupportedModule

# Their few parameters follow the channels of their neighbours and stay in float.
PASSIVE_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)

_ADVICE: tuple[tuple[type[nn.Module], str], ...] = (
    (
        nn.MultiheadAttention,
        "its projections are bare parameters: write it with nn.Linear and scaled_dot_product_attention",
    ),
    (nn.RNNBase, "its weights are bare parameters: write it with nn.Linear"),
    (nn.RNNCellBase, "its weights are bare parameters: write it with nn.Linear"),
)


def check_coverage(model: nn.Module, supported: tuple[type[nn.Module], ...], minimum: float) -> float:
    """Return the share of parameters in layers of exactly the `supported` types, or in layers that follow them.

    Raises `UnsupportedModule`, with all parameters elsewhere, where the share is below `minimum`, or there are none.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    if not total:
        raise UnsupportedModule(
            "model has no parameters: networks that it calls must be its submodules, held by attributes, nn.ModuleList "
            "or nn.ModuleDict, and not by plain lists, dicts or closures"
        )
    elsewhere = uncovered_parameters(model, supported)
    coverage = 1 - sum(parameter.numel() for parameter in elsewhere.values()) / total
    if coverage < minimum:
        raise UnsupportedModule(
            f"only {coverage:.0%} of the parameters are in layers that can be treated (at least {minimum:.0%} wanted); "
            f"not covered: {describe(elsewhere)}; {'; '.join(_advice(model, elsewhere, supported))}"
        )
    return coverage


def _advice(model: nn.Module, parameters: Iterable[str], supported: tuple[type[nn.Module], ...]) -> list[str]:
    """Return what to do about modules that hold `parameters`, one sentence for each type of module."""
    by_type: dict[type[nn.Module], list[str]] = {}
    for name in dict.fromkeys(parameter.rpartition(".")[0] for parameter in parameters):
        by_type.setdefault(type(model.get_submodule(name)), []).append(name)
    return [f"{_named(names)}: {_advice_on(kind, supported)}" for kind, names in by_type.items()]


def _named(names: list[str]) -> str:
    shown = [name or "the model itself" for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _advice_on(kind: type[nn.Module], supported: tuple[type[nn.Module], ...]) -> str:
    for known, text in _ADVICE:
        if issubclass(kind, known):
            return f"{kind.__name__}: {text}"
    base = next((layer for layer in supported if issubclass(kind, layer)), None)
    if base is not None:
        return (
            f"{kind.__name__} is a subclass of nn.{base.__name__}, whose forward may do anything: use "
            f"nn.{base.__name__} itself, and do what the subclass adds in a module around it"
        )
    return (
        f"{kind.__name__} holds parameters of its own: weights used by functional calls must move into standard "
        "layers, as in a twin of the model that runs nn.Conv2d on modulated inputs"
    )


def check_layers(model: nn.Module, names: Iterable[str]) -> None:
    """Raise `UnsupportedModule` for layers that do not compute what their type says from a parameter ``weight``."""
    for name in names:
        layer = model.get_submodule(name)
        if "forward" in vars(layer):
            raise UnsupportedModule(
                f"{name}: its forward was replaced on the object, and would not see the quantized weight: restore it, "
                "or do the same in a module around the layer"
            )
        if not isinstance(layer._parameters.get("weight"), nn.Parameter):
            hooks = ", ".join(type(hook).__name__ for hook in layer._forward_pre_hooks.values())
            parts = ", ".join(layer._parameters)
            raise UnsupportedModule(
                f"{name}: its weight is no parameter but computed{f' by the forward pre-hook {hooks}' if hooks else ''}"
                f"{f' from {parts}' if parts else ''}: make the computed weight an nn.Parameter and remove the hook in "
                "a copy of the model, or compute it by torch.nn.utils.parametrize, which is understood"
            )


def uncovered_layers(model: nn.Module, supported: tuple[type[nn.Module], ...]) -> dict[str, str]:
    """Return why modules with parameters of their own that are of no `supported` type stay in float, by name."""
    notes = {}
    for name, module in model.named_modules():
        if type(module) in supported or not any(True for _ in module.parameters(recurse=False)):
            continue
        base = next((layer for layer in supported if isinstance(module, layer)), None)
        if isinstance(module, PASSIVE_LAYERS):
            notes[name] = "float: has a value per channel"
        elif base is not None:
            notes[name] = f"float: a subclass of {base.__name__}"
        else:
            notes[name] = "float: parameters of its own, in no standard layer"
    return notes


def uncovered_parameters(model: nn.Module, supported: tuple[type[nn.Module], ...]) -> dict[str, nn.Parameter]:
    """Return the parameters of `model`, by name, that are in none of these layers, each under its first name."""
    inside: set[nn.Parameter] = set()
    outside: dict[nn.Parameter, str] = {}
    for prefix, module in model.named_modules():
        known = type(module) in supported or isinstance(module, PASSIVE_LAYERS)
        for name, parameter in module.named_parameters(recurse=False):
            if known:
                inside.add(parameter)
            else:
                outside.setdefault(parameter, f"{prefix}.{name}".lstrip("."))
    return {name: parameter for parameter, name in outside.items() if parameter not in inside}


def describe(parameters: Mapping[str, nn.Parameter]) -> str:
    """Return names and shapes for an error message."""
    return ", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in parameters.items())
