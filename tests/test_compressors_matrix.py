"""Every generator family: pruned, quantized, both; exact where it must be, saved, loaded, and left untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from generators import FAMILIES, LATENT, Family, StyleGAN2
from torch import Tensor, nn

from compressors import ChannelPruner, CompressedModel, Compressor, Pipeline, Quantizer, UnsupportedModule
from compressors.common.bake import baked_copy

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def pruner(family: Family, **options: Any) -> ChannelPruner:
    return ChannelPruner(0.5, **(family.pruning or {}), **options)


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return model(*inputs)


def loaded(result: CompressedModel, family: Family, folder: Path) -> CompressedModel:
    """Save, and load into a generator of other weights."""
    result.save(folder / "small.safetensors")
    return CompressedModel.load(folder / "small.safetensors", lambda: family.build(seed=7))


@families
def test_pruning_halves_the_channels_and_the_file_gives_the_same_images(family: Family, tmp_path: Path) -> None:
    model, inputs = family.build(), family.inputs()
    result = pruner(family).compress(model, inputs)
    assert outputs(result.model, inputs).shape == outputs(model, inputs).shape
    assert result.report.after.parameters < 0.45 * result.report.before.parameters
    assert result.report.after.macs < 0.45 * result.report.before.macs
    assert torch.equal(outputs(loaded(result, family, tmp_path).model, inputs), outputs(result.model, inputs))


@families
def test_quantization_costs_more_quality_at_fewer_bits(family: Family) -> None:
    model, inputs = family.build(), family.inputs()
    reports = [Quantizer(bits, clip="max").compress(model, inputs).report for bits in (8, 4, 2)]
    quality = [report.sqnr_db or 0 for report in reports]
    assert quality[0] > 30
    assert quality == sorted(quality, reverse=True)
    sizes = [report.after.bytes for report in reports]
    assert sizes == sorted(sizes, reverse=True)
    assert all(report.coverage > 0.9 for report in reports)


@families
def test_quantized_model_loads_to_the_same_images(family: Family, tmp_path: Path) -> None:
    inputs = family.inputs()
    result = Quantizer(5, act_bits=8, act_symmetric=True).compress(family.build(), inputs, [inputs])
    assert torch.equal(outputs(loaded(result, family, tmp_path).model, inputs), outputs(result.model, inputs))


@families
def test_pruned_and_quantized_model_loads_to_the_same_images(family: Family, tmp_path: Path) -> None:
    model, inputs = family.build(), family.inputs()
    pipeline = Pipeline(pruner(family), Quantizer(4, act_bits=8, symmetric=False, bias_correction=True, clip="max"))
    result = pipeline.compress(model, inputs, [family.inputs(32, seed=2)])
    assert result.report.after.bytes < 0.2 * result.report.before.bytes
    copy = loaded(result, family, tmp_path)
    assert torch.equal(outputs(copy.model, inputs), outputs(result.model, inputs))
    assert (copy.report, copy.recipe) == (result.report, result.recipe)


@families
@pytest.mark.parametrize("method", ["prune", "quantize"])
def test_the_users_model_is_left_as_it_was(family: Family, method: str) -> None:
    model, inputs = family.build().train().requires_grad_(False), family.inputs()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    compressor: Compressor = pruner(family) if method == "prune" else Quantizer(4, act_bits=4, clip="max")
    compressor.compress(model, inputs, [inputs])
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    outputs(model, inputs)


@families
def test_removing_dead_channels_changes_nothing(family: Family) -> None:
    """Half of the channels feed zero weights only: pruning must find them, and the images must stay."""
    model, inputs = baked_copy(family.build()), family.inputs()
    dead: dict[str, set[int]] = {}
    pruner(family, importance=lambda group: choose_dead(group, dead)).compress(model, inputs)
    assert dead
    for name, channels in dead.items():
        layer = model.get_submodule(name)
        with torch.no_grad():
            input_channels(layer, layer.weight)[sorted(channels)] = 0
    result = pruner(family, importance=downstream_weight).compress(model, inputs)
    assert result.report.after.parameters < 0.45 * result.report.before.parameters
    torch.testing.assert_close(outputs(result.model, inputs), outputs(model, inputs), atol=2e-6, rtol=0)


def input_channels(layer: nn.Module, weight: Tensor) -> Tensor:
    """View a weight with its input channels first."""
    return weight if isinstance(layer, nn.ConvTranspose2d) else weight.transpose(0, 1)


def consumers(group: Any) -> list[Any]:
    return [item for item in group if item.dep.handler.__name__ == "prune_in_channels" and has_weight(item)]


def has_weight(item: Any) -> bool:
    return isinstance(item.dep.target.module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)


def choose_dead(group: Any, dead: dict[str, set[int]]) -> Tensor:
    """Note, by layer name, the input channels that carry every second channel of the group."""
    rows = len(group[0].idxs)
    rows_per_channel = rows // min(len(item.idxs) for item in group)
    for item in consumers(group):
        name = item.dep.target.name.split(" ")[0]
        victims = {i for i, row in zip(item.idxs, item.root_idxs, strict=True) if row // rows_per_channel % 2}
        dead.setdefault(name, set()).update(victims)
    return torch.rand(rows)


def downstream_weight(group: Any) -> Tensor:
    """Score channels by the weights that read them."""
    scores = torch.zeros(len(group[0].idxs))
    for item in consumers(group):
        layer = item.dep.target.module
        weight = input_channels(layer, layer.weight.detach()).abs().flatten(1).sum(1)
        scores.index_add_(0, torch.tensor(item.root_idxs), weight[item.idxs])
    return scores


@pytest.mark.parametrize("compressor", [Quantizer(4), ChannelPruner(0.5)], ids=["quantize", "prune"])
def test_functional_weights_are_refused_with_the_list_of_what_is_not_covered(compressor: Compressor) -> None:
    with pytest.raises(UnsupportedModule, match=r"only \d\d% .* const \(1, 16, 4, 4\), c1.weight .* c2.weight .* twin"):
        compressor.compress(StyleGAN2(), (torch.randn(2, LATENT),))


def test_the_twin_of_a_functional_generator_gives_its_images() -> None:
    model, z = StyleGAN2(), torch.randn(4, LATENT)
    torch.testing.assert_close(outputs(model.twin(), (z,)), outputs(model, (z,)), atol=1e-5, rtol=0)
