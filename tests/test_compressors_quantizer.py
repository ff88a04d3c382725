"""Quantizer and Clipper: what users set, and what must follow from it."""

from __future__ import annotations

import pytest
import torch
from generators import DCGAN, FAMILIES, LATENT, SNGAN, ConditionalGAN, labelled_latents
from torch import Tensor, nn

from compressors import (
    Clip,
    Clipper,
    CompressedModel,
    CompressionError,
    NothingCompressed,
    Quantizer,
    UnsupportedModule,
)

Z = (torch.randn(4, LATENT, generator=torch.Generator().manual_seed(0)),)
DCGAN_FAMILY = FAMILIES[0]


def levels(result: CompressedModel, name: str, channel: int | None = None) -> int:
    weight = result.model.get_submodule(name).get_parameter("weight").detach()
    return len((weight if channel is None else weight.select(1, channel)).unique())


def bits(result: CompressedModel) -> dict[str, int | None]:
    return {row.name: row.bits for row in result.report.layers}


@pytest.mark.parametrize("width", range(2, 9))
def test_a_channel_has_no_more_levels_than_its_bits_allow(width: int) -> None:
    model = DCGAN_FAMILY.build()
    symmetric = Quantizer(width, clip="max").compress(model, Z)
    asymmetric = Quantizer(width, clip="max", symmetric=False).compress(model, Z)
    assert 2 < levels(symmetric, "layers.3", channel=0) <= 2**width - 1
    assert 2 < levels(asymmetric, "layers.3", channel=0) <= 2**width
    assert levels(Quantizer(width, per_channel=False).compress(model, Z), "layers.3") <= 2**width - 1


def test_asymmetric_codes_pay_at_two_bits() -> None:
    model = DCGAN_FAMILY.build()
    symmetric, asymmetric = (
        Quantizer(2, symmetric=s, clip="max").compress(model, Z).report.sqnr_db for s in (True, False)
    )
    assert asymmetric > symmetric + 1


def test_the_image_layer_can_keep_more_bits_by_pattern() -> None:
    result = Quantizer({"rgb": 8, "blocks.*": 3, "*": 4}).compress(SNGAN().eval(), Z)
    found = bits(result)
    assert (found["rgb"], found["blocks.0.conv1"], found["fc"], found["norm"]) == (8, 3, 4, None)
    assert result.report.name == "quantize W8/3/4"


def test_excluded_layers_stay_in_float_and_say_so() -> None:
    model = SNGAN().eval()
    result = Quantizer({"blocks.*": 4}, exclude=("rgb", "fc")).compress(model, Z)
    assert torch.equal(result.model.rgb.weight, model.rgb.weight)
    notes = {row.name: row.note for row in result.report.layers}
    assert notes["rgb"] == notes["fc"] == "float: excluded"
    assert bits(result)["rgb"] is None


def test_embeddings_are_quantized_too() -> None:
    model, inputs = ConditionalGAN(chunked=False).eval(), labelled_latents(2)
    result = Quantizer(4, act_bits=8).compress(model, inputs, [inputs])
    name = "block.norm1.embeddings.0"
    assert levels(result, name) <= 15
    row = next(row for row in result.report.layers if row.name == name)
    assert (row.bits, row.act_bits) == (4, None)


def test_a_layer_used_twice_stays_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.other = nn.ModuleList([self.first, self.first])

        def forward(self, x: Tensor) -> Tensor:
            return self.other[1](self.other[0](self.first(x)))

    result = Quantizer(4).compress(Twice(), (torch.randn(2, 8),))
    assert result.model.other[0] is result.model.other[1] is result.model.first
    assert result.report.after.parameters == 72


@pytest.mark.parametrize("clip", ["max", "mse", "percentile", "sigma", 0.1])
@pytest.mark.parametrize("per_channel", [True, False])
def test_layers_and_channels_of_zeros_stay_zero(clip, per_channel, tmp_path) -> None:
    model = DCGAN().eval()
    with torch.no_grad():
        model.layers[3].weight[:, 2] = 0
        model.layers[6].weight.zero_()
    result = Quantizer(4, clip=clip, per_channel=per_channel).compress(model, Z)
    assert not result.model.layers[3].weight[:, 2].any()
    assert not result.model.layers[6].weight.any()
    result.save(tmp_path / "m.safetensors")
    assert torch.equal(CompressedModel.load(tmp_path / "m.safetensors", DCGAN).model(*Z), result.model(*Z))


def test_a_layer_that_forward_never_uses_does_no_harm(tmp_path) -> None:
    def build() -> nn.Module:
        model = DCGAN().eval()
        model.training_only = nn.Linear(4, 4)
        return model

    result = Quantizer(4, act_bits=8).compress(build(), Z, [Z])
    result.save(tmp_path / "m.safetensors")
    assert torch.equal(CompressedModel.load(tmp_path / "m.safetensors", build).model(*Z), result.model(*Z))


def test_outliers_cost_less_with_a_clipped_range() -> None:
    model = DCGAN_FAMILY.build()
    with torch.no_grad():
        for layer in model.layers[0], model.layers[3]:
            layer.weight.view(-1)[::997] *= 20
    clipped = [Quantizer(4, clip=clip, per_channel=False).compress(model, Z) for clip in ("max", "mse")]
    assert clipped[1].report.sqnr_db > clipped[0].report.sqnr_db


def with_outliers() -> nn.Module:
    model = DCGAN_FAMILY.build()
    with torch.no_grad():
        model.layers[3].weight.view(-1)[::97] *= 10
    return model


@pytest.mark.parametrize(
    ("clip", "threshold"),
    [
        (0.05, lambda w: 0.05),
        (lambda w: 2 * float(w.std()), lambda w: 2 * w.std()),
        (Clip("percentile", 95), lambda w: w.abs().flatten().kthvalue(round(0.95 * w.numel())).values),
        ("percentile", lambda w: w.abs().flatten().kthvalue(round(0.999 * w.numel())).values),
        ("sigma", lambda w: w.abs().mean() + 3 * w.abs().std()),
    ],
    ids=["threshold", "function", "percentile 95", "percentile", "sigma"],
)
def test_clipping_alone_moves_weights_beyond_the_threshold_to_it_and_no_others(clip, threshold) -> None:
    model = with_outliers()
    weight = model.layers[3].weight.detach()
    limit = float(threshold(weight))
    result = Clipper(clip, per_channel=False).compress(model, Z)
    torch.testing.assert_close(result.model.layers[3].weight.detach(), weight.clamp(-limit, limit), rtol=1e-5, atol=0)
    assert result.report.after == result.report.before
    note = next(row.note for row in result.report.layers if row.name == "layers.3")
    assert note == f"{int((weight.abs() > limit).sum())} of {weight.numel()} weights clipped"


def test_the_range_of_least_error_gets_narrower_with_fewer_bits() -> None:
    limits = [
        float(Clipper("mse", bits=bits).compress(with_outliers(), Z).model.layers[3].weight.detach().abs().mean())
        for bits in (2, 4, 6)
    ]
    assert limits == sorted(limits)
    assert limits[0] < limits[-1]


def test_each_channel_has_a_range_of_its_own() -> None:
    model = with_outliers()
    with torch.no_grad():
        model.layers[3].weight[:, 0] *= 100
    weights = Clipper(Clip("percentile", 90)).compress(model, Z).model.layers[3].weight.detach()
    moved = (weights != model.layers[3].weight).float().mean((0, 2, 3))
    assert ((moved > 0.05) & (moved < 0.15)).all()


def test_an_asymmetric_range_can_be_clipped_by_percentile() -> None:
    model = with_outliers()
    wide, narrow = (
        Quantizer(3, symmetric=False, per_channel=False, clip=clip)
        .compress(model, Z)
        .model.layers[3]
        .weight.abs()
        .max()
        for clip in ("max", Clip("percentile", 98))
    )
    assert narrow < 0.5 * wide


def test_weights_within_their_range_are_reported_as_nothing_to_clip() -> None:
    with pytest.raises(NothingCompressed, match="within their range"):
        Clipper(100.0).compress(DCGAN().eval(), Z)


def test_calibration_in_batches_gives_the_ranges_of_one_big_batch() -> None:
    """brevitas averages the statistics of batches, which would make ranges depend on how the data is cut."""
    model, quantizer = DCGAN_FAMILY.build(), Quantizer(8, act_bits=8)
    latents = torch.randn(64, LATENT)
    whole = quantizer.compress(model, Z, [(latents,)]).model(*Z)
    cut = quantizer.compress(model, Z, ((part,) for part in latents.split(1))).model(*Z)
    assert torch.equal(whole, cut)


def test_more_calibration_data_costs_less_quality() -> None:
    model, latents = DCGAN_FAMILY.build(), torch.randn(256, LATENT)
    few, many = (
        Quantizer(8, act_bits=8).compress(model, (latents,), [(latents[:n],)]).report.sqnr_db for n in (1, 256)
    )
    assert many > few + 3


def test_bias_correction_reduces_the_error() -> None:
    model, latents = DCGAN_FAMILY.build(), torch.randn(256, LATENT)
    plain, corrected = (
        Quantizer(3, bias_correction=c).compress(model, (latents,), [(latents,)]).report.sqnr_db for c in (False, True)
    )
    assert corrected > plain


def test_grouped_transposed_convolutions_are_quantized_per_tensor(tmp_path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=4), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 3, 1)
        )

    image = (torch.randn(2, 8, 4, 4),)
    result = Quantizer(4).compress(build(), image)
    assert levels(result, "0") <= 15
    result.save(tmp_path / "m.safetensors")
    assert torch.equal(CompressedModel.load(tmp_path / "m.safetensors", build).model(*image), result.model(*image))


def test_layers_for_sound_and_volumes_are_known_as_well() -> None:
    sound = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ConvTranspose1d(8, 2, 3))
    volume = nn.Sequential(nn.Conv3d(4, 8, 3), nn.ConvTranspose3d(8, 2, 3))
    for model, inputs in (sound, torch.randn(2, 4, 9)), (volume, torch.randn(2, 4, 9, 9, 9)):
        assert Quantizer(4).compress(model, (inputs,)).report.sqnr_db > 10


def test_a_subclass_of_a_layer_is_not_mistaken_for_it() -> None:
    class EqualizedLinear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight * 0.1, self.bias)

    with pytest.raises(UnsupportedModule, match=r"only 0% .* 0.weight \(8, 8\), 0.bias"):
        Quantizer(4).compress(nn.Sequential(EqualizedLinear(8, 8)), (torch.randn(2, 8),))


def test_what_is_not_covered_can_be_accepted() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.table = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) @ self.table

    result = Quantizer(4, min_coverage=0.5).compress(Biased(), (torch.randn(2, 8),))
    assert result.report.coverage == pytest.approx(72 / 136)


def test_quantizing_twice_is_refused() -> None:
    once = Quantizer(8).compress(DCGAN().eval(), Z)
    for model in (once, once.model):
        with pytest.raises(CompressionError, match="already quantized"):
            Quantizer(4).compress(model, Z)


def test_the_layer_that_makes_the_image_keeps_8_bits_and_the_report_says_so() -> None:
    result = Quantizer(4).compress(SNGAN().eval(), Z)
    found = bits(result)
    assert (found["rgb"], found["fc"]) == (8, 4)
    assert {row.name: row.note for row in result.report.layers}["rgb"] == "8 bits: makes the output"
    same, lower = (bits(Quantizer(4, output_bits=width).compress(SNGAN().eval(), Z))["rgb"] for width in (None, 3))
    assert (same, lower) == (4, 4)


def test_bits_by_pattern_are_taken_literally_and_wide_output_layers_are_like_others() -> None:
    assert bits(Quantizer({"*": 4}).compress(SNGAN().eval(), Z))["rgb"] == 4
    wide = nn.Sequential(nn.Linear(LATENT, 8), nn.ReLU(), nn.Linear(8, 12))
    assert bits(Quantizer(4).compress(wide, Z)) == {"0": 4, "2": 4}


def test_the_bits_of_output_layers_are_checked() -> None:
    with pytest.raises(CompressionError, match="output_bits must be an integer from 2 to 8; got 9"):
        Quantizer(4, output_bits=9)
