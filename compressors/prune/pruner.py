"""Structured channel pruning by torch-pruning, behind the fixes that generators need."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressors.common.checks import check_choice, check_patterns, check_share, matching
from compressors.common.extras import extra
from compressors.common.measure import Inputs
from compressors.core.coverage import check_coverage, describe, uncovered_parameters
from compressors.core.model import CompressedModel, Work, begin, finish
from compressors.core.recipe import layer_sizes
from compressors.errors import CompressionError, NothingCompressed, UnsupportedModule

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


@dataclass(frozen=True)
class ChannelPruner:
    """Remove channels, and all that depends on them, from a generator.

    Kept as they are: the inputs, the layers that make the output, the layers that feed a pixel shuffle, and `keep`.
    Reshapes in `forward` must not spell out channel counts: ``view(n, -1, 4, 4)``, not ``view(-1, 64, 4, 4)``.

    Args:
        ratio: share of channels to remove, at least 0 and below 1; 0.5 leaves about a quarter of the parameters.
        importance: scores channels, lowest removed first: a torch-pruning importance, or a function from a pruning
            group to a score for each of its channels; None (default) is the L2 norm of a group's weights. Gradients
            of `model` are at hand for importances that need them.
        scope: "local" removes `ratio` in each layer (default); "global" ranks all layers together, where a layer
            before a reshape to h x w counts each channel h w times.
        round_to: round the channels kept down to a multiple of this (1 or more), but for those behind a linear layer
            and a reshape; None (default) does not.
        keep: names or glob patterns of layers whose output channels all stay.
        param_dims: for each parameter outside of standard layers (a learned constant input, say), by name, the
            dimension that holds its channels.
        min_effect: share of parameters, 0 to 1, that must go, unless `ratio` is 0; default 0.02.

    Source: torch-pruning (DepGraph, Fang et al. 2023, arXiv 2301.12900).
    """

    ratio: float
    importance: Callable[[Any], Tensor | None] | None = None
    scope: Literal["local", "global"] = "local"
    round_to: int | None = None
    keep: Sequence[str] = ()
    param_dims: Mapping[str, int] = field(default_factory=dict)
    min_effect: float = 0.02

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio, end=False)
        if self.importance is not None and not callable(self.importance):
            raise CompressionError(
                f"importance must be a function of a pruning group, or None; got {self.importance!r}"
            )
        check_choice("scope", self.scope, ("local", "global"))
        if self.round_to is not None and (not isinstance(self.round_to, int) or self.round_to < 1):
            raise CompressionError(f"round_to must be a positive integer or None; got {self.round_to!r}")
        check_patterns("keep", self.keep)
        check_share("min_effect", self.min_effect)

    @property
    def name(self) -> str:
        """A short label, such as "prune 0.5"."""
        return f"prune {self.ratio:g}" + (" global" if self.scope == "global" else "")

    def compress(
        self,
        model: nn.Module | CompressedModel,
        example_inputs: Inputs,
        calibration: Iterable[Inputs] | None = None,
    ) -> CompressedModel:
        """Return a pruned copy of `model`; see `Compressor.compress`. `calibration` is not used."""
        work = begin(model, example_inputs)
        coverage = check_coverage(work.model, PRUNABLE_LAYERS, 0.9)
        _check_layers(work.model)
        _copy_gradients(model.model if isinstance(model, CompressedModel) else model, work.model)
        sizes, before = layer_sizes(work.model), _count_parameters(work.model)
        with extra("compress"):
            import torch_pruning  # noqa: F401  told apart here from what fails inside it
        loose, kept = self._channel_dims(work.model), self._asked_to_keep(work.model)
        try:
            kept = self._prune(work, loose, kept)
        except Exception as error:
            raise CompressionError(f"torch-pruning failed: {type(error).__name__}: {error}") from error
        changed = {name: size for name, size in layer_sizes(work.model).items() if size != sizes[name]}
        left = _count_parameters(work.model)
        if self.ratio and left > (1 - self.min_effect) * before:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in kept.items())
            raise NothingCompressed(f"ratio={self.ratio} left {left:,} of {before:,} parameters ({reasons})")
        recipe = replace(work.recipe, sizes={**work.recipe.sizes, **changed})
        return finish(work, self, recipe, dict.fromkeys(changed, "pruned") | kept, coverage)

    def _prune(self, work: Work, loose: list[tuple[nn.Parameter, int]], kept: dict[str, str]) -> dict[str, str]:
        """Prune `work.model` in place; return the layers whose output channels were kept, with the reason."""
        import torch_pruning as tp

        model = work.model
        for module in model.modules():
            # An activation that overwrites its input hides the norm before it from the trace.
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        model.requires_grad_(True)  # the trace follows gradients, and passes over frozen parameters silently
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about loose parameters of one element
            pruner = tp.pruner.BasePruner(
                model,
                work.inputs,
                importance=None,
                pruning_ratio=self.ratio,
                global_pruning=self.scope == "global",
                round_to=self.round_to,
                unwrapped_parameters=loose,
                in_channel_groups={},  # the defaults are dicts shared by all calls
                out_channel_groups={},
                forward_fn=lambda traced, inputs: traced(*inputs),
            )
        graph = pruner.DG
        pruner.importance = _per_channel(self.importance or tp.importance.GroupMagnitudeImportance(p=2), graph)
        kept = kept | _layers_to_keep(graph)
        pruner.ignored_layers.extend(model.get_submodule(name) for name in kept)
        check = graph.check_pruning_group
        graph.check_pruning_group = lambda group: check(_without_duplicates(group))
        pruner.step()
        return kept

    def _asked_to_keep(self, model: nn.Module) -> dict[str, str]:
        layers = [name for name, module in model.named_modules() if type(module) in PRUNABLE_LAYERS]
        return dict.fromkeys(matching("keep", self.keep, layers), "output channels kept: asked for")

    def _channel_dims(self, model: nn.Module) -> list[tuple[nn.Parameter, int]]:
        """Return parameters outside of standard layers with the dimension of their channels, from `param_dims`."""
        loose = uncovered_parameters(model, PRUNABLE_LAYERS)
        unknown = sorted(set(self.param_dims) - set(loose))
        if unknown:
            raise CompressionError(
                f"param_dims: {', '.join(unknown)} not among the parameters outside of standard layers: "
                f"{describe(loose) or 'there are none'}"
            )
        undeclared = {
            name: parameter
            for name, parameter in loose.items()
            if name not in self.param_dims and parameter.numel() > 1
        }
        if undeclared:
            raise UnsupportedModule(
                f"parameters outside of standard layers: {describe(undeclared)}; name the dimension of their channels, "
                f"as in param_dims={{{next(iter(undeclared))!r}: 1}}"
            )
        for name, dim in self.param_dims.items():
            if not isinstance(dim, int) or not 0 <= dim < loose[name].dim():
                raise CompressionError(f"param_dims: {name} has dimensions 0 to {loose[name].dim() - 1}; got {dim!r}")
        return [(loose[name], dim) for name, dim in self.param_dims.items()]


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_layers(model: nn.Module) -> None:
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


def _copy_gradients(source: nn.Module, target: nn.Module) -> None:
    """Copy gradients, which deepcopy leaves behind, for importances that are computed from them."""
    gradients = {name: parameter.grad for name, parameter in source.named_parameters()}
    for name, parameter in target.named_parameters():
        gradient = gradients.get(name)
        if gradient is not None:
            parameter.grad = gradient.detach().clone()


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
