"""Precision and recall as metrics of pruna, ``"lsh_precision"`` to ``"lsh_knn_f_score"``, registered on import.

>>> import torch_fidelity_lsh.pruna  # doctest: +SKIP
>>> Task(["lsh_precision", "lsh_recall"], datamodule)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

try:
    from pruna.evaluation.metrics.metric_stateful import StatefulMetric
    from pruna.evaluation.metrics.registry import MetricRegistry
    from pruna.evaluation.metrics.result import MetricResult
    from pruna.evaluation.metrics.utils import SINGLE, get_call_type_for_single_metric, metric_data_processor
except ImportError as error:
    raise ImportError(f'This needs pruna ({error}): pip install "torch-fidelity-lsh[pruna]"') from error

from torch_fidelity_lsh.metric.functional import METRICS
from torch_fidelity_lsh.streaming import LSHPrecisionRecall

_OF = {metric: [f"{metric}_{number}" for number in ("precision", "recall", "f_score")] for metric in METRICS}
NAMES = tuple(name for names in _OF.values() for name in names)


@MetricRegistry.register_wrapper(available_metrics=NAMES)
class PrunaPrecisionRecall(StatefulMetric):  # type: ignore[misc]
    """One number of :class:`LSHPrecisionRecall`, of the outputs of a model against real images or a base model's.

    Args:
        metric_name: One of ``NAMES``.
        device: As in pruna.
        call_type: ``"single"`` (default), against the images of the data; ``"pairwise"``, against the base model's.
        **kwargs: Arguments of :class:`LSHPrecisionRecall`, such as ``feature="efficientnet-lite0"``.

    Raises:
        ValueError: An argument is none of these.
    """

    higher_is_better = True
    default_call_type = "gt_y"
    runs_on: ClassVar[list[str]] = ["cuda", "cpu"]

    def __init__(
        self,
        metric_name: str,
        device: str | torch.device | None = None,
        call_type: str = SINGLE,
        **kwargs: Any,
    ) -> None:
        if metric_name not in NAMES:
            raise ValueError(f"metric_name must be one of {', '.join(NAMES)}; got {metric_name!r}")
        self.metric_name = metric_name
        super().__init__(device=device)
        self.call_type = get_call_type_for_single_metric(call_type, self.default_call_type)
        metric = next(metric for metric, names in _OF.items() if metric_name in names)
        self.metric = LSHPrecisionRecall(metrics=metric, **kwargs).to(self.device)

    def update(self, x: Any, gt: Any, outputs: Any) -> None:
        """Add a batch of images, uint8 or floats in [0, 1], B x 3 x H x W."""
        real, generated = metric_data_processor(x, gt, outputs, self.call_type, self.device)
        self.metric.update(_as_bytes(real, "ground truth"), real=True)
        self.metric.update(_as_bytes(generated, "outputs"), real=False)

    def compute(self) -> Any:
        """Return the number, in [0, 1], as pruna's result."""
        value = self.metric.compute()[self.metric_name].item()
        return MetricResult(self.metric_name, {}, value, higher_is_better=True)

    def reset(self) -> None:
        """Forget all samples."""
        self.metric.reset()

    def move_to_device(self, device: str | torch.device) -> None:
        """Move what has been added."""
        super().move_to_device(device)
        self.metric.to(self.device)


def _as_bytes(images: Any, what: str) -> Any:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        return images
    if not (float(images.min()) >= 0 and float(images.max()) <= 1):  # So for NaN.
        raise ValueError(f"{what} must be images in uint8, or floats in [0, 1]")
    return (images * 255).round().byte()
