"""Architectures of packages with random weights: pruned and quantized, or refused with what to do (extra ``zoo``)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressors import ChannelPruner, CompressionError, Quantizer

pytestmark = pytest.mark.slow

Case = tuple[nn.Module, tuple[Tensor, ...]]


class Sample(nn.Module):
    """What a method of a diffusers model returns, as a tensor."""

    def __init__(self, model: nn.Module, method: str = "forward") -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.model, self.method)(*inputs).sample


def diffusers_unet() -> Case:
    unet = import_module("diffusers").UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    return Sample(unet), (torch.randn(1, 3, 16, 16), torch.tensor([3]))


def diffusers_vae() -> Case:
    vae = import_module("diffusers").AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    return Sample(vae, "decode"), (torch.randn(1, 4, 8, 8),)


def segmentation(name: str) -> Callable[[], Case]:
    def build() -> Case:
        model = getattr(import_module("segmentation_models_pytorch"), name)("resnet18", encoder_weights=None)
        return model, (torch.randn(1, 3, 64, 64),)

    return build


def restoration(name: str, architecture: str, size: int = 16, **settings: Any) -> Callable[[], Case]:
    def build() -> Case:
        model = getattr(import_module(f"spandrel.architectures.{name}"), architecture)(**settings)
        return model, (torch.rand(1, 3, size, size),)

    return build


def medical(name: str, *settings: Any, **more: Any) -> Callable[[], Case]:
    return lambda: (
        getattr(import_module("monai.networks.nets"), name)(*settings, **more),
        (torch.randn(1, 1, 32, 32),),
    )


def gan(name: str) -> Callable[[], Case]:
    return lambda: (
        getattr(import_module("torchgan.models"), name)(step_channels=8, out_size=32),
        (torch.randn(2, 100),),
    )


def transformer() -> Case:
    package = import_module("x_transformers")
    encoder = package.Encoder(dim=32, depth=2, heads=4, attn_dim_head=8)
    model = package.ContinuousTransformerWrapper(dim_in=16, dim_out=3, max_seq_len=16, attn_layers=encoder)
    return model, (torch.randn(1, 8, 16),)


ARCHITECTURES: dict[str, tuple[str, Callable[[], Case]]] = {
    "UNet2DModel": ("diffusers", diffusers_unet),
    "AutoencoderKL": ("diffusers", diffusers_vae),
    "Unet": ("segmentation_models_pytorch", segmentation("Unet")),
    "FPN": ("segmentation_models_pytorch", segmentation("FPN")),
    "Linknet": ("segmentation_models_pytorch", segmentation("Linknet")),
    "ESRGAN": ("spandrel", restoration("ESRGAN", "ESRGAN", num_blocks=2, num_filters=16)),
    "Compact": ("spandrel", restoration("Compact", "Compact", num_feat=16, num_conv=2)),
    "RealCUGAN": ("spandrel", restoration("RealCUGAN", "UpCunet2x", size=32)),
    "NAFNet": ("spandrel", restoration("NAFNet", "NAFNet", width=8, enc_blk_nums=[1], dec_blk_nums=[1])),
    "SegResNet": ("monai", medical("SegResNet", 2, 8)),
    "AttentionUnet": ("monai", medical("AttentionUnet", 2, 1, 1, (8, 16, 32), (2, 2))),
    "AutoEncoder": ("monai", medical("AutoEncoder", 2, 1, 1, (8, 16), (2, 2))),
    "DCGANGenerator": ("torchgan", gan("DCGANGenerator")),
    "ContinuousTransformerWrapper": ("x_transformers", transformer),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_of_others_is_compressed_or_refused_with_what_to_do(name: str) -> None:
    package, build = ARCHITECTURES[name]
    pytest.importorskip(package, exc_type=ImportError)
    model, inputs = build()
    model.eval()
    refusal = ""
    try:
        result = ChannelPruner(0.3, min_coverage=0.5).compress(model, inputs)
    except CompressionError as error:
        refusal = str(error)
    if refusal:
        assert any(advice in refusal for advice in ("param_dims=", "exclude", "quantize"))
    else:
        assert ChannelPruner(0.0, min_coverage=0.5).compress(model, inputs).report.sqnr_db is None
        assert result.report.after.parameters < result.report.before.parameters
        assert all(row.note for row in result.report.layers if row.before.parameters)
    assert (Quantizer(8, min_coverage=0.5).compress(model, inputs).report.sqnr_db or 100) > 20
