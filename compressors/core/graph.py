"""Which layers make the outputs of a model, read off the graph of autograd: works for any architecture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compressors.common.measure import Inputs, copied, cuda_devices, seeded, tensors_of


def output_layers(model: nn.Module, inputs: Inputs, layers: tuple[type[nn.Module], ...]) -> list[str]:
    """Return the names of the modules, of exactly the types `layers`, from which the outputs come by no other such one.

    Found are those whose result reaches an output through activations, norms, sums and reshapes alone.
    """
    made: dict[Any, str] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            made.update({tensor.grad_fn: name for tensor in tensors_of(output) if tensor.grad_fn is not None})

        return hook

    hooks = [
        module.register_forward_hook(keep(name)) for name, module in model.named_modules() if type(module) in layers
    ]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        with torch.enable_grad(), seeded(0, *cuda_devices(model)):
            outputs = list(tensors_of(model(*copied(inputs))))
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for hook in hooks:
            hook.remove()
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    found, seen = [], set(waiting)
    while waiting:
        node = waiting.pop()
        if node in made:
            found.append(made[node])
            continue
        new = [source for source, _ in node.next_functions if source is not None and source not in seen]
        seen.update(new)
        waiting.extend(new)
    return sorted(set(found))
