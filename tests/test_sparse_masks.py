"""Which weights are masked, how many, and that they stay zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from sngan32 import SNGAN32Discriminator, SNGAN32Generator
from sparse_loop import NORMS, small_discriminator, small_generator
from torch import nn

from compressors import CompressionError, UnsupportedModule
from compressors.sparse import MaskSet
from compressors.sparse.allocation import erk_densities, exact_counts
from compressors.sparse.spectral import refresh_spectral_norm, without_power_iteration

GENERATOR_SHORTCUTS = {f"blocks.{number}.shortcut" for number in range(3)}


def shapes(model):
    with torch.device("meta"):
        built = model()
    return {name: weight.shape for name, weight in built.named_parameters() if weight.dim() > 1}


@pytest.fixture(scope="module")
def generator_shapes():
    return shapes(lambda: SNGAN32Generator(256))


@pytest.fixture(scope="module")
def discriminator_shapes():
    return shapes(lambda: SNGAN32Discriminator(128))


def dense_layers(found, density):
    return {name.removesuffix(".weight") for name, value in erk_densities(found, density).items() if value == 1}


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.1, {"conv"}),
        (0.2, {"conv"}),
        (0.3, {"conv", "linear"} | GENERATOR_SHORTCUTS),
        (0.5, {"conv", "linear"} | GENERATOR_SHORTCUTS),
    ],
)
def test_erk_makes_the_layers_of_the_papers_generator_dense(generator_shapes, density, expected):
    assert sum(math.prod(shape) for shape in generator_shapes.values()) == 4_266_752
    assert dense_layers(generator_shapes, density) == expected


@pytest.mark.parametrize(
    ("density", "more"), [(0.1, set()), (0.2, {"blocks.1.shortcut"}), (0.3, {"blocks.1.shortcut"})]
)
def test_erk_makes_the_layers_of_the_papers_discriminator_dense(discriminator_shapes, density, more):
    assert sum(math.prod(shape) for shape in discriminator_shapes.values()) == 1_052_544
    first = {"linear", "blocks.0.conv1", "blocks.0.shortcut"}
    assert dense_layers(discriminator_shapes, density) == first | more


def test_erk_densities_of_the_papers_networks(generator_shapes, discriminator_shapes):
    generator, discriminator = (erk_densities(found, 0.1) for found in (generator_shapes, discriminator_shapes))
    expected = {"blocks.0.conv1": 0.042, "blocks.0.shortcut": 0.37, "linear": 0.38}
    for name, value in expected.items():
        assert generator[f"{name}.weight"] == pytest.approx(value, abs=0.005)
    assert discriminator["blocks.2.conv1.weight"] == pytest.approx(0.086, abs=0.005)


layer_shapes = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=6).map(
    lambda found: {f"layer{number}": shape for number, shape in enumerate(found)}
)


@given(layer_shapes, st.floats(0.01, 1))
def test_erk_meets_the_density(found, density):
    sizes = {name: math.prod(shape) for name, shape in found.items()}
    densities = erk_densities(found, density)
    assert all(0 < value <= 1 for value in densities.values())
    assert sum(densities[name] * sizes[name] for name in found) == pytest.approx(density * sum(sizes.values()))


@given(layer_shapes, st.floats(0.01, 1), st.sampled_from(["erk", "uniform"]))
def test_counts_are_exact_and_no_layer_is_empty(found, density, allocation):
    sizes = {name: math.prod(shape) for name, shape in found.items()}
    try:
        counts = exact_counts(found, density, allocation)
    except CompressionError:
        reject()
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    assert all(1 <= counts[name] <= sizes[name] for name in found)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("allocation", ["erk", "uniform"])
def test_weights_that_are_off_are_zero_and_the_others_as_they_were(norm, allocation):
    model = small_discriminator(norm)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    masks = MaskSet(model, 0.3, allocation)
    assert masks.active == round(0.3 * masks.total)
    for name, weight in model.named_parameters():
        mask = masks.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert mask.dtype == torch.bool
        assert torch.equal(weight, before[name] * mask)


def test_the_seed_decides_where():
    first, again, other = (MaskSet(small_generator(), 0.3, seed=seed).flat() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Conditional(nn.Module):
    """The layers of a BigGAN that are and are not to be masked."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.ModuleDict({"gain": nn.Linear(4, 4), "bias": nn.Linear(4, 4), "norm": nn.BatchNorm2d(4)})
        self.gamma = nn.Parameter(torch.zeros(()))
        self.output = nn.Linear(4, 1)


def test_norms_biases_embeddings_and_conditional_norms_stay_dense():
    model = Conditional()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    masks = MaskSet(model, 0.5, "uniform")
    assert list(masks.masks) == ["conv.weight", "output.weight"]
    assert masks.total == 3 * 4 * 9 + 4
    assert list(MaskSet(model, 0.5, exclude=("out*",)).masks) == ["conv.weight"]
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {"conv.weight", "output.weight"}


@pytest.mark.parametrize(
    ("norm", "expected"), [("legacy", "0.weight_orig"), ("parametrized", "0.parametrizations.weight.original")]
)
def test_spectral_norm_is_that_of_the_masked_weight(norm, expected):
    model = small_discriminator(norm)
    masks = MaskSet(model, 0.4)
    assert next(iter(masks.masks)) == expected
    refresh_spectral_norm(model, 100)
    with without_power_iteration(model):
        model(torch.randn(2, 1, 8, 8))
        weights = [model[number].weight.detach() for number in (0, 2, 5)]
    for weight, mask in zip(weights, masks.masks.values(), strict=True):
        assert not weight[~mask].any()
        assert torch.linalg.matrix_norm(weight.flatten(1), 2) == pytest.approx(1, abs=0.05)


def test_a_single_layer_gets_the_density_itself():
    masks = MaskSet(nn.Linear(20, 30), 0.25)
    assert (masks.active, masks.layer_densities) == (150, {"": 0.25})


def test_density_one_keeps_every_weight():
    assert MaskSet(small_generator(), 1).flat().all()


def test_masks_of_another_network_are_refused():
    masks = MaskSet(small_generator(), 0.5)
    with pytest.raises(CompressionError, match=r"belong to another network: 0\.param"):
        masks.load_state_dict(MaskSet(small_discriminator(), 0.5).state_dict())


@pytest.mark.parametrize("density", [0, -0.1, 1.1, float("nan"), "half", True, None])
def test_a_density_that_makes_no_sense(density):
    with pytest.raises(CompressionError, match="density must be a number above 0, at most 1; got"):
        MaskSet(small_generator(), density)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MaskSet(nn.Sequential(nn.BatchNorm2d(3))), UnsupportedModule, "no linear .* made of BatchNorm2d"),
        (lambda: MaskSet("generator"), CompressionError, "model must be an nn.Module; got str"),
        (lambda: MaskSet(small_generator(), 0.5, "erc"), CompressionError, 'erk, uniform; got .*mean "erk"'),
        (lambda: MaskSet(small_generator(), 0.5, exclude=("x",)), CompressionError, "exclude: 'x' matches no layer"),
        (lambda: MaskSet(small_generator(), 0.5, exclude="x"), CompressionError, "exclude must be a tuple"),
        (lambda: MaskSet(small_generator(), 1e-4), CompressionError, "keeps 0 of 1,334 weights; 3 layers need one"),
        (
            lambda: MaskSet(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), 0.5),
            UnsupportedModule,
            "computed from several parameters",
        ),
    ],
)
def test_mistakes_get_one_clear_error(make, error, message):
    with pytest.raises(error, match=message):
        make()
