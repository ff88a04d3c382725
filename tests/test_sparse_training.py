"""Sparse training in a user's loop: what must hold after every step, and that it goes on where it was interrupted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sparse_loop import LATENT, Loop, small_discriminator, small_generator
from torch import nn

from compressors import CompressionError
from compressors.sparse import BalanceConfig, DensityControl, DropGrow, Schedule, SparseConfig, SparseTraining
from compressors.sparse.spectral import without_power_iteration

ITERATIONS = 24
SHARED = {"balance": BalanceConfig(every=1, window=2), "average": 0.9}
TOPOLOGY = DropGrow(3)
GROWING = DensityControl(-2, -1, interval=4)
SHRINKING = DensityControl(1e6, 1e7, interval=4)
STRICT = replace(GROWING, cap=0.5, exchange=Schedule())
CONFIGS = {
    "static": SparseConfig.static(ITERATIONS, 0.3, **SHARED),
    "sdst": SparseConfig.sdst(ITERATIONS, 0.3, generator_topology=TOPOLOGY, **SHARED),
    "sdst, random": SparseConfig.sdst(ITERATIONS, 0.3, generator_topology=DropGrow(3, growth="random"), **SHARED),
    "dda": SparseConfig.dda(ITERATIONS, 0.3, density_control=SHRINKING, **SHARED),
    "relaxed": SparseConfig.adapt_relaxed(
        ITERATIONS, 0.3, generator_topology=TOPOLOGY, density_control=GROWING, **SHARED
    ),
    "strict": SparseConfig.adapt_strict(ITERATIONS, 0.3, generator_topology=TOPOLOGY, density_control=STRICT, **SHARED),
}


def off(masks, model=None):
    weights = masks.parameters if model is None else dict(model.named_parameters())
    return torch.cat([weights[name].detach()[~mask] for name, mask in masks.masks.items()])


def weights(*networks):
    return [value.clone() for network in networks for value in network.state_dict().values()]


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize(
    ("name", "norm", "optimizer"),
    [
        *((name, "parametrized", torch.optim.Adam) for name in CONFIGS),
        ("strict", "legacy", sgd),
        ("dda", "legacy", sgd),
    ],
)
def test_what_is_off_is_zero_after_every_step(name, norm, optimizer):
    loop = Loop(CONFIGS[name], norm, optimizer)
    sparse, nonzero = loop.sparse, loop.sparse.generator_masks.active
    for _ in range(ITERATIONS):
        status = loop.step()
        assert not off(sparse.generator_masks).any()
        assert not off(sparse.discriminator_masks).any()
        assert not off(sparse.generator_masks, sparse.average.module).any()
        assert sparse.generator_masks.active == nonzero
        masks = sparse.discriminator_masks
        assert masks.active == round(sparse.discriminator_density * masks.total)
        assert status.discriminator_density == masks.density
    assert all(value.isfinite().all() for value in weights(loop.generator, loop.discriminator))


@pytest.mark.parametrize(
    ("name", "actions", "density"),
    [
        ("static", ["none"] * 5, 0.3),
        ("dda", ["drop"] * 5, 0.05),
        ("relaxed", ["grow"] * 5, 0.55),
        ("strict", ["grow"] * 4 + ["exchange"], 0.5),
    ],
)
def test_the_discriminator_moves_as_the_controller_says(name, actions, density):
    loop, seen = Loop(CONFIGS[name]), []
    for _ in range(ITERATIONS):
        before = loop.sparse.discriminator_masks.flat()
        action = loop.step().action
        after = loop.sparse.discriminator_masks.flat()
        assert not (action == "grow" and (before & ~after).any()), "nothing is dropped where weights grow"
        assert not (action == "drop" and (after & ~before).any()), "nothing grows where weights are dropped"
        assert not (action == "none" and (before ^ after).any())
        assert not (action == "exchange" and torch.equal(before, after))
        if loop.sparse.iteration % 4 == 0 and loop.sparse.iteration < ITERATIONS:
            seen.append(action)
        else:
            assert action == "none"
    assert seen == actions
    assert loop.sparse.discriminator_density == density


def test_warm_up_leaves_the_discriminator_alone():
    config = replace(CONFIGS["relaxed"], density_control=replace(GROWING, warm_up=8))
    loop = Loop(config)
    actions = [loop.step().action for _ in range(13)]
    assert [number for number, action in enumerate(actions, 1) if action == "grow"] == [12]


def test_weights_that_grew_start_at_zero_and_learn():
    loop = Loop(CONFIGS["sdst"])
    masks, learned = loop.sparse.generator_masks, 0
    for _ in range(ITERATIONS - 1):
        before = masks.flat()
        loop.step()
        grown = masks.flat() & ~before
        if grown.any():
            assert not masks.flat_weights()[grown].any()
            loop.step()
            learned += int(masks.flat_weights()[grown].count_nonzero())
    assert learned


def test_gradients_are_dense_and_those_of_the_networks_own_loss():
    """The generator's loss adds to the discriminator's gradients; growth must not see that."""
    loop = Loop(CONFIGS["relaxed"])
    sparse, masks, own = loop.sparse, loop.sparse.discriminator_masks, []
    step = sparse.step_discriminator

    def spy(*real):
        own.append(masks.flat_gradients().abs())
        step(*real)

    sparse.step_discriminator = spy
    for _ in range(4):
        before = masks.flat()
        action = loop.step().action
    assert action == "grow"
    grown, left = masks.flat() & ~before, ~masks.flat()
    assert own[-1][~before].any()
    assert own[-1][grown].min() >= own[-1][left].max()
    later = masks.flat_gradients().abs()
    assert later[grown].min() < later[left].max()


@pytest.mark.parametrize("policy", ["keep", "reset"])
def test_what_adam_remembers_of_weights_that_changed(policy):
    config = replace(CONFIGS["sdst"], optimizer_state=policy)
    loop = Loop(config, reset=True)
    for _ in range(2):
        loop.step()
    masks = loop.sparse.generator_masks
    before = masks.flat()
    loop.step()
    changed = before ^ masks.flat()
    state = loop.optimizers[0].state
    moments = torch.cat([state[weight]["exp_avg_sq"].flatten() for weight in masks.parameters.values()])
    assert changed.any()
    assert bool(moments[changed].any()) == (policy == "keep")
    assert moments[~masks.flat() & ~changed].any(), "gradients of what is off go on being averaged"


def test_the_average_without_changes_is_the_ordinary_one():
    loop = Loop(CONFIGS["static"])
    expected = [weight.detach().clone() for weight in loop.generator.parameters()]
    for _ in range(6):
        loop.step()
        with torch.no_grad():
            expected = [0.9 * e + 0.1 * w for e, w in zip(expected, loop.generator.parameters(), strict=True)]
    for value, weight in zip(expected, loop.sparse.average.module.parameters(), strict=True):
        assert torch.allclose(value, weight, atol=1e-6)


def test_the_finished_average_has_batch_statistics_of_its_own():
    loop = Loop(CONFIGS["sdst"])
    for _ in range(6):
        loop.step()
    z = torch.randn(64, LATENT)
    finished = loop.sparse.finished_generator([z])
    assert not finished.training
    inner = finished[0](z)
    assert torch.allclose(finished[2].running_mean, inner.view(64, 8, 4, 4).mean((0, 2, 3)), atol=1e-6)
    conditional = loop.sparse.finished_generator([(z,)])
    assert torch.equal(conditional(z), finished(z))
    with pytest.raises(CompressionError, match="batches holds no batch"):
        loop.sparse.finished_generator(iter([]))
    no_average = SparseTraining(small_generator(), small_discriminator(), replace(CONFIGS["static"], average=None))
    with pytest.raises(CompressionError, match="average must be a decay; got None"):
        no_average.finished_generator([z])


@pytest.mark.parametrize("norm", ["legacy", "parametrized"])
def test_spectral_norm_is_one_right_after_weights_changed(norm):
    loop = Loop(CONFIGS["dda"], norm)
    while loop.step().action != "drop":
        pass
    with without_power_iteration(loop.discriminator), torch.no_grad():
        loop.discriminator(loop.real())
        found = [loop.discriminator[number].weight.flatten(1) for number in (0, 2, 5)]
    for weight in found:
        assert torch.linalg.matrix_norm(weight, 2) == pytest.approx(1, abs=0.05)


def test_density_one_is_ordinary_training_to_the_bit():
    sparse, ordinary = Loop(SparseConfig.static(ITERATIONS, 1.0, balance=BalanceConfig(every=1))), Loop(None)
    for _ in range(8):
        sparse.step()
        ordinary.step()
    pairs = zip(
        weights(sparse.generator, sparse.discriminator),
        weights(ordinary.generator, ordinary.discriminator),
        strict=True,
    )
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", CONFIGS)
def test_resumed_training_equals_uninterrupted_training(name, tmp_path):
    whole = Loop(CONFIGS[name])
    statuses = [whole.step() for _ in range(ITERATIONS)]

    first = Loop(CONFIGS[name])
    for _ in range(10):
        first.step()
    first.sparse.save(tmp_path / "sparse.safetensors")
    state = first.state()
    resumed = Loop(CONFIGS[name], seed=1)
    resumed.load(state)
    resumed.sparse.load(tmp_path / "sparse.safetensors")
    for status in statuses[10:]:
        assert resumed.step() == status
    for one, other in ((resumed.generator, whole.generator), (resumed.discriminator, whole.discriminator)):
        assert all(torch.equal(*pair) for pair in zip(weights(one), weights(other), strict=True))
    ours, theirs = resumed.sparse.state_dict(), whole.sparse.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_files_that_do_not_fit_are_refused(tmp_path):
    path, loop = tmp_path / "sparse.safetensors", Loop(CONFIGS["relaxed"])
    loop.step()
    loop.sparse.save(path)
    with pytest.raises(CompressionError, match="make SparseTraining first, then load their state dicts"):
        Loop(CONFIGS["relaxed"]).sparse.load(path)
    with pytest.raises(CompressionError, match="other settings: density_control differ"):
        Loop(replace(CONFIGS["relaxed"], density_control=STRICT)).sparse.load(path)
    state = loop.sparse.state_dict()
    del state["iteration"]
    with pytest.raises(CompressionError, match="iteration do not match"):
        loop.sparse.load_state_dict(state)
    path.write_bytes(path.read_bytes()[:-4] + b"ruin")
    with pytest.raises(CompressionError, match="damaged"):
        loop.sparse.load(path)


def test_two_trainings_of_one_seed_are_the_same():
    first, second = Loop(CONFIGS["strict"]), Loop(CONFIGS["strict"])
    assert [first.step() for _ in range(9)] == [second.step() for _ in range(9)]


class TestMistakes:
    def test_diverged_training_is_reported(self):
        loop = Loop(CONFIGS["static"])
        loop.generator[0].weight.data.fill_(math.nan)
        with pytest.raises(CompressionError, match=r"scores must be finite; they hold NaN .* at iteration 1"):
            loop.step()

    def test_gradients_that_are_gone(self):
        sparse = SparseTraining(small_generator(), small_discriminator(), replace(CONFIGS["sdst"], balance=None))
        for _ in range(2):
            sparse.step_generator()
        with pytest.raises(CompressionError, match=r"gradients are gone.*before zero_grad\(\)"):
            sparse.step_generator()

    def test_missing_arguments(self):
        sparse = SparseTraining(small_generator(), small_discriminator(), CONFIGS["static"])
        with pytest.raises(CompressionError, match=r"needs step_generator\(latents, scores\).* got NoneType, NoneType"):
            sparse.step_generator()
        with pytest.raises(CompressionError, match=r"needs step_discriminator\(real\) before"):
            sparse.step_generator(torch.ones(1, LATENT), torch.ones(1))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"iterations": 0}, "iterations must be an integer of at least 1; got 0"),
            ({"generator_density": 0}, "generator_density must be a number above 0, at most 1; got 0"),
            ({"discriminator_density": -0.1}, "discriminator_density must be .* got -0.1"),
            ({"generator_density": 1.2}, "generator_density must be .* got 1.2"),
            ({"allocation": "ERK"}, "allocation must be one of erk, uniform; got 'ERK'"),
            ({"optimizer_state": "zero"}, "optimizer_state must be one of keep, reset; got 'zero'"),
            ({"average": 1.0}, "average must be above 0 and below 1, or None; got 1.0"),
            ({"average": "0.9"}, "average must be a finite number; got '0.9'"),
            ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
            ({"density_control": GROWING, "balance": None}, "density_control needs the balance ratio"),
            ({"density_control": GROWING, "balance": BalanceConfig(8, 3)}, "fill its window, .* = 24 iterations"),
            ({"density_control": 0.5}, "density_control must be a DensityControl or None; got 0.5"),
            ({"generator_topology": True}, "generator_topology must be a DropGrow or None; got True"),
            ({"density_control": STRICT, "discriminator_density": 0.8}, r"from floor=0.05 to cap=0.5 .* got 0.8"),
        ],
    )
    def test_settings_that_make_no_sense(self, changes, message):
        with pytest.raises(CompressionError, match=message):
            replace(CONFIGS["static"], **changes)

    def test_networks_without_maskable_layers(self):
        with pytest.raises(CompressionError, match="no linear or convolution layer"):
            SparseTraining(nn.BatchNorm1d(2), small_discriminator(), CONFIGS["static"])

    def test_a_training_without_settings(self):
        with pytest.raises(CompressionError, match=r"config must be a SparseConfig; got 0\.5"):
            SparseTraining(small_generator(), small_discriminator(), 0.5)

    def test_growth_without_a_step_of_the_discriminator(self):
        loop = Loop(CONFIGS["relaxed"])
        for _ in range(3):
            loop.step()
        z = loop.latents()
        with pytest.raises(CompressionError, match=r"to grow by gradients at iteration 4.*no step_discriminator\(\)"):
            loop.sparse.step_generator(z, loop.discriminator(loop.generator(z)))

    def test_resetting_needs_optimizers(self):
        config = replace(CONFIGS["sdst"], optimizer_state="reset")
        with pytest.raises(CompressionError, match='optimizer_state="reset" needs optimizers'):
            Loop(config)
