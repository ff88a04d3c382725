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

Extracted = dict[str, FeaturesDict]
"""Features by extractor and layer."""


def extract_features(
    side: int,
    samples: Samples,
    extractors: Mapping[str, Any],
    call: Mapping[str, Any],
    check: Callable[[Extracted], None],
) -> Extracted:
    """Extract the features of ``input1`` or ``input2`` in one pass, or read them from the cache.

    Ranks take whole batches, those that one process would make, so that each sample's features come out the same.
    Generative models are drawn from on the first rank alone: their samples hang together by one random state.

    Args:
        side: 1 or 2.
        samples: The input.
        extractors: Extractors of torch-fidelity by name, with the layers wanted.
        call: Complete keywords of the call.
        check: Called with the features of the first batch, before the others are extracted; may raise `ValueError`.

    Returns:
        N x D features on the CPU, finite, of this rank's share; nothing of extractors for an empty one.

    Raises:
        ValueError: A sample cannot be read, an extractor refuses it, or features are NaN or infinite.
    """
    rank, size = rank_and_size()
    named = cache_name(side, call) is not None
    kept = together(lambda: _kept(side, samples, extractors, call) if named and rank == 0 else {})
    missing = share_first([name for name in extractors if name not in kept])
    if not missing:
        return kept
    left = {name: extractors[name] for name in missing}
    share = together(lambda: _extract_share(samples, left, call, rank, size, check))
    if not named:
        return share
    gathered: Extracted = {}
    for name, extractor in left.items():
        for layer in extractor.get_requested_features_list():
            rows = gather_rows(share[name][layer] if share else None)
            if rows is not None:
                gathered.setdefault(name, {})[layer] = rows
    for name, features in gathered.items():
        keep_features(side, samples, left[name], features, call)
    return {**kept, **gathered}


def _kept(side: int, samples: Samples, extractors: Mapping[str, Any], call: Mapping[str, Any]) -> Extracted:
    found = {name: read_features_kept(side, samples, extractor, call) for name, extractor in extractors.items()}
    return {name: features for name, features in found.items() if features is not None}


def _extract_share(
    samples: Samples,
    extractors: Mapping[str, Any],
    call: Mapping[str, Any],
    rank: int,
    size: int,
    check: Callable[[Extracted], None],
) -> Extracted:
    parts: dict[tuple[str, str], list[torch.Tensor]] = {}
    total = samples.count()
    with tqdm(
        disable=not call["verbose"], leave=False, unit="samples", total=total, desc="Processing samples"
    ) as progress:
        for batch in samples.batches(rank, size):
            features = {
                name: _features_of_batch(batch, extractor, samples.argument, call)
                for name, extractor in extractors.items()
            }
            if not parts:
                check(features)
            for name, layers in features.items():
                for layer, values in layers.items():
                    parts.setdefault((name, layer), []).append(values)
            progress.update(len(batch))
    found: Extracted = {}
    for (name, layer), rows in parts.items():
        values = found.setdefault(name, {})[layer] = torch.cat(rows)
        _refuse_non_finite(values, f'{samples.argument}: layer "{layer}" of {extractors[name].get_name()}')
    return found


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
