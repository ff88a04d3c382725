"""All that is asked of torch-pruning: a model's dependency graph traced, and channels removed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.extras import extra
from compressors.common.measure import Inputs, forward
from compressors.errors import UnsupportedModule

with extra("compress"):
    import torch_pruning as tp

PRUNABLE_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
)

# Instance norms, with the dimensions of a position.
_SPATIAL: dict[type[nn.Module], int] = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def check_layers(model: nn.Module) -> None:
    """Raise `UnsupportedModule` for layers that torch-pruning would treat wrongly or fail on."""
    refused = []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
            depthwise = module.groups == module.in_channels == module.out_channels
            if not depthwise and (module.transposed or module.groups == module.in_channels):
                refused.append(f"{name}: grouped convolution with groups={module.groups}")
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            refused.append(f"{name}: instance norm with running statistics")
    if refused:
        raise UnsupportedModule(f"torch-pruning cannot prune {'; '.join(refused)}")


def prune(
    model: nn.Module,
    inputs: Inputs,
    *,
    ratio: float,
    importance: Callable[[Any], Tensor | None],
    across_layers: bool,
    round_to: int | None,
    loose: Sequence[tuple[nn.Parameter, int]],
    exclude: Sequence[str],
) -> dict[str, str]:
    """Prune `model` in place; its parameters are trainable afterwards.

    Args:
        model: in eval mode, with plain parameters.
        inputs: forward arguments to trace it with.
        ratio: share of channels to remove, 0 to 1 (exclusive).
        importance: from a pruning group to a score per channel, lowest removed first.
        across_layers: rank the channels of all layers together.
        round_to: round the channels kept to a multiple of this; None does not.
        loose: parameters outside of `PRUNABLE_LAYERS`, with the dimension of their channels.
        exclude: names of layers whose output channels all stay.

    Returns:
        Further layers whose output channels were kept, by name, with the reason.
    """
    for module in model.modules():
        # An activation that overwrites its input hides the norm before it from the trace.
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    model.requires_grad_(True)  # the trace follows gradients, and passes over frozen parameters silently
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about loose parameters of one element
        pruner = tp.pruner.BasePruner(
            model,
            inputs,
            importance=None,
            pruning_ratio=ratio,
            global_pruning=across_layers,
            round_to=round_to,
            unwrapped_parameters=list(loose),
            in_channel_groups={},  # the defaults are dicts shared by all calls
            out_channel_groups={},
            forward_fn=lambda traced, arguments: traced(*arguments),
        )
    graph = pruner.DG
    pruner.importance = _per_channel(importance, graph)
    kept = _layers_to_keep(graph)
    pruner.ignored_layers.extend(model.get_submodule(name) for name in (*exclude, *kept))
    check = graph.check_pruning_group
    graph.check_pruning_group = lambda group: check(_without_duplicates(group))
    pruner.step()
    _fit_instance_norms(model, inputs)
    return kept


def layers_of(group: Any) -> tuple[str, ...]:
    """Return the names of the layers whose output channels a pruning group removes."""
    outputs = (
        tp.prune_conv_out_channels,
        tp.prune_depthwise_conv_out_channels,
        tp.prune_linear_out_channels,
        tp.prune_embedding_out_channels,
    )
    members = [item.dep.target for item in group if item.dep.handler in outputs]
    return tuple(dict.fromkeys(node.name.split(" (")[0] for node in members if type(node.module) in PRUNABLE_LAYERS))


def _fit_instance_norms(model: nn.Module, inputs: Inputs) -> None:
    """Tell instance norms without parameters, which torch-pruning does not see, how many channels they get."""

    def fit(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        module.num_features = arguments[0].shape[-1 - _SPATIAL[type(module)]]

    hooks = [module.register_forward_pre_hook(fit) for module in model.modules() if type(module) in _SPATIAL]
    try:
        forward(model, inputs, seed=0)
    finally:
        for hook in hooks:
            hook.remove()


def _layers_to_keep(graph: Any) -> dict[str, str]:
    """Return the layers that make the model's output, or feed a pixel shuffle, with the reason, by name."""
    names = {module: name for name, module in graph.model.named_modules()}
    nodes = list(graph.module2node.values())
    shuffles = [node for node in nodes if "Shuffle" in node.grad_fn.name()]
    outputs = [node for node in nodes if not node.outputs]
    kept = {names[layer]: "output channels kept: feeds a pixel shuffle" for layer in _nearest_layers(shuffles)}
    return kept | {names[layer]: "output channels kept: model output" for layer in _nearest_layers(outputs)}


def _nearest_layers(nodes: list[Any]) -> set[nn.Module]:
    """Return the first layers with channels of their own that are met from `nodes` (included) towards the input."""
    layers, seen, waiting = set(), set(nodes), list(nodes)
    while waiting:
        node = waiting.pop()
        if type(node.module) in PRUNABLE_LAYERS:
            layers.add(node.module)
            continue
        new = [source for source in node.inputs if source not in seen]
        seen.update(new)
        waiting.extend(new)
    return layers


def _per_channel(importance: Callable[[Any], Tensor | None], graph: Any) -> Callable[[Any], Tensor | None]:
    """Give rows of a layer that can only go together (those of a channel in Linear -> view(C, h, w)) their mean score.

    Scored one by one, the lowest rows of the layer would hit every channel, and the group could not be pruned at all.
    """

    def score(group: Any) -> Tensor | None:
        scores = importance(group)
        if scores is None or all(len(item.idxs) >= len(scores) for item in group):
            return scores
        scores = scores.clone()
        root, prune = group[0].dep.target.module, group[0].dep.handler
        rows = set(range(len(scores)))
        while rows:
            together = sorted(set(graph.get_pruning_group(root, prune, [min(rows)])[0].idxs))
            scores[together] = scores[together].mean()
            rows.difference_update(together)
        return scores

    return score


def _without_duplicates(group: Any) -> Any:
    """Remove repeated indices, which a Linear -> view leaves in its group and which would be counted twice."""
    for i, item in enumerate(group):
        group[i] = item._replace(idxs=sorted(set(item.idxs)))
    return group
