"""How the supernet learns: the loop of `compressors.distil` with a loss over several networks."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from compressors.distil.training import HELD_OUT, Training
from compressors.search.cost import Indices, expected_macs, macs_of, sample
from compressors.search.space import Size
from compressors.search.supernet import Supernet

# The temperature of the operators and widths whose cost is counted, at the start and at the end: sharpened, the
# expected cost becomes that of the most probable network.
_SOFT, _SHARP = 2.0, 0.2
_LEAST_GUMBEL = 0.5
_FIRST_GOAL, _LAST_GOAL = 0.3, 0.97
# Weight of the cost, in units of the loss.
_COST_WEIGHT = 0.25


class SupernetTraining(Training):
    """Trains the shared weights: each step, the widest network and three random ones that meet the budget.

    AGD trains the widest, the narrowest and two of any size, and mixes operators. Here operators are drawn, so that a
    network is used as it will be, and weights are not spent on networks that no budget asks for.
    """

    label = "supernet"

    def prepare(self, size: Size, band: tuple[int, int]) -> SupernetTraining:
        """Set the least and the most multiply-accumulates, for one input of `size`, of networks to train."""
        self.integer_tables, self.band = self.supernet.space.tables(size), band
        return self

    def _loss(self, model: nn.Module, inputs: tuple[Any, ...], targets: Any, step: int) -> Tensor:
        return self._mean(self._paths(random.Random(self._seed(step)), 3), inputs[0], targets[0])

    def _paths(self, rng: random.Random, count: int) -> list[Indices]:
        fitting = [sample(self.integer_tables, rng, self.band) for _ in range(count)]
        return [self.supernet.widest(rng), *fitting]

    @property
    def supernet(self) -> Supernet:
        """The network in training."""
        assert isinstance(self.student, Supernet)
        return self.student

    def _mean(self, paths: list[Indices], images: Tensor, targets: Tensor) -> Tensor:
        losses = [self.distance(self.supernet(images, path), targets) for path in paths]
        return torch.stack(losses).mean()


class GradientSearch(SupernetTraining):
    """Trains the logits beside the shared weights, so that the most probable network meets `budget`: AGD's search.

    Each batch has two halves. The weights learn from the one, by the networks of `SupernetTraining` of which one is
    drawn by the logits; the logits from the other, with the weights as they are, by the loss and

        w log(E[F] / B_t)^2

    where E[F] is the expected cost at a falling temperature, and B_t rises from 0.3 of the largest network to 0.97 of
    the budget over the first half of the steps. This holds from both sides: with a bound from above alone, the most
    probable network was the smallest of all.
    """

    label = "logits"

    def prepare(self, size: Size, band: tuple[int, int]) -> GradientSearch:
        """Set the band, whose end is the budget."""
        super().prepare(size, band)
        self.budget = band[1]
        self.tables = [torch.from_numpy(table).double().to(self.device) for table in self.integer_tables]
        self.goal = max(_FIRST_GOAL * sum(float(table.max()) for table in self.tables), self.budget)
        return self

    def _train(self) -> None:
        super()._train()
        self.best = self._snapshot()  # The last architecture counts, not the one of the least loss.

    def _loss(self, model: nn.Module, inputs: tuple[Any, ...], targets: Any, step: int) -> Tensor:
        images, target = inputs[0], targets[0]
        rng = random.Random(self._seed(step))
        if step == HELD_OUT:
            return self._mean([self.most_probable()], images, target)
        half = max(1, len(images) // 2)
        progress = step / self.plan.steps
        temperature = _SOFT * (_SHARP / _SOFT) ** progress
        with self._noise(step):
            paths = [self._by_logits(), *self._paths(rng, 1)]
            weights = self._mean(paths, images[:half], target[:half])
            mixed = self.supernet.mixed(images[-half:], max(temperature, _LEAST_GUMBEL))
        distance = self.distance(mixed, target[-half:])
        return weights + distance + _COST_WEIGHT * distance.detach() * self.penalty(temperature, progress)

    def penalty(self, temperature: float, progress: float) -> Tensor:
        """Return log(E[F] / B_t)^2 for a share `progress` of the steps, 0 to 1."""
        expected = self.expected(temperature)
        goal = self.goal * (_LAST_GOAL * self.budget / self.goal) ** min(1.0, 2 * progress)
        penalty: Tensor = (expected / goal).log().square().float()
        return penalty

    def expected(self, temperature: float) -> Tensor:
        """Return the expected multiply-accumulates."""
        net = self.supernet
        return expected_macs(self.tables, net.operator_probabilities(temperature), net.width_probabilities(temperature))

    def most_probable(self) -> Indices:
        """Return the network of the largest logits."""
        return tuple((int(o.argmax()), int(w.argmax())) for o, w in self.supernet.logits())

    def _by_logits(self) -> Indices:
        net = self.supernet
        pairs = zip(net.operator_probabilities(1.0), net.width_probabilities(1.0), strict=True)
        return tuple((int(torch.multinomial(o, 1)), int(torch.multinomial(w, 1))) for o, w in pairs)

    def postfix(self) -> dict[str, str]:
        """Return what the bar shows: expected and most probable multiply-accumulates."""
        with torch.no_grad():
            expected = float(self.expected(_SHARP))
        return {"expected": f"{expected:.3g}", "argmax": f"{macs_of(self.integer_tables, self.most_probable()):.3g}"}
