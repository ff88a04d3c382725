"""How near the most probable network comes to a budget, by the cost term of a search: ours, and AGD's controller.

    python benchmarks/search_cost_term.py --output output/search-cost-term

Logits of operators and widths are trained by `GradientSearch` on drawn scenes of 16 x 16, once with its fixed term
w log(E[F] / B_t)^2, once with AGD's: lambda E[F] / B, where lambda is doubled when the most probable network costs more
than the budget B, and halved when it costs less than 0.92 B, 20 times in all. The temperature falls in both. Printed is
the cost of the most probable network as a share of B, by seed, before `derive` fits it to the budget. Writes
results.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scenes import scenes
from torch import Tensor

from compressors import Distiller
from compressors.common.files import write_json
from compressors.common.text import versions
from compressors.search import Supernet, tiny
from compressors.search.cost import macs_of
from compressors.search.data import DataDraw
from compressors.search.training import GradientSearch

SIZE, BAND, LOOKS = (16, 16), 0.92, 20
BUDGETS = (0.1, 0.2, 0.4)
"""Shares of the largest network."""


class Controlled(GradientSearch):
    """With AGD's cost term."""

    weight, looks = 1.0, 0

    def penalty(self, temperature: float, progress: float) -> Tensor:
        """Return lambda E[F] / B, after lambda has been adapted."""
        if int(progress * LOOKS) > self.looks:
            self.looks += 1
            cost = macs_of(self.integer_tables, self.most_probable())
            self.weight = adapted(self.weight, cost, self.budget)
        return (self.weight * self.expected(temperature) / self.budget).float()


def adapted(weight: float, cost: int, budget: int) -> float:
    """Return twice the weight above the budget, half of it below the band, itself inside."""
    return 2 * weight if cost > budget else weight / 2 if cost < BAND * budget else weight


def share(kind: type[GradientSearch], budget: int, seed: int, steps: int) -> float:
    """Return the cost of the most probable network, as a share of the budget."""
    torch.manual_seed(seed)
    teacher = tiny().build(tiny().uniform(1.0, "residual")).eval()
    supernet, inputs = Supernet(tiny()), scenes(256, seed)[0][:, :, ::2, ::2]
    draw = DataDraw(inputs, 0, len(inputs))
    plan = Distiller(draw, steps, seed, 8, 4e-3, held_out=8, clip_norm=5, progress=False).plan(False)
    training = kind(supernet, teacher, dict(supernet.named_parameters()), plan, "")
    training.prepare(SIZE, (int(BAND * budget), budget))
    training.run()
    return macs_of(training.integer_tables, training.most_probable()) / budget


def main() -> None:
    """Train with both, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/search-cost-term"), help="folder for the results")
    parser.add_argument("--steps", type=int, default=100, help="default 100")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--quick", action="store_true", help="two seeds, 20 steps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps = 2, 20
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = list[dict[str, Any]]()
    for part in BUDGETS:
        budget = int(part * tiny().max_macs(SIZE))
        for name, kind in {"fixed": GradientSearch, "controller": Controlled}.items():
            found = [share(kind, budget, seed, arguments.steps) for seed in range(101, 101 + arguments.seeds)]
            rows.append({"budget": part, "term": name, "cost by budget": found})
            values = ", ".join(f"{value:.2f}" for value in found)
            print(f"{part} {name}: {values}; mean {mean(found):.2f}, deviation {stdev(found):.2f}", flush=True)
    write_json(arguments.output / "results.json", {"steps": arguments.steps, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
