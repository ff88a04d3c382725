"""From images to features, by the feature extractors of torch-fidelity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from compressors.common.checks import check_choice
from compressors.common.generation import image_batches
from compressors.common.measure import forward
from compressors.errors import CompressionError
from torch_fidelity_lsh.fidelity import upstream

Reference: TypeAlias = "Tensor | np.ndarray[Any, Any] | Dataset[Tensor]"
"""Real images, uint8 N x C x H x W or a data set of uint8 C x H x W; or their features, float N x D."""


class Extractor:
    """One layer of a feature extractor of torch-fidelity.

    Args:
        name: the extractor's registered name, such as "inception-v3-compat".
        layer: the layer; None for the extractor's layer of FID.
        device: where it runs.

    Raises:
        CompressionError: there is no extractor or layer of this name.
    """

    def __init__(self, name: str, layer: str | None, device: torch.device) -> None:
        chosen = chosen_layer(name, layer)
        self.device = device
        # Not by its own ``cuda``, which means the current GPU.
        self.network = upstream.create_feature_extractor(name, [chosen], cuda=False, verbose=False).to(device)

    def __call__(self, images: Iterable[Tensor]) -> Tensor:
        """Return the features, float32 N x D on the CPU, of batches of images, uint8 B x 3 x H x W."""
        return torch.cat([forward(self.network, (batch.to(self.device),))[0].float().cpu() for batch in images])


def chosen_layer(name: str, layer: str | None) -> str:
    """Return `layer`, or the default one of the extractor; raise `CompressionError` where one of them is unknown."""
    known = upstream.FEATURE_EXTRACTORS_REGISTRY
    check_choice("feature_extractor", name, tuple(known))
    layers = known[name].get_provided_features_list()
    chosen: str = layer or known[name].get_default_feature_layer_for_metric("fid")
    check_choice("feature_layer", chosen, layers)
    return chosen


def as_reference(reference: Any) -> Tensor | Dataset[Tensor]:
    """Return features as float32 N x D, images as they are; raise `CompressionError` for anything else."""
    source = torch.from_numpy(reference) if isinstance(reference, np.ndarray) else reference
    features = is_features(source)
    images = isinstance(source, Tensor) and source.dim() == 4 and source.dtype == torch.uint8
    if not (features or images or isinstance(source, Dataset)):
        got = f"{source.dtype} {tuple(source.shape)}" if isinstance(source, Tensor) else type(source).__name__
        raise CompressionError(
            "reference must be images, a uint8 tensor N x C x H x W or a torch data set of uint8 tensors C x H x W, or "
            f"features, a float tensor or array N x D; got {got}"
        )
    if not hasattr(source, "__len__"):
        raise CompressionError(f"reference must know its length: give {type(source).__name__} a method __len__")
    if len(source) < 2:
        raise CompressionError(f"reference must hold at least 2 samples; got {len(source)}")
    return source.detach().cpu().float() if features else source


def is_features(source: object) -> TypeGuard[Tensor]:
    """Tell whether a reference holds features."""
    return isinstance(source, Tensor) and source.dim() == 2 and source.is_floating_point()


def reference_batches(reference: Tensor | Dataset[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Yield a reference of `as_reference` as it is: its features, or its images in batches."""
    return iter([reference]) if is_features(reference) else image_batches(reference, batch_size)
