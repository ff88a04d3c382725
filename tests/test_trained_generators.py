"""Generators that others trained, through every adapter: exact, pruned, quantized, saved, loaded, exported, run."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compressors import ChannelPruner, CompressedModel, Compressor, Pipeline, Quantizer, export_onnx

FOLDER = Path(os.environ.get("TRAINED_MODELS", Path(__file__).parents[2] / "shared" / "models"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no folder of trained models; set TRAINED_MODELS"),
]

MODELS = (
    "face-dcgan-64",
    "eye-cdcgan-128",
    "realesrgan-x4plus-anime",
    "realesr-animevideov3-x4",
    "realesrgan-x4plus",
)

COMPRESSORS: tuple[Compressor, ...] = (
    ChannelPruner(0.1),
    ChannelPruner(0.3),
    Quantizer(8),
    Quantizer(4),
    Quantizer(8, act_bits=8),
    Pipeline(ChannelPruner(0.1), Quantizer(8)),
)


def dcgan(widths: tuple[int, ...], dropout: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        layers.append(nn.ConvTranspose2d(before, after, 4, 2 if index else 1, 1 if index else 0, bias=False))
        layers += [nn.Tanh()] if last else [nn.BatchNorm2d(after), nn.ReLU()]
        if dropout and index == 0:
            layers.append(nn.Dropout(0.2))
    return nn.Sequential(*layers)


def build(name: str) -> nn.Module:
    state = {key: value.float() for key, value in load_file(FOLDER / f"{name}.safetensors").items()}
    if "dcgan" not in name:
        return pytest.importorskip("spandrel").ModelLoader().load_from_state_dict(state).model.eval()
    dimensions = (108, 1024, 512, 256, 128, 64, 3) if name.startswith("eye") else (100, 512, 256, 128, 64, 3)
    model = dcgan(dimensions, dropout=name.startswith("eye"))
    loaded = model.load_state_dict({key.removeprefix("main."): value for key, value in state.items()}, strict=False)
    assert not loaded.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
    return model.eval()


def inputs_of(name: str) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    if name.startswith("face"):
        return (torch.randn(2, 100, 1, 1, generator=random),)
    if name.startswith("eye"):
        colours = nn.functional.one_hot(torch.tensor([1, 5]), 8).float()
        return (torch.cat([torch.randn(2, 100, generator=random), colours], 1)[:, :, None, None],)
    return (torch.rand(1, 3, 12, 12, generator=random),)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_removed_is_nothing_changed(name: str) -> None:
    model, inputs = build(name), inputs_of(name)
    with torch.no_grad():
        expected = model(*inputs)
        assert torch.equal(ChannelPruner(0.0).compress(model, inputs).model(*inputs), expected)
        assert expected.std() > 0.01


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: compressor.name)
@pytest.mark.parametrize("name", MODELS)
def test_a_trained_generator_is_compressed_saved_loaded_and_exported(
    name: str, compressor: Compressor, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model, inputs = build(name), inputs_of(name)
    result = compressor.compress(model, inputs, [inputs])
    assert result.report.after.bytes < result.report.before.bytes
    result.save(tmp_path / "small.safetensors")
    copy = CompressedModel.load(tmp_path / "small.safetensors", lambda: build(name))
    with torch.no_grad():
        expected = result.model(*inputs)
        assert torch.equal(copy.model(*inputs), expected)
    export_onnx(result, tmp_path / "small.onnx", inputs)
    session = runtime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    feed = {item.name: value.numpy() for item, value in zip(session.get_inputs(), inputs, strict=True)}
    exported = torch.from_numpy(session.run(None, feed)[0])
    # An activation on the edge of two codes falls on either side, and all layers after it follow: over the 96 layers of
    # the smaller ESRGAN two roundings of the same numbers differ by as much as quantization itself costs.
    has_codes = any(layer.act_bits for layer in result.recipe.quantized.values())
    with torch.no_grad():
        of_quantization = error_of(expected, model(*inputs))
    assert error_of(exported, expected) < (max(1e-5, 2 * of_quantization) if has_codes else 1e-8)


def error_of(output: Tensor, expected: Tensor) -> float:
    """Return the squared error in units of the squared output."""
    return float((output - expected).square().mean() / expected.square().mean())
