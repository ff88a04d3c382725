"""Comparing two generators: differences, their intervals, and what a verdict says."""

import json

import numpy as np
import pytest
import torch

from torch_fidelity_lsh import LSHConfig, compare, lsh_knn_precision_recall, lsh_precision_recall

METRICS = pytest.mark.parametrize("metric", ["lsh", "lsh_knn"])


def modes(rng, n, kept):
    return 10 * np.eye(10, 32)[rng.integers(kept, size=n)] + rng.standard_normal((n, 32))


def draw(seed, kept_a=10, noise=0.0):
    """Return A, B and real samples; rows of A and B are paired unless A drops modes."""
    rng = np.random.default_rng(seed)
    real, b = modes(rng, 800, 10), modes(rng, 800, 10)
    a = b + noise * rng.standard_normal(b.shape) if kept_a == 10 else modes(rng, 800, kept_a)
    return a, b, real


@METRICS
def test_a_generator_that_drops_modes_keeps_precision_and_loses_recall(metric):
    a, b, real = draw(0, kept_a=5)
    result = compare(a, b, real, metric=metric)
    assert result.recall.value == pytest.approx(-0.5, abs=0.25)
    assert result.recall.interval[1] < 0
    assert result.recall.word == "loses"
    assert result.precision.value > -0.1
    assert result.precision.word != "loses"
    assert result.verdict.startswith(f"A {result.precision.word} precision: ")
    values = f"{result.a.recall_unclipped:.2f} against {result.b.recall_unclipped:.2f}"
    assert f"; loses recall: {values}, {result.recall}" in result.verdict
    assert str(result) == f"{result.metric}: {result.verdict}"


@METRICS
def test_a_difference_beyond_minus_one_lies_in_its_interval(metric):
    _, b, real = draw(0)
    differences = [compare(b + 100, b, each, metric=metric).recall for each in (real, b + 1e-3)]
    assert min(difference.value for difference in differences) < -1
    assert all(low <= each.value <= high for each in differences for low, high in [each.interval])


def test_the_numbers_are_those_of_separate_calls():
    a, b, real = draw(1, kept_a=5)
    result = compare(a, b, real, LSHConfig(seed=3), metric="lsh")
    one, other = (lsh_precision_recall(each, real, LSHConfig(seed=3)) for each in (a, b))
    assert result.a.to_dict() == one.to_dict()
    assert result.b.to_dict() == other.to_dict()
    assert result.precision.value == one.precision_unclipped - other.precision_unclipped


@METRICS
def test_the_same_samples_do_not_differ(metric):
    a, b, real = draw(2)
    result = compare(a, b, real, metric=metric, paired=True)
    assert (result.precision.value, result.recall.value, result.f_score.value) == (0, 0, 0)
    assert result.precision.word == result.recall.word == "keeps"


@METRICS
def test_pairs_of_nearly_equal_samples_are_compared_ten_times_as_sharply(metric):
    a, b, real = draw(3, noise=0.01)
    paired, unpaired = (compare(a, b, real, metric=metric, paired=paired) for paired in (True, False))
    measure = {"lsh": lsh_precision_recall, "lsh_knn": lsh_knn_precision_recall}[metric]
    alone = measure(a, real)
    for name in ("precision", "recall", "f_score"):
        sharp, blunt = (getattr(each, name) for each in (paired, unpaired))
        assert sharp.stderr < blunt.stderr
        assert sharp.stderr < getattr(alone, f"{name}_stderr") / 2
        assert abs(sharp.value) < 0.05


@pytest.mark.parametrize(("kept_a", "noise", "paired"), [(10, 0.1, True), (5, 0.0, False)])
def test_intervals_hold_the_mean_difference(kept_a, noise, paired):
    results = [compare(*draw(seed, kept_a, noise), metric="lsh", paired=paired) for seed in range(16)]
    for name in ("precision", "recall", "f_score"):
        differences = [getattr(result, name) for result in results]
        values = np.array([difference.value for difference in differences])
        stated = np.mean([difference.stderr for difference in differences])
        assert stated < 4 * values.std(ddof=1)
        held = [low <= values.mean() <= high for low, high in (each.interval for each in differences)]
        assert sum(held) >= 13  # fewer come of 95 % once in 150 times


def test_a_report_holds_all_numbers():
    a, b, real = draw(4, kept_a=5)
    result = compare(a, b, real, metric="lsh")
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["verdict"] == result.verdict
    assert report["recall"]["difference"] == report["recall"]["a"] - report["recall"]["b"]
    assert report["recall"]["ci_low"] < report["recall"]["difference"] < report["recall"]["ci_high"]


def test_bad_arguments_are_named():
    a, b, real = (torch.randn(20, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    with pytest.raises(ValueError, match=r"metric must be one of lsh, lsh_knn; got 'lsh_kn'; did you mean \"lsh_knn\""):
        compare(a, b, real, metric="lsh_kn")
    with pytest.raises(ValueError, match="paired sets must have as many rows; got 20 and 19"):
        compare(a, b[:19], real, paired=True)
    with pytest.raises(ValueError, match="generated_b holds NaN"):
        compare(a, b * float("nan"), real)
    with pytest.raises(ValueError, match="generated_a and real must have the same D"):
        compare(a, b, real[:, :3])
