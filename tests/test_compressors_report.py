"""The numbers of the report against counts by hand, and the files against the report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from generators import DCGAN, LATENT, SNGAN, ConditionalGAN, StyleGAN2, labelled_latents
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn
from torch.nn.utils import spectral_norm

from compressors import ChannelPruner, Clip, CompressedModel, CompressionError, Pipeline, Quantizer, Recipe, Report
from compressors.common.bits import pack_bits, unpack_bits
from compressors.common.measure import count_macs
from compressors.core.packing import pack

Z = (torch.randn(2, LATENT, generator=torch.Generator().manual_seed(0)),)
DCGAN_WEIGHTS = {"layers.0": (16 * 32 * 16, 32), "layers.3": (32 * 16 * 16, 16), "layers.6": (16 * 3 * 16, 3)}


def test_macs_equal_a_count_by_hand() -> None:
    """Transposed convolutions: input pixels x channels in x channels out x kernel; batch of 2."""
    by_hand = {"layers.0": 16 * 32 * 16, "layers.3": 16 * 32 * 16 * 16, "layers.6": 64 * 16 * 3 * 16}
    report = Quantizer(8).compress(DCGAN().eval(), Z).report
    rows = {row.name: row.before.macs for row in report.layers if row.name in by_hand}
    assert rows == {name: 2 * macs for name, macs in by_hand.items()}
    assert report.before.macs == report.after.macs == 2 * sum(by_hand.values())


def test_macs_of_a_residual_generator_equal_a_count_by_hand() -> None:
    width, pixels = 16, [64, 256]
    block = 9 * width * width + 9 * width * width + width * width
    by_hand = LATENT * width * 16 + sum(block * p for p in pixels) + 256 * 9 * width * 3
    assert count_macs(SNGAN().eval(), (torch.randn(1, LATENT),))[""] == by_hand


def test_macs_see_functional_convolutions_and_groups() -> None:
    mapping = LATENT * 12 + 12 * 12
    by_hand = mapping + 2 * 12 * 16 + (64 + 256) * 9 * 16 * 16 + 256 * 16 * 3
    assert count_macs(StyleGAN2(), (torch.randn(1, LATENT),))[""] == by_hand
    grouped = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=4), nn.ConvTranspose2d(16, 8, 2, 2, groups=2))
    assert count_macs(grouped, (torch.randn(1, 8, 5, 5),)) == {
        "0": 25 * 9 * 2 * 16,
        "1": 25 * 4 * 16 * 4,
        "": 25 * 9 * 2 * 16 + 25 * 4 * 16 * 4,
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_equal_the_formula(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """Packed weights, 4 bytes per scale and zero point, everything else in float, the batch counters in int64."""
    result = Quantizer(bits, output_bits=None, symmetric=symmetric, clip="max").compress(DCGAN().eval(), Z)
    scales = 1 if symmetric else 2
    expected = sum(math.ceil(numel * bits / 8) + 4 * scales * channels for numel, channels in DCGAN_WEIGHTS.values())
    expected += 4 * 3 + sum(4 * 4 * channels + 8 for channels in (32, 16))
    assert result.report.after.bytes == expected
    assert result.report.before.bytes == 4 * (17251 + 2 * 48) + 2 * 8
    result.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert sum(file.get_tensor(key).nbytes for key in file.keys()) == expected  # noqa: SIM118


def test_bytes_of_activation_quantizers_are_counted() -> None:
    model = DCGAN().eval()
    weights, both = (Quantizer(8, act_bits=bits).compress(model, Z, [Z]).report.after.bytes for bits in (None, 8))
    assert both - weights == 3 * 2 * 4


def test_rows_add_up_to_the_totals() -> None:
    inputs = labelled_latents(2)
    report = Pipeline(ChannelPruner(0.5), Quantizer(4)).compress(ConditionalGAN(chunked=True).eval(), inputs).report
    for side in ("before", "after"):
        total = getattr(report, side)
        for field in ("parameters", "macs", "bytes"):
            assert sum(getattr(getattr(row, side), field) for row in report.layers) == getattr(total, field)


def test_parameters_are_those_of_the_models() -> None:
    model = SNGAN().eval()
    result = ChannelPruner(0.5).compress(model, Z)
    for size, side in (result.report.before, model), (result.report.after, result.model):
        assert size.parameters == sum(parameter.numel() for parameter in side.parameters())


def test_the_report_survives_json_and_prints_as_a_table() -> None:
    result = Pipeline(ChannelPruner(0.5), Quantizer(4, act_bits=8)).compress(DCGAN().eval(), Z, [Z])
    report = result.report
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert Recipe.from_dict(json.loads(json.dumps(result.recipe.to_dict()))) == result.recipe
    lines = str(report).splitlines()
    assert lines[0].startswith("prune 0.5 + quantize W4A8: output SQNR ")
    assert lines[1].split() == ["layer", "type", "parameters", "MACs", "bytes", "bits", "note"]
    image_layer = next(line for line in lines if line.startswith("layers.6"))
    assert "771 -> 387" in image_layer
    assert "W8A8" in image_layer
    assert "output channels kept: model output" in image_layer
    assert f"17,251 -> {report.after.parameters:,}" in lines[-1]
    assert {"torch-fidelity-lsh", "torch", "brevitas", "torch-pruning"} <= set(report.versions)


def test_the_recipe_tells_all_settings() -> None:
    quantizer = Quantizer({"*": 4}, clip=Clip("percentile", 99), exclude=["layers.6"])
    step = quantizer.compress(DCGAN().eval(), Z).recipe.steps[0]
    assert step["bits"] == {"*": 4}
    assert step["clip"] == {"method": "percentile", "value": 99}
    assert step["exclude"] == ["layers.6"]


@given(
    st.integers(2, 8).flatmap(
        lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=50))
    )
)
def test_packing_bits_loses_nothing(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    packed = pack_bits(torch.tensor(codes), bits)
    assert packed.nbytes == math.ceil(len(codes) * bits / 8)
    assert unpack_bits(packed, bits, len(codes)).tolist() == codes


def saved(folder: Path, name: str = "m.safetensors") -> Path:
    Quantizer(4).compress(DCGAN().eval(), Z).save(folder / name)
    return folder / name


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CompressionError, match=r"path: .*m\.safetensors is damaged: its checksum"):
        CompressedModel.load(path, DCGAN)
    path.write_bytes(data[:2000])
    with pytest.raises(CompressionError, match=r"path: .* is damaged or no safetensors file"):
        CompressedModel.load(path, DCGAN)


def test_a_file_of_another_origin_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CompressionError, match="has format None, version None; this release reads 'compressors', '2'"):
        CompressedModel.load(tmp_path / "other.safetensors", DCGAN)
    with pytest.raises(FileNotFoundError, match="absent"):
        CompressedModel.load(tmp_path / "absent", DCGAN)


def with_a_further_layer(model: nn.Module) -> nn.Module:
    model.further = nn.Linear(3, 3)
    return model


@pytest.mark.parametrize(
    "factory",
    [SNGAN, lambda: DCGAN(24), lambda: nn.Sequential(DCGAN()), lambda: with_a_further_layer(DCGAN())],
    ids=["class", "width", "wrapped", "longer"],
)
def test_a_factory_of_another_model_is_refused(factory, tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(CompressionError, match="factory builds another model"):
        CompressedModel.load(path, factory)


def test_a_factory_with_other_kernels_is_refused(tmp_path: Path) -> None:
    image = (torch.randn(1, 4, 9, 9),)
    result = Quantizer(4, per_channel=False).compress(nn.Sequential(nn.Conv2d(4, 4, (3, 1)), nn.ReLU()), image)
    result.save(tmp_path / "m.safetensors")
    with pytest.raises(CompressionError, match=r"0.weight has shape \(4, 4, 1, 3\), in the file \(4, 4, 3, 1\)"):
        CompressedModel.load(tmp_path / "m.safetensors", lambda: nn.Sequential(nn.Conv2d(4, 4, (1, 3)), nn.ReLU()))


def test_saving_replaces_the_file_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        saved(tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(CompressionError, match=r"the folder .* does not exist"):
        saved(tmp_path / "absent")


def test_shared_weights_and_noise_inside_the_model_are_saved(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = spectral_norm(nn.Linear(LATENT, LATENT)), nn.Linear(LATENT, LATENT)
            self.third = nn.Linear(LATENT, LATENT)
            self.third.weight = self.second.weight

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.third(self.second(self.first(z))) + torch.randn(len(z), LATENT)

    result = Quantizer(8).compress(Noisy(), Z)
    assert result.report.sqnr_db > 30
    result.save(tmp_path / "m.safetensors")
    copy = CompressedModel.load(tmp_path / "m.safetensors", Noisy)
    for key, value in pack(copy.model, copy.recipe).items():
        assert torch.equal(value, pack(result.model, result.recipe)[key])
