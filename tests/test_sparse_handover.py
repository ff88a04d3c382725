"""What a finished sparse network weighs, what its training cost, and that the other compressors take it."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors import safe_open
from sngan32 import SNGAN32Discriminator, SNGAN32Generator
from sparse_loop import LATENT, Loop, small_discriminator, small_generator
from torch import nn

from compressors import CompressedModel, CompressionError, Quantizer
from compressors.sparse import (
    Batches,
    ForwardCost,
    MaskSet,
    SparseConfig,
    TrainingCost,
    hand_over,
    iteration_macs,
)

PAPER = Batches(critic_steps=5, discriminator=64, generator=128)


@pytest.fixture(scope="module")
def trained():
    """A generator at density 0.2, its masks, and latents."""
    loop = Loop(SparseConfig.static(20, 0.2, average=0.9))
    for _ in range(5):
        loop.step()
    z = torch.randn(16, LATENT)
    return loop.sparse.finished_generator([z]), loop.sparse.generator_masks, z


@pytest.fixture(scope="module")
def papers():
    """Forward costs of the paper's networks on CIFAR-10."""
    return (
        ForwardCost(SNGAN32Generator(256), (torch.zeros(1, 128),)),
        ForwardCost(SNGAN32Discriminator(128), (torch.zeros(1, 3, 32, 32),)),
    )


@pytest.mark.parametrize(("accounting", "expected"), [("reference", 2.668e17), ("corrected", 1.78e17)])
def test_the_cost_of_the_papers_dense_training(papers, accounting, expected):
    per_iteration = iteration_macs(papers[0].dense, papers[1].dense, PAPER, accounting)
    assert 100_000 * per_iteration == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(("density", "percent"), [(0.1, 8.97), (0.2, 17.08), (0.3, 26.25), (0.5, 47.25)])
def test_the_cost_of_the_papers_static_training(papers, density, percent):
    cost = TrainingCost(*papers, PAPER)
    with torch.random.fork_rng():
        cost.add(MaskSet(SNGAN32Generator(256), density), MaskSet(SNGAN32Discriminator(128), density), 7)
    assert 100 * cost.share_of_dense("reference") == pytest.approx(percent, abs=0.15)
    assert cost.share_of_dense() != cost.share_of_dense("reference")


def test_the_cost_of_an_iteration_by_hand():
    """G 10, D 7, two critic steps on 3 images, generator batch 5."""
    batches = Batches(2, 3, 5)
    assert iteration_macs(10, 7, batches, "corrected") == 10 * (2 * 3 + 3 * 5) + 7 * (6 * 2 * 3 + 2 * 5)
    assert iteration_macs(10, 7, batches, "reference") == 10 * (2 * 3 + 3 * 5) + 2 * 7 * (3 * 2 * 3 + 5)


def test_forward_cost_by_hand():
    """A linear layer of 4 x 128, a transposed convolution 8 -> 6 on 16 pixels, a convolution 6 -> 1 on 64."""
    model = small_generator()
    before = model.state_dict()["2.num_batches_tracked"].clone()
    cost = ForwardCost(model, (torch.zeros(3, LATENT),))
    assert model.state_dict()["2.num_batches_tracked"] == before
    layers = {"0": 4 * 128, "4": 16 * 8 * 6 * 16, "7": 64 * 6 * 9}
    assert cost.dense == sum(layers.values())
    masks = MaskSet(model, 0.3)
    assert cost.sparse(masks) == pytest.approx(sum(layers[name] * d for name, d in masks.layer_densities.items()))


def test_cost_grows_with_density_and_is_all_of_it_at_one():
    networks = small_generator(), small_discriminator()
    costs = (ForwardCost(networks[0], (torch.zeros(1, LATENT),)), ForwardCost(networks[1], (torch.zeros(1, 1, 8, 8),)))
    shares = []
    for density in (0.1, 0.4, 0.7, 1.0):
        cost = TrainingCost(*costs, Batches(1, 8, 8))
        cost.add(MaskSet(small_generator(), density), MaskSet(small_discriminator(), density))
        shares.append(cost.share_of_dense())
    assert shares == sorted(set(shares))
    assert shares[-1] == 1


@pytest.mark.parametrize("norm", ["legacy", "parametrized"])
def test_a_network_handed_over_is_plain_and_computes_the_same(norm):
    loop = Loop(SparseConfig.static(20, 0.3), norm)
    loop.step()
    masks, model, x = loop.sparse.discriminator_masks, loop.discriminator, torch.randn(3, 1, 8, 8)
    plain = hand_over(model, (x,), masks).model
    names = {f"{number}.{kind}" for number in (0, 2, 5) for kind in ("weight", "bias")}
    assert {name for name, _ in plain.named_parameters()} == names
    assert torch.allclose(plain(x), model.eval()(x), atol=1e-6)
    for number, mask in zip((0, 2, 5), masks.masks.values(), strict=True):
        assert not plain[number].weight[~mask].any()


def test_the_file_leaves_out_the_zeros_and_gives_the_same_network(trained, tmp_path):
    generator, masks, z = trained
    small, path = hand_over(generator, (z,), masks), tmp_path / "sparse.safetensors"
    small.save(path)
    with safe_open(path, "pt") as file:
        assert sum(file.get_tensor(key).nbytes for key in file.keys()) == small.report.after.bytes  # noqa: SIM118
    assert small.report.before.bytes == sum(value.nbytes for value in generator.state_dict().values())
    state = small.model.state_dict().values()
    by_hand = sum(min(v.nbytes, math.ceil(v.numel() / 8) + v.element_size() * int(v.count_nonzero())) for v in state)
    assert small.report.after.bytes == by_hand < 0.5 * small.report.before.bytes
    loaded = CompressedModel.load(path, small_generator)
    assert not loaded.model.training
    assert torch.equal(loaded.model(z), small.model(z))
    assert (loaded.report, loaded.recipe) == (small.report, small.recipe)


def test_the_report_of_a_sparse_network_tells_its_density(trained):
    generator, masks, z = trained
    small = hand_over(generator, (z,), masks)
    assert small.report.name == "sparse 0.2"
    assert small.recipe.steps == ({"compressor": "sparse", "density": masks.density},)
    on = {masks.layers[name]: int(mask.sum()) for name, mask in masks.masks.items()}
    notes = {row.name: row.note for row in small.report.layers if row.note}
    assert notes == {n: f"{on[n]:,} of {generator.get_submodule(n).weight.numel():,} weights are not zero" for n in on}
    assert small.report.before.parameters == small.report.after.parameters
    assert small.report.before.macs == small.report.after.macs > 0
    assert small.report.sqnr_db is None


def test_quantizing_keeps_the_zeros(trained, tmp_path):
    generator, masks, z = trained
    small = Quantizer(4).compress(hand_over(generator, (z,), masks), (z,))
    assert small.report.name == "sparse 0.2 + quantize W4"
    for name, mask in masks.masks.items():
        weight = small.model.get_parameter(name)
        assert not weight[~mask].any()
        assert weight[mask].any()
    small.save(tmp_path / "small.safetensors")
    loaded = CompressedModel.load(tmp_path / "small.safetensors", small_generator)
    assert torch.equal(loaded.model(z), small.model(z))


def test_mistakes_get_one_clear_error(trained, tmp_path):
    generator, masks, z = trained
    with pytest.raises(CompressionError, match=r"not sparse as masks say: 0\.weight"):
        hand_over(small_generator(), (z,), masks)
    with pytest.raises(CompressionError, match="example_inputs must be a non-empty tuple"):
        hand_over(generator, z, masks)
    hand_over(generator, (z,)).save(tmp_path / "sparse.safetensors")
    with pytest.raises(CompressionError, match="factory builds another model"):
        CompressedModel.load(tmp_path / "sparse.safetensors", lambda: nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(CompressionError, match="holds a compressed model; a sparse training is needed"):
        Loop(SparseConfig.static(20, 0.3)).sparse.load(tmp_path / "sparse.safetensors")
    with pytest.raises(CompressionError, match="accounting must be one of corrected, reference; got 'paper'"):
        iteration_macs(1, 1, PAPER, "paper")
    with pytest.raises(CompressionError, match="critic_steps must be an integer of at least 1; got 0"):
        Batches(0, 1, 1)
    with pytest.raises(CompressionError, match="inputs must be a non-empty tuple"):
        ForwardCost(small_generator(), z)
