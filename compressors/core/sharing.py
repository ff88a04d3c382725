"""Parameters that several layers share, as an output layer with the weight of an embedding does."""

from __future__ import annotations

from torch import nn


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """Return the first name of each parameter that has several, by its further names.

    A module under several names counts under its first; that is not sharing.
    """
    first: dict[nn.Parameter, str] = {}
    found = {}
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{leaf}".lstrip(".")
            if first.setdefault(parameter, name) != name:
                found[name] = first[parameter]
    return found


def sharing_notes(model: nn.Module) -> dict[str, str]:
    """Return a remark on each layer that has a parameter of another layer, by name."""
    notes: dict[str, list[str]] = {}
    for name, source in shared_parameters(model).items():
        layer, _, leaf = name.rpartition(".")
        notes.setdefault(layer, []).append(f"{leaf} is that of {source}, counted there")
    return {layer: "; ".join(texts) for layer, texts in notes.items()}
