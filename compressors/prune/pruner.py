"""Structured channel pruning by torch-pruning, behind the fixes that generators need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from compressors.common.checks import check_choice, check_inputs, check_patterns, check_share, matching
from compressors.common.generation import SEED, Draw, drawn_batches
from compressors.common.measure import Inputs
from compressors.core.coverage import check_coverage, describe, uncovered_parameters
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
    Reshapes in `forward` must not spell out channel counts: ``view(n, -1, 4, 4)``, not ``view(-1, 64, 4, 4)``.

    Args:
        ratio: share of channels to remove, at least 0 and below 1; 0.5 leaves about a quarter of the parameters.
        importance: scores channels, lowest removed first:

            - "fisher": how far the outputs move with a channel, on 8 samples (Fisher information of random projections
              of the outputs, by a gate on each channel);
            - "latent": how much of the outputs' response to the latent passes through a channel, on 8 samples, after
              DCP-GAN (Chung et al. 2024, arXiv 2403.13548);
            - "l2": the norm of the weights of all that goes with a channel;
            - "lamp": the same, normalised by what is left of its layer (Lee et al. 2021, arXiv 2010.07611), which
              counts with scope "global";
            - a torch-pruning importance, or a function from a pruning group to a score for each of its channels.
              Gradients of `model` are at hand for those that need them;
            - None (default): "fisher" where there are samples, else "l2".
        draw: called as ``draw(n, random)``, returns the forward arguments of n samples for "fisher" and "latent"; None
            (default) takes them from `calibration`.
        scope: "local" removes `ratio` in each layer (default); "global" ranks all layers together, where a layer
            before a reshape to h x w counts each channel h w times.
        round_to: round the channels kept down to a multiple of this (1 or more), but for those behind a linear layer
            and a reshape; None (default) does not.
        exclude: names or glob patterns of layers whose output channels all stay.
        param_dims: for each parameter outside of standard layers (a learned constant input, say), by name, the
            dimension that holds its channels.
        min_coverage: the share of parameters, 0 to 1, that must be in layers torch-pruning knows; default 0.9.
        min_effect: share of parameters, 0 to 1, that must go, unless `ratio` is 0; default 0.02.

    Source: torch-pruning (DepGraph, Fang et al. 2023, arXiv 2301.12900).
    """

    ratio: float
    importance: Literal["fisher", "latent", "l2", "lamp"] | Callable[[Any], Tensor | None] | None = None
    draw: Draw | None = None
    scope: Literal["local", "global"] = "local"
    round_to: int | None = None
    exclude: Sequence[str] = ()
    param_dims: Mapping[str, int] = field(default_factory=dict)
    min_coverage: float = 0.9
    min_effect: float = 0.02

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio, end=False)
        if self.importance is not None and not callable(self.importance):
            check_choice("importance", self.importance, IMPORTANCES)
        if self.draw is not None and not callable(self.draw):
            raise CompressionError(f"draw must be a function draw(n, random) or None; got {self.draw!r}")
        check_choice("scope", self.scope, ("local", "global"))
        if self.round_to is not None and (not isinstance(self.round_to, int) or self.round_to < 1):
            raise CompressionError(f"round_to must be a positive integer or None; got {self.round_to!r}")
        check_patterns("exclude", self.exclude)
        check_share("min_coverage", self.min_coverage)
        check_share("min_effect", self.min_effect)

    @property
    def name(self) -> str:
        """A short label, such as "prune 0.5"."""
        return f"prune {self.ratio:g}" + (" global" if self.scope == "global" else "")

    def _apply(self, work: Work) -> Work:
        from compressors.prune._torch_pruning import PRUNABLE_LAYERS, check_layers, prune
        from compressors.prune.importance import scorer

        model = work.model
        coverage = check_coverage(model, PRUNABLE_LAYERS, self.min_coverage)
        check_layers(model)
        loose = self._channel_dims(uncovered_parameters(model, PRUNABLE_LAYERS))
        layers = [name for name, module in model.named_modules() if type(module) in PRUNABLE_LAYERS]
        kept = dict.fromkeys(matching("exclude", self.exclude, layers), "output channels kept: asked for")
        if work.source is not None:
            _copy_gradients(work.source, model)
        samples = self._samples(work)
        importance = self.importance or ("l2" if samples is None else "fisher")
        scores = importance if callable(importance) else scorer(importance, model, samples, 1 - self.ratio)
        sizes, before = layer_sizes(model), _count_parameters(model)
        try:
            kept |= prune(
                model,
                work.inputs,
                ratio=self.ratio,
                importance=scores,
                across_layers=self.scope == "global",
                round_to=self.round_to,
                loose=loose,
                exclude=tuple(kept),
            )
        except Exception as error:
            raise CompressionError(f"torch-pruning failed: {type(error).__name__}: {error}") from error
        changed = {name: size for name, size in layer_sizes(model).items() if size != sizes[name]}
        left = _count_parameters(model)
        if self.ratio and left > (1 - self.min_effect) * before:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in kept.items())
            raise NothingCompressed(f"ratio={self.ratio} left {left:,} of {before:,} parameters ({reasons})")
        recipe = replace(work.recipe, sizes={**work.recipe.sizes, **changed})
        outcome = {} if callable(importance) else {"importance": importance}
        return work.changed(dict.fromkeys(changed, "pruned") | kept, coverage, recipe=recipe, outcome=outcome)

    def _samples(self, work: Work) -> Inputs | None:
        """Return forward arguments of a few samples, for scores that need some; None where there are none."""
        if callable(self.importance) or self.importance in ("l2", "lamp"):
            return None
        if self.draw is not None:
            device = next(work.model.parameters()).device
            return next(drawn_batches(self.draw, SAMPLES, SAMPLES, SEED, device))
        if work.calibration is None:
            if self.importance is not None:
                raise CompressionError(f"importance={self.importance!r} needs samples: give draw, or calibration")
            return None
        try:
            batch = check_inputs("each calibration batch", next(iter(work.calibration)))
        except StopIteration:
            raise CompressionError("calibration holds no batch") from None
        return tuple(item[:SAMPLES] if isinstance(item, Tensor) and item.dim() else item for item in batch)

    def _channel_dims(self, loose: Mapping[str, nn.Parameter]) -> list[tuple[nn.Parameter, int]]:
        """Return parameters outside of standard layers with the dimension of their channels, from `param_dims`."""
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


def _copy_gradients(source: nn.Module | CompressedModel, target: nn.Module) -> None:
    """Copy gradients, which deepcopy leaves behind, for importances that are computed from them."""
    module = source.model if isinstance(source, CompressedModel) else source
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for name, parameter in target.named_parameters():
        gradient = gradients.get(name)
        if gradient is not None:
            parameter.grad = gradient.detach().clone()
