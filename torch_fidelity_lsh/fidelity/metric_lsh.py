"""The two metrics in torch-fidelity's shape, registered for fidelity calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from torch_fidelity_lsh.fidelity.registry import MetricOption, refuse_unknown_keywords, register_metric
from torch_fidelity_lsh.metric.config import LSHConfig, option_fields
from torch_fidelity_lsh.metric.functional import (
    NUMBERS,
    Features,
    PrecisionRecall,
    lsh_knn_precision_recall,
    lsh_precision_recall,
    reduce_features,
)
from torch_fidelity_lsh.metric.reduction import ReducedFeatures

KEY_METRIC_LSH_PRECISION = "lsh_precision"
KEY_METRIC_LSH_RECALL = "lsh_recall"
KEY_METRIC_LSH_F_SCORE = "lsh_f_score"

KEY_METRIC_LSH_KNN_PRECISION = "lsh_knn_precision"
KEY_METRIC_LSH_KNN_RECALL = "lsh_knn_recall"
KEY_METRIC_LSH_KNN_F_SCORE = "lsh_knn_f_score"

FeaturesDict = Mapping[str, Features]


def lsh_features_to_metric(features_1: Features, features_2: Features, **kwargs: Any) -> dict[str, float]:
    """Calculate ``lsh`` from features.

    Args:
        features_1: N x D features of generated samples, float tensor or array.
        features_2: M x D features of real samples.
        **kwargs: ``lsh_<field of LSHConfig>``, ``rng_seed`` (default 2020), ``cuda`` (compute on the GPU; default:
            where the features are), ``verbose`` (print the values and the protocol to stderr; default `False`).
            Other keywords of fidelity calls are passed over.

    Returns:
        Plain floats under the keys ``lsh_<number>``, ``KEY_METRIC_LSH_*`` among them.

    Raises:
        ValueError: As :func:`~torch_fidelity_lsh.lsh_precision_recall`, or a keyword is unknown.
    """
    return _features_to_metric(lsh_precision_recall, features_1, features_2, kwargs)


def lsh_knn_features_to_metric(features_1: Features, features_2: Features, **kwargs: Any) -> dict[str, float]:
    """Calculate ``lsh_knn`` from features; arguments as :func:`lsh_features_to_metric`.

    Returns:
        Plain floats under the keys ``lsh_knn_<number>``, ``KEY_METRIC_LSH_KNN_*`` among them.

    Raises:
        ValueError: As :func:`~torch_fidelity_lsh.lsh_knn_precision_recall`.
    """
    return _features_to_metric(lsh_knn_precision_recall, features_1, features_2, kwargs)


def lsh_featuresdict_to_metric(
    featuresdict_1: FeaturesDict, featuresdict_2: FeaturesDict, feat_layer_name: str, **kwargs: Any
) -> dict[str, float]:
    """Calculate ``lsh`` from one layer of features by layer; see :func:`lsh_features_to_metric`."""
    features = featuresdict_1[feat_layer_name], featuresdict_2[feat_layer_name]
    return lsh_features_to_metric(*features, **{**kwargs, "feature_layer_lsh": feat_layer_name})


def lsh_knn_featuresdict_to_metric(
    featuresdict_1: FeaturesDict, featuresdict_2: FeaturesDict, feat_layer_name: str, **kwargs: Any
) -> dict[str, float]:
    """Calculate ``lsh_knn`` from one layer of features by layer; see :func:`lsh_features_to_metric`."""
    features = featuresdict_1[feat_layer_name], featuresdict_2[feat_layer_name]
    return lsh_knn_features_to_metric(*features, **{**kwargs, "feature_layer_lsh": feat_layer_name})


def _features_to_metric(
    measure: Callable[[Features, Features, LSHConfig], PrecisionRecall],
    features_1: Features,
    features_2: Features,
    kwargs: Mapping[str, Any],
) -> dict[str, float]:
    refuse_unknown_keywords(kwargs)
    config = LSHConfig.from_kwargs(kwargs)
    if kwargs.get("cuda"):
        features_1, features_2 = (_on_gpu(features) for features in (features_1, features_2))
    result = measure(features_1, features_2, config)
    if kwargs.get("verbose"):
        source = {name: kwargs[name] for name in ("feature_extractor", "feature_layer_lsh") if kwargs.get(name)}
        protocol = ", ".join(f"{name}={value}" for name, value in {**source, **result.protocol}.items())
        print(f"{result}\n{result.metric} protocol: {protocol}", file=sys.stderr)
    return result.to_dict()


def _on_gpu(features: Features) -> Features:
    if isinstance(features, ReducedFeatures):
        return replace(features, values=features.values.cuda())
    return torch.as_tensor(features).cuda()


def _reduce(features: Features, **kwargs: Any) -> ReducedFeatures:
    return reduce_features(features, LSHConfig.from_kwargs(kwargs))


_OPTIONS = tuple(
    MetricOption(
        name=f"lsh_{name}",
        default=f.default,
        type=f.metadata["parse"],
        help=f.metadata["help"],
    )
    for name, f in option_fields().items()
)

for _name, _function, _description in (
    ("lsh", lsh_featuresdict_to_metric, "LSH precision and recall: hashing alone"),
    ("lsh_knn", lsh_knn_featuresdict_to_metric, "LSH+KNN precision and recall: neighbours found by hashing"),
):
    register_metric(
        _name,
        _function,
        keys=[f"{_name}_{number}" for number in NUMBERS],
        description=_description,
        feature_layer_key="feature_layer_lsh",
        options=_OPTIONS,
        check_options=LSHConfig.from_kwargs,
        fn_reduce=_reduce,
    )
