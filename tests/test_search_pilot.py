"""Whether a search is worth it: against networks of one width and operator, and against random ones."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import mean

import pytest
import torch
from scenes import psnr, scenes, trained_teacher

from compressors import CompressedModel
from compressors.search import ArchitectureSearch, search_student, tiny
from compressors.search.space import Genotype

pytestmark = pytest.mark.slow
BUDGET, SIZE = 600_000, (32, 32)


def test_searched_networks_beat_uniform_and_random_ones_of_the_same_cost() -> None:
    space, inputs = tiny(), scenes(1024, 0)[0]
    torch.manual_seed(0)
    teacher = trained_teacher(space.build(space.uniform(1.0, "residual")), 700)
    images = scenes(256, 99)[0]

    def quality(result: CompressedModel) -> float:
        with torch.no_grad():
            return psnr(result.model(images), teacher(images))

    def trained(genotype: Genotype, seed: int) -> float:
        stage = ArchitectureSearch(space, BUDGET, inputs, 400, seed, genotype=genotype, progress=False)
        return quality(stage.compress(teacher, (images[:1],)))

    found = [
        search_student(teacher, space, BUDGET, inputs, steps=400, search_steps=700, seed=seed, progress=False)
        for seed in (1, 2)
    ]
    assert all(0.92 * BUDGET <= result.report.after.macs <= BUDGET for result in found)
    searched = mean(map(quality, found))
    # Widths of the space are even: from 479,232 the next network of one ratio costs 861,696.
    genotype = replace(space, divisor=1).uniform_at(BUDGET, "residual", SIZE)
    uniform = mean(trained(genotype, seed) for seed in (1, 2))
    band = (0.92 * BUDGET, BUDGET)
    drawn = mean(trained(space.sample(random.Random(seed), SIZE, band), seed) for seed in (1, 2, 3))
    assert searched >= uniform + 1.0
    assert searched >= drawn + 0.5
