"""Binary masks over the weights of a network, kept in place: what is off is zero after every `apply`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.checks import check_choice, check_density, check_patterns, matching
from compressors.common.generation import SEED
from compressors.errors import CompressionError, UnsupportedModule
from compressors.sparse.allocation import ALLOCATIONS, exact_counts
from compressors.sparse.spectral import trained_weight

MASKABLE_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)

# Maps of conditional batch norm and class heads are called so in BigGAN and ACGAN; they stay dense, as norms do.
_DENSE_NAMES = {"gain", "bias", "classifier"}


class MaskSet:
    """The masks of one network's linear and (transposed) convolution weights, first and last layer included.

    Biases, norms and embeddings stay dense, and so do layers with a part of their name among gain, bias and
    classifier. Under spectral norm of either kind the mask is on the weight before normalisation, so that the norm
    is that of the masked weight. Nothing is hooked into the network: its weights are zeroed in place where the mask is
    off, by `apply`, which must run after each optimizer step. Gradients stay dense, which growth needs.

    Args:
        model: the network; weights that are off become zero at once, the others keep their values.
        density: share of the maskable weights that is on, above 0, at most 1; met exactly, to rounding.
        allocation: "erk" (default, Evci et al. 2020) or "uniform"; see `exact_counts`.
        seed: of the random positions, default 2020.
        exclude: glob patterns of layers that stay dense.

    Attributes:
        parameters: the masked parameters by their name in `model`.
        layers: the names of their layers, by the same names.
        masks: bool tensors of the same names and shapes, True where a weight is on.
        total: number of maskable weights.

    Raises:
        CompressionError: a setting is out of range, or `exclude` matches no layer.
        UnsupportedModule: there is no layer to mask, or a weight is computed from several parameters (weight norm).
    """

    def __init__(
        self,
        model: nn.Module,
        density: float = 1.0,
        allocation: str = "erk",
        seed: int = SEED,
        exclude: Sequence[str] = (),
    ) -> None:
        check_density("density", density)
        check_choice("allocation", allocation, ALLOCATIONS)
        found = _maskable(model, exclude)
        self.layers = {name: layer for name, (layer, _) in found.items()}
        self.parameters = {name: parameter for name, (_, parameter) in found.items()}
        counts = exact_counts({name: weight.shape for name, weight in self.parameters.items()}, density, allocation)
        random = torch.Generator().manual_seed(seed)
        drawn = [_drawn(weight.numel(), counts[name], random) for name, weight in self.parameters.items()]
        self.total = sum(map(len, drawn))
        self.assign(torch.cat(drawn))

    @property
    def active(self) -> int:
        """Number of weights that are on."""
        return sum(self._active.values())

    @property
    def density(self) -> float:
        """Share of the maskable weights that is on."""
        return self.active / self.total

    @property
    def layer_densities(self) -> dict[str, float]:
        """The density of each layer, by the layer's name."""
        return {self.layers[name]: active / self.masks[name].numel() for name, active in self._active.items()}

    @torch.no_grad()
    def apply(self, model: nn.Module | None = None) -> None:
        """Zero the weights that are off, in the network itself or in one of the same structure, such as its average."""
        targets = self.parameters if model is None else dict(model.named_parameters())
        for name, mask in self.masks.items():
            weight = targets[name]
            self.masks[name] = mask = mask.to(weight.device)
            weight.masked_fill_(~mask, 0)

    def flat(self) -> Tensor:
        """Return all masks as one, bool with `total` elements, on the CPU."""
        return torch.cat([mask.flatten().cpu() for mask in self.masks.values()])

    def flat_weights(self) -> Tensor:
        """Return all weights in the order of `flat`, float32 on the CPU."""
        return torch.cat([weight.detach().flatten().float().cpu() for weight in self.parameters.values()])

    def flat_gradients(self) -> Tensor:
        """Return the gradients of all weights, those that are off too, in the order of `flat`; 0 where there is none.

        Raises `CompressionError` where no weight has a gradient.
        """
        if all(weight.grad is None for weight in self.parameters.values()):
            raise CompressionError(
                "the gradients are gone, which growth needs: call step_discriminator() and step_generator() right "
                "after the optimizer's step, before zero_grad()"
            )
        gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values())
        return torch.cat([gradient.detach().flatten().float().cpu() for gradient in gradients])

    def assign(self, flat: Tensor) -> None:
        """Replace all masks by what `flat` returned or what was made of it, and zero what is off."""
        self.masks: dict[str, Tensor] = dict(zip(self.parameters, self.split(flat), strict=True))
        # Counted here, where the masks are on the CPU: on a GPU it would halt every step.
        self._active = {name: int(mask.sum()) for name, mask in self.masks.items()}
        self.apply()

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return views of a tensor of `total` elements in the shapes of the masks."""
        parts = torch.split(flat, [weight.numel() for weight in self.parameters.values()])
        return [part.view(weight.shape) for part, weight in zip(parts, self.parameters.values(), strict=True)]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the masks by parameter name."""
        return dict(self.masks)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the masks of `state_dict`; raises `CompressionError` where they belong to another network."""
        expected, given = ({n: tuple(m.shape) for n, m in masks.items()} for masks in (self.masks, state))
        if expected != given:
            differing = sorted(name for name, _ in set(expected.items()) ^ set(given.items()))
            raise CompressionError(f"the masks belong to another network: {', '.join(dict.fromkeys(differing))} differ")
        self.assign(torch.cat([state[name].flatten().cpu().bool() for name in self.masks]))


def _drawn(size: int, count: int, random: torch.Generator) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=random)[:count]] = True
    return mask


def _maskable(model: Any, exclude: Sequence[str]) -> dict[str, tuple[str, nn.Parameter]]:
    """Return layer name and parameter by the parameter's name."""
    check_patterns("exclude", exclude)
    if not isinstance(model, nn.Module):
        raise CompressionError(f"model must be an nn.Module; got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MASKABLE_LAYERS)}
    excluded = matching("exclude", exclude, list(layers))
    found: dict[str, tuple[str, nn.Parameter]] = {}
    for name, layer in layers.items():
        weight = trained_weight(layer)
        if name in excluded or _DENSE_NAMES & set(name.split(".")):
            continue
        if weight is None:
            raise UnsupportedModule(f"{name}: its weight is computed from several parameters, as by weight_norm")
        parameter = layer.get_parameter(weight)
        if not any(parameter is other for _, other in found.values()):
            found[f"{name}.{weight}".lstrip(".")] = (name, parameter)
    if not found:
        types = sorted({type(module).__name__ for module in model.modules()})
        raise UnsupportedModule(
            f"model has no linear or convolution layer whose weight could be masked; it is made of {', '.join(types)}"
        )
    return found
