"""Features of an input, each rank extracting its share of the batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm import tqdm

from torch_fidelity_lsh.fidelity.cache import (
    FeaturesDict,
    cache_name,
    keep_features,
    read_features_kept,
)
from torch_fidelity_lsh.fidelity.distributed import gather_rows, rank_and_size, share_first, together
from torch_fidelity_lsh.fidelity.samples import Samples


def extract_features(
    side: int,
    samples: Samples,
    extractor: Any,
    call: Mapping[str, Any],
    check: Callable[[FeaturesDict], None] = lambda features: None,
) -> FeaturesDict | None:
    """Extract the features of ``input1`` or ``input2``, or read them from the cache.

    Ranks take whole batches, those that one process would make, so that each sample's features come out the same.
    Generative models are drawn from on the first rank alone: their samples hang together by one random state.

    Args:
        side: 1 or 2.
        samples: The input.
        extractor: Extractor of torch-fidelity, with the layers wanted.
        call: Complete keywords of the call.
        check: Called with the features of the first batch, before the others are extracted; may raise `ValueError`.

    Returns:
        Layer name to N x D features on the CPU, finite, of this rank's share, `None` for an empty one.

    Raises:
        ValueError: A sample cannot be read, the extractor refuses it, or features are NaN or infinite.
    """
    rank, size = rank_and_size()
    if cache_name(side, call) is None:
        return together(lambda: _extract_share(samples, extractor, call, rank, size, check))
    kept = together(lambda: read_features_kept(side, samples, extractor, call) if rank == 0 else None)
    if share_first(kept is not None):
        return kept
    share = together(lambda: _extract_share(samples, extractor, call, rank, size, check))
    gathered: FeaturesDict = {}
    for layer in extractor.get_requested_features_list():
        rows = gather_rows(share[layer] if share else None)
        if rows is not None:
            gathered[layer] = rows
    if not gathered:
        return None
    keep_features(side, samples, extractor, gathered, call)
    return gathered


def _extract_share(
    samples: Samples,
    extractor: Any,
    call: Mapping[str, Any],
    rank: int,
    size: int,
    check: Callable[[FeaturesDict], None],
) -> FeaturesDict | None:
    parts: dict[str, list[torch.Tensor]] = {}
    total = samples.count()
    with tqdm(
        disable=not call["verbose"], leave=False, unit="samples", total=total, desc="Processing samples"
    ) as progress:
        for batch in samples.batches(rank, size):
            features = _features_of_batch(batch, extractor, samples.argument, call)
            if not parts:
                check(features)
            for layer, values in features.items():
                parts.setdefault(layer, []).append(values)
            progress.update(len(batch))
    if not parts:
        return None
    features = {layer: torch.cat(values) for layer, values in parts.items()}
    for layer, values in features.items():
        _refuse_non_finite(values, f'{samples.argument}: layer "{layer}" of {extractor.get_name()}')
    return features


@torch.no_grad()
def _features_of_batch(batch: torch.Tensor, extractor: Any, argument: str, call: Mapping[str, Any]) -> FeaturesDict:
    if call["cuda"]:
        batch = batch.cuda(non_blocking=True)
    try:
        features = extractor.convert_features_tuple_to_dict(extractor(batch))
    except ValueError as error:
        given = f"{str(batch.dtype).removeprefix('torch.')}, {' x '.join(map(str, batch.shape))}"
        raise ValueError(f"{argument}: {extractor.get_name()} does not take its samples ({given}): {error}") from error
    return {layer: values.cpu() for layer, values in features.items()}


def _refuse_non_finite(features: torch.Tensor, where: str) -> None:
    if features.is_floating_point() and not (features.amin().isfinite() and features.amax().isfinite()):
        bad = int((~features.isfinite()).flatten(1).any(dim=1).sum())
        raise ValueError(f"{where} is NaN or infinite for {bad} of {len(features)} samples")
