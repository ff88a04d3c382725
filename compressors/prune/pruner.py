"""Structured channel pruning by torch-pruning, behind the fixes that generators need."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compressors.common.checks import (
    check_choice,
    check_count,
    check_inputs,
    check_patterns,
    check_share,
    did_you_mean,
    matching,
)
from compressors.common.generation import SEED, Draw, drawn_batches
from compressors.common.measure import Inputs, batch_size, device_of
from compressors.core.coverage import PASSIVE_LAYERS, check_coverage, describe, uncovered_parameters
from compressors.core.model import CompressedModel
from compressors.core.recipe import layer_sizes
from compressors.core.stage import Stage, Work
from compressors.errors import CompressionError, NothingCompressed, UnsupportedModule

IMPORTANCES = ("fisher", "latent", "l2", "lamp")
SAMPLES = 8


@dataclass(frozen=True)
class ChannelPruner(Stage):
    """Remove channels, and all that depends on them, from a generator.

    Kept as they are: the inputs, the layers that make the output, the layers that feed a pixel shuffle, and `exclude`.
    What is to be removed is tried on a copy first: the pruned model must compute what the full one does with zeros in
    place of the removed channels. Layers for which it does not, because of a channel count written into `forward`
    (``view(-1, 64, 4, 4)``) or of a flip, say, are pruned equally in each block of channels (attention heads), or keep
    their channels. The report says so of each layer.

    Args:
        ratio: share of channels to remove, at least 0 and below 1; 0.5 leaves about a quarter of the parameters. Of C
            channels floor((1 - ratio) C) stay, and at least one. Or a mapping of layer names to such shares: other
            layers keep their channels; of layers that share their channels the largest share counts.
        importance: scores channels, lowest removed first:

            - "fisher": how far the outputs move with a channel, on 8 samples (Fisher information of random projections
              of the outputs, by a gate on each channel);
            - "latent": how much of the outputs' response to the latent passes through a channel, on 8 samples, after
              DCP-GAN (Chung et al. 2024, arXiv 2403.13548);
            - "l2": the norm of the weights of all that goes with a channel;
            - "lamp": the same, normalised by what is left of its layer (Lee et al. 2021, arXiv 2010.07611), which
              counts with scope "global";
            - a torch-pruning importance, or a function from a pruning group to a score for each of its channels,
              or to None for a group that is to stay. Gradients of `model` are at hand for those that need them, and
              parameters of `model` that an importance holds are exchanged for those of the copy that is pruned;
            - None (default): "fisher" where there are samples, else "l2".
        draw: called as ``draw(n, random)``, returns the forward arguments of n samples for "fisher" and "latent"; None
            (default) takes them from `calibration`.
        scope: "local" removes `ratio` in each layer (default); "global" ranks the channels of all layers together.
        round_to: round the channels kept down to a multiple of this (1 or more), but not to 0; None (default) does
            not.
        exclude: names or glob patterns of layers whose output channels all stay.
        param_dims: for each parameter outside of standard layers (a learned constant input, say), by name or glob
            pattern, the dimension that holds its channels; None for a parameter that has no channels.
        min_coverage: the share of parameters, 0 to 1, that must be in layers torch-pruning knows; default 0.9.
        min_effect: share of parameters, 0 to 1, that must go, unless `ratio` is 0; default 0.02.

    Source: torch-pruning (DepGraph, Fang et al. 2023, arXiv 2301.12900).
    """

    ratio: float | Mapping[str, float]
    importance: Literal["fisher", "latent", "l2", "lamp"] | Callable[[Any], Tensor | None] | None = None
    draw: Draw | None = None
    scope: Literal["local", "global"] = "local"
    round_to: int | None = None
    exclude: Sequence[str] = ()
    param_dims: Mapping[str, int | None] = field(default_factory=dict)
    min_coverage: float = 0.9
    min_effect: float = 0.02

    def __post_init__(self) -> None:
        for ratio in self.ratio.values() if isinstance(self.ratio, Mapping) else (self.ratio,):
            check_share("ratio", ratio, end=False)
        if self.importance is not None and not callable(self.importance):
            check_choice("importance", self.importance, IMPORTANCES)
        if self.draw is not None and not callable(self.draw):
            raise CompressionError(f"draw must be a function draw(n, random) or None; got {self.draw!r}")
        check_choice("scope", self.scope, ("local", "global"))
        if isinstance(self.ratio, Mapping) and self.scope == "global":
            raise CompressionError('scope: "global" takes one ratio for all layers; got one for each')
        if self.round_to is not None:
            check_count("round_to", self.round_to)
        check_patterns("exclude", self.exclude)
        if not isinstance(self.param_dims, Mapping):
            raise CompressionError(
                f"param_dims must be a mapping of names of parameters to dimensions; got {self.param_dims!r}"
            )
        check_share("min_coverage", self.min_coverage)
        check_share("min_effect", self.min_effect)

    @property
    def name(self) -> str:
        """A short label, such as "prune 0.5"."""
        if isinstance(self.ratio, Mapping):
            return "prune by layer"
        return f"prune {self.ratio:g}" + (" global" if self.scope == "global" else "")

    def _apply(self, work: Work) -> Work:
        from compressors.prune._torch_pruning import PRUNABLE_LAYERS, WHOLE_LAYERS, check_layers, prune
        from compressors.prune.importance import scorer

        model = work.model
        coverage = check_coverage(model, PRUNABLE_LAYERS, self.min_coverage)
        check_layers(model)
        whole = {name: module for name, module in model.named_modules() if isinstance(module, WHOLE_LAYERS)}
        loose = self._channel_dims(uncovered_parameters(model, PRUNABLE_LAYERS), model, whole)
        layers = [name for name, module in model.named_modules() if type(module) in PRUNABLE_LAYERS]
        if isinstance(self.ratio, Mapping):
            for layer in self.ratio:
                matching("ratio", (layer,), layers)
        exclude = dict.fromkeys(matching("exclude", self.exclude, layers), "output channels kept: asked for")
        if work.source is not None:
            _copy_gradients(work.source, model)
        samples = self._samples(work)
        importance = self.importance or ("l2" if samples is None else "fisher")
        scores: Callable[[Any], Tensor | None]
        if callable(importance):
            scores = _for_copy(importance, work.source or work.teacher, model)
        else:
            scores = scorer(importance, model, samples)
        pruned, kept = prune(
            model,
            work.inputs,
            ratio=self.ratio,
            importance=scores,
            across_layers=self.scope == "global",
            round_to=self.round_to,
            loose=loose,
            exclude=exclude,
        )
        kept |= {name: f"kept whole: a {type(module).__name__}" for name, module in whole.items()}
        before, left = _count_parameters(model), _count_parameters(pruned)
        if self.ratio and left > (1 - self.min_effect) * before:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in kept.items())
            raise NothingCompressed(f"ratio={self.ratio} left {left:,} of {before:,} parameters ({reasons})")
        sizes = layer_sizes(model)
        changed = {name: size for name, size in layer_sizes(pruned).items() if size != sizes[name]}
        recipe = replace(work.recipe, sizes={**work.recipe.sizes, **changed})
        notes = _notes_on_others(model) | dict.fromkeys(changed, "pruned") | kept
        outcome = {} if callable(importance) else {"importance": importance}
        return work.changed(notes, coverage, recipe=recipe, model=pruned, outcome=outcome)

    def _samples(self, work: Work) -> Inputs | None:
        """Return forward arguments of a few samples, for scores that need some; None where there are none."""
        if callable(self.importance) or self.importance in ("l2", "lamp"):
            return None
        if self.draw is not None:
            return next(drawn_batches(self.draw, SAMPLES, SAMPLES, SEED, device_of(work.model)))
        if work.calibration is None:
            if self.importance is not None:
                raise CompressionError(f"importance={self.importance!r} needs samples: give draw, or calibration")
            return None
        try:
            batch = check_inputs("each calibration batch", next(iter(work.calibration)))
        except StopIteration:
            raise CompressionError("calibration holds no batch") from None
        size = batch_size(batch)

        def few(item: Any) -> Any:
            return item[:SAMPLES] if isinstance(item, Tensor) and item.dim() and len(item) == size else item

        samples: Inputs = tree_map(few, batch)
        return samples

    def _channel_dims(
        self, loose: Mapping[str, nn.Parameter], model: nn.Module, whole: Container[str]
    ) -> dict[str, int | None]:
        """Return parameters outside of standard layers with the dimension of their channels, from `param_dims`."""
        declared: dict[str, int | None] = {}
        for pattern, dim in self.param_dims.items():
            names = [name for name in loose if fnmatchcase(name, pattern)]
            if not names:
                raise CompressionError(
                    f"param_dims: {pattern} not among the parameters outside of standard layers: "
                    f"{describe(loose) or 'there are none'}{did_you_mean(pattern, loose)}"
                )
            declared |= {name: dim for name in names if name not in declared}
        undeclared = {
            name: parameter
            for name, parameter in loose.items()
            if name not in declared and parameter.numel() > 1 and not _is_inside(name, whole)
        }
        if undeclared:
            name, parameter = next(iter(undeclared.items()))
            raise UnsupportedModule(
                f"parameters outside of standard layers: {describe(undeclared)}{_subclasses(undeclared, model)}; name "
                "the dimension of their channels, or None for parameters that have none, as in "
                f"param_dims={{{name!r}: {_likely_dim(parameter)}}}"
            )
        for name, dim in declared.items():
            dims = loose[name].dim()
            if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool) or not 0 <= dim < dims):
                accepted = f"dimensions 0 to {dims - 1}" if dims > 1 else "dimension 0" if dims else "no dimension"
                raise CompressionError(f"param_dims: {name} has {accepted} (None: no channels); got {dim!r}")
        return declared


def _notes_on_others(model: nn.Module) -> dict[str, str]:
    """Return, by name, why layers with no output channels of their own stay as they are, unless they do not."""
    return {
        name: "kept: the channels of its input stay" if isinstance(module, PASSIVE_LAYERS) else "kept whole"
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }


def _is_inside(name: str, modules: Container[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in modules for end in range(len(parts)))


def _likely_dim(parameter: nn.Parameter) -> int:
    """Return the first dimension with more than one element, but for the batch's place."""
    return next((dim for dim, size in enumerate(parameter.shape) if size > 1), 0)


def _subclasses(parameters: Iterable[str], model: nn.Module) -> str:
    """Return what an error message says of parameters in layers derived from standard ones; "" for none."""
    from compressors.prune._torch_pruning import PRUNABLE_LAYERS

    found = {}
    for name in parameters:
        layer = model.get_submodule(name.rpartition(".")[0])
        base = next((base for base in PRUNABLE_LAYERS if isinstance(layer, base)), None)
        if base is not None:
            found[type(layer).__name__] = base.__name__
    pairs = ", ".join(f"{name} is derived from nn.{base}" for name, base in found.items())
    return f" ({pairs}, and may compute something else)" if pairs else ""


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _for_copy(
    importance: Callable[[Any], Tensor | None],
    source: nn.Module | CompressedModel | None,
    model: nn.Module,
) -> Callable[[Any], Tensor | None]:
    """Return `importance` with the parameters of `source` that it holds exchanged for those of `model`, its copy.

    torch-pruning's Hessian importance, say, holds gradients by parameter, and writes into them.
    """
    closure = getattr(importance, "__closure__", None) or ()
    held: dict[int, Any] = {}
    with suppress(Exception):  # What cannot be copied, such as a stream of data, is not looked into.
        copy.deepcopy([cell.cell_contents for cell in closure] if closure else importance, held)
    if not any(isinstance(value, nn.Parameter) for value in held.values()):
        return importance
    advice = "score the tensors of the group that it is called with, or put what it needs into their .grad"
    if closure:
        name = getattr(importance, "__qualname__", importance)
        raise CompressionError(f"importance: {name} holds parameters of a model, of which a copy is pruned; {advice}")
    module = source.model if isinstance(source, CompressedModel) else source
    ours = dict(model.named_parameters())
    theirs = {} if module is None else dict(module.named_parameters())
    known = {
        id(parameter): ours[name]
        for name, parameter in theirs.items()
        if name in ours and ours[name].shape == parameter.shape
    }
    memo = dict(known)
    copied = copy.deepcopy(importance, memo)
    mine = {id(parameter) for parameter in ours.values()}
    if any(isinstance(value, nn.Parameter) and id(value) not in mine for value in memo.values()):
        raise CompressionError(
            f"importance: {type(importance).__name__} holds parameters that are not those of the model to prune, or "
            f"that a reparametrisation makes; {advice}"
        )
    return copied


def _copy_gradients(source: nn.Module | CompressedModel, target: nn.Module) -> None:
    """Copy gradients, which deepcopy leaves behind, for importances that are computed from them."""
    module = source.model if isinstance(source, CompressedModel) else source
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for name, parameter in target.named_parameters():
        gradient = gradients.get(name)
        if gradient is not None:
            parameter.grad = gradient.detach().clone()
