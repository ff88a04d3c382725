"""Whether a search is worth it: against networks of one width and operator, and against random ones."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
from search_pilot import BAND, BUDGETS, Task

pytestmark = pytest.mark.slow


def test_searched_networks_beat_uniform_and_random_ones_of_the_same_cost(tmp_path: Path) -> None:
    budget, rows = BUDGETS[0], dict[str, list[float]]()
    for seed in (201, 202):
        task = Task.drawn(seed, 400, tmp_path)
        ways = task.ways(budget)
        for label in ("evolution", "uniform residual", "random 1", "random 2"):
            row = task.measured(budget, ways[label])
            rows.setdefault(label.rstrip(" 12"), []).append(row["PSNR"])
            if label == "evolution":
                assert BAND * budget <= row["MACs"] <= budget
    assert mean(rows["evolution"]) >= mean(rows["uniform residual"]) + 1.0
    assert mean(rows["evolution"]) >= mean(rows["random"]) + 0.5
