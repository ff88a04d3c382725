"""The balance ratio on networks done by hand, and the controller that follows it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_loop import LATENT, NORMS, small_discriminator, small_generator
from torch import nn

from compressors import CompressionError
from compressors.sparse import (
    BalanceConfig,
    BalanceMeter,
    Decision,
    DensityControl,
    Schedule,
    Scores,
    balance_ratio,
    measured_scores,
)

RELAXED = DensityControl()
STRICT = DensityControl(cap=0.5, exchange=Schedule())


def linear(weight, bias=0.0):
    layer = nn.Linear(1, 1)
    layer.weight.data.fill_(weight)
    layer.bias.data.fill_(bias)
    return layer


def measured(generator, discriminator, latents, real, move=0.0):
    """Score a generator around a step that adds `move` to its bias."""
    before = discriminator(generator(latents)).detach()
    generator.bias.data += move
    return measured_scores(generator, discriminator, (latents,), (real,), before)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (3, 0), (0.01, 5), (2, -1000)])
def test_the_ratio_is_the_share_of_the_gap_that_a_step_closes(scale, offset):
    """Generated images are at z, then at z + 1; real ones at 4; z has mean 1/2."""
    latents, real = torch.tensor([[0.0], [1.0]]), torch.full((3, 1), 4.0)
    scores = measured(linear(1.0), linear(scale, offset), latents, real, move=1.0)
    assert balance_ratio([scores]) == pytest.approx(1 / 3.5, rel=1e-3)


def test_a_step_that_moves_nothing_closes_nothing():
    torch.manual_seed(0)
    generator, discriminator, z = small_generator(), small_discriminator(), torch.randn(4, LATENT)
    before = discriminator(generator(z)).detach()
    real = torch.ones(4, 1, 8, 8)
    scores = measured_scores(generator, discriminator, (z,), (real,), before)
    assert scores.after == scores.before
    other = measured_scores(generator, discriminator, (torch.randn(4, LATENT),), (real,), before)
    assert other.after != other.before, "other latents would measure their own difference"


def test_the_estimators():
    scores = [Scores(0, 1, 2), Scores(0, 1, 8)]
    assert balance_ratio(scores) == pytest.approx(2 / 10)
    assert balance_ratio(scores, "mean_ratio") == pytest.approx((1 / 2 + 1 / 8) / 2)


@pytest.mark.parametrize("estimator", ["ratio_of_means", "mean_ratio"])
@pytest.mark.parametrize("real", [0.0, -1.0, 1e-9])
def test_a_discriminator_that_cannot_tell_is_never_made_weaker(estimator, real):
    ratio = balance_ratio([Scores(0.5, 0.4, 0.5 + real)] * 3, estimator)
    assert ratio == math.inf
    assert RELAXED.decide(ratio, 0.3).action == "grow"


def test_single_measurements_without_a_gap_are_left_out_of_the_mean_ratio():
    scores = [Scores(0, 1, 2), Scores(0, 1, -1), Scores(0, 1, 2)]
    assert balance_ratio(scores, "mean_ratio") == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_changes_nothing(bad):
    ratio = balance_ratio([Scores(0, 1, 2), Scores(0, bad, 2)])
    assert math.isnan(ratio)
    assert RELAXED.decide(ratio, 0.3) == Decision("none", 0.3)


def test_no_decision_before_the_window_is_full():
    meter = BalanceMeter(BalanceConfig(window=3))
    assert math.isnan(meter.ratio)
    for after in (1, 2):
        meter.push(Scores(0, after, 10))
        assert meter.full_ratio is None
    for after in (3, 4):
        meter.push(Scores(0, after, 10))
    assert meter.full_ratio == meter.ratio == pytest.approx(0.3)
    assert RELAXED.decide(None, 0.3).action == "none"


class Noisy(nn.Module):
    """A discriminator with all that a forward pass can leave a trace in."""

    def __init__(self, norm):
        super().__init__()
        self.net = nn.Sequential(small_discriminator(norm), nn.BatchNorm1d(1), nn.Dropout(0.5))

    def forward(self, x):
        return self.net(x + 0.1 * torch.randn_like(x))


def trace(*networks):
    state = {}
    for number, network in enumerate(networks):
        state |= {f"{number}.{name}": value.clone() for name, value in network.state_dict().items()}
        modes = [module.training for module in network.modules()]
        state[f"{number}.modes"] = torch.tensor(modes)
        state |= {f"{number}.{n}.grad": p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return {**state, "random": torch.get_rng_state()}


@pytest.mark.parametrize("norm", NORMS)
def test_measuring_leaves_no_trace(norm):
    torch.manual_seed(0)
    generator, discriminator, z = small_generator(), Noisy(norm), torch.randn(4, LATENT)
    before = discriminator(generator(z))
    before.sum().backward()
    untouched = trace(generator, discriminator)
    measured_scores(generator, discriminator, (z,), (torch.ones(4, 1, 8, 8),), before.detach())
    after = trace(generator, discriminator)
    assert untouched.keys() == after.keys()
    assert all(torch.equal(untouched[name], after[name]) for name in after)


def test_a_trace_would_be_seen():
    generator = small_generator()
    untouched = trace(generator)
    generator(torch.randn(4, LATENT))
    assert not all(torch.equal(value, untouched[name]) for name, value in trace(generator).items())


def test_conditions_go_to_both_networks():
    class Conditioned(nn.Linear):
        def forward(self, x, label):
            return super().forward(x) + label

    generator, discriminator = (Conditioned(1, 1) for _ in range(2))
    z, label = torch.randn(5, 1), torch.full((5, 1), 2.0)
    before = discriminator(generator(z, label), label).detach()
    scores = measured_scores(generator, discriminator, (z, label), (z, label), before)
    assert scores.after == scores.before


def test_a_discriminator_of_several_outputs_is_refused():
    class Several(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(CompressionError, match="must return one tensor of scores; got tuple"):
        measured_scores(nn.Linear(1, 1), Several(1, 1), (torch.ones(1, 1),), (torch.ones(1, 1),), torch.ones(1))


GROW, DROP, EXCHANGE, NONE = "grow", "drop", "exchange", "none"


@pytest.mark.parametrize(
    ("control", "density", "weak", "strong"),
    [
        (RELAXED, 0.05, (GROW, 0.1), (NONE, 0.05)),
        (RELAXED, 0.3, (GROW, 0.35), (DROP, 0.25)),
        (RELAXED, 0.07, (GROW, 0.12), (DROP, 0.05)),
        (RELAXED, 0.975, (GROW, 1.0), (DROP, 0.925)),
        (RELAXED, 1.0, (NONE, 1.0), (DROP, 0.95)),
        (STRICT, 0.05, (GROW, 0.1), (NONE, 0.05)),
        (STRICT, 0.3, (GROW, 0.35), (DROP, 0.25)),
        (STRICT, 0.475, (GROW, 0.5), (DROP, 0.425)),
        (STRICT, 0.5, (EXCHANGE, 0.5), (DROP, 0.45)),
    ],
)
def test_the_table_of_the_controller(control, density, weak, strong):
    for ratio, expected in ((9.0, weak), (0.55, weak), (0.5, (NONE, density)), (0.45, strong), (-9.0, strong)):
        assert control.decide(ratio, density) == Decision(*expected)


@given(st.floats(-2, 2), st.floats(0.05, 0.5), st.booleans())
def test_the_density_stays_within_its_bounds_and_moves_by_a_step(ratio, density, strict):
    control = STRICT if strict else RELAXED
    decision = control.decide(ratio, density)
    assert control.floor <= decision.density <= control.cap
    assert abs(decision.density - density) <= control.step + 1e-8
    assert (decision.density > density, decision.density < density) == (
        decision.action == "grow",
        decision.action == "drop",
    )


def test_the_cap_is_met_in_four_steps_from_below():
    density, actions = 0.3, []
    for _ in range(5):
        decision = STRICT.decide(1.0, density)
        density = decision.density
        actions.append(decision.action)
    assert (actions, density) == ([GROW] * 4 + [EXCHANGE], 0.5)
    assert Decision(GROW, 0.35).active(999) == 350


@given(st.floats(0.12, 0.4), st.integers(0, 1000))
def test_the_loop_settles_in_the_band(strength, seed):
    """A plant whose ratio falls with the density, strength / density, with some noise."""
    control = DensityControl(low=0.4, high=0.6, step=0.02)
    random, densities = torch.Generator().manual_seed(seed), [0.3]
    for _ in range(80):
        ratio = strength / densities[-1] + 0.01 * float(torch.randn((), generator=random))
        densities.append(control.decide(ratio, densities[-1]).density)
        assert (densities[-1] - densities[-2]) * (ratio - 0.5) >= 0
    assert control.low < strength / densities[-1] < control.high
    assert max(densities[50:]) - min(densities[50:]) <= control.step + 1e-9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DensityControl(0.6, 0.5), "low must be below high; got low=0.6, high=0.5"),
        (lambda: DensityControl(0.5, 0.5), "low must be below high"),
        (lambda: DensityControl(floor=0.5, cap=0.3), "floor must be below cap; got floor=0.5, cap=0.3"),
        (lambda: DensityControl(float("nan"), 0.5), "low must be a finite number; got nan"),
        (lambda: DensityControl(step=0), "step must be a number above 0, at most 1; got 0"),
        (lambda: DensityControl(cap=1.5), "cap must be .* got 1.5"),
        (lambda: DensityControl(interval=0.5), "interval must be an integer of at least 1; got 0.5"),
        (lambda: DensityControl(warm_up=-1), "warm_up must be an integer of at least 0; got -1"),
        (lambda: DensityControl(exchange=0.5), "exchange must be a Schedule or None; got 0.5"),
        (lambda: DensityControl(growth="grad"), "growth must be one of gradient, random; got 'grad'"),
        (lambda: BalanceConfig(window=0), "window must be an integer of at least 1; got 0"),
        (lambda: BalanceConfig(every=0), "every must be .* got 0"),
        (lambda: BalanceConfig(estimator="mean"), "estimator must be one of ratio_of_means, mean_ratio; got 'mean'"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(CompressionError, match=message):
        make()


def test_measuring_works_on_networks_that_deepcopy_refuses():
    torch.manual_seed(0)
    discriminator = small_discriminator("legacy")
    discriminator(torch.ones(1, 1, 8, 8))
    with pytest.raises(RuntimeError):
        copy.deepcopy(discriminator)
    generator, z = small_generator(), torch.randn(2, LATENT)
    scores = measured_scores(generator, discriminator, (z,), (torch.ones(2, 1, 8, 8),), torch.zeros(2))
    assert math.isfinite(scores.after)
