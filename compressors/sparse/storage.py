"""A trained sparse network as a `CompressedModel`, whose file leaves out the zeros."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from compressors.common.measure import Inputs
from compressors.core.coverage import check_layers
from compressors.core.model import CompressedModel
from compressors.core.stage import begin, finish
from compressors.errors import CompressionError
from compressors.sparse.masks import MASKABLE_LAYERS, MaskSet


def hand_over(model: nn.Module, example_inputs: Inputs, masks: MaskSet | None = None) -> CompressedModel:
    """Return a plain copy of a sparse network in eval mode, its zeros made permanent, with report and recipe.

    Spectral norm is replaced by the weight it yields. The copy is an ordinary network with all its zeros: numbers of
    parameters and MACs stay, the file is smaller. `Quantizer` quantizes it and keeps the zeros.

    Args:
        model: the trained network, or its average; left as it is.
        example_inputs: arguments of one forward pass, a tuple; MACs are counted for this batch.
        masks: of a network of the same structure, whose zeros `model` must have; None (default): taken as they are.

    Returns:
        The network; its report tells bytes with and without zeros, and how many weights of each layer are not zero.

    Raises:
        CompressionError: a weight that is off in `masks` is not zero in `model`, or `model` does not run.
    """
    if masks is not None:
        _check_zeros(model, masks)
    work = begin(model, example_inputs)
    names = [name for name, layer in work.model.named_modules() if isinstance(layer, MASKABLE_LAYERS)]
    check_layers(work.model, names)
    weights = {name: work.model.get_submodule(name).get_parameter("weight") for name in names}
    on = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    counts = {weight: on[name] for name, weight in weights.items()}  # one that layers share once
    total = sum(weight.numel() for weight in counts)
    density = sum(counts.values()) / total if total else 1.0
    notes = {name: f"{on[name]:,} of {weight.numel():,} weights are not zero" for name, weight in weights.items()}
    work = work.changed(notes, recipe=replace(work.recipe, sparse=True))
    return finish(work.done(f"sparse {density:.2g}", {"compressor": "sparse", "density": density}))


def _check_zeros(model: nn.Module, masks: MaskSet) -> None:
    weights = dict(model.named_parameters())
    for name, mask in masks.masks.items():
        if name not in weights or bool(weights[name].detach().cpu()[~mask.cpu()].any()):
            raise CompressionError(f"model is not sparse as masks say: {name} is absent, or not zero where it is off")
