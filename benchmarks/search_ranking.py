"""How well cheap losses rank networks: shared weights of a supernet, and short trainings, against whole ones.

    python benchmarks/search_ranking.py --output output/search-ranking

12 networks drawn from those within 0.92 to 1 of a budget are trained on scenes (`scenes.py`) for 400 steps. Printed is
Spearman's rank correlation of their losses, on scenes that nothing was trained on, with those after 40 and 150 steps,
and with those by a supernet of 700 steps: at two rates, with norm parameters of their own for each width (switchable
norms, Yu et al. 2019, arXiv 1812.08928), and trained without its widest network. Norms of a supernet measure their
statistics on the batch at hand, for each network anew. results.json holds the losses too.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scenes import SIZE, scenes, trained_teacher
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call

from compressors import Distiller
from compressors.common.files import write_json
from compressors.common.text import versions
from compressors.search import Supernet, tiny
from compressors.search.cost import Indices, sample
from compressors.search.data import DataDraw
from compressors.search.operators import template
from compressors.search.space import SearchSpace
from compressors.search.training import SupernetTraining

NETWORKS, BAND, TRAIN = 12, 0.92, 896


class Switchable(Supernet):
    """With parameters of its own for each width of a norm."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.own = nn.ParameterDict()
        for layer, (befores, afters) in enumerate(
            (space.widths(number - 1), space.widths(number)) for number in range(len(space.layers))
        ):
            for choice, operator in enumerate(space.layers[layer].operators):
                for before in range(len(befores)):
                    for after in range(len(afters)):
                        network = template(operator, self._slot(layer, before, after))
                        for name, value in network.named_parameters():
                            if value.dim() == 1:
                                fill = torch.ones if name.endswith("weight") else torch.zeros
                                key = self._key(layer, choice, name, value)
                                self.own[key] = nn.Parameter(fill(value.shape))

    @staticmethod
    def _key(layer: int, choice: int, name: str, value: Tensor) -> str:
        return f"{layer}/{choice}/{name}/{len(value)}".replace(".", "/")

    def _sliced(self, layer: int, choice: int, before: int, after: int, x: Tensor, detached: bool = False) -> Tensor:
        network = template(self.space.layers[layer].operators[choice], self._slot(layer, before, after))
        shared = self._parameters_of(layer, choice)
        values = {
            name: self.own[self._key(layer, choice, name, value)]
            if value.dim() == 1
            else shared[name][tuple(slice(0, size) for size in value.shape)]
            for name, value in network.named_parameters()
        }
        output: Tensor = functional_call(network, values, (x,))
        return output


class Fitting(SupernetTraining):
    """Trains networks that meet the budget alone."""

    def _paths(self, rng: random.Random, count: int) -> list[Indices]:
        return [sample(self.integer_tables, rng, self.band) for _ in range(count + 1)]


SUPERNETS: dict[str, tuple[type[Supernet], type[SupernetTraining], float]] = {
    "rate 2e-3": (Supernet, SupernetTraining, 2e-3),
    "rate 4e-3": (Supernet, SupernetTraining, 4e-3),
    "switchable norms": (Switchable, SupernetTraining, 4e-3),
    "without the widest": (Supernet, Fitting, 4e-3),
}


def main() -> None:
    """Train all, print and write the correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/search-ranking"), help="folder for the results")
    parser.add_argument("--budget", type=int, default=600_000, help="default 600000")
    parser.add_argument("--seed", type=int, default=1, help="of networks and their training; default 1")
    parser.add_argument("--quick", action="store_true", help="4 networks, a twentieth of the steps")
    arguments = parser.parse_args()
    count, shorter = (4, 20) if arguments.quick else (NETWORKS, 1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    seed, budget, space = arguments.seed, arguments.budget, tiny()
    band = (int(BAND * budget), budget)
    torch.manual_seed(0)
    teacher = trained_teacher(space.build(space.uniform(1.0, "residual")), 700 // shorter).requires_grad_(False)
    inputs = scenes(1024, 0)[0]
    images = inputs[TRAIN:]
    with torch.no_grad():
        target = teacher(images)
    rng, networks = random.Random(seed), list[Indices]()
    while len(networks) < count:
        found = sample(space.tables((SIZE, SIZE)), rng, band)
        networks += [] if found in networks else [found]

    def distiller(steps: int, rate: float) -> Distiller:
        steps //= shorter
        return Distiller(
            DataDraw(inputs, 0, TRAIN), steps, seed, 16, rate, train_norms=True, clip_norm=5, progress=False
        )

    @torch.no_grad()
    def loss(network: Callable[[Tensor], Tensor]) -> float:
        return float((network(images) - target).abs().mean())

    def alone(steps: int) -> list[float]:
        values = []
        for indices in networks:
            torch.manual_seed(seed)
            student = space.build(space.genotype(indices))
            values.append(loss(distiller(steps, 4e-3).compress(student, (images[:1],), teacher=teacher).model))
        return values

    def shared(kind: type[Supernet], training: type[SupernetTraining], rate: float) -> list[float]:
        torch.manual_seed(seed)
        net = kind(space)
        weights = {name: value for name, value in net.named_parameters() if "logits" not in name}
        training(net, teacher, weights, distiller(700, rate).plan(False), "").prepare((SIZE, SIZE), band).run()
        return [loss(lambda batch, indices=indices: net(batch, indices)) for indices in networks]  # type: ignore[misc]

    whole = alone(400)
    rows = list[dict[str, Any]]()
    ways: dict[str, Callable[[], list[float]]] = {
        f"{steps} steps": lambda steps=steps: alone(steps) for steps in (40, 150)
    }  # type: ignore[misc]
    ways |= {name: lambda way=way: shared(*way) for name, way in SUPERNETS.items()}  # type: ignore[misc]
    for name, way in ways.items():
        start = time.process_time()
        values = way()
        row = {"way": name, "rank correlation": float(spearmanr(values, whole).statistic), "losses": values}
        rows.append({**row, "CPU s": time.process_time() - start})
        print(f"{name}: {rows[-1]['rank correlation']:.2f}, {rows[-1]['CPU s']:.0f} s", flush=True)
        protocol = {"seed": seed, "budget": budget, "quick": arguments.quick, "versions": versions()}
        write_json(arguments.output / "results.json", {**protocol, "whole": whole, "rows": rows})


if __name__ == "__main__":
    main()
