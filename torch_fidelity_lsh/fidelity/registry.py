"""Registry of metrics that torch-fidelity calls gain, in the style of torch-fidelity's ``register_*`` functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.metric.messages import did_you_mean
from torch_fidelity_lsh.metric.reduction import ReducedFeatures


@dataclass(frozen=True)
class MetricOption:
    """A keyword of ``calculate_metrics``, and flag of the command line, that tunes a metric.

    Attributes:
        name: The keyword, such as ``"lsh_num_tables"``; the flag is ``--lsh-num-tables``.
        default: Value used when the keyword is not given.
        type: Turns the command line's text into a value; ``bool`` gives a pair of flags, ``--x`` and ``--no-x``.
        help: One line for the command line's help.
        choices: The accepted values, where there are only a few.
    """

    name: str
    default: Any
    type: Callable[[str], Any]
    help: str
    choices: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class MetricEntry:
    """A registered metric; the attributes are the arguments of :func:`register_metric`."""

    name: str
    fn_featuresdict_to_metric: Callable[..., dict[str, float]]
    keys: tuple[str, ...]
    description: str
    default_feature_extractor: str
    feature_layer_key: str
    default_layer_as: str
    options: tuple[MetricOption, ...]
    check_options: Callable[[Mapping[str, Any]], object] | None
    fn_reduce: Callable[..., ReducedFeatures] | None

    def keywords(self) -> dict[str, Any]:
        """Return the metric's keywords of ``calculate_metrics`` and their defaults."""
        return {self.name: False, self.feature_layer_key: None, **{o.name: o.default for o in self.options}}


ACCOMPANY = ("_std", "_stderr", "_ci_low", "_ci_high", "_unclipped", "_pvalue", "_generated", "_real")
"""Endings of the result keys that say how sure another one's value is, or from what it is."""

METRICS_REGISTRY: dict[str, MetricEntry] = {}


def register_metric(
    name: str,
    fn_featuresdict_to_metric: Callable[..., dict[str, float]],
    *,
    keys: Iterable[str],
    description: str = "",
    default_feature_extractor: str = "vgg16",
    feature_layer_key: str | None = None,
    default_layer_as: str = "prc",
    options: Iterable[MetricOption] = (),
    check_options: Callable[[Mapping[str, Any]], object] | None = None,
    fn_reduce: Callable[..., ReducedFeatures] | None = None,
) -> None:
    """Register a metric of two sets of features, so that calls and the command line accept ``name`` as a flag.

    Metrics of one family may share ``feature_layer_key`` and any option that is the same in both.

    Args:
        name: Unique name and flag of the metric, a Python identifier in lower case.
        fn_featuresdict_to_metric: Called as ``fn(featuresdict_1, featuresdict_2, feat_layer_name, **kwargs)`` with the
            N x D features of ``input1`` (generated) and ``input2`` (real) by layer name; returns the values by result
            key. ``kwargs`` holds every keyword of the call, defaults filled in, with ``feature_extractor`` resolved to
            a name (`None` when both inputs are ready features of unstated origin).
        keys: All result keys the function may return.
        description: One line for the command line's help.
        default_feature_extractor: Name of the feature extractor used when the call names none.
        feature_layer_key: Keyword that names the layer. Default: ``feature_layer_<name>``.
        default_layer_as: Upstream metric whose default layer is used with extractors that do not know this metric.
        options: Further keywords of the metric.
        check_options: Called with all keywords of a call before features are extracted, which can take hours; raises
            `ValueError` if the metric cannot run with them.
        fn_reduce: Called as ``fn(features, **kwargs)`` with the N x D features of one side, or of a part of it, where
            these reduced features are all the metric needs; it then gets them in place of the features, also from
            reference files.

    Raises:
        ValueError: A name is malformed, or is taken by torch-fidelity or by another registered metric.
    """
    entry = MetricEntry(
        name=name,
        fn_featuresdict_to_metric=fn_featuresdict_to_metric,
        keys=tuple(keys),
        description=description,
        default_feature_extractor=default_feature_extractor,
        feature_layer_key=feature_layer_key or f"feature_layer_{name}",
        default_layer_as=default_layer_as,
        options=tuple(options),
        check_options=check_options,
        fn_reduce=fn_reduce,
    )
    _refuse_malformed(entry)
    _refuse_taken(entry)
    METRICS_REGISTRY[name] = entry


CALL_KEYWORDS: dict[str, Any] = {"features_max_bytes": None, "fid_statistics_file": None, "input3": None}
"""Keywords of this package's ``calculate_metrics`` that belong to no metric, with their defaults."""


def plugin_keywords() -> dict[str, Any]:
    """Return the keywords that this package adds to torch-fidelity's ``calculate_metrics``, with their defaults."""
    return CALL_KEYWORDS | {
        name: default for entry in METRICS_REGISTRY.values() for name, default in entry.keywords().items()
    }


def refuse_unknown_keywords(given: Iterable[str]) -> None:
    """Refuse a keyword that neither torch-fidelity nor a registered metric has.

    Raises:
        ValueError: Names the keyword and the nearest known one.
    """
    known = (*upstream.DEFAULTS, *plugin_keywords())
    for name in given:
        if name not in known:
            raise ValueError(f'Unknown keyword "{name}"{did_you_mean(name, known)}')


def _refuse_malformed(entry: MetricEntry) -> None:
    for keyword in (entry.name, entry.feature_layer_key, *(option.name for option in entry.options)):
        if not (isinstance(keyword, str) and keyword.isidentifier() and keyword == keyword.lower()):
            raise ValueError(f"Metric keywords must be identifiers in lower case; got {keyword!r}")
    if not callable(entry.fn_featuresdict_to_metric):
        raise ValueError(
            f'Metric "{entry.name}" must be given as a callable with the arguments featuresdict_1, featuresdict_2, '
            f"feat_layer_name, **kwargs; got {type(entry.fn_featuresdict_to_metric).__name__}"
        )
    if not entry.keys:
        raise ValueError(f'Metric "{entry.name}" must declare the result keys it returns; got none')


def _refuse_taken(entry: MetricEntry) -> None:
    if entry.name in METRICS_REGISTRY:
        raise ValueError(f'Metric "{entry.name}" is already registered')
    _refuse_overlap(entry, "keywords", entry.keywords().keys() & upstream.DEFAULTS.keys(), "torch-fidelity")
    _refuse_overlap(entry, "keywords", entry.keywords().keys() & CALL_KEYWORDS.keys(), "calculate_metrics")
    _refuse_overlap(entry, "result keys", set(entry.keys) & upstream.result_keys(), "torch-fidelity")
    for other in METRICS_REGISTRY.values():
        theirs = _declarations(other)
        clashing = {k for k, declaration in _declarations(entry).items() if theirs.get(k, declaration) != declaration}
        _refuse_overlap(entry, "keywords", clashing, f'metric "{other.name}"')
        _refuse_overlap(entry, "result keys", set(entry.keys) & set(other.keys), f'metric "{other.name}"')


def _refuse_overlap(entry: MetricEntry, what: str, overlap: set[str], owner: str) -> None:
    if overlap:
        raise ValueError(f'Metric "{entry.name}": {what} already used by {owner}: {", ".join(sorted(overlap))}')


def _declarations(entry: MetricEntry) -> dict[str, object]:
    """Say what each keyword means: two metrics may share one only if it means the same to both."""
    return {
        entry.name: entry,
        entry.feature_layer_key: "feature layer",
        **{option.name: option for option in entry.options},
    }
