"""The two metrics as functions of two sets of features.

Precision is the share of generated samples inside the support of the real ones, recall the share of real samples
inside the support of the generated ones (Kynkäänniemi et al., 2019). Support by locality-sensitive hashing follows
Mordido, Yang and Meinel, "Evaluating Post-Training Compression in GANs using Locality-Sensitive Hashing" (2021), of
which no code is public; the definitions are this project's and are stated in ``docs/metrics.md``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from typing import Any

import numpy.typing as npt
import torch

from torch_fidelity_lsh.metric import lsh, lsh_knn
from torch_fidelity_lsh.metric.anchors import SHARE_OF_ANCHORS
from torch_fidelity_lsh.metric.arrays import as_features
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.conformal import Crowding, Estimate, Scored, estimate, membership_pvalue
from torch_fidelity_lsh.metric.coordinates import Coordinates, distances_to
from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.metric.members import Members, content_hash
from torch_fidelity_lsh.metric.messages import did_you_mean
from torch_fidelity_lsh.metric.parallel import mapped, outer_threads
from torch_fidelity_lsh.metric.reduction import RESOLUTION, ReducedFeatures
from torch_fidelity_lsh.metric.spacing import NUM_ANCHORS, Spacing

Features = torch.Tensor | npt.NDArray[Any] | ReducedFeatures


ScoreFolds = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, LSHConfig], list[Scored]]
METRICS: dict[str, ScoreFolds] = {"lsh": lsh.score_folds, "lsh_knn": lsh_knn.score_folds}

FEWEST_ROWS = 8  # distinct ones, of which two can be held out in each of four folds
FEW_EFFECTIVE = 1 / 20  # of the samples
MANY_NEAR_COPIES = 0.05  # of the distinct samples


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall with what is needed to understand them.

    Attributes:
        metric: ``"lsh"`` or ``"lsh_knn"``, the prefix of the keys of :meth:`to_dict`.
        precision_estimate: Estimate of the share of generated samples that are members of the real set.
        recall_estimate: Estimate of the share of real samples that are members of the generated set.
        precision_pvalue: P-value in [0, 1] of the hypothesis that all generated samples are members of the real set.
        recall_pvalue: The same for the real samples.
        protocol: All that a reader needs to repeat the measurement: direction, sample sizes, settings, versions.
    """

    metric: str
    precision_estimate: Estimate = field(repr=False)
    recall_estimate: Estimate = field(repr=False)
    precision_pvalue: float
    recall_pvalue: float
    protocol: dict[str, Any] = field(repr=False)

    @property
    def precision(self) -> float:
        """Share in [0, 1] of generated samples inside the real support."""
        return min(1.0, self.precision_unclipped)

    @property
    def recall(self) -> float:
        """Share in [0, 1] of real samples inside the generated support."""
        return min(1.0, self.recall_unclipped)

    @property
    def precision_unclipped(self) -> float:
        """Precision before it is clipped at 1; its expectation is 1 where both sides have one distribution."""
        return self.precision_estimate.value

    @property
    def recall_unclipped(self) -> float:
        """Recall before it is clipped at 1, likewise."""
        return self.recall_estimate.value

    @property
    def precision_stderr(self) -> float:
        """Standard error of ``precision_unclipped``: over samples, calibration sets, folds and anchors."""
        return math.sqrt(self.precision_estimate.variance)

    @property
    def recall_stderr(self) -> float:
        """Standard error of ``recall_unclipped``, likewise."""
        return math.sqrt(self.recall_estimate.variance)

    @property
    def precision_memberships(self) -> torch.Tensor:
        """Conformal p-value in (0, 1) of each generated sample, float64 on the CPU; the lowest are the outliers."""
        return self.precision_estimate.pvalues.cpu()

    @property
    def recall_memberships(self) -> torch.Tensor:
        """The same for each real sample."""
        return self.recall_estimate.pvalues.cpu()

    @property
    def effective_generated(self) -> float:
        """Number of independent observations the generated samples amount to; few where they crowd (collapse)."""
        return self.precision_estimate.effective_samples

    @property
    def effective_real(self) -> float:
        """The same for the real samples."""
        return self.recall_estimate.effective_samples

    @property
    def f_score(self) -> float:
        """Harmonic mean of precision and recall, 0 if both are."""
        return harmonic_mean(self.precision, self.recall)

    @property
    def f_score_stderr(self) -> float:
        """Standard error of the F-score by the delta method, errors of precision and recall taken as independent."""
        slopes = f_score_slopes(self.precision, self.recall)
        return math.hypot(slopes[0] * self.precision_stderr, slopes[1] * self.recall_stderr)

    def interval(self, name: str) -> tuple[float, float]:
        """Return the 95 % confidence interval of ``"precision"``, ``"recall"`` or ``"f_score"``, within [0, 1].

        Raises:
            ValueError: The name is none of these.
        """
        known = "precision", "recall", "f_score"
        if name not in known:
            raise ValueError(f"name must be one of {', '.join(known)}; got {name!r}{did_you_mean(name, known)}")
        value = self.f_score if name == "f_score" else getattr(self, f"{name}_unclipped")
        half = 1.96 * getattr(self, f"{name}_stderr")
        # From the clipped value down: never a point, however far above 1 the unclipped one is.
        return max(0.0, min(1.0, value) - half), min(1.0, value + half)

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
    "precision_unclipped",
    "recall_unclipped",
    "precision_stderr",
    "recall_stderr",
    "precision_ci_low",
    "precision_ci_high",
    "recall_ci_low",
    "recall_ci_high",
    "f_score_ci_low",
    "f_score_ci_high",
    "precision_pvalue",
    "recall_pvalue",
    "effective_generated",
    "effective_real",
)


def harmonic_mean(precision: float, recall: float) -> float:
    """Return the harmonic mean of precision and recall, 0 if both are."""
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def f_score_slopes(precision: float, recall: float) -> tuple[float, float]:
    """Return the derivatives of the F-score by precision and by recall, 1/2 each where both are 0."""
    total = precision + recall
    return (2 * recall**2 / total**2, 2 * precision**2 / total**2) if total else (0.5, 0.5)


@default_modes()
def lsh_precision_recall(
    features_generated: Features, features_real: Features, config: LSHConfig | None = None
) -> PrecisionRecall:
    """Measure precision and recall by a constant number of distances for each sample.

    Half of a set draws anchors; a sample's score says how near it is to its nearest anchors, compared with how near
    these are to each other. Its conformal p-value among members of the other half that share its nearest anchors tells
    whether it is unusual there (``docs/metrics.md``).

    Args:
        features_generated: M x D generated samples, float tensor or array, or reduced; M >= 8.
        features_real: N x D real samples, or reduced; N >= 8, on the same device.
        config: Settings. Default: ``LSHConfig()``.

    Raises:
        ValueError: Features have the wrong type, shape or device, hold NaN or infinite values, are too few, or vary too
            little beside their mean to be told apart once they are reduced.

    Warns:
        UserWarning: One side collapses onto so few places that it amounts to less than a twentieth of its samples.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> real = rng.standard_normal((500, 16))
        >>> collapsed = 0.5 * rng.standard_normal((500, 16)) + real[0]
        >>> lsh_precision_recall(real[:250], real[250:]).precision > 0.8
        True
        >>> lsh_precision_recall(collapsed, real).recall < 0.1
        True
    """
    return measure("lsh", features_generated, features_real, config or LSHConfig())


@default_modes()
def lsh_knn_precision_recall(
    features_generated: Features, features_real: Features, config: LSHConfig | None = None
) -> PrecisionRecall:
    """Measure precision and recall by the distances to nearest neighbours that hashing finds.

    As :func:`lsh_precision_recall`, but the score is a local outlier factor: how far a sample's nearest in a set are,
    in units of how far these have theirs.
    """
    return measure("lsh_knn", features_generated, features_real, config or LSHConfig())


MEASURES: dict[str, Callable[..., PrecisionRecall]] = {
    "lsh": lsh_precision_recall,
    "lsh_knn": lsh_knn_precision_recall,
}


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
    with outer_threads(features):
        return _reduced("features", features, 1, config or LSHConfig())


@dataclass(frozen=True)
class Side:
    """One of the two sets.

    Attributes:
        reduced: Its features.
        members: Its distinct rows.
        spacing: How close these lie to each other.
    """

    reduced: ReducedFeatures
    members: Members
    spacing: Spacing


def measure(
    metric: str,
    features_generated: Features,
    features_real: Features,
    config: LSHConfig,
    in_order_of: ReducedFeatures | None = None,
) -> PrecisionRecall:
    """Measure ``"lsh"`` or ``"lsh_knn"``, the generated samples in the order of these, row by row, if given."""
    with outer_threads(features_generated, features_real):
        given = {"features_generated": features_generated, "features_real": features_real}
        generated, real = _sides(reduced_alike(given, config, FEWEST_ROWS), config, in_order_of)
        (precision, precision_pvalue), (recall, recall_pvalue) = mapped(
            lambda pair: _assess(metric, *pair, config), ((generated, real), (real, generated))
        )
    _warn_of_collapse({"generated": precision, "real": recall})
    _warn_of_near_copies({"generated": generated, "real": real})
    return PrecisionRecall(
        metric=metric,
        precision_estimate=precision,
        recall_estimate=recall,
        precision_pvalue=precision_pvalue,
        recall_pvalue=recall_pvalue,
        protocol={
            "direction": "precision: generated in real; recall: real in generated",
            "num_generated": len(generated.reduced),
            "num_real": len(real.reduced),
            "effective_generated": precision.effective_samples,
            "effective_real": recall.effective_samples,
            "repeats_generated": generated.members.share_of_repeats,
            "repeats_real": real.members.share_of_repeats,
            "near_copies_generated": generated.spacing.share_of_near_copies,
            "near_copies_real": real.spacing.share_of_near_copies,
            "dimension": real.reduced.dimension,
            **asdict(config),
            "versions": {name: _version(name) for name in ("torch-fidelity-lsh", "torch-fidelity", "torch", "numpy")},
        },
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # The package runs from a folder of sources, as a part of other code may.
        return "not installed"


def _sides(reduced: list[ReducedFeatures], config: LSHConfig, in_order_of: ReducedFeatures | None) -> list[Side]:
    generated, real = reduced
    coordinates = Coordinates.fit(real.values)
    _refuse_lost_variation(coordinates, real)
    # Powers of two change no digit, and so not the order.
    exponent = -torch.maximum(real.values.max(), -real.values.min()).frexp().exponent

    def of_side(pair: tuple[ReducedFeatures, ReducedFeatures]) -> Members:
        order = content_hash(pair[1].values, exponent)
        return Members.of(pair[0].values, order, FEWEST_ROWS, config.seed)

    members = mapped(of_side, zip(reduced, (in_order_of or generated, real), strict=True))
    num_anchors = min(NUM_ANCHORS, *(len(each.values) // SHARE_OF_ANCHORS for each in members))
    spacings = mapped(lambda each: Spacing.of(each.values, coordinates, num_anchors, config.seed), members)
    return [Side(*parts) for parts in zip(reduced, members, spacings, strict=True)]


def _assess(metric: str, assessed: Side, members: Side, config: LSHConfig) -> tuple[Estimate, float]:
    """Estimate the share of assessed samples that are members, and test whether all are."""
    folds = METRICS[metric](assessed.reduced.values, members.members.values, members.spacing.groups, config)
    rows, spacings = assessed.members.of_row, (assessed.spacing, members.spacing)
    crowding = [Crowding.of(fold, rows, *spacings) for fold in folds]
    common = folds, crowding, len(members.members.values)
    return estimate(*common, config.storey_lambda), membership_pvalue(*common)


def _warn_of_collapse(estimates: dict[str, Estimate]) -> None:
    for side, found in estimates.items():
        # Where none is a member, it does not matter how many say so.
        if found.value and found.effective_samples < FEW_EFFECTIVE * len(found.weights):
            warnings.warn(
                f"the {len(found.weights)} {side} samples lie so close together, beside their distance to the others, "
                f"that they amount to {found.effective_samples:.0f} independent ones: this side may have collapsed, "
                "and its interval is wide",
                stacklevel=6,
            )


def _warn_of_near_copies(sides: dict[str, Side]) -> None:
    for name, side in sides.items():
        if side.spacing.share_of_near_copies > MANY_NEAR_COPIES:
            warnings.warn(
                f"{side.spacing.share_of_near_copies:.0%} of the {name} samples nearly repeat another one; they are "
                "held out together, but count as samples: remove them if they should not",
                stacklevel=6,
            )


def _refuse_lost_variation(fitted: Coordinates, real: ReducedFeatures) -> None:
    least = RESOLUTION * float(fitted.centre.norm())
    if real.dimension <= real.num_components or fitted.norm >= least:
        return
    # Where most rows are one, as of black images, the others tell; where all are, rounding may have made them so.
    distances = distances_to(fitted.centre, real.values)
    apart = distances[distances > 0]
    if not len(apart) or apart.median() < least:
        raise ValueError(
            f"features_real are equal, or vary by less than a {round(1 / RESOLUTION)}th of their mean, to about which "
            f"they are rounded where they are reduced to {real.num_components} components; subtract their mean from "
            "both sides first"
        )


def reduced_alike(sides: Mapping[str, Features], config: LSHConfig, at_least: int = 1) -> list[ReducedFeatures]:
    """Reduce sets of samples that are to be compared, where they are not reduced yet.

    Args:
        sides: Name of the argument to what it gave.
        config: Settings, of which those of the reduction matter.
        at_least: Fewest rows of a set. Default: 1.

    Raises:
        ValueError: Names the argument that is of no use, or two that differ in dimension, source or device.
    """
    with outer_threads(*sides.values()):
        reduced = {name: _reduced(name, features, at_least, config) for name, features in sides.items()}
    for pair in combinations(reduced, 2):
        _refuse_unlike(" and ".join(pair), *(reduced[name] for name in pair))
    return list(reduced.values())


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
        raise ValueError(f"{name} must hold at least {at_least} samples; got {len(reduced)}")
    return reduced


def _refuse_unlike(names: str, one: ReducedFeatures, other: ReducedFeatures) -> None:
    if one.dimension != other.dimension:
        shapes = " and ".join(str((len(side), side.dimension)) for side in (one, other))
        raise ValueError(f"{names} must have the same D; got shapes {shapes}")
    if one.source and other.source and one.source != other.source:
        raise ValueError(f"{names} must be of one kind; got {one.source} and {other.source}")
    if one.device != other.device:
        raise ValueError(f"{names} must be on one device; got {one.device} and {other.device}")
