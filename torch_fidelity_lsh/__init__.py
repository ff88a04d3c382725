"""Outlier-robust precision and recall by locality-sensitive hashing, as a plugin to torch-fidelity.

Direction, everywhere: ``input1`` and ``features_1`` are generated, ``input2`` and ``features_2`` are real.
"""

from torch_fidelity_lsh.fidelity import feature_extractor_efficientnet_lite0, feature_extractors_onnx
from torch_fidelity_lsh.fidelity.calculate import calculate_metrics, create_reference, create_statistics, save_samples
from torch_fidelity_lsh.fidelity.classes import ByClass, ClassResult, calculate_by_class
from torch_fidelity_lsh.fidelity.hook import install, installed, uninstall
from torch_fidelity_lsh.fidelity.metric_lsh import (
    KEY_METRIC_LSH_F_SCORE,
    KEY_METRIC_LSH_KNN_F_SCORE,
    KEY_METRIC_LSH_KNN_PRECISION,
    KEY_METRIC_LSH_KNN_RECALL,
    KEY_METRIC_LSH_PRECISION,
    KEY_METRIC_LSH_RECALL,
    lsh_features_to_metric,
    lsh_featuresdict_to_metric,
    lsh_knn_features_to_metric,
    lsh_knn_featuresdict_to_metric,
)
from torch_fidelity_lsh.fidelity.registry import MetricOption, register_metric
from torch_fidelity_lsh.fidelity.statistics import Statistics, save_statistics
from torch_fidelity_lsh.metric.comparison import Comparison, Difference, compare
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.functional import (
    PrecisionRecall,
    lsh_knn_precision_recall,
    lsh_precision_recall,
    reduce_features,
)
from torch_fidelity_lsh.metric.memorization import Memorization, memorization
from torch_fidelity_lsh.metric.reduction import ReducedFeatures
from torch_fidelity_lsh.metric.reference import load_reference, save_reference
