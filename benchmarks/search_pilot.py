"""Whether a search is worth it on a small task: against networks of one width and against random ones, trained alike.

    python benchmarks/search_pilot.py --output output/search-pilot

The protocol, fixed before the seeds from 101 on were drawn. For each seed all is drawn anew: 1,024 scenes to train on
(`scenes.py`), a teacher of 6.34 M multiply-accumulates trained on them for 700 steps, a search of 400 steps with a
supernet of 700 for each budget, and 256 scenes that nothing was trained on, for PSNR to the teacher. Beside the
searched network: the teacher's operators with one ratio of its widths, any widths allowed, the narrowest of no less
than the budget ("uniform residual"); the same with depthwise blocks; two networks drawn from those within 0.92 to 1 of
the budget. Every network that is measured is trained from scratch by the same call: batches of 16, rate 4e-3, 400
steps.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scenes import SIZE, psnr, scenes, trained_teacher
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from kept import Table

from compressors.search import ArchitectureSearch, tiny
from compressors.search.space import Genotype

BUDGETS = (600_000, 850_000)
BAND = 0.92


@dataclass(frozen=True)
class Task:
    """All that is drawn by a seed.

    Attributes:
        seed: of all of it.
        steps: of every network that is measured.
        inputs: scenes to train on.
        test: scenes to measure on.
        teacher: the network to imitate.
    """

    seed: int
    steps: int
    inputs: Tensor
    test: Tensor
    teacher: nn.Module

    @classmethod
    def drawn(cls, seed: int, steps: int) -> Task:
        """Draw scenes and train a teacher."""
        torch.manual_seed(seed)
        teacher = trained_teacher(tiny().build(tiny().uniform(1.0, "residual")), 7 * steps // 4, seed)
        return cls(seed, steps, scenes(1024, seed)[0], scenes(256, seed + 1_000_000)[0], teacher)

    def measured(self, budget: int, genotype: Genotype | None) -> dict[str, Any]:
        """Train a network, or search for one, and measure it."""
        start = time.process_time()
        found = ArchitectureSearch(
            tiny(),
            budget,
            self.inputs,
            self.steps,
            self.seed,
            search_steps=7 * self.steps // 4,
            rate=4e-3,
            band=BAND,
            genotype=genotype,
            progress=False,
        ).compress(self.teacher, (self.test[:1],))
        with torch.no_grad():
            value = psnr(found.model(self.test), self.teacher(self.test))
        row = {"budget": budget, "MACs": found.report.after.macs, "PSNR": value, "CPU s": time.process_time() - start}
        step = found.recipe.steps[-1]
        return {**row, "genotype": step["genotype"], "candidates": step["candidates"]}

    def baselines(self, budget: int) -> dict[str, Genotype]:
        """Return the networks to compare with, by name."""
        space, size = tiny(), (SIZE, SIZE)
        # Widths of the space are even: from 479,232 the next network of one ratio costs 861,696.
        finer = replace(space, divisor=1)
        found = {f"uniform {name}": finer.uniform_at(budget, name, size) for name in ("residual", "dws")}
        rng = random.Random(self.seed)
        return found | {f"random {n}": space.sample(rng, size, (BAND * budget, budget)) for n in (1, 2)}


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table: for each budget and kind of network the mean PSNR over seeds, and the standard deviation."""
    lines = ["| budget | network | MACs | PSNR by seed | mean | deviation |", "|---|---|---|---|---|---|"]
    for budget in sorted({row["budget"] for row in rows if "budget" in row}):
        of_budget = [row for row in rows if row.get("budget") == budget]
        for kind in dict.fromkeys(row["kind"] for row in of_budget):
            found = [row for row in of_budget if row["kind"] == kind]
            values, costs = [row["PSNR"] for row in found], [row["MACs"] / 1e6 for row in found]
            spread = f"{stdev(values):.2f}" if len(values) > 1 else ""
            cells = [f"{min(costs):.3f} - {max(costs):.3f} M", ", ".join(f"{value:.2f}" for value in values)]
            lines.append(f"| {budget / 1e6:.2f} M | {kind} | {' | '.join(cells)} | {mean(values):.2f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Search and train for each seed and budget; write a table as JSON and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/search-pilot"), help="folder for the results")
    parser.add_argument("--seeds", type=int, nargs="*", default=[101, 102, 103], help="default 101 102 103")
    parser.add_argument("--steps", type=int, default=400, help="of every network that is measured; default 400")
    parser.add_argument("--quick", action="store_true", help="one seed, 40 steps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps = arguments.seeds[:1], 40
    torch.set_num_threads(1)
    table = Table(arguments.output, {"steps": arguments.steps, "band": BAND, "budgets": list(BUDGETS)})
    for seed in arguments.seeds:
        task = Task.drawn(seed, arguments.steps)
        for budget in BUDGETS:
            for label, genotype in {"searched": None, **task.baselines(budget)}.items():
                name = f"{label}, {budget}"
                if not table.has(name, seed):
                    table.add(
                        name,
                        seed,
                        kind=label.split(" ")[0] if "random" in label else label,
                        **task.measured(budget, genotype),
                    )
    print(summary(table.rows))


if __name__ == "__main__":
    main()
