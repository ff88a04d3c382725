"""ONNX files: integer weights, and the images of the model in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from generators import FAMILIES, LATENT, Family
from torch import Tensor

from compressors import ChannelPruner, CompressedModel, CompressionError, Pipeline, Quantizer, export_onnx

COMPRESSORS = {
    "W8": Quantizer(8),
    "W3 asymmetric": Quantizer(3, symmetric=False, clip="max"),
    "W4A8": Quantizer(4, act_bits=8, clip="max"),
    "bias corrected": Quantizer(8, act_bits=8, act_symmetric=True, bias_correction=True),
}


def in_onnxruntime(path: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    options = onnxruntime.SessionOptions()
    # Without this, onnxruntime quantizes the inputs of linear layers as well.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {node.name: value.numpy() for node, value in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, feeds)[0])


def snr_db(result: CompressedModel, path: Path, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        expected = result.model(*inputs)
    error = expected - in_onnxruntime(path, inputs)
    return float(10 * torch.log10(expected.square().sum() / error.square().sum().clamp(min=1e-20)))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_pruned_and_quantized_generators_give_their_images_in_onnxruntime(family: Family, tmp_path: Path) -> None:
    """On another batch size. A code on the edge may fall on the other side: no exact comparison with activations."""
    pruner, path = ChannelPruner(0.5, **(family.pruning or {})), tmp_path / "m.onnx"
    inputs = family.inputs()
    result = Pipeline(pruner, Quantizer(4, clip="max")).compress(family.build(), inputs)
    export_onnx(result, path, inputs)
    assert snr_db(result, path, family.inputs(5, seed=3)) > 90


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_kind_of_quantization_is_exported(name: str, tmp_path: Path) -> None:
    for family in FAMILIES[0], FAMILIES[5]:
        inputs = family.inputs()
        result = COMPRESSORS[name].compress(family.build(), inputs, [family.inputs(32)])
        export_onnx(result, tmp_path / "m.onnx", inputs)
        assert snr_db(result, tmp_path / "m.onnx", family.inputs(5, seed=3)) > 40


def test_weights_are_stored_as_integers(tmp_path: Path) -> None:
    family = FAMILIES[0]
    result = Quantizer(8).compress(family.build(), family.inputs())
    export_onnx(result, tmp_path / "m.onnx", family.inputs())
    graph = onnx.load(tmp_path / "m.onnx").graph
    integers = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    constants = [n.attribute[0].t for n in graph.node if n.op_type == "Constant"]
    integers += [t for t in constants if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert sorted(tuple(t.dims) for t in integers) == [(16, 3, 4, 4), (16, 32, 4, 4), (32, 16, 4, 4)]


def test_a_pruned_generator_is_exported_in_float(tmp_path: Path) -> None:
    family = FAMILIES[1]
    result = ChannelPruner(0.5).compress(family.build(), family.inputs())
    export_onnx(result, tmp_path / "m.onnx", family.inputs())
    assert snr_db(result, tmp_path / "m.onnx", family.inputs(3)) > 90


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.randn(2, LATENT), "must be a non-empty tuple .* got Tensor"),
        ((torch.randn(2, LATENT), 0.5), "only tensors"),
    ],
)
def test_inputs_that_onnx_cannot_have(inputs: Any, message: str, tmp_path: Path) -> None:
    result = Quantizer(8).compress(FAMILIES[0].build(), FAMILIES[0].inputs())
    with pytest.raises(CompressionError, match=message):
        export_onnx(result, tmp_path / "m.onnx", inputs)
    assert list(tmp_path.iterdir()) == []
