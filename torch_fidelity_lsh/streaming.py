"""Both metrics as a ``torchmetrics.Metric``, for training loops; needs the extra ``torchmetrics``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
except ImportError as error:
    raise ImportError(f'This needs torchmetrics ({error}): pip install "torch-fidelity-lsh[torchmetrics]"') from error

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.networks import extractor_class
from torch_fidelity_lsh.metric.arrays import as_features
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.functional import MEASURES, reduce_features
from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.metric.messages import did_you_mean
from torch_fidelity_lsh.metric.parallel import among_ranks
from torch_fidelity_lsh.metric.reduction import ReducedFeatures

INCEPTION = "inception-v3-compat"


class LSHPrecisionRecall(Metric):
    """Precision and recall of generated samples that arrive in batches.

    Keeps 512 bytes a sample, whatever the dimension of the features. The result is that of the functions, to the last
    digit, in any order of batches; under ``torch.distributed`` the ranks' samples count as one set.

    Args:
        feature: What turns images into features. The name of a torch-fidelity extractor, alone (its layer for ``prc``)
            or as ``"name/layer"``; a layer of Inception by its number (64, 192, 768, 2048); a module that maps a batch
            of images to N x D; or `None`: :meth:`update` is given features. Default: ``"vgg16"``.
        metrics: ``"lsh"``, ``"lsh_knn"``, or both. Default: ``("lsh",)``.
        config: Settings of the metrics. Default: ``LSHConfig()``.
        reset_real_features: Whether :meth:`reset` forgets the real samples too. Default: `True`.
        normalize: Whether images are floats in [0, 1], to be turned into uint8. Default: `False`.
        **kwargs: Keywords of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``feature`` or ``metrics`` is none of these.

    Example:
        >>> from torch_fidelity_lsh.streaming import LSHPrecisionRecall
        >>> metric, draw = LSHPrecisionRecall(feature=None), torch.Generator().manual_seed(0)
        >>> for _ in range(4):
        ...     metric.update(torch.randn(100, 300, generator=draw), real=True)
        ...     metric.update(torch.randn(100, 300, generator=draw) + 10, real=False)
        >>> metric.compute()["lsh_precision"]
        tensor(0.)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    real: list[Tensor]
    generated: list[Tensor]
    dimension: Tensor
    forgets_real: Tensor
    settings: Tensor

    @default_modes()
    def __init__(
        self,
        feature: int | str | nn.Module | None = "vgg16",
        metrics: str | Sequence[str] = ("lsh",),
        config: LSHConfig | None = None,
        reset_real_features: bool = True,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        if not metrics:
            raise ValueError(f"metrics must name at least one of {', '.join(MEASURES)}")
        for name in metrics:
            if name not in MEASURES:
                raise ValueError(
                    f"metrics must be of {', '.join(MEASURES)}; got {name!r}{did_you_mean(name, MEASURES)}"
                )
        self.metrics = metrics
        self.config = config or LSHConfig()
        self.reset_real_features = reset_real_features
        self.normalize = normalize
        self.extractor = _extractor(feature)
        self._facts = {f"config: {field.name}": getattr(self.config, field.name) for field in fields(self.config)}
        self._facts["feature"] = type(feature).__name__ if isinstance(feature, nn.Module) else feature
        # Flat, since a rank without samples does not know how many numbers the others keep of each.
        self.add_state("real", default=[], dist_reduce_fx="cat")
        self.add_state("generated", default=[], dist_reduce_fx="cat")
        # Of all ranks, and of metrics that were merged, to be compared; 0 without samples.
        self.add_state("dimension", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx="cat")
        # A collection lets metrics of equal states share one, which those that keep their real samples must not.
        self.add_state("forgets_real", default=torch.tensor(int(reset_real_features)), dist_reduce_fx="max")
        # Of all ranks, to be compared: what one keeps must mean the same to the others.
        self.add_state("settings", default=_digests(self._facts), dist_reduce_fx="cat")

    @default_modes()
    def update(self, images_or_features: Tensor | npt.NDArray[Any], real: bool) -> None:
        """Add samples; an empty batch adds nothing.

        Args:
            images_or_features: Images N x 3 x H x W, uint8, or floats in [0, 1] with ``normalize``, or whatever the
                module given as ``feature`` takes; features N x D if ``feature`` is `None`.
            real: Whether the samples are real.

        Raises:
            ValueError: The samples have the wrong type, range or shape, hold NaN or infinite values, or another D than
                before.
        """
        if isinstance(images_or_features, (Tensor, np.ndarray)) and images_or_features.shape[:1] == (0,):
            return
        features = as_features(self._features(images_or_features), "features")
        dimension = int(self.dimension.max()) or features.shape[-1]
        if features.shape[-1] != dimension:
            raise ValueError(f"Samples must have {dimension} features each, as before; got {tuple(features.shape)}")
        # A copy, since few dimensions are kept as they are, and loops fill one tensor again and again.
        values = reduce_features(features.float(), self.config).values.flatten().clone()
        self.dimension.fill_(dimension)
        (self.real if real else self.generated).append(values)

    def forward(self, images_or_features: Tensor | npt.NDArray[Any], real: bool) -> None:
        """Add samples as :meth:`update`; a batch of one side has no value of its own, so nothing is returned."""
        self.update(images_or_features, real)

    @default_modes()
    def compute(self) -> dict[str, Tensor]:
        """Return ``<metric>_precision``, ``<metric>_recall`` and ``<metric>_f_score``, each in [0, 1].

        Raises:
            ValueError: There are too few samples of a side, or ranks have different settings.
        """
        self._refuse_other_settings()
        sides = self._reduced("generated"), self._reduced("real")
        are_shared = self._is_synced and dist.is_available() and dist.is_initialized() and sides[0].device.type == "cpu"
        with among_ranks(self.process_group or dist.group.WORLD) if are_shared else nullcontext():
            results = {name: MEASURES[name](*sides, self.config) for name in self.metrics}
        return {
            f"{name}_{number}": torch.tensor(getattr(result, number), device=self.device)
            for name, result in results.items()
            for number in ("precision", "recall", "f_score")
        }

    @default_modes()
    def reset(self) -> None:
        """Forget the generated samples, and the real ones unless they are to be kept."""
        real, dimension = list(self.real), self.dimension
        super().reset()
        if not self.reset_real_features:
            self.real, self.dimension = real, dimension

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result, or several over time; arguments and result as in torchmetrics."""
        return self._plot(val, ax)

    def set_dtype(self, dst_type: Any) -> LSHPrecisionRecall:
        """Do nothing: what is kept is exact in float32, and would not be in less."""
        return self

    def _features(self, samples: Tensor | npt.NDArray[Any]) -> Tensor | npt.NDArray[Any]:
        if self.extractor is None:
            return samples
        if isinstance(samples, np.ndarray):  # A copy of memory that torch must not write to.
            samples = torch.from_numpy(np.require(samples, requirements=["C", "W"]))
        images = samples
        if self.normalize:
            _refuse_other_range(images)
            images = (images * 255).byte()
        with torch.no_grad():
            features: Tensor = self.extractor(images)
        if not isinstance(features, Tensor):
            raise ValueError(f"feature: the module must return a tensor N x D; got {type(features).__name__}")
        return features

    def _refuse_other_settings(self) -> None:
        own = _digests(self._facts).to(self.settings.device)
        for rank, settings in enumerate(self.settings.view(-1, len(self._facts))):
            for (name, value), is_same in zip(self._facts.items(), (settings == own).tolist(), strict=True):
                if not is_same:
                    raise ValueError(
                        f"{name} of rank {rank}, or of the state that was loaded, is not that of this metric, "
                        f"{value!r}; samples reduced in different ways cannot be compared"
                    )

    def _reduced(self, side: str) -> ReducedFeatures:
        held = getattr(self, side)
        if len(held) == 0:
            raise ValueError(f"There are no {side} samples: call update(..., real={side == 'real'}) first")
        dimensions = sorted(set(self.dimension.flatten().tolist()) - {0})
        if len(dimensions) > 1:
            listed = " and ".join(map(str, dimensions))
            raise ValueError(f"Samples of all ranks and of merged metrics must have as many features; got {listed}")
        (dimension,), components = dimensions, self.config.num_components
        values = dim_zero_cat(held).view(-1, min(dimension, components))
        return ReducedFeatures(values, dimension, components, self.config.seed)


def _digests(facts: dict[str, Any]) -> Tensor:
    """Return a number for each fact, equal only where the facts are."""
    texts = (repr(value) for value in facts.values())
    return torch.tensor([int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") for text in texts])


def _refuse_other_range(images: Tensor) -> None:
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [0, 1] with normalize=True; got {images.dtype}")
    lowest, highest = float(images.amin()), float(images.amax())
    if not (lowest >= 0 and highest <= 1):  # So for NaN.
        raise ValueError(f"images must be in [0, 1] with normalize=True; got values from {lowest:.4g} to {highest:.4g}")


class _Layer(nn.Module):
    """One layer of a torch-fidelity extractor, as a module from images to features."""

    def __init__(self, name: str, layer: str | None) -> None:
        super().__init__()
        found = extractor_class(name, "feature")
        layer = layer or str(found.get_default_feature_layer_for_metric("prc"))
        self.extractor = upstream.create_feature_extractor(name, [layer], cuda=False, verbose=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images N x 3 x H x W, uint8, to features N x D."""
        features: Tensor = self.extractor(images)[0]
        return features


def _extractor(feature: int | str | nn.Module | None) -> nn.Module | None:
    if feature is None or isinstance(feature, nn.Module):
        return feature
    if isinstance(feature, int):
        return _Layer(INCEPTION, str(feature))
    if isinstance(feature, str):
        name, _, layer = feature.partition("/")
        return _Layer(name, layer or None)
    raise ValueError(f"feature must be a name, a layer's number, a module or None; got {type(feature).__name__}")
