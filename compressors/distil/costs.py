"""What teacher and student cost, in the two conventions of counting that published ratios mix up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compressors.common.bake import baked_copy
from compressors.common.latency import batch_ms
from compressors.common.measure import Inputs, count_macs, device_of, run
from compressors.common.text import aligned

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Costs:
    """Costs of one forward pass.

    Attributes:
        parameters: their number.
        macs: multiply-accumulates that are done.
        macs_published: the same with transposed convolutions counted at their output's resolution, as torchprofile does
            and GAN compression papers publish.
        seconds: median of 5 runs on the model's device. Fewer MACs need not be faster: narrow and separable layers wait
            for memory.
    """

    parameters: int
    macs: int
    macs_published: int
    seconds: float

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> Costs:
        """Measure `model`, which is left as it was, in eval mode on forward arguments `inputs`."""
        copy = baked_copy(model)
        macs = count_macs(copy, inputs)
        published = macs[""] + _published_extra(copy, inputs, macs)  # counting has warmed up
        seconds = batch_ms(copy, inputs, device_of(copy)) / 1000
        parameters = sum(parameter.numel() for parameter in copy.parameters())
        return cls(parameters, macs[""], published, seconds)


def cost_table(teacher: Costs, student: Costs) -> str:
    """Return a table of both and of the ratio of each cost, as text."""
    rows: list[tuple[str, ...]] = [("", "parameters", "MACs", "MACs, published convention", "seconds")]
    for name, costs in (("teacher", teacher), ("student", student)):
        counts = (costs.parameters, costs.macs, costs.macs_published)
        rows.append((name, *(f"{count:,}" for count in counts), f"{costs.seconds:.4g}"))
    pairs = zip(vars(teacher).values(), vars(student).values(), strict=True)
    rows.append(("ratio", *(f"{before / after:.1f}x" for before, after in pairs)))
    return "\n".join(aligned(rows))


def _published_extra(model: nn.Module, inputs: Inputs, macs: dict[str, int]) -> int:
    """Return what the published convention counts on top for transposed convolutions."""
    extra: list[int] = []

    def count(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
            dims = len(module.kernel_size)  # type: ignore[arg-type]
            before, after = arguments[0].shape[-dims:].numel(), output.shape[-dims:].numel()
            extra.append(round(macs[name] * (after / before - 1)))

        return hook

    hooks = [m.register_forward_hook(count(name)) for name, m in model.named_modules() if isinstance(m, _TRANSPOSED)]
    try:
        run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(extra)
