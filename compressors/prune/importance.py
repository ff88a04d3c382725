"""Which channels matter: scores from what a channel does to the outputs, rather than from the size of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compressors.common.extras import extra
from compressors.common.measure import Inputs, batch_size, copied, cuda_devices, seeded, tensors_of
from compressors.core.graph import output_layers
from compressors.errors import CompressionError
from compressors.prune._torch_pruning import PRUNABLE_LAYERS

with extra("compress"):
    import torch_pruning as tp

_PROJECTIONS = 16
_PERTURBATION = 0.3
_OUTPUT_GATE = 0.3


class GateImportance:
    """Scores of channels from gates: factors on what the layers behind a channel read of it.

    The derivative of a scalar L of the outputs by the gate of channel c is sum x_c dL/dx_c, over the positions of all
    layers that read the channel. One pass back gives it for all channels, and one for each sample of the batch.

    The layers that make the outputs read their input times 0.3. Where tanh has saturated, as in a flat background, no
    channel matters at first; the more of them go, the less it saturates, and then they do.

    An instance is an importance of torch-pruning: it maps a pruning group to a score for each channel.

    Args:
        model: in eval mode, whose samples do not see each other; its parameters are trainable afterwards.
        inputs: forward arguments of a batch.
        scalars: maps the outputs to scalars, each a sum over the samples.
        reduce: maps derivatives M x C, over scalars and samples, to scores C.

    Raises:
        CompressionError: no output depends on a channel in a way that has a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        scalars: Callable[[Sequence[Tensor]], Iterator[Tensor]],
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self.reduce = reduce
        self.read: dict[nn.Module, Tensor] = {}
        self.made: dict[nn.Module, Tensor] = {}
        seen: list[tuple[dict[nn.Module, Tensor], nn.Module, Tensor]] = []

        def close(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not (arguments and isinstance(arguments[0], Tensor) and arguments[0].requires_grad):
                return None  # an input of the model
            gated = arguments[0] * (_OUTPUT_GATE if module in outermost else 1)
            seen.append((self.read, module, gated))
            return (gated, *arguments[1:])

        def keep(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            seen.append((self.made, module, output))

        model.requires_grad_(True)
        outermost = {model.get_submodule(name) for name in output_layers(model, inputs, PRUNABLE_LAYERS)}
        layers = [module for module in model.modules() if type(module) in PRUNABLE_LAYERS]
        hooks = [layer.register_forward_pre_hook(close) for layer in layers]
        hooks += [layer.register_forward_hook(keep) for layer in layers]
        try:
            with torch.enable_grad(), seeded(0, *cuda_devices(model)):
                outputs = [output for output in tensors_of(model(*copied(inputs))) if output.requires_grad]
                if not outputs or not seen:
                    raise CompressionError("importance: no output of the model has a gradient; use importance='l2'")
                values = [value for _, _, value in seen]
                rows: list[list[Tensor]] = [[] for _ in seen]
                for scalar in scalars(outputs):
                    gradients = torch.autograd.grad(scalar, values, retain_graph=True, allow_unused=True)
                    for derivatives, (_, module, value), gradient in zip(rows, seen, gradients, strict=True):
                        found = torch.zeros_like(value) if gradient is None else value.detach() * gradient
                        derivatives.append(_by_sample(module, found, len(outputs[0])))
        finally:
            for hook in hooks:
                hook.remove()
        for (store, module, _), derivatives in zip(seen, rows, strict=True):
            joined = torch.cat(derivatives)
            store[module] = store[module] + joined if module in store else joined  # a layer may run more than once

    def __call__(self, group: Any) -> Tensor | None:
        """Return the scores of the channels of a pruning group; None where nothing reads or makes them."""
        inputs = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)
        readers = [(self.read.get(item.dep.target.module), item) for item in group if item.dep.handler in inputs]
        makers = [(self.made.get(item.dep.target.module), item) for item in group if item.dep.handler not in inputs]
        for members in (readers, makers):
            found = [(gates, item) for gates, item in members if gates is not None and max(item.idxs) < gates.shape[1]]
            if found:
                total = found[0][0].new_zeros(len(found[0][0]), len(group[0].idxs))
                for gates, item in found:
                    pairs = [
                        (root, own) for root, own in zip(item.root_idxs, item.idxs, strict=True) if root is not None
                    ]
                    roots, own = (torch.tensor(side, device=gates.device) for side in zip(*pairs, strict=True))
                    total.index_add_(1, roots, gates[:, own])
                return self.reduce(total)
        return None


def fisher(model: nn.Module, inputs: Inputs) -> GateImportance:
    """Return Fisher information of random projections of the outputs: how far a gate moves them, to first order.

    The mean of (r . dy/dg)^2 over random r ~ N(0, I) is |dy/dg|^2. The distance to the teacher itself has no gradient
    at the teacher.
    """

    def scalars(outputs: Sequence[Tensor]) -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(0)
        for _ in range(_PROJECTIONS):
            projected = [
                (torch.randn(y.shape, generator=random, dtype=y.dtype).to(y.device) * y).sum() for y in outputs
            ]
            yield torch.stack(projected).sum()

    return GateImportance(model, inputs, scalars, lambda rows: rows.square().mean(0))


def latent_sensitivity(model: nn.Module, inputs: Inputs) -> GateImportance:
    """Return the part of a gate in how outputs follow the latent, after DCP-GAN (Chung et al. 2024, arXiv 2403.13548).

    Floating-point arguments are moved by noise; a score is the mean absolute derivative of the L1 distance that this
    makes between the outputs.
    """
    random, size = torch.Generator().manual_seed(0), batch_size(inputs)

    def pair(item: Any) -> Any:
        if not isinstance(item, Tensor) or not item.dim() or len(item) != size:
            return item  # It has no batch dimension.
        if not item.is_floating_point():
            return torch.cat([item, item])
        noise = torch.randn(item.shape, generator=random, dtype=item.dtype).to(item.device)
        return torch.cat([item, item + _PERTURBATION * noise])

    def scalars(outputs: Sequence[Tensor]) -> Iterator[Tensor]:
        halves = [output.chunk(2) for output in outputs]
        yield torch.stack([(first - second).abs().sum() for first, second in halves]).sum()

    return GateImportance(
        model, tree_map(pair, inputs), scalars, lambda rows: torch.stack(rows.chunk(2)).sum(0).abs().mean(0)
    )


def _by_sample(module: nn.Module, derivative: Tensor, samples: int) -> Tensor:
    """Sum derivatives over positions: samples x channels."""
    if isinstance(module, nn.modules.conv._ConvNd):
        derivative = derivative.movedim(-len(module.kernel_size) - 1, -1)
    channels = derivative.shape[-1]
    # A reshape that joins samples with positions keeps the samples outermost; anything else counts as one sample.
    groups = samples if derivative.numel() % (samples * channels) == 0 else 1
    by_sample = derivative.reshape(groups, -1, channels).sum(1)
    return by_sample if groups == samples else by_sample.expand(samples, -1) / samples


def scorer(name: str, model: nn.Module, samples: Inputs | None) -> Callable[[Any], Tensor | None]:
    """Return the importance of torch-pruning of this name, one of those of `ChannelPruner`."""
    if name == "lamp":
        lamp: Callable[[Any], Tensor | None] = tp.importance.LAMPImportance()
        return lamp
    if name == "l2" or samples is None:
        l2: Callable[[Any], Tensor | None] = tp.importance.GroupMagnitudeImportance(p=2)
        return l2
    return (fisher if name == "fisher" else latent_sensitivity)(model, samples)
