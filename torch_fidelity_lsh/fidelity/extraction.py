"""Features of an input, each rank extracting its share of the batches."""

from __future__ import annotations

from typing import Any

import torch

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.distributed import gather_rows, rank_and_size, share_first, together

FeaturesDict = dict[str, torch.Tensor]


def extract_features(side: int, feat_extractor: Any, **settings: Any) -> FeaturesDict | None:
    """Extract the features of ``input1`` or ``input2``, or read them from upstream's cache.

    Ranks take whole batches, those that one process would make, so that each sample's features come out the same.
    Generative models are drawn from on the first rank alone: their samples hang together by one random state.

    Args:
        side: 1 or 2.
        feat_extractor: Upstream's extractor, with the layers wanted.
        **settings: Upstream's keywords.

    Returns:
        Layer name to N x D features of this rank's share, `None` for an empty one.
    """
    rank, size = rank_and_size()
    if size == 1:
        return upstream.extract_featuresdict_from_input_id_cached(side, feat_extractor, **settings)  # type: ignore[no-any-return]
    if not upstream.is_cacheable(side, **settings):
        return together(lambda: upstream.extract_share(side, feat_extractor, rank, size, **settings))
    cached = together(lambda: upstream.read_cache(side, feat_extractor, **settings) if rank == 0 else None)
    if share_first(cached is not None):
        return cached
    share = together(lambda: upstream.extract_share(side, feat_extractor, rank, size, **settings))
    layers = feat_extractor.get_requested_features_list()
    gathered: FeaturesDict = {}
    for layer in layers:
        rows = gather_rows(share[layer] if share else None)
        if rows is not None:
            gathered[layer] = rows
    if not gathered:
        return None
    upstream.write_cache(side, feat_extractor, gathered, **settings)
    return gathered
