"""The moving average of a generator in training, which is as sparse as the generator."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from compressors.common.bake import independent_copy
from compressors.common.checks import check_inputs
from compressors.common.measure import copied
from compressors.errors import CompressionError


class _Unpacked(nn.Module):
    """Passes a tuple on as separate arguments: `update_bn` knows models of one argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, arguments: tuple[Any, ...]) -> Any:
        return self.model(*copied(arguments))


def moving_average(generator: nn.Module, decay: float) -> AveragedModel:
    """Return an average that starts as a copy of `generator`; ``update_parameters(generator)`` moves it.

    Buffers are copied at each update; `finished_average` measures batch statistics afresh.
    """
    average = AveragedModel(independent_copy(generator), multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    average.update_parameters(generator)
    return average


def finished_average(average: AveragedModel, batches: Iterable[Any]) -> nn.Module:
    """Return a copy of the averaged generator in eval mode, its batch norms measured on `batches`.

    The statistics of the trained generator are not those of the averaged weights.

    Args:
        average: of `moving_average`; left as it was.
        batches: forward arguments of the generator, tensors or tuples; some 100 batches of the size in training.

    Raises:
        CompressionError: there is no batch, as of a stream that was read before, or one is no arguments.
    """
    model = independent_copy(average.module)
    tuples = ((check_inputs("each batch", batch if isinstance(batch, tuple) else (batch,)),) for batch in batches)
    first = next(tuples, None)
    if first is None:
        raise CompressionError("batches holds no batch: batch norms would lose their statistics")
    update_bn(chain([first], tuples), _Unpacked(model))
    return model.eval()
