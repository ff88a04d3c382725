"""The supernet: all networks of a space in one set of weights.

A network runs its own plain layers, `template`, on the first channels of the shared weights, so what is exported is
what ran. For the gradients of an architecture the layers run at full width instead, and each convolution reads its
input through the mask of the widths drawn: the value is that of the narrow network, and gradients reach the channels
that it leaves out too.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from compressors.search.cost import Indices
from compressors.search.operators import OPERATORS, Slot, template
from compressors.search.space import Genotype, SearchSpace
from compressors.search.student import Student

Gate: TypeAlias = Literal["mask", "scalar"]

# Logits are this times their parameters. Adam moves parameters by its rate whatever the size of gradients, and logits
# must move faster than weights.
_LOGIT_SCALE = 20.0


class Supernet(nn.Module):
    """Shared weights of all networks of `space`, and the logits of operators and widths.

    Args:
        space: the search space.
        gate: what carries gradients to the logits of widths: "mask" (default), or "scalar", AGD's own: a factor on the
            output of a layer, of which a norm behind it hides all.
    """

    def __init__(self, space: SearchSpace, gate: Gate = "mask") -> None:
        super().__init__()
        self.space, self.gate = space, gate
        self.norm = "batch, shared" if space.norm == "batch" else space.norm
        self.weights = nn.ModuleList(
            nn.ModuleList(OPERATORS[name](self._slot(number, project=True)) for name in layer.operators)
            for number, layer in enumerate(space.layers)
        )
        sizes = [(len(layer.operators), len(space.widths(number))) for number, layer in enumerate(space.layers)]
        self.operator_logits = nn.ParameterList(torch.full((operators,), 1e-3) for operators, _ in sizes)
        self.width_logits = nn.ParameterList(torch.full((widths,), 1e-3) for _, widths in sizes)

    def forward(self, images: Tensor, indices: Indices) -> Tensor:
        """Return what a network makes of `images`, with its first channels of the shared weights."""
        widths = [-1, *(width for _, width in indices)]

        def apply(layer: int, x: Tensor) -> Tensor:
            return self._sliced(layer, indices[layer][0], widths[layer], widths[layer + 1], x)

        return self.space.chain.run(images, apply, len(indices))

    def mixed(self, images: Tensor, temperature: float) -> Tensor:
        """Return the output for operators mixed by their probabilities and widths drawn, with gradients to the logits.

        The gradient does not reach the shared weights. Widths are drawn with torch's generator.

        Args:
            images: B x C x H x W.
            temperature: of the soft widths that the gradients go through, above 0.
        """
        gates = [
            images.new_ones(1),
            *(straight_through(_LOGIT_SCALE * logits, temperature) for logits in self.width_logits),
        ]
        shares = self.operator_probabilities(1.0)

        def apply(layer: int, x: Tensor) -> Tensor:
            run = self._masked if self.gate == "mask" else self._scaled
            outputs = [run(layer, choice, gates[layer], gates[layer + 1], x) for choice in range(len(shares[layer]))]
            return torch.stack([p * output for p, output in zip(shares[layer], outputs, strict=True)]).sum(0)

        return self.space.chain.run(images, apply, len(shares))

    def operator_probabilities(self, temperature: float) -> list[Tensor]:
        """Return the probability of each operator of each layer."""
        return [functional.softmax(_LOGIT_SCALE * logits / temperature, 0) for logits in self.operator_logits]

    def width_probabilities(self, temperature: float) -> list[Tensor]:
        """Return the probability of each width of each layer."""
        return [functional.softmax(_LOGIT_SCALE * logits / temperature, 0) for logits in self.width_logits]

    def widest(self, rng: random.Random) -> Indices:
        """Return the widest network, its operators drawn uniformly."""
        return tuple((rng.randrange(len(operators)), len(widths) - 1) for operators, widths in self.logits())

    def logits(self) -> list[tuple[Tensor, Tensor]]:
        """Return the parameters of the logits of operators and of widths, by layer."""
        return list(zip(self.operator_logits, self.width_logits, strict=True))

    def exported(self, genotype: Genotype) -> Student:
        """Return a network as a plain module with its part of the shared weights; batch norms have measured nothing."""
        student = self.space.build(genotype)
        with torch.no_grad():
            for layer, (choice, _) in enumerate(self.space.indices(genotype)):
                shared = self._parameters_of(layer, choice)
                for name, own in student.layers[layer].named_parameters():
                    own.copy_(_first(shared[name], own.shape))
        return student

    def _slot(self, layer: int, before: int = -1, after: int = -1, project: bool | None = None) -> Slot:
        """Return the place of a layer for widths by their positions."""
        widths = self.space.widths(layer - 1)[before], self.space.widths(layer)[after]
        return self.space.slot(layer, *widths, self.norm, project)

    def _parameters_of(self, layer: int, choice: int) -> dict[str, Tensor]:
        return dict(self.weights.get_submodule(f"{layer}.{choice}").named_parameters())

    def _sliced(self, layer: int, choice: int, before: int, after: int, x: Tensor, detached: bool = False) -> Tensor:
        network = template(self.space.layers[layer].operators[choice], self._slot(layer, before, after))
        shared = self._parameters_of(layer, choice)
        own = {name: _first(shared[name], value.shape) for name, value in network.named_parameters()}
        if detached:
            own = {name: value.detach() for name, value in own.items()}
        return functional_call(network, own, (x,))  # type: ignore[no-any-return]

    def _scaled(self, layer: int, choice: int, before: Tensor, after: Tensor, x: Tensor) -> Tensor:
        into, out = int(before.argmax()), int(after.argmax())
        return self._sliced(layer, choice, into, out, x, detached=True) * before[into] * after[out]

    def _masked(self, layer: int, choice: int, before: Tensor, after: Tensor, x: Tensor) -> Tensor:
        project = self._slot(layer, int(before.argmax()), int(after.argmax())).project
        full = template(self.space.layers[layer].operators[choice], self._slot(layer, project=project))
        shared = self._parameters_of(layer, choice)
        values = {name: shared[name].detach() for name, _ in full.named_parameters()}
        for name, dim, present in _readers(self.space, layer, choice, project):
            mask = torch.einsum("i,j,ijn->n", before, after, present.to(before))
            values[name] = values[name] * mask.view([-1 if axis == dim else 1 for axis in range(values[name].dim())])
        return functional_call(full, values, (x,))  # type: ignore[no-any-return]


@cache
def _readers(space: SearchSpace, layer: int, choice: int, project: bool) -> tuple[tuple[str, int, Tensor], ...]:
    """Return the weights of an operator that read all channels of their input, with the dimension of these, and
    which of them are there (bool) for each input and output width of the layer."""
    operator = space.layers[layer].operators[choice]
    befores, afters = space.widths(layer - 1), space.widths(layer)
    found = []
    for name, module in template(operator, space.slot(layer, befores[-1], afters[-1], project=project)).named_modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or module.groups > 1:
            continue
        weight, dim = f"{name}.weight", 0 if isinstance(module, nn.ConvTranspose2d) else 1
        counts = torch.tensor(
            [
                [
                    template(operator, space.slot(layer, before, after, project=project))
                    .get_parameter(weight)
                    .shape[dim]
                    for after in afters
                ]
                for before in befores
            ]
        )
        found.append((weight, dim, torch.arange(module.weight.shape[dim]) < counts[:, :, None]))
    return tuple(found)


def straight_through(logits: Tensor, temperature: float) -> Tensor:
    """Return a one-hot draw by `logits`, exactly, with the gradient of its relaxation (Gumbel-softmax)."""
    uniform = torch.rand(logits.shape, device=logits.device).clamp(1e-20, 1 - 1e-7)
    soft = functional.softmax((functional.log_softmax(logits, 0) - (-uniform.log()).log()) / temperature, 0)
    hard = functional.one_hot(soft.argmax(), len(soft)).to(soft)
    return hard + (soft - soft.detach())


def _first(shared: Tensor, shape: torch.Size) -> Tensor:
    """Return the first part of a tensor, of `shape`."""
    return shared[tuple(slice(0, size) for size in shape)]


def logs(probabilities: list[Tensor]) -> list[NDArray[np.float64]]:
    """Return log probabilities as arrays, for `derive`."""
    return [p.detach().double().clamp_min(1e-30).log().cpu().numpy() for p in probabilities]
