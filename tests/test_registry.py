"""A third party adds a metric, and cannot break anybody else's by doing so."""

import pytest

from torch_fidelity_lsh.fidelity.calculate import calculate_metrics
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY, MetricOption, plugin_keywords, register_metric


@pytest.fixture(autouse=True)
def _registry_restored():
    before = dict(METRICS_REGISTRY)
    yield
    METRICS_REGISTRY.clear()
    METRICS_REGISTRY.update(before)


def anything(featuresdict_1, featuresdict_2, feat_layer_name, **kwargs):
    return {"anything": 1.0}


def test_third_party_metric_becomes_a_flag_with_options(features):
    def scaled_gap(featuresdict_1, featuresdict_2, feat_layer_name, **kwargs):
        gap = featuresdict_1[feat_layer_name].mean() - featuresdict_2[feat_layer_name].mean()
        return {"mean_gap": float(gap) * kwargs["gap_scale"]}

    register_metric("gap", scaled_gap, keys=["mean_gap"], options=[MetricOption("gap_scale", 2.0, float, "Factor")])
    generated, real = features
    expected = float(generated.mean() - real.mean())
    call = {"input1": generated, "input2": real, "verbose": False}
    assert calculate_metrics(gap=True, **call) == {"mean_gap": pytest.approx(2 * expected)}
    assert calculate_metrics(gap=True, gap_scale=3.0, **call) == {"mean_gap": pytest.approx(3 * expected)}


def test_unregistered_metric_is_an_unknown_keyword_again(features):
    register_metric("gap", anything, keys=["anything"])
    del METRICS_REGISTRY["gap"]
    with pytest.raises(ValueError, match='Unknown keyword "gap"'):
        calculate_metrics(gap=True, input1=features[0], input2=features[1])


def test_metrics_of_a_family_share_layer_and_options():
    option = MetricOption("gap_scale", 2.0, float, "Factor")
    register_metric("gap", anything, keys=["a"], options=[option])
    register_metric("gap_squared", anything, keys=["b"], options=[option], feature_layer_key="feature_layer_gap")
    added = {"gap": False, "gap_squared": False, "feature_layer_gap": None, "gap_scale": 2.0}
    assert added.items() <= plugin_keywords().items()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gap", {}, "already registered"),
        ("fid", {}, "keywords already used by torch-fidelity: feature_layer_fid, fid"),
        ("other", {"keys": ["precision"]}, "result keys already used by torch-fidelity: precision"),
        ("other", {"keys": ["gap"]}, 'result keys already used by metric "gap"'),
        ("other", {"feature_layer_key": "feature_layer_fid"}, "keywords already used by torch-fidelity"),
        ("other", {"options": [MetricOption("rng_seed", 1, int, "")]}, "keywords already used by torch-fidelity"),
        ("other", {"options": [MetricOption("gap_scale", 9.0, float, "")]}, 'keywords already used by metric "gap"'),
        ("other", {"options": [MetricOption("gap", 9.0, float, "")]}, 'keywords already used by metric "gap"'),
        ("gap_scale", {}, 'keywords already used by metric "gap": gap_scale'),
        ("my-metric", {}, "identifiers in lower case; got 'my-metric'"),
        ("Other", {}, "identifiers in lower case"),
        (3, {}, "identifiers in lower case; got 3"),
        ("other", {"options": [MetricOption("other scale", 1, int, "")]}, "identifiers in lower case"),
        ("other", {"fn_featuresdict_to_metric": "gap"}, "must be given as a callable"),
        ("other", {"keys": []}, "must declare the result keys"),
    ],
)
def test_bad_or_taken_names_are_refused(name, arguments, message):
    register_metric("gap", anything, keys=["gap"], options=[MetricOption("gap_scale", 2.0, float, "")])
    before = dict(METRICS_REGISTRY)
    with pytest.raises(ValueError, match=message):
        register_metric(name, **{"fn_featuresdict_to_metric": anything, "keys": ["other"], **arguments})
    assert before == METRICS_REGISTRY


def test_names_of_upstreams_unreleased_metric_are_refused_where_it_exists(fake_mind):
    with pytest.raises(ValueError, match="keywords already used by torch-fidelity: feature_layer_mind, mind"):
        register_metric("mind", anything, keys=["mine"])
    with pytest.raises(ValueError, match="result keys already used by torch-fidelity: monge_inception_distance"):
        register_metric("mine", anything, keys=["monge_inception_distance"])


def test_undeclared_result_keys_cannot_slip_into_the_result(features):
    register_metric("sly", lambda *_, **__: {"precision": 1.0}, keys=["sly"])
    with pytest.raises(ValueError, match="sly returned result keys it did not declare: precision"):
        calculate_metrics(sly=True, input1=features[0], input2=features[1], verbose=False)


def test_options_are_checked_before_features_are_extracted(images, counting_extractor):
    def check(kwargs):
        if kwargs["gap_scale"] < 0:
            raise ValueError("gap_scale must not be negative")

    option = MetricOption("gap_scale", 2.0, float, "Factor")
    register_metric("gap", anything, keys=["anything"], options=[option], check_options=check)
    call = {"input1": images[0], "input2": images[1], "feature_extractor": "counting", "cuda": False, "gap_scale": -1}
    with pytest.raises(ValueError, match="gap_scale must not be negative"):
        calculate_metrics(**call, gap=True)
    assert counting_extractor.created == 0
