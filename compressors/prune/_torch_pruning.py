"""All that is asked of torch-pruning: a model's dependency graph traced, and channels removed.

torch-pruning guesses how reshapes, attention and the like carry channels from layer to layer. What is to be removed is
therefore tried on a copy first (`compressors.prune._equivalence`), and channels whose match fails stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.extras import extra
from compressors.common.measure import Inputs, copied, forward
from compressors.common.text import described
from compressors.core.coverage import PASSIVE_LAYERS
from compressors.errors import CompressionError, UnsupportedModule
from compressors.prune._equivalence import gathered, mismatch, positions, probe_of

with extra("compress"):
    import torch_pruning as tp
    from torch_pruning._helpers import _HybridIndex
    from torch_pruning.dependency import Dependency, Group, shape_infer

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

# Their parts depend on each other in ways that torch-pruning gets wrong; they stay, and so do the layers before them.
WHOLE_LAYERS: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, nn.RNNBase)

_BLOCKINGS_TRIED = 8
_KEPT = "output channels kept"
_NO_SCORES = "importance gives no scores"


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


@dataclass(frozen=True)
class _Group:
    """Layers that share their channels, as torch-pruning found them.

    Attributes:
        root: the first layer, whose output rows stand for those of all.
        handler: torch-pruning's function that removes rows of `root`.
        layers: the names of all layers whose output channels go together.
        units: the rows of `root` that can only go together, such as those of a channel in Linear -> view(C, h, w).
        scores: the importance of each row.
        blocks: the number of equal parts of the rows, such as groups of a norm, of which each unit has its share.
    """

    root: nn.Module
    handler: Any
    layers: tuple[str, ...]
    units: tuple[tuple[int, ...], ...]
    scores: Tensor
    blocks: int = 1

    def unit_scores(self) -> Tensor:
        """Return the mean importance of each unit."""
        return torch.stack([self.scores[list(unit)].mean() for unit in self.units])

    def rounded(self, removed: int, round_to: int | None) -> int:
        """Return how many units to remove, at least `removed`, so that a multiple of `round_to` channels is kept.

        Fewer, or none, where `removed` leaves less than `round_to` channels.
        """
        step = 1 if round_to is None else round_to // math.gcd(round_to, self.blocks)
        kept = len(self.units) - removed
        return len(self.units) - (kept - kept % step if kept >= step else min(step, len(self.units)))

    def in_blocks(self, blocks: int) -> _Group:
        """Return the group with the rows at one place of each of `blocks` equal parts (heads) going together."""
        size = len(self.scores) // blocks
        units = tuple(tuple(range(place, len(self.scores), size)) for place in range(size))
        return replace(self, units=units, blocks=blocks)


@dataclass(frozen=True)
class _Removal:
    """Rows of a group that go, and what goes with them: by name and handler, its dimension and the indices on it."""

    group: _Group
    rows: frozenset[int]
    items: Mapping[tuple[str, Any], tuple[int, frozenset[int]]]


def prune(
    model: nn.Module,
    inputs: Inputs,
    *,
    ratio: float | Mapping[str, float],
    importance: Callable[[Any], Tensor | None],
    across_layers: bool,
    round_to: int | None,
    loose: Mapping[str, int | None],
    exclude: Mapping[str, str],
) -> tuple[nn.Module, dict[str, str]]:
    """Return a pruned copy of `model`, whose parameters are trainable, and which layers kept their output channels.

    The copy computes what `model` computes with the removed channels at zero, but for statistics over channels.

    Args:
        model: in eval mode, with plain parameters; becomes trainable, and its activations no longer work in place.
        inputs: forward arguments to trace it with.
        ratio: share of channels to remove, 0 to 1 (exclusive), of all layers or by their names, 0 for others. Of layers
            that share their channels the largest counts.
        importance: from a pruning group to a score per channel, lowest removed first.
        across_layers: rank the channels of all layers together.
        round_to: round the channels kept to a multiple of this; None does not.
        loose: parameters outside of `PRUNABLE_LAYERS`, by name, with the dimension of their channels, None for none.
        exclude: names of layers whose output channels all stay, with the reason.

    Returns:
        The pruned model, and notes by name: the reason for layers that kept their output channels.

    Raises:
        UnsupportedModule: torch-pruning cannot trace `model`, or no choice of layers to keep makes the result right.
        CompressionError: `importance` fails or gives no scores.
    """
    graph = _traced(model, inputs, loose)
    notes = {**exclude, **_layers_to_keep(graph)}
    groups = list(_groups(graph, importance, notes))
    if not groups and f"{_KEPT}: {_NO_SCORES}" in notes.values():
        raise CompressionError("importance returned None for every group of layers: scores are needed")
    removals = []
    ratios = [max(ratio.get(n, 0.0) for n in g.layers) if isinstance(ratio, Mapping) else ratio for g in groups]
    chosen = _chosen(groups, ratios, across_layers, round_to)
    for group, units, share in zip(groups, chosen, ratios, strict=True):
        if units:
            removals.append(_removal(graph, group, units, loose))
        else:
            notes |= dict.fromkeys(group.layers, f"{_KEPT}: {_why_none(group, share, across_layers, round_to)}")
    removals = _matched(model, inputs, graph, removals, loose, notes)
    _explain_others(graph, {layer for removal in removals for layer in removal.group.layers}, notes)
    pruned = gathered(_without(model, removals), model)
    _fit_instance_norms(pruned, inputs)
    _check_widths(model, pruned, removals)
    return pruned, notes


def _traced(model: nn.Module, inputs: Inputs, loose: Mapping[str, int | None]) -> Any:
    """Return torch-pruning's dependency graph."""
    for module in model.modules():
        # An activation that overwrites its input hides the norm before it from the trace.
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    model.requires_grad_(True)  # the trace follows gradients, and passes over frozen parameters silently
    declared = [(model.get_parameter(name), dim) for name, dim in loose.items() if dim is not None]
    try:
        with _each_node_once(), torch.enable_grad():
            return tp.DependencyGraph().build_dependency(
                model,
                copied(inputs),
                forward_fn=lambda traced, arguments: traced(*arguments),
                unwrapped_parameters=declared,
                verbose=False,  # about loose parameters of one element
            )
    except Exception as error:
        raise UnsupportedModule(
            f"torch-pruning cannot follow the channels of this model: {described(error)}; prune the submodules that it "
            "can follow one by one, or quantize the model instead"
        ) from error


@contextmanager
def _each_node_once() -> Iterator[None]:
    """Let torch-pruning visit each node once where it looks for the number of channels that reach a node.

    It follows every path, of which nested residual blocks have exponentially many, and gives up after 500 steps.
    """
    search, known, depth = shape_infer.infer_out_channels_recursively, dict[Any, int | None](), 0

    def visited_once(graph: Any, node: Any, _: list[int]) -> int | None:
        nonlocal depth
        if depth == 0:
            known.clear()
        if node not in known:
            known[node] = None  # for a cycle
            depth += 1
            try:
                known[node] = search(graph, node, [0])
            finally:
                depth -= 1
        return known[node]

    shape_infer.infer_out_channels_recursively = visited_once
    try:
        yield
    finally:
        shape_infer.infer_out_channels_recursively = search


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
    """Return the layers that make the model's output, or feed a shuffle, with the reason, by name."""
    names = {module: name for name, module in graph.model.named_modules()}
    nodes = list(graph.module2node.values())
    outputs = [node for node in nodes if not node.outputs]
    kept = {names[layer]: f"{_KEPT}: model output" for layer in _nearest_layers(outputs)}
    for kind in ("pixel", "channel"):
        shuffles = [node for node in nodes if f"{kind}shuffle" in node.grad_fn.name().lower()]
        kept = {names[layer]: f"{_KEPT}: feeds a {kind} shuffle" for layer in _nearest_layers(shuffles)} | kept
    return kept


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


def _groups(
    graph: Any,
    importance: Callable[[Any], Tensor | None],
    kept: dict[str, str],
) -> Iterable[_Group]:
    """Yield the groups of layers that can be pruned; add the others to `kept` with the reason.

    A layer in `kept` keeps its whole group.
    """
    visited = set[nn.Module]()
    for root in list(graph.module2node):
        name = graph._module2name.get(root)
        if root in visited or name in kept or type(root) not in PRUNABLE_LAYERS or isinstance(root, nn.Embedding):
            continue
        if graph.get_out_channels(root) == 1:  # what it is multiplied with is a group of its own
            kept[name] = f"{_KEPT}: one channel"
            continue
        layers: tuple[str, ...] = (name,)
        try:
            handler = graph.get_pruner_of_module(root).prune_out_channels
            group = _dependents(graph, root, handler, range(graph.get_out_channels(root)))
            group._group[:] = [item for item in group if _width(graph, item.dep) != 1]
            layers = tuple(_outputs(graph, group)) or (name,)
            reason = _reason_to_keep(graph, group, layers, kept)
        except Exception as error:
            reason = f"torch-pruning cannot follow its channels ({type(error).__name__}: {error})"
        visited.update(graph.model.get_submodule(layer) for layer in layers)
        scores = None if reason else _scores(importance, group, layers)
        if scores is None:
            kept |= {layer: f"{_KEPT}: {reason or _NO_SCORES}" for layer in layers if layer not in kept}
        else:
            blocks = _blocks(graph, group)
            yield _Group(root, group[0].dep.handler, layers, _units(graph, group, blocks), scores, blocks)


def _dependents(graph: Any, root: nn.Module, handler: Any, rows: Iterable[int]) -> Any:
    """Return what `graph.get_pruning_group` does: all that goes when `rows` of the output of `root` go.

    That function never ends where a reshape is misread, so that its indices multiply on every round through a cycle.

    Raises IndexError for such a cycle.
    """
    if isinstance(root, nn.modules.conv._ConvNd) and root.groups == root.out_channels > 1:
        handler = tp.prune_depthwise_conv_out_channels
    node = graph.module2node[root]
    first = Dependency(handler, handler, source=node, target=node)
    reached: dict[tuple[Any, Any], tuple[Any, dict[int, int]]] = {}
    # Flattened feature maps that no layer reads may be larger than any layer.
    most = 4 * max(max(parameter.shape, default=1) for parameter in graph.model.parameters())
    waiting = [(first, [_HybridIndex(idx=row, root_idx=row) for row in rows])]
    while waiting:
        dep, indices = waiting.pop()
        known = reached.setdefault((dep.target, dep.handler), (dep, {}))[1]
        indices = [index for index in indices if index.idx not in known]
        known.update((index.idx, index.root_idx) for index in indices)
        if len(known) > most:
            raise IndexError("more channels than any layer has")
        for following in dep.target.dependencies if indices else ():
            if following.is_triggered_by(dep.handler):
                mapped = indices
                for mapping in following.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                if mapped:
                    waiting.append((following, mapped))
    group = Group()
    group._DG = graph
    for dep, known in reached.values():
        group.add_dep(dep, list(known))
        group[-1].root_idxs = list(known.values())
    return group


def _outputs(graph: Any, group: Any) -> Iterable[str]:
    """Yield the names of the layers whose output channels go with those of the group."""
    for item in group:
        module = item.dep.target.module
        if type(module) in PRUNABLE_LAYERS and graph.is_out_channel_pruning_fn(item.dep.handler):
            yield graph._module2name[module]


def _reason_to_keep(graph: Any, group: Any, layers: Sequence[str], kept: Mapping[str, str]) -> str | None:
    for layer in layers:
        if layer in kept:
            return f"its channels are those of {layer}, which keeps them"
    for item in group:
        module = item.dep.target.module
        name = graph._module2name.get(module)
        if name is None or isinstance(module, nn.Parameter):
            continue
        if type(module) not in PRUNABLE_LAYERS and not isinstance(module, PASSIVE_LAYERS):
            return f"its channels reach {name}, a {type(module).__name__}, which stays whole"
        width = _width(graph, item.dep)
        if width is not None and max(item.idxs) >= width:
            return f"torch-pruning cannot follow its channels to {name}"
    return None


def _width(graph: Any, dep: Any) -> int | None:
    """Return the number of channels of what a dependency prunes; None where it has none.

    A single channel is shared by those it is multiplied with, or added to, and stays.
    """
    output = graph.is_out_channel_pruning_fn(dep.handler)
    width: int | None = graph.get_out_channels(dep.target) if output else graph.get_in_channels(dep.target)
    return width


def _blocks(graph: Any, group: Any) -> int:
    """Return the largest number of equal blocks, of a grouped convolution or norm, that the channels are in."""
    found = [1]
    for item in group:
        module, pruner = item.dep.target.module, item.dep.handler.__self__
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels:
            continue
        output = graph.is_out_channel_pruning_fn(item.dep.handler)
        found.append(pruner.get_out_channel_groups(module) if output else pruner.get_in_channel_groups(module))
    return max(found)


def _scores(importance: Callable[[Any], Tensor | None], group: Any, layers: Sequence[str]) -> Tensor | None:
    of = f"the channels of {', '.join(layers)}"
    try:
        with torch.no_grad():
            scores = importance(group)
    except Exception as error:
        weights = [getattr(item.dep.target.module, "weight", None) for item in group]
        gradients = any(weight is not None and weight.grad is not None for weight in weights)
        hint = "" if gradients else "; no weight has a gradient: if it needs them, call backward() first"
        raise CompressionError(f"importance fails on {of}: {type(error).__name__}: {error}{hint}") from error
    if scores is None:
        return None
    rows = len(group[0].idxs)
    if not isinstance(scores, Tensor) or scores.shape != (rows,):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise CompressionError(f"importance must return a tensor of {rows} scores, one for each of {of}; got {got}")
    if scores.isnan().any():
        raise CompressionError(f"importance returned NaN for {of}")
    return scores.detach().cpu()


def _units(graph: Any, group: Any, blocks: int) -> tuple[tuple[int, ...], ...]:
    """Return the rows of the root that go together: those of one channel, and of one place in each of the blocks."""
    rows = len(group[0].idxs)
    first = list(range(rows))

    def find(row: int) -> int:
        while first[row] != row:
            row = first[row]
        return row

    def join(others: Iterable[int]) -> None:
        found = sorted({find(row) for row in others})
        for row in found:
            first[row] = found[0]

    if blocks > 1 and rows % blocks == 0:
        for place in range(rows // blocks):
            join(range(place, rows, rows // blocks))
    if any(len(set(item.idxs)) < rows for item in group):
        root, handler = group[0].dep.target.module, group[0].dep.handler
        for row in range(rows):
            if first[row] == row:
                join([row, *_dependents(graph, root, handler, [row])[0].idxs])
    units: dict[int, list[int]] = {}
    for row in range(rows):
        units.setdefault(find(row), []).append(row)
    return tuple(tuple(unit) for unit in units.values())


def _chosen(
    groups: Sequence[_Group], ratios: Sequence[float], across_layers: bool, round_to: int | None
) -> list[list[int]]:
    """Return the units of each group to remove, those of the lowest scores; one of each group stays at least.

    Across layers there is one ratio.
    """
    scores = [group.unit_scores() for group in groups]
    if not across_layers:
        numbers = [len(score) - _share_left(len(score), ratio) for score, ratio in zip(scores, ratios, strict=True)]
    else:
        removed = torch.cat(scores).numel() - _share_left(sum(map(len, scores)), ratios[0]) if scores else 0
        # The best unit of each group is no candidate.
        candidates = [(float(value), i) for i, score in enumerate(scores) for value in score.sort().values[:-1]]
        lowest = [i for _, i in sorted(candidates)[:removed]]
        numbers = [lowest.count(i) for i in range(len(groups))]
    numbers = [group.rounded(number, round_to) for group, number in zip(groups, numbers, strict=True)]
    return [
        torch.topk(score, number, largest=False).indices.tolist() for score, number in zip(scores, numbers, strict=True)
    ]


def _share_left(count: int, ratio: float) -> int:
    # 30 * (1 - 0.9) is 2.9999999999999996.
    return max(1, int(count * (1 - ratio) + 1e-9))


def _why_none(group: _Group, ratio: float, across_layers: bool, round_to: int | None) -> str:
    if not ratio:
        return "ratio=0"
    if len(group.units) == 1:
        return f"all {len(group.scores)} can only go together"
    if across_layers:
        return "they rank above all that were removed" + (f", or round_to={round_to}" if round_to else "")
    return f"round_to={round_to} leaves none to remove"


def _removal(graph: Any, group: _Group, units: Iterable[int], loose: Mapping[str, int | None]) -> _Removal:
    rows = frozenset(row for unit in units for row in group.units[unit])
    items = {}
    for dep, indices in _dependents(graph, group.root, group.handler, sorted(rows)):
        if _width(graph, dep) == 1:
            continue
        module = dep.target.module
        if not isinstance(module, nn.Parameter):
            name = graph._module2name.get(module)  # None for operations
        else:
            name = graph._param_to_name[module]
            name = None if loose.get(name) is None else name
        if name is not None:
            items[name, dep.handler] = dep.target.pruning_dim, frozenset(indices)
    return _Removal(group, rows, items)


def _without(model: nn.Module, removals: Iterable[_Removal]) -> nn.Module:
    """Return `positions(model)` without what `removals` names, tied weights still tied."""
    pruned = positions(model)
    modules = dict(pruned.named_modules())
    tied = _tied(pruned)
    joined: dict[tuple[str, Any], tuple[int, frozenset[int]]] = {}
    for removal in removals:
        for key, (dim, indices) in removal.items.items():
            joined[key] = dim, indices | joined.get(key, (dim, frozenset()))[1]
    for (name, handler), (dim, indices) in joined.items():
        handler.__self__.pruning_dim = dim
        if name in modules:
            handler(modules[name], sorted(indices))
        else:
            owner, _, leaf = name.rpartition(".")
            setattr(modules[owner], leaf, handler(pruned.get_parameter(name), sorted(indices)))
    for first, *others in tied:
        parameter = pruned.get_parameter(first)
        for name in others:
            if not torch.equal(pruned.get_parameter(name), parameter):
                raise ValueError(f"the tied weights {first} and {name} would lose different channels")
            owner, _, leaf = name.rpartition(".")
            setattr(modules.get(owner) or pruned.get_submodule(owner), leaf, parameter)
    return pruned


def _tied(model: nn.Module) -> list[list[str]]:
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [found for found in names.values() if len(found) > 1]


def _matched(
    model: nn.Module,
    inputs: Inputs,
    graph: Any,
    removals: list[_Removal],
    loose: Mapping[str, int | None],
    notes: dict[str, str],
) -> list[_Removal]:
    """Return the removals that leave what the model with zeros in their place computes.

    The others are made per block of rows, such as attention heads, where that is right, or dropped; `notes` get both.
    """
    probe, probe_inputs = probe_of(model, inputs)

    def wrong(some: Sequence[_Removal]) -> str | None:
        try:
            return mismatch(_without(model, some), probe, probe_inputs)
        except Exception as error:
            return described(error)

    good, bad = _split(removals, wrong)
    for removal, reason in bad:
        block_wise = _per_block(graph, removal, loose, wrong)
        if block_wise is not None:
            good.append(block_wise)
            note = f"pruned: the same channels of each of {block_wise.group.blocks} blocks"
            notes |= dict.fromkeys(block_wise.group.layers, note)
        else:
            note = f"{_KEPT}: forward does not carry its channels to other layers one by one ({reason})"
            notes |= dict.fromkeys(removal.group.layers, note)
    left = wrong(good) if bad else None
    if left:
        layers = ", ".join(layer for removal in good for layer in removal.group.layers)
        raise UnsupportedModule(
            f"the channels of these layers cannot be pruned together: {layers} ({left}); name those "
            "before a reshape, a split or an attention in exclude"
        )
    return good


def _split(
    removals: list[_Removal], wrong: Callable[[Sequence[_Removal]], str | None]
) -> tuple[list[_Removal], list[tuple[_Removal, str]]]:
    """Return the removals that are right, and those that are wrong by themselves with the reason, by bisection."""
    reason = wrong(removals) if removals else None
    if reason is None:
        return removals, []
    if len(removals) == 1:
        return [], [(removals[0], reason)]
    middle = len(removals) // 2
    (good, bad), (more_good, more_bad) = (_split(part, wrong) for part in (removals[:middle], removals[middle:]))
    return good + more_good, bad + more_bad


def _per_block(
    graph: Any, removal: _Removal, loose: Mapping[str, int | None], wrong: Callable[[Sequence[_Removal]], str | None]
) -> _Removal | None:
    """Return a removal of about as many rows, the same of each block, for the first number of blocks that is right."""
    group, rows = removal.group, len(removal.group.scores)
    if len(group.units) < rows:
        return None
    numbers = [blocks for blocks in range(2, rows // 2 + 1) if rows % blocks == 0]
    for blocks in numbers[:_BLOCKINGS_TRIED]:
        grouped = group.in_blocks(blocks)
        scores = grouped.unit_scores()
        removed = len(scores) - _share_left(len(scores), len(removal.rows) / rows)
        # The first place alone, too: some choices are right by their symmetry, which no importance knows of.
        for places in ([0], torch.topk(scores, removed, largest=False).indices.tolist()):
            block_wise = _removal(graph, grouped, places, loose)
            if wrong([block_wise]):
                break
        else:
            return block_wise
    return None


def _explain_others(graph: Any, pruned: Container[str], kept: dict[str, str]) -> None:
    """Add a reason to `kept` for every prunable layer that is neither in it nor in `pruned`."""
    for name, module in graph.model.named_modules():
        if type(module) not in PRUNABLE_LAYERS or name in pruned or name in kept:
            continue
        used = module in graph.module2node
        kept[name] = f"{_KEPT}: {'no layer that can be pruned shares its channels' if used else 'not met in the trace'}"


def _check_widths(model: nn.Module, pruned: nn.Module, removals: Iterable[_Removal]) -> None:
    """Raise `CompressionError` unless each layer lost exactly the output channels that were chosen for it."""
    gone: dict[str, set[int]] = {}
    for removal in removals:
        for (name, handler), (_, indices) in removal.items.items():
            if name in removal.group.layers and handler.__name__ == "prune_out_channels":
                gone.setdefault(name, set()).update(indices)
    for name, channels in gone.items():
        before, after = (_output_width(net.get_submodule(name)) for net in (model, pruned))
        if after != before - len(channels):
            raise CompressionError(f"{name} was to lose {len(channels)} of {before} channels and has {after} left")


def _output_width(layer: Any) -> int:
    for attribute in ("out_channels", "out_features", "embedding_dim"):
        if hasattr(layer, attribute):
            return int(getattr(layer, attribute))
    raise TypeError(f"{type(layer).__name__} has no channels")
