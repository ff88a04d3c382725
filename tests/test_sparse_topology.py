"""Drop and grow: exact counts, the right weights, and no layer that empties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compressors import CompressionError
from compressors.sparse import DropGrow, MaskSet, Schedule, prune_by_magnitude
from compressors.sparse.drop_grow import drop, exchange, grow, highest
from compressors.sparse.schedule import due


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0, tied=False):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 1))
    if tied:
        for weight in model.parameters():
            weight.data.sign_()
    return model


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan, math.inf]), min_size=1, max_size=30),
    st.data(),
)
def test_highest_picks_exactly_as_many_and_never_a_lower_one(values, data):
    scores = torch.tensor(values)
    candidates = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    count = data.draw(st.integers(0, len(values)))
    chosen = highest(scores, candidates, count, seeded())
    assert int(chosen.sum()) == min(count, int(candidates.sum()))
    assert not (chosen & ~candidates).any()
    clean = torch.where(scores.isfinite(), scores, 0.0)
    left = candidates & ~chosen
    if chosen.any() and left.any():
        assert clean[chosen].min() >= clean[left].max()


@given(st.integers(0, 50), st.floats(0.15, 1), st.floats(0, 1), st.sampled_from(["random", "none", "zero"]))
def test_an_exchange_keeps_the_number_of_weights(seed, density, share, gradients):
    masks = MaskSet(network(seed, tied=seed % 2 == 0), density, "uniform", seed)
    found = {
        "random": torch.rand(masks.total, generator=seeded(seed)),
        "zero": torch.zeros(masks.total),
        "none": None,
    }[gradients]
    before = masks.flat()
    after = exchange(masks, share, found, seeded(seed))
    assert int(after.sum()) == int(before.sum())
    assert int((before & ~after).sum()) <= int(share * before.sum())
    assert all(part.any() for part in masks.split(after))


def test_the_smallest_weights_of_the_whole_network_are_dropped():
    masks = MaskSet(network(), 0.8)
    before, sizes = masks.flat(), masks.flat_weights().abs()
    after = drop(masks, 30, seeded())
    dropped = before & ~after
    assert int(dropped.sum()) == 30
    assert sizes[dropped].max() <= sizes[after].min()


def test_a_layer_keeps_its_largest_weight_whatever_is_dropped():
    model = network()
    model[1].weight.data.mul_(1e-6)
    masks = MaskSet(model, 0.5)
    after = drop(masks, masks.total, seeded())
    assert int(after.sum()) == 3
    for part, weight in zip(masks.split(after), masks.parameters.values(), strict=True):
        assert weight.abs()[part].item() == weight.abs().max()


def test_weights_grow_where_the_gradient_is_largest():
    masks = MaskSet(network(), 0.3)
    active, gradients = masks.flat(), torch.randn(masks.total, generator=seeded(3))
    after = grow(active, 20, gradients, seeded())
    grown, left = after & ~active, ~after
    assert int(grown.sum()) == 20
    assert gradients.abs()[grown].min() >= gradients.abs()[left].max()


def test_random_growth_is_seeded_and_uniform_over_what_is_off():
    active = torch.arange(40) < 10
    assert torch.equal(grow(active, 6, None, seeded(4)), grow(active, 6, None, seeded(4)))
    random, draws = seeded(5), 2000
    counts = sum((grow(active, 6, None, random) & ~active).float() for _ in range(draws))[10:]
    expected = draws * 6 / 30
    # Without replacement each place is on with p = 1/5, so the statistic has 29 degrees of freedom after scaling.
    statistic = float(((counts - expected) ** 2 / (expected * (1 - 6 / 30))).sum()) * 29 / 30
    assert statistic < 58.3  # 99.9 % quantile of chi-square with 29 degrees of freedom


@pytest.mark.parametrize("step", [0, 1, 250, 999, 1000])
def test_the_schedules_follow_their_formulas(step):
    cosine = 0.005 + (0.5 - 0.005) * (1 + math.cos(math.pi * step / 1000)) / 2
    assert Schedule().at(step, 1000) == pytest.approx(cosine)
    assert Schedule(0.3, 0, "linear").at(step, 1000) == pytest.approx(0.3 * (1 - step / 1000))
    assert Schedule(0.3, kind="constant").at(step, 1000) == 0.3


def test_nothing_changes_at_the_start_nor_at_the_end():
    assert [step for step in range(0, 1201) if due(step, 250, 1000)] == [250, 500, 750]


def test_pruning_after_training_leaves_the_largest_weights():
    masks = MaskSet(network())
    for weight in masks.parameters.values():
        nn.init.normal_(weight, generator=seeded(2))
    before = masks.flat_weights()
    prune_by_magnitude(masks, 0.25)
    after = masks.flat_weights()
    assert int(after.count_nonzero()) == masks.active == round(0.25 * masks.total)
    assert torch.equal(after != 0, before.abs() >= before.abs().sort().values[-masks.active])


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (0.5, "density must be at most that of the network, 0.2473, .* got 0.5"),
        (1.5, "density must be a number above 0, at most 1; got 1.5"),
        (0, "density must be a number above 0, at most 1; got 0"),
    ],
)
def test_a_density_that_pruning_cannot_reach_is_refused_and_the_network_stays(density, message):
    masks = MaskSet(network(), 0.25)
    before = masks.flat_weights()
    with pytest.raises(CompressionError, match=message):
        prune_by_magnitude(masks, density)
    assert torch.equal(masks.flat_weights(), before)
    prune_by_magnitude(masks, masks.density)
    assert torch.equal(masks.flat_weights(), before)


def test_no_candidates_are_chosen_where_fewer_than_none_are_asked_for():
    assert not highest(torch.rand(9), torch.ones(9, dtype=torch.bool), -2, seeded(0)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DropGrow(0), "interval must be an integer of at least 1; got 0"),
        (lambda: DropGrow(growth="gradients"), 'growth must be one of gradient, random; got .*mean "gradient"'),
        (lambda: Schedule(kind="cosin"), 'kind must be one of .* mean "cosine"'),
        (lambda: Schedule(1.5), "start must be a number from 0 to 1; got 1.5"),
        (lambda: Schedule(0.1, 0.2), "end must be a number from 0 to start=0.1; got 0.2"),
        (lambda: Schedule("half"), "start must be a finite number; got 'half'"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(CompressionError, match=message):
        make()
