"""Students by width: the teacher's architecture with fewer channels in every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from compressors.common.checks import check_choice, check_count
from compressors.common.generation import SEED
from compressors.common.measure import Inputs, cuda_devices, seeded
from compressors.prune.pruner import ChannelPruner


def make_student(
    teacher: nn.Module,
    example_inputs: Inputs,
    ratio: float = 0.75,
    init: Literal["fresh", "pruned"] = "fresh",
    *,
    exclude: Sequence[str] = (),
    param_dims: Mapping[str, int | None] | None = None,
    seed: int = SEED,
) -> nn.Module:
    """Return a narrower generator: same inputs, same shape of outputs, `ratio` of the channels less in every layer.

    The layers that make the output keep their channels. On CRD's mobile ResNet, ratio 0.75 is what its authors train:
    ngf 64 with 1,987,075 parameters becomes ngf 16 with 137,347.

    Args:
        teacher: left as it is.
        example_inputs: arguments of one forward pass, a tuple.
        ratio: share of channels to leave out, at least 0 and below 1; default 0.75, about a sixteenth of the
            parameters.
        init: "fresh" (default) draws new weights, by each layer's own ``reset_parameters``, batch statistics included;
            parameters outside of layers that have one keep the teacher's values. "pruned" keeps the weights of the
            channels with the largest norm.
        exclude: see `ChannelPruner`.
        param_dims: see `ChannelPruner`.
        seed: of fresh weights.

    Returns:
        A plain module in eval mode, a `CompressedModel` of which any compressor makes. Its `state_dict` is that of the
        teacher's class with other sizes.

    Raises:
        CompressionError: `teacher` cannot be pruned, or a setting is unusable.

    Source: You et al. 2022, arXiv 2212.11091, section on students; by torch-pruning's dependency graph.
    """
    check_choice("init", init, ("fresh", "pruned"))
    check_count("seed", seed, least=0)
    pruner = ChannelPruner(ratio, importance="l2", exclude=exclude, param_dims=param_dims or {})
    student = pruner.compress(teacher, example_inputs).model
    if init == "fresh":
        with seeded(seed, *cuda_devices(student)):
            for module in student.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
    return student
