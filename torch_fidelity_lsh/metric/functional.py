"""The two metrics as functions of two sets of features.

Precision is the share of generated samples inside the support of the real ones, recall the share of real samples
inside the support of the generated ones (Kynkäänniemi et al., 2019). Support by locality-sensitive hashing follows
Mordido, Yang and Meinel, "Evaluating Post-Training Compression in GANs using Locality-Sensitive Hashing" (2021), of
which no code is public; the definitions are this project's and are stated in ``docs/metrics.md``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

import numpy.typing as npt
import torch

from torch_fidelity_lsh.metric.arrays import as_features
from torch_fidelity_lsh.metric.calibration import Verdict
from torch_fidelity_lsh.metric.config import LSHConfig, ResolvedConfig
from torch_fidelity_lsh.metric.coordinates import Coordinates, distinct
from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.metric.lsh import BucketSupport
from torch_fidelity_lsh.metric.lsh_knn import NeighbourSupport
from torch_fidelity_lsh.metric.reduction import RESOLUTION, ReducedFeatures

Features = torch.Tensor | npt.NDArray[Any] | ReducedFeatures


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall with what is needed to understand them.

    Attributes:
        metric: ``"lsh"`` or ``"lsh_knn"``, the prefix of the keys of :meth:`to_dict`.
        precision: Share in [0, 1] of generated samples inside the real support, relative to real samples left out.
        recall: Share in [0, 1] of real samples inside the generated support, likewise.
        precision_raw: Mean of ``precision_memberships``.
        recall_raw: Mean of ``recall_memberships``.
        precision_stderr: Standard error of ``precision``, over samples and, in ``lsh``, over hash tables. That of a
            precision of 1 or 0 is what it would be next to it.
        recall_stderr: The same for ``recall``.
        precision_memberships: Membership in [0, 1] of each generated sample, float64 on the CPU, in the given order.
            The lowest are the outliers.
        recall_memberships: The same for each real sample.
        protocol: All that a reader needs to repeat the measurement: direction, sample sizes, settings, fitted widths,
            versions.
    """

    metric: str
    precision: float
    recall: float
    precision_raw: float
    recall_raw: float
    precision_stderr: float
    recall_stderr: float
    precision_memberships: torch.Tensor = field(repr=False)
    recall_memberships: torch.Tensor = field(repr=False)
    protocol: dict[str, Any] = field(repr=False)

    @property
    def f_score(self) -> float:
        """Harmonic mean of precision and recall, 0 if both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    @property
    def f_score_stderr(self) -> float:
        """Standard error of the F-score by the delta method, errors of precision and recall taken as independent."""
        total = self.precision + self.recall
        if not total:
            return max(self.precision_stderr, self.recall_stderr)
        slopes = 2 * self.recall**2 / total**2, 2 * self.precision**2 / total**2
        return math.hypot(slopes[0] * self.precision_stderr, slopes[1] * self.recall_stderr)

    def interval(self, name: str) -> tuple[float, float]:
        """Return the 95 % confidence interval of ``"precision"``, ``"recall"`` or ``"f_score"``, within [0, 1]."""
        value, half = getattr(self, name), 1.96 * getattr(self, f"{name}_stderr")
        return max(0.0, value - half), min(1.0, value + half)

    def to_dict(self) -> dict[str, float]:
        """Return all numbers under the keys of fidelity calls, such as ``lsh_precision`` and ``lsh_recall_ci_low``."""
        numbers = {name: getattr(self, name) for name in NUMBERS if not name.endswith(("_ci_low", "_ci_high"))}
        for name in ("precision", "recall", "f_score"):
            numbers[f"{name}_ci_low"], numbers[f"{name}_ci_high"] = self.interval(name)
        return {f"{self.metric}_{name}": numbers[name] for name in NUMBERS}

    def __repr__(self) -> str:
        sizes = f"{self.protocol['num_generated']} generated, {self.protocol['num_real']} real"
        return (
            f"{self.metric}: precision {self.precision:.4f} ± {self.precision_stderr:.4f}, "
            f"recall {self.recall:.4f} ± {self.recall_stderr:.4f}, F {self.f_score:.4f} ({sizes})"
        )


NUMBERS = (
    "precision",
    "recall",
    "f_score",
    "precision_raw",
    "recall_raw",
    "precision_stderr",
    "recall_stderr",
    "precision_ci_low",
    "precision_ci_high",
    "recall_ci_low",
    "recall_ci_high",
    "f_score_ci_low",
    "f_score_ci_high",
)


@default_modes()
def lsh_precision_recall(
    features_generated: Features, features_real: Features, config: LSHConfig | None = None
) -> PrecisionRecall:
    """Measure precision and recall by hashing alone.

    Buckets of several widths show at which scale a sample has company in a set. It passes if it has company as early,
    compared with the samples it then meets, as the median sample of the set has when left out itself. A second test at
    the coarsest width keeps samples piled up in a dense spot from paying for others far away.

    Args:
        features_generated: M x D generated samples, float tensor or array, or reduced; M >= 2.
        features_real: N x D real samples, or reduced; N >= 2, on the same device.
        config: Settings. Default: ``LSHConfig()``.

    Raises:
        ValueError: Features have the wrong type, shape or device, hold NaN or infinite values, or are too few; or
            ``bucket_width`` is so small that no real sample shares a bucket with another.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> real = rng.standard_normal((500, 16))
        >>> collapsed = 0.1 * rng.standard_normal((500, 16)) + real[0]
        >>> lsh_precision_recall(real[:250], real[250:]).precision > 0.8
        True
        >>> lsh_precision_recall(collapsed, real).recall < 0.1
        True
    """
    return _measure("lsh", BucketSupport, features_generated, features_real, config or LSHConfig(), at_least=2)


@default_modes()
def lsh_knn_precision_recall(
    features_generated: Features, features_real: Features, config: LSHConfig | None = None
) -> PrecisionRecall:
    """Measure precision and recall by the distances to nearest neighbours that hashing finds.

    A sample passes if its k nearest in a set are as near, in units of how near these have theirs, as those of the
    median sample of the set when left out itself. A second test, which 95 % of the set's own samples pass, keeps
    samples piled up in a dense spot from paying for others far away.

    Args:
        features_generated: M x D generated samples, float tensor or array, or reduced; M >= ``neighborhood`` + 2, or 4.
        features_real: N x D real samples, or reduced; N >= ``neighborhood`` + 2, or 4, on the same device.
        config: Settings. Default: ``LSHConfig()``.

    Raises:
        ValueError: As :func:`lsh_precision_recall`.
    """
    config = config or LSHConfig()
    # A left-out sample leaves one fewer, of which each needs k others.
    at_least = (config.neighborhood or 2) + 2
    return _measure("lsh_knn", NeighbourSupport, features_generated, features_real, config, at_least)


@default_modes()
def reduce_features(features: Features, config: LSHConfig | None = None) -> ReducedFeatures:
    """Keep of a set of samples what both metrics need: the set can be given to them in this form.

    Args:
        features: N x D, N >= 1, float tensor or array.
        config: Settings, of which ``num_components`` and ``seed`` matter. Default: ``LSHConfig()``.

    Raises:
        ValueError: Features have the wrong type or shape, or hold NaN or infinite values.

    Example:
        >>> import numpy as np
        >>> features = np.random.default_rng(0).standard_normal((100, 2048))
        >>> reduce_features(features).values.shape
        torch.Size([100, 128])
    """
    return _reduced("features", features, 1, config or LSHConfig())


class _Support(Protocol):
    def compare(self, generated: torch.Tensor, real: torch.Tensor, thinned_to: int) -> tuple[Verdict, Verdict]: ...

    def to_dict(self) -> dict[str, object]: ...


class _SupportType(Protocol):
    def fit(self, real: torch.Tensor, thinned_to: int, config: ResolvedConfig) -> _Support: ...


def _measure(
    metric: str,
    support_type: _SupportType,
    features_generated: Features,
    features_real: Features,
    requested: LSHConfig,
    at_least: int,
) -> PrecisionRecall:
    generated, real = _reduced_sides(features_generated, features_real, at_least, requested)
    num_generated, num_real, dimension = len(generated), len(real), real.dimension
    # The larger side is judged as if it had as many samples as the smaller: more samples fill more buckets.
    matched = min(num_generated, num_real)
    config = requested.resolve(metric, matched)
    fitted = Coordinates.fit(real.values, config.coordinates)
    _refuse_lost_variation(fitted, real)
    coordinates, coordinates_real = fitted(generated.values), fitted(real.values)
    del generated, real  # Features may be many, and are not needed any more.
    # Repeated rows share every bucket however narrow, and say nothing of the width that others need.
    varied = distinct(coordinates_real)
    support = support_type.fit(varied, min(matched, len(varied)), config)
    precision, recall = support.compare(coordinates, coordinates_real, matched)
    if config.bucket_width is not None and not precision.strict.left_out.any():
        raise ValueError(f"bucket_width={config.bucket_width} is too small: hardly any two real samples share a bucket")
    return PrecisionRecall(
        metric=metric,
        precision=precision.value,
        recall=recall.value,
        precision_raw=precision.raw,
        recall_raw=recall.raw,
        precision_stderr=precision.stderr,
        recall_stderr=recall.stderr,
        precision_memberships=precision.memberships.cpu(),
        recall_memberships=recall.memberships.cpu(),
        protocol={
            "direction": "precision: generated in real; recall: real in generated",
            "num_generated": num_generated,
            "num_real": num_real,
            "matched_size": matched,
            "dimension": dimension,
            **asdict(config),
            **support.to_dict(),
            "versions": {name: version(name) for name in ("torch-fidelity-lsh", "torch-fidelity", "torch", "numpy")},
        },
    )


def _reduced_sides(
    features_generated: Features, features_real: Features, at_least: int, config: LSHConfig
) -> tuple[ReducedFeatures, ReducedFeatures]:
    generated = _reduced("features_generated", features_generated, at_least, config)
    real = _reduced("features_real", features_real, at_least, config)
    _refuse_unlike(generated, real)
    return generated, real


def _refuse_lost_variation(fitted: Coordinates, real: ReducedFeatures) -> None:
    offset = float(fitted.centre.norm())
    is_constant = fitted.norm <= torch.finfo(torch.float64).tiny
    if real.dimension > real.num_components and not is_constant and fitted.norm < RESOLUTION * offset:
        raise ValueError(
            f"features_real vary by less than a {round(1 / RESOLUTION)}th of their mean, and are rounded to about that "
            f"where they are reduced to {real.num_components} components; subtract their mean from both sides first"
        )


def _reduced(name: str, features: Features, at_least: int, config: LSHConfig) -> ReducedFeatures:
    if isinstance(features, ReducedFeatures):
        for setting in ("num_components", "seed"):
            wanted, given = getattr(config, setting), getattr(features, setting)
            if wanted != given:
                raise ValueError(f"{name} were reduced with {setting}={given}, and {setting}={wanted} is asked for")
        reduced = features
    else:
        reduced = ReducedFeatures.of(as_features(features, name), config.num_components, config.seed, config.batch_size)
    if len(reduced) < at_least:
        raise ValueError(f"{name} must hold at least {at_least} samples for these settings; got {len(reduced)}")
    return reduced


def _refuse_unlike(generated: ReducedFeatures, real: ReducedFeatures) -> None:
    sides = generated, real
    if generated.dimension != real.dimension:
        shapes = " and ".join(str((len(side), side.dimension)) for side in sides)
        raise ValueError(f"features_generated and features_real must have the same D; got shapes {shapes}")
    if generated.source and real.source and generated.source != real.source:
        sources = " and ".join(side.source for side in sides)
        raise ValueError(f"features_generated and features_real must be of one kind; got {sources}")
    if generated.values.device != real.values.device:
        devices = " and ".join(str(side.values.device) for side in sides)
        raise ValueError(f"features_generated and features_real must be on one device; got {devices}")
