"""Whether a search is worth it on a small task: against networks of one width and against random ones, trained alike.

    python benchmarks/search_pilot.py --output output/search-pilot

The protocol, fixed before the seeds from 101 on were drawn. For each seed all is drawn anew: 1,024 scenes to train on
(`scenes.py`), a teacher of 6.34 M multiply-accumulates trained on them for 700 steps, the searches, and 256 scenes that
nothing was trained on, for PSNR to the teacher. Every network that is measured is trained from scratch by the same
call: 400 batches of 16, rate 4e-3. Rows:

    trials             24 networks trained for 150 steps, half of them random, half mutations of the best of those
    evolution          on the loss of a supernet of 700 steps; 12 networks trained for 150 steps
    uniform residual   the teacher's operators, one ratio of its widths, any widths allowed, no less than the budget
    uniform dws        the same of depthwise blocks: no claim is made against it
    random             two networks drawn from those within 0.92 to 1 of the budget

Rows that were finished are kept: the same command again goes on.
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
from safetensors.torch import load_file, save_file
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
        folder: where teacher and searches are kept.
        inputs: scenes to train on.
        test: scenes to measure on.
        teacher: the network to imitate.
    """

    seed: int
    steps: int
    folder: Path
    inputs: Tensor
    test: Tensor
    teacher: nn.Module

    @classmethod
    def drawn(cls, seed: int, steps: int, folder: Path) -> Task:
        """Draw scenes and train a teacher, or read it."""
        path = folder / f"teacher-{seed}.safetensors"
        torch.manual_seed(seed)
        teacher = tiny().build(tiny().uniform(1.0, "residual")).eval()
        if path.exists():
            teacher.load_state_dict(load_file(path))
        else:
            save_file(trained_teacher(teacher, 7 * steps // 4, seed).state_dict(), path)
        return cls(seed, steps, folder, scenes(1024, seed)[0], scenes(256, seed + 1_000_000)[0], teacher)

    def measured(self, budget: int, way: str | Genotype) -> dict[str, Any]:
        """Train a network, or search for one by a strategy, and measure it."""
        start, genotype = time.process_time(), None if isinstance(way, str) else way
        folder = self.folder / f"{way}-{budget}-{self.seed}" if isinstance(way, str) else None
        if folder is not None:
            folder.mkdir(exist_ok=True)
        found = ArchitectureSearch(
            tiny(),
            budget,
            self.inputs,
            self.steps,
            self.seed,
            search_steps=7 * self.steps // 4,
            rate=4e-3,
            band=BAND,
            strategy="evolution" if genotype else str(way),
            trials=24 if way == "trials" else 12,
            genotype=genotype,
            folder=folder,
            progress=False,
        ).compress(self.teacher, (self.test[:1],))
        with torch.no_grad():
            value = psnr(found.model(self.test), self.teacher(self.test))
        row = {"budget": budget, "MACs": found.report.after.macs, "PSNR": value, "CPU s": time.process_time() - start}
        step = found.recipe.steps[-1]
        tried = sorted(step["candidates"], key=lambda candidate: candidate["loss"])
        layers = " ".join(f"{operator}:{width}" for operator, width in step["genotype"])
        return {**row, "genotype": layers, "found by": [candidate["origin"] for candidate in tried[:1]]}

    def ways(self, budget: int) -> dict[str, str | Genotype]:
        """Return the searches, and the networks to compare with, by name."""
        space, size = tiny(), (SIZE, SIZE)
        # Widths of the space are even: from 479,232 the next network of one ratio costs 861,696.
        finer = replace(space, divisor=1)
        uniform = {f"uniform {name}": finer.uniform_at(budget, name, size) for name in ("residual", "dws")}
        rng = random.Random(self.seed)
        drawn = {f"random {n}": space.sample(rng, size, (BAND * budget, budget)) for n in (1, 2)}
        return {"trials": "trials", **uniform, **drawn, "evolution": "evolution"}


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
    parser.add_argument("--budgets", type=int, nargs="*", default=list(BUDGETS), help="default 600000 850000")
    parser.add_argument("--quick", action="store_true", help="one seed, one budget, 40 steps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.budgets, arguments.steps = arguments.seeds[:1], arguments.budgets[:1], 40
    torch.set_num_threads(1)
    table = Table(arguments.output, {"steps": arguments.steps, "band": BAND})
    tasks = [Task.drawn(seed, arguments.steps, arguments.output) for seed in arguments.seeds]
    for budget in arguments.budgets:
        for label in tasks[0].ways(budget):
            for task in tasks:
                name = f"{label}, {budget}"
                if not table.has(name, task.seed):
                    row = task.measured(budget, task.ways(budget)[label])
                    table.add(name, task.seed, kind=label.rstrip(" 12"), **row)
    print(summary(table.rows))


if __name__ == "__main__":
    main()
