"""ChannelPruner and Pipeline: what users set, and what must follow from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_pruning as tp
from generators import DCGAN, FAMILIES, LATENT, SNGAN, StyleGAN2, images, latents
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, weight_norm

from compressors import (
    ChannelPruner,
    Clipper,
    CompressedModel,
    CompressionError,
    NothingCompressed,
    Pipeline,
    Quantizer,
    UnsupportedModule,
)

Z = (torch.randn(4, LATENT, generator=torch.Generator().manual_seed(0)),)
ESRGAN_SHUFFLE = FAMILIES[-1]


def widths(result: CompressedModel) -> dict[str, int]:
    layers = {name: module for name, module in result.model.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: module.out_channels for name, module in layers.items()}


def notes(result: CompressedModel) -> dict[str, str]:
    return {row.name: row.note for row in result.report.layers}


def test_image_and_pixel_shuffle_layers_are_found_and_kept() -> None:
    inputs = ESRGAN_SHUFFLE.inputs()
    result = ChannelPruner(0.5).compress(ESRGAN_SHUFFLE.build(), inputs)
    found = notes(result)
    assert (widths(result)["last"], widths(result)["up.0"], widths(result)["high"]) == (3, 64, 8)
    assert found["last"] == "output channels kept: model output"
    assert found["up.0"] == "output channels kept: feeds a pixel shuffle"
    assert found["high"] == "pruned"


def test_layers_named_by_the_user_keep_their_channels() -> None:
    result = ChannelPruner(0.5, exclude=("blocks.0.conv1",)).compress(SNGAN().eval(), Z)
    assert (widths(result)["blocks.0.conv1"], widths(result)["blocks.1.conv1"]) == (16, 8)
    assert notes(result)["blocks.0.conv1"] == "output channels kept: asked for"


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_ratio_is_the_share_of_channels_that_goes(ratio: float) -> None:
    result = ChannelPruner(ratio).compress(SNGAN().eval(), Z)
    assert result.model.fc.out_features == (1 - ratio) * 256
    assert set(widths(result).values()) == {3, int((1 - ratio) * 16)}


def test_ratio_zero_is_the_baseline_of_a_sweep() -> None:
    model = DCGAN().eval()
    result = ChannelPruner(0.0).compress(model, Z)
    assert result.report.after == result.report.before
    assert result.report.sqnr_db is None


def test_a_global_ranking_spares_the_layers_that_matter() -> None:
    model = DCGAN().eval()
    with torch.no_grad():
        model.layers[1].weight.fill_(100.0)
        model.layers[0].weight.mul_(100.0)
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)
    local, ranked = (
        ChannelPruner(0.3, importance=importance, scope=scope).compress(model, Z) for scope in ("local", "global")
    )
    assert [[result.model.layers[i].out_channels for i in (0, 3)] for result in (local, ranked)] == [[22, 11], [32, 1]]
    assert ranked.report.name == "prune 0.3 global"


def test_widths_can_be_rounded_for_the_hardware() -> None:
    result = ChannelPruner(0.3, round_to=4).compress(DCGAN(24).eval(), Z)
    assert [result.model.layers[i].out_channels % 4 for i in (0, 3)] == [0, 0]


def test_the_lowest_scores_of_a_function_of_ones_own_go_first() -> None:
    model = DCGAN().eval()

    def first_channels_matter(group: Any) -> Tensor:
        return -torch.arange(len(group[0].idxs), dtype=torch.float)

    result = ChannelPruner(0.5, importance=first_channels_matter).compress(model, Z)
    assert torch.equal(result.model.layers[0].weight, model.layers[0].weight[:, :16])
    assert result.recipe.steps[0]["importance"].endswith("first_channels_matter")


def test_an_importance_from_gradients_sees_the_gradients_of_the_users_model() -> None:
    model = DCGAN().eval()
    model(*Z).square().mean().backward()
    result = ChannelPruner(0.5, importance=tp.importance.GroupTaylorImportance()).compress(model, Z)
    assert result.model.layers[0].out_channels == 16
    with pytest.raises(CompressionError, match=r"importance fails on .* call backward\(\) first"):
        ChannelPruner(0.5, importance=tp.importance.GroupTaylorImportance()).compress(DCGAN(), Z)


def test_frozen_and_inference_mode_generators_are_pruned_all_the_same() -> None:
    with torch.no_grad():
        result = ChannelPruner(0.5).compress(DCGAN().eval().requires_grad_(False), Z)
    assert result.report.after.parameters < 0.45 * result.report.before.parameters
    assert all(parameter.requires_grad for parameter in result.model.parameters())


def test_a_learned_constant_needs_its_channel_dimension() -> None:
    twin = StyleGAN2().twin()
    with pytest.raises(UnsupportedModule, match=r"const \(1, 16, 4, 4\); .* param_dims=\{'const': 1\}"):
        ChannelPruner(0.5).compress(twin, Z)
    with pytest.raises(CompressionError, match=r"param_dims: const has dimensions 0 to 3 .*; got 4"):
        ChannelPruner(0.5, param_dims={"const": 4}).compress(twin, Z)
    result = ChannelPruner(0.5, param_dims={"const": 1}).compress(twin, Z)
    assert result.model.const.shape == (1, 8, 4, 4)


def test_a_layer_keeps_its_channels_where_forward_spells_out_their_number() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(LATENT, 8 * 16)
            self.layers = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 3, 3))

        def forward(self, z: Tensor) -> Tensor:
            return self.layers(self.fc(z).view(-1, 8, 4, 4))

    for batch in (3, 4):
        result = ChannelPruner(0.5).compress(Written(), (torch.randn(batch, LATENT),))
        assert (result.model.fc.out_features, widths(result)["layers.1"]) == (128, 8)
        assert notes(result)["fc"].startswith("output channels kept: forward does not carry its channels")


def test_features_returned_beside_the_image_are_kept() -> None:
    class WithFeatures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.rgb = nn.Linear(LATENT, 32), nn.Linear(32, 3)

        def forward(self, z: Tensor) -> dict[str, Any]:
            features = self.body(z).relu()
            return {"image": self.rgb(features), "features": [features]}

    with pytest.raises(NothingCompressed, match=r"body: output channels kept: .* change their shape"):
        ChannelPruner(0.5).compress(WithFeatures(), Z)
    assert Quantizer(8).compress(WithFeatures(), Z).report.sqnr_db > 30


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)],
        [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=4), nn.GroupNorm(4, 16), nn.Conv2d(16, 3, 1)],
        [nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.ConvTranspose2d(8, 8, 3), nn.Conv2d(8, 3, 1)],
    ],
    ids=["depthwise", "grouped", "prelu"],
)
def test_other_layers_of_generators_are_pruned_and_saved(layers: list[nn.Module], tmp_path) -> None:
    model, inputs = nn.Sequential(*layers).eval(), images(2)
    result = ChannelPruner(0.5).compress(model, inputs)
    assert result.report.after.parameters < 0.7 * result.report.before.parameters
    result.save(tmp_path / "m.safetensors")
    assert torch.equal(
        CompressedModel.load(tmp_path / "m.safetensors", lambda: model).model(*inputs), result.model(*inputs)
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.InstanceNorm2d(8, track_running_stats=True),
    ],
    ids=["grouped transposed", "depth multiplier", "running instance norm"],
)
def test_layers_that_torch_pruning_would_break_are_refused_by_name(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Flatten())
    with pytest.raises(UnsupportedModule, match="cannot prune 1: "):
        ChannelPruner(0.5).compress(model, images(2))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("wrapped", ["weight_norm", "mask"])
def test_weight_norm_and_masks_are_baked_in(wrapped: str, tmp_path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = DCGAN()
        if wrapped == "weight_norm":
            weight_norm(model.layers[3])
        else:
            prune.random_unstructured(model.layers[3], "weight", 0.6)
        model(*latents(4))
        return model.eval()

    model = build()
    result = ChannelPruner(0.5).compress(model, Z)
    assert result.report.after.parameters < 0.45 * result.report.before.parameters
    result.save(tmp_path / "m.safetensors")
    assert torch.equal(CompressedModel.load(tmp_path / "m.safetensors", build).model(*Z), result.model(*Z))


def test_parametrized_buffers_are_baked_in(tmp_path) -> None:
    class Doubled(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return 2 * value

    def build() -> nn.Module:
        model = DCGAN().eval()
        parametrize.register_parametrization(model.layers[1], "running_mean", Doubled())
        return model

    model = build()
    result = Quantizer(8).compress(model, Z)
    assert torch.equal(result.model.layers[1].running_mean, model.layers[1].running_mean)
    assert "running_mean" in dict(result.model.layers[1].named_buffers())
    result.save(tmp_path / "m.safetensors")
    assert torch.equal(CompressedModel.load(tmp_path / "m.safetensors", build).model(*Z), result.model(*Z))


def test_weights_that_a_mask_made_zero_stay_zero_at_four_bits() -> None:
    model = DCGAN().eval()
    prune.random_unstructured(model.layers[3], "weight", 0.6)
    model(*Z)
    for symmetric in (True, False):
        weight = Quantizer(4, symmetric=symmetric).compress(model, Z).model.layers[3].weight
        assert (weight[model.layers[3].weight == 0] == 0).all()


def test_fine_tuning_between_two_steps_keeps_one_recipe_and_report(tmp_path) -> None:
    model = DCGAN().eval()
    pruned = ChannelPruner(0.5).compress(model, Z)
    target = model(*Z).detach()
    optimizer = torch.optim.Adam(pruned.model.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (pruned.model(*Z) - target).square().mean().backward()
        optimizer.step()
    result = Quantizer(4).compress(pruned, Z)
    assert [step["compressor"] for step in result.recipe.steps] == ["ChannelPruner", "Quantizer"]
    assert result.report.before.parameters == sum(p.numel() for p in model.parameters())
    result.save(tmp_path / "m.safetensors")
    assert torch.equal(CompressedModel.load(tmp_path / "m.safetensors", DCGAN).model(*Z), result.model(*Z))


def test_a_later_step_measured_with_another_batch_is_refused() -> None:
    pruned = ChannelPruner(0.5).compress(DCGAN().eval(), Z)
    with pytest.raises(CompressionError, match=r"example_inputs have shapes \(\(2, 16\),\), .* with \(\(4, 16\),\)"):
        Quantizer(4).compress(pruned, latents(2))


def test_constants_that_are_not_in_the_state_dict_survive_loading(tmp_path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1, 8))
            self.register_buffer("scale", torch.tensor(3.0), persistent=False)
            self.layers = nn.Sequential(nn.Linear(LATENT, 8), nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 4))

        def forward(self, z: Tensor) -> Tensor:
            first, norm, *rest = self.layers
            return self.scale * nn.Sequential(*rest)(norm(first(z)) * self.gain)

    result = ChannelPruner(0.5, param_dims={"gain": 1}).compress(Scaled(), Z)
    assert result.model.gain.shape == (1, 4)
    assert result.model.layers[1].normalized_shape == (4,)
    result.save(tmp_path / "m.safetensors")
    copy = CompressedModel.load(tmp_path / "m.safetensors", Scaled)
    assert torch.equal(copy.model(*Z), result.model(*Z))
    assert copy.recipe == result.recipe


def test_pruning_in_two_rounds_is_one_file(tmp_path) -> None:
    result = Pipeline(ChannelPruner(0.25), ChannelPruner(0.25)).compress(SNGAN().eval(), Z)
    assert widths(result)["blocks.0.conv1"] == 9
    result.save(tmp_path / "m.safetensors")
    assert torch.equal(CompressedModel.load(tmp_path / "m.safetensors", SNGAN).model(*Z), result.model(*Z))


def test_a_pipeline_tells_the_error_against_the_original() -> None:
    model = DCGAN().eval()
    pipeline = Pipeline(ChannelPruner(0.5), Clipper("percentile", per_channel=False), Quantizer(8))
    result = pipeline.compress(model, Z)
    with torch.no_grad():
        original, small = model(*Z), result.model(*Z)
    expected = 10 * torch.log10(original.square().sum() / (original - small).square().sum())
    assert result.report.sqnr_db == pytest.approx(float(expected), abs=1e-3)
    assert result.report.name == pipeline.name == "prune 0.5 + clip percentile 99.9 + quantize W8"


def test_quantizing_before_pruning_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"quantization comes last.*got quantize W8 -> prune 0\.5"):
        Pipeline(Quantizer(8), ChannelPruner(0.5))
    with pytest.raises(CompressionError, match="already quantized"):
        ChannelPruner(0.5).compress(Quantizer(8).compress(DCGAN(), Z), Z)
