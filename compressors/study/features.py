"""From images to features, by the feature extractors of torch-fidelity."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compressors.common.checks import check_choice
from torch_fidelity_lsh.fidelity import upstream


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
        known = upstream.FEATURE_EXTRACTORS_REGISTRY
        check_choice("feature_extractor", name, tuple(known))
        layers = known[name].get_provided_features_list()
        chosen = layer or known[name].get_default_feature_layer_for_metric("fid")
        check_choice(f"feature_layer of {name}", chosen, layers)
        self.device = device
        self.network = upstream.create_feature_extractor(name, [chosen], cuda=device.type == "cuda", verbose=False)

    @torch.no_grad()
    def __call__(self, images: Iterable[Tensor]) -> Tensor:
        """Return the features of batches of images, float32 N x D on the CPU."""
        return torch.cat([self.network(batch.to(self.device))[0].float().cpu() for batch in images])
