"""Theoretical cost of sparse training, in multiply-accumulates; masks alone save no time on ordinary hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressors.common.bake import baked_copy
from compressors.common.checks import check_choice, check_count, check_inputs
from compressors.common.measure import count_macs
from compressors.errors import CompressionError
from compressors.sparse.masks import MaskSet

Accounting: TypeAlias = Literal["corrected", "reference"]

ACCOUNTINGS: tuple[Accounting, ...] = ("corrected", "reference")


@dataclass(frozen=True)
class Batches:
    """How an iteration looks: steps of the discriminator, and the sizes of both networks' batches."""

    critic_steps: int
    discriminator: int
    generator: int

    def __post_init__(self) -> None:
        for name in ("critic_steps", "discriminator", "generator"):
            check_count(name, getattr(self, name))


def iteration_macs(generator: float, discriminator: float, batches: Batches, accounting: Accounting) -> float:
    """Return the multiply-accumulates of one iteration, from those of one sample's forward pass, G and D.

    With S steps of the discriminator on batches of B_D and one step of the generator on a batch of B_G:
    "corrected" is G (S B_D + 3 B_G) + D (6 S B_D + 2 B_G), "reference" is G (S B_D + 3 B_G) + S D (3 S B_D + B_G).

    A backward pass costs two forward passes, the gradients of inputs and of weights one each.

    "corrected": the generator makes the discriminator's fakes and takes its own step; the discriminator sees real and
    generated images in each of its steps, and passes the gradient of its input on in the generator's. "reference": as
    in the authors' code, which the numbers of the paper come from: it counts one of the two batches, leaves the
    gradient of the input out, and multiplies the discriminator's cost by its steps twice.

    Args:
        generator: multiply-accumulates of its forward pass of one sample.
        discriminator: likewise.
        batches: sizes of the iteration.
        accounting: "corrected" or "reference".
    """
    check_choice("accounting", accounting, ACCOUNTINGS)
    steps, critic, batch = batches.critic_steps, batches.discriminator, batches.generator
    made = generator * (steps * critic + 3 * batch)
    if accounting == "reference":
        return made + steps * discriminator * (3 * steps * critic + batch)
    return made + discriminator * (6 * steps * critic + 2 * batch)


class ForwardCost:
    """The multiply-accumulates of one network's forward pass, by layer.

    Args:
        model: the network; left as it is.
        inputs: forward arguments of one sample, a tuple.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        check_inputs("inputs", inputs)
        self._macs = count_macs(baked_copy(model), inputs)
        sizes = [len(item) for item in tree_leaves(inputs) if isinstance(item, Tensor) and item.dim()]
        if not sizes:
            raise CompressionError(f"inputs must hold a tensor whose first dimension is the batch; got {inputs!r}")
        self.samples = sizes[0]

    @property
    def dense(self) -> float:
        """Of one sample, all weights counted."""
        return self._macs[""] / self.samples

    def sparse(self, masks: MaskSet) -> float:
        """Of one sample, each masked layer counted at its density."""
        saved = sum(self._macs[layer] * (1 - density) for layer, density in masks.layer_densities.items())
        return self.dense - saved / self.samples


class TrainingCost:
    """Adds up what a sparse training costs as its densities change.

    Args:
        generator, discriminator: the networks' `ForwardCost`.
        batches: sizes of an iteration.
    """

    def __init__(self, generator: ForwardCost, discriminator: ForwardCost, batches: Batches) -> None:
        self.generator, self.discriminator, self.batches = generator, discriminator, batches
        self.iterations = 0
        self.macs: dict[Accounting, float] = dict.fromkeys(ACCOUNTINGS, 0.0)

    def add(self, generator: MaskSet, discriminator: MaskSet, iterations: int = 1) -> None:
        """Count `iterations` at the present densities."""
        forward = self.generator.sparse(generator), self.discriminator.sparse(discriminator)
        self.iterations += iterations
        for accounting in ACCOUNTINGS:
            self.macs[accounting] += iterations * iteration_macs(*forward, self.batches, accounting)

    def share_of_dense(self, accounting: Accounting = "corrected") -> float:
        """Return the cost so far as a share of that of dense networks over as many iterations."""
        forward = self.generator.dense, self.discriminator.dense
        return self.macs[accounting] / (self.iterations * iteration_macs(*forward, self.batches, accounting))
