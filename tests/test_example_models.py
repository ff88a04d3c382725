"""The networks of the distillation examples have the published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import UNet, patchgan, resnet_generator
from torch import nn

from compressors import ChannelPruner, Pipeline, Quantizer, export_onnx


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: resnet_generator(64), 11_378_179),
        (lambda: resnet_generator(64, mobile=True), 1_987_075),
        (lambda: resnet_generator(16, mobile=True), 137_347),
        (lambda: UNet(64), 54_413_955),
        (lambda: UNet(16), 3_404_451),
        (lambda: patchgan(3, 64), 2_764_737),
    ],
)
def test_parameters_are_those_of_the_published_networks(build: object, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build()) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [lambda: UNet(16), lambda: resnet_generator(16), lambda: resnet_generator(16, mobile=True)],
    ids=["U-Net", "ResNet", "mobile ResNet"],
)
def test_pruned_and_quantized_translators_give_their_images_in_onnxruntime_at_256_pixels(
    build: object, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    images = torch.rand(1, 3, 256, 256) * 2 - 1
    result = Pipeline(ChannelPruner(0.3), Quantizer(8)).compress(build().eval(), (images,))
    export_onnx(result, tmp_path / "model.onnx", (images,))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), result.model(images), atol=1e-3, rtol=0)
