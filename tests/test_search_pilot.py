"""Whether a search is worth it: against networks of one width and operator, and against random ones."""

from __future__ import annotations

from statistics import mean

import pytest
from search_pilot import BAND, BUDGETS, Task

pytestmark = pytest.mark.slow


def test_searched_networks_beat_uniform_and_random_ones_of_the_same_cost() -> None:
    budget, rows = BUDGETS[0], dict[str, list[float]]()
    for seed in (201, 202):
        task = Task.drawn(seed, 400)
        for label, genotype in {"searched": None, **task.baselines(budget)}.items():
            row = task.measured(budget, genotype)
            rows.setdefault(label.split(" ")[0] if "random" in label else label, []).append(row["PSNR"])
            if genotype is None:
                assert BAND * budget <= row["MACs"] <= budget
    assert mean(rows["searched"]) >= mean(rows["uniform residual"]) + 1.0
    assert mean(rows["searched"]) >= mean(rows["random"]) + 0.5
