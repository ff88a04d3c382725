"""Ordinary data on the validity scoreboard: its truths, the fit of intervals, the control GICDM, and its tables."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import board
import columns
import criteria
import demo
import detection
import gicdm
import intervals
import numpy as np
import ordinary
import peers
import pytest
import real_features
import report
import torch
from storage import Store

VALIDITY = Path(__file__).parents[1] / "benchmarks" / "validity"
CASES = [(check, situation) for check in ordinary.ORDINARY for situation in ordinary.situations_of(check)]
NAMES = [f"{check.name}: {situation.case}" for check, situation in CASES]


def find(name, case):
    (found,) = [pair for pair, label in zip(CASES, NAMES, strict=True) if label == f"{name}: {case}"]
    return found


def share_inside(samples, support):
    """Return the share of samples as near to a set as its own are, in units of how near those that they meet are.

    Distances are means over 10 neighbours. As near: as 98 % of the set's own are when left out, or within 1.4.
    """

    def ratios(distances):
        near = distances.topk(10, largest=False)
        return near.values.mean(1) / own_distances[near.indices].median(1).values

    samples, support = (torch.from_numpy(side).double() for side in (samples, support))
    left_out = torch.cdist(support, support).fill_diagonal_(float("inf"))
    own_distances = left_out.topk(10, largest=False).values.mean(1)
    limit = ratios(left_out).quantile(0.98).clamp(min=1.4)
    return float((ratios(torch.cdist(samples, support)) <= limit).double().mean())


@pytest.mark.parametrize(("check", "situation"), CASES, ids=NAMES)
def test_truths_hold_by_the_distances_among_neighbours(check, situation):
    generated, real = check.data((situation.case,), 0, 0)
    assert share_inside(generated, real) == pytest.approx(situation.precision.value, abs=0.04)
    assert share_inside(real, generated) == pytest.approx(situation.recall.value, abs=0.04)


def test_names_and_cases_are_unique():
    assert len(set(NAMES)) == len(NAMES)
    pages = board.Board(Path("features.npz"), quick=True).pages
    assert len({name for page in pages.values() for name in page}) == sum(map(len, pages.values()))


def test_every_situation_has_its_own_judge():
    check = next(check for check in ordinary.ORDINARY if check.name == "modes")
    curves = [
        criteria.Curve((s.case,), s.case, np.array([0]), np.array([[s.recall.value]]))
        for s in ordinary.situations_of(check)
    ]
    assert check.cells["truth"]["diversity"](curves).passed
    low = replace(curves[-1], values=np.array([[0.4]]))
    outcome = check.cells["truth"]["diversity"]([*curves[:-1], low])
    assert outcome.excess == pytest.approx(0.05)
    assert outcome.where == curves[-1].label


@pytest.mark.parametrize("d", [16, 64])
@pytest.mark.parametrize("copies", [False, True])
def test_the_sparse_group_is_as_reported(d, copies):
    check, situation = find("sparse_group", f"d {d}, largest group {'of near copies' if copies else 'all new'}")
    generated, real = check.data((situation.case,), 0, 0)
    apart = {16: 10, 64: 20}[d]
    centers = np.stack([np.zeros(d), *(apart * np.eye(d)[axis] for axis in range(3))])
    nearest = np.linalg.norm(real[:, None] - centers, axis=2).argmin(1)
    assert np.bincount(nearest).tolist() == pytest.approx([2200, 135, 400, 800], abs=3)
    assert generated.shape == (135, d)
    for group, deviation in {1: 1.3, 2: 1.2, 3: 1.5}.items():
        assert (real[nearest == group] - centers[group]).std() == pytest.approx(deviation, rel=0.05)
    assert (generated - centers[1]).std() == pytest.approx(1.3, rel=0.05)
    large = torch.from_numpy(real[nearest == 0])
    neighbours = (torch.cdist(large, large) < 0.3 * d**0.5).sum(1) - 1
    assert float(neighbours.double().mean()) == pytest.approx(4 if copies else 0, abs=0.05)


def test_the_lens_of_two_discs():
    x, y = np.random.default_rng(0).uniform(-2, 2, (2, 400_000))
    inside = (x**2 + y**2 < 1) & ((x - ordinary.DISC_DISTANCE) ** 2 + y**2 < ordinary.SMALL_DISC**2)
    area = ordinary.lens_area(ordinary.SMALL_DISC, ordinary.DISC_DISTANCE)
    assert area == pytest.approx(16 * inside.mean(), rel=0.03)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_rows_are_repeated_exactly(share):
    generated, real = ordinary.draw_copies(ordinary.Streams("test"), share)
    _, counts = np.unique(generated, axis=0, return_counts=True)
    assert (counts == 2).sum() == share * 1200
    assert len(np.unique(real, axis=0)) == len(real) == 1200


def test_columns_have_the_forms_that_features_have():
    streams = ordinary.Streams("test")
    rectified, _ = ordinary.draw_rectified(streams, 0)
    assert rectified.min() == 0
    assert 0.5 < (rectified == 0).mean() < 0.8
    duplicated, _ = ordinary.draw_columns(streams, 0, ordinary.constant_and_duplicated)
    assert (duplicated.std(0) == 0).sum() == 64
    assert len(np.unique(duplicated[:, duplicated.std(0) > 0], axis=1).T) == 16
    scaled, _ = ordinary.draw_columns(streams, 0, ordinary.scaled)
    assert scaled.std(0).max() / scaled.std(0).min() == pytest.approx(1000, rel=0.1)


# --- Intervals and compression ----------------------------------------------------------------------------------------


def measured(values, stderr):
    """Return a curve of one point whose intervals come from `stderr`."""
    values = np.array(values, dtype=float)[:, None]
    half = 1.96 * stderr
    ends = np.stack([values - half, values + half], axis=2)
    return criteria.Curve((), "all", np.array([0]), values, ends, np.full(values.shape, stderr), values)


def test_intervals_that_fit_and_that_do_not():
    values = np.random.default_rng(0).normal(0.7, 0.05, 100)
    judges = intervals.FIT["holds the mean"]["fidelity"], intervals.FIT["half-width"]["fidelity"]
    fitting, narrow, wide = (measured(values, stderr) for stderr in (0.05, 0.02, 0.15))
    assert all(judge([fitting]).passed for judge in judges)
    assert judges[1]([narrow]).value == pytest.approx(0.4, rel=0.1)
    assert not judges[0]([fitting, narrow]).passed
    assert judges[0]([wide]).value == 1
    assert not judges[0]([wide]).passed
    assert not judges[1]([wide]).passed


def test_a_steady_value_needs_no_narrow_interval():
    (fit,) = intervals.fits([measured([1.0] * 100, 0.05)])
    assert fit.held == 1
    assert fit.width is None
    assert max(fit.held_excess, fit.width_excess) <= 0


def test_without_intervals_there_is_no_outcome():
    curve = criteria.Curve((), "all", np.array([0]), np.ones((5, 1)))
    assert intervals.FIT["half-width"]["fidelity"]([curve]) is None


def test_ours_say_what_their_intervals_come_from():
    generated, real = map(torch.from_numpy, ordinary.draw_alike(ordinary.Streams("test"), 200, 200, 8))
    for metric in columns.METRICS:
        result = metric.measure(generated, real, 0)
        assert (result.fidelity_stderr is not None) == (result.diversity_unclipped is not None) == metric.ours
        if metric.ours:
            low, high = result.fidelity_interval
            assert 0 < high - low <= 2 * 1.96 * result.fidelity_stderr + 1e-9


def test_the_table_of_intervals_has_a_row_for_every_point(monkeypatch, tmp_path):
    check = next(c for c in intervals.interval_checks(Path("none.npz")) if c.name == "interval_strangers")

    def measure(generated, real, seed):
        value = np.random.default_rng(seed).normal(0.7, 0.05)
        ends = (value - 0.098, value + 0.098)
        return columns.Measurement(value, value, ends, ends, 0.05, 0.05, value, value)

    metric = columns.Metric("ours", ("P", "R"), measure, "source", ours=True)
    monkeypatch.setattr(board, "_pages", lambda features, demo: {"sanity": {}, "ordinary": {check.name: check}})
    monkeypatch.setattr(board, "_metrics", lambda: {"ours": metric})
    quick, store = board.Board(Path("none"), quick=True), Store(tmp_path / "rows.jsonl")
    board.run(quick, quick.tasks([check.name], ["ours"]), store, jobs=1)
    lines = report.interval_table(quick, store, [check], [metric]).splitlines()
    assert [line.split("|")[1].split(":")[1].strip() for line in lines[2:]] == ["0", "0.25", "0.5"]
    assert all("%" in line for line in lines[2:])
    rows = report.intervals_to_json(quick, store, [check], [metric])
    assert [row["number"] for row in rows] == ["fidelity"] * 3 + ["diversity"] * 3
    assert all(0 <= row["held"] <= 1 for row in rows)


@pytest.mark.parametrize(
    ("values", "passed"), [([0, 0.1, 0.5], True), ([0.105, 0.1, 0.5], True), ([0.2, 0.1, 1], False)]
)
def test_fewer_bits_may_not_score_higher(values, passed):
    curve = criteria.Curve((), "all", np.array([2, 4, 8]), np.array([values]))
    assert (demo.rising_with_bits().excess(curve) <= 0) == passed


# --- GICDM ------------------------------------------------------------------------------------------------------------


def pair(d, shift=0.0, samples=400):
    rng = np.random.default_rng(d)
    return tuple(torch.from_numpy(rng.standard_normal((samples, d)) + move) for move in (shift, 0))


@pytest.mark.parametrize("d", [2, 16, 64])
def test_gicdm_of_one_distribution_is_near_one(d):
    assert gicdm.gicdm(*pair(d)) == pytest.approx((1, 1), abs=0.12)


@pytest.mark.parametrize("d", [2, 16, 64])
def test_gicdm_of_far_sets_is_zero(d):
    assert gicdm.gicdm(*pair(d, 20)) == pytest.approx((0, 0), abs=1e-9)


def test_gicdm_does_not_depend_on_units():
    generated, real = pair(16, 0.3)
    assert gicdm.gicdm(1000 * generated, 1000 * real) == pytest.approx(gicdm.gicdm(generated, real), abs=1e-6)


def test_gicdm_makes_density_uniform_and_hubs_rare():
    _, real = pair(64)
    distances = torch.cdist(real, real).fill_diagonal_(float("inf"))
    scales = gicdm.uniform_scales(distances)
    corrected = distances / (scales[:, None] * scales)

    def spread_and_largest_hub(matrix):
        means, nearest = gicdm.local_means(matrix, gicdm.NEIGHBOURS_OF_SCALE)
        return float(means.log().std()), int(nearest.flatten().bincount().max())

    (before, hub_before), (after, hub_after) = map(spread_and_largest_hub, (distances, corrected))
    assert after < 0.3 * before
    assert hub_after < 0.6 * hub_before


def test_generated_samples_do_not_scale_each_other():
    generated, real = pair(16, 0.3)
    distances = torch.cdist(real, real).fill_diagonal_(float("inf"))
    scales = gicdm.uniform_scales(distances)
    corrected, to_real = distances / (scales[:, None] * scales), torch.cdist(generated, real)
    together = gicdm.generated_scales(to_real, corrected, scales)
    torch.testing.assert_close(gicdm.generated_scales(to_real[:7], corrected, scales), together[:7])


def test_gicdm_keeps_samples_off_the_manifold_away():
    generated, real = pair(16)
    generated[:200] += 3
    assert gicdm.gicdm(generated, real)[0] == pytest.approx(0.5, abs=0.08)


# --- Detection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_neighbours_of_the_pooled_rows_give_the_published_values(seed):
    rng = np.random.default_rng(0)
    pooled = np.concatenate([rng.standard_normal((300, 8)) + 0.3, rng.standard_normal((400, 8))])
    is_real = np.arange(700) >= 300
    if seed is not None:
        is_real = np.random.default_rng(seed).permutation(is_real)
    found = detection.Neighbours(pooled).statistics(is_real)
    sides = torch.from_numpy(pooled[~is_real]), torch.from_numpy(pooled[is_real])
    assert found["kNN P"] == pytest.approx(peers.knn(*sides)[0])
    assert found["density"] == pytest.approx(peers.density_coverage(*sides)[0])
    assert min(1, found["clip D"]) == pytest.approx(peers.clipped(*sides)[0])


def test_frechet_distance_is_that_of_torch_fidelity():
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + shift for shift in (0, 1)]
    means, covs = [side.mean(0) for side in sides], [np.cov(side.T) for side in sides]
    statistics = [{"mu": mean, "sigma": cov} for mean, cov in zip(means, covs, strict=True)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert detection.frechet_distance(means[0] - means[1], *covs) == pytest.approx(expected, rel=1e-4)


def test_permutations_hold_their_level_and_find_strangers():
    rng = np.random.default_rng(0)
    tests = detection.neighbour_tests, detection.frechet_test

    def p_values(share, draws):
        rows = []
        for draw in range(draws):
            generated, real = rng.standard_normal((2, 100, 4))
            generated[: round(100 * share)] += 6
            rows.append({name: p for test in tests for name, p in test(generated, real, 39, draw).items()})
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    alike, strange = p_values(0, 60), p_values(0.3, 3)
    for name in ("kNN P", "density", "clip D", "FID"):
        assert (alike[name] <= detection.LEVEL).mean() <= 0.14  # 99.7 % of binomial draws of 60
        assert (alike[name] <= 0.5).mean() >= 0.25
        assert (strange[name] <= detection.LEVEL).all()


@pytest.mark.parametrize("name", ["an eleventh mode", "off a folded manifold"])
def test_strangers_join_the_same_samples(name):
    def draw(strangers):
        return detection.DATA[name](Path("none"), 400, strangers, ordinary.Streams("test"))

    none, some, more = draw(0), draw(40), draw(80)
    assert all(np.array_equal(none[1], other[1]) for other in (some, more))
    assert [(~np.isin(other[0], none[0]).all(1)).sum() for other in (some, more)] == [40, 80]
    inside = [share_inside(other[0], other[1]) for other in (none, some, more)]
    assert inside[0] == pytest.approx(1, abs=0.04)
    if name == "an eleventh mode":
        assert inside[1:] == pytest.approx([0.9, 0.8], abs=0.01)


def test_strangers_off_the_manifold_are_near_and_further_than_its_samples():
    generated, real = detection.draw_near(Path("none"), 2000, 200, ordinary.Streams("test"))
    nearest = torch.cdist(*(torch.from_numpy(side) for side in (generated, real))).min(1).values
    assert 1.02 < nearest[:200].median() / nearest[200:].median() < 1.5


def test_new_digits_are_strangers_and_too_few_images_are_none(tmp_path):
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 10, 1000)
    path = tmp_path / "features.npz"
    np.savez(path, features=digits[:, None].astype(np.float32), digits=digits)
    generated, real = detection.draw_digits(path, 100, 20, ordinary.Streams("test"))
    assert (real < 5).all()
    assert (generated >= 5).sum() == 20
    assert detection.draw_digits(path, 5000, 20, ordinary.Streams("test")) is None


def test_our_test_is_the_one_of_the_result():
    def measure(generated, real, config):
        return SimpleNamespace(precision_pvalue=float(config.seed + len(generated)))

    assert detection.own_test("lsh", measure, np.zeros((2, 1)), np.zeros((3, 1)), 0, 7) == {"lsh": 9.0}


def test_found_counts_draws_and_leaves_out_what_is_not_measured(tmp_path):
    study, store = detection.Detection(Path("none.npz"), quick=True), Store(tmp_path / "rows.jsonl")
    row = ("new digits", 400, 0.05)
    trials = [detection.Trial("fid", *row, draw) for draw in range(2)]
    for trial, p in zip(trials, (0.2, 0.05), strict=True):
        store.add({"key": study.key(trial), "p_values": {"FID": p}})
    store.add({"key": study.key(trials[0]._replace(detector="lsh")), "p_values": {"lsh": 0.01}})
    assert study.found(store, row) == {"FID": 0.5}
    lines = [line for line in report.detection_table(study, store).splitlines() if "0.50" in line]
    assert [[cell.strip() for cell in line.split("|")[1:4]] for line in lines] == [["new digits", "400", "0.05"]]


# --- Tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """A board of one check and two metrics: the truth, and always 1."""
    check = next(check for check in ordinary.ORDINARY if check.name == "strangers")

    def metric(name, *values):
        return columns.Metric(name, (name, name), lambda *data: columns.Measurement(*values), "source")

    metrics = {metric.name: metric for metric in (metric("true", 0.75, 1.0), metric("one", 1.0, 1.0))}
    monkeypatch.setattr(board, "_pages", lambda features, demo: {"sanity": {}, "ordinary": {check.name: check}})
    monkeypatch.setattr(board, "_metrics", lambda: metrics)
    return SimpleNamespace(board=board.Board(Path("none"), quick=True), check=check, metrics=list(metrics.values()))


def test_the_table_marks_and_counts_what_misses_the_truth(small, tmp_path):
    store = Store(tmp_path / "rows.jsonl")
    board.run(small.board, small.board.tasks([small.check.name], ["true", "one"]), store, jobs=1)
    lines = report.ordinary_table(small.board, store, [small.check], small.metrics).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines[2:]]
    assert cells[0] == ["one side, generated", "0.75 ±0.05 1.00 ±0.05", "0.75 1.00", "1.00! 1.00"]
    assert cells[1] == ["one side, real", "1.00 ±0.05 0.75 ±0.05", "0.75! 1.00!", "1.00 1.00!"]
    assert "missed of 4" in lines[-1]
    assert cells[2][2:] == ["2", "2"]
    assert report.tolerances([small.check]) == f"- {small.check.title}: {ordinary.AS_SUITE}."


def test_what_is_not_measured_is_not_missed(small, tmp_path):
    store = Store(tmp_path / "rows.jsonl")
    board.run(small.board, small.board.tasks([small.check.name], ["true"]), store, jobs=1)
    lines = report.ordinary_table(small.board, store, [small.check], small.metrics).splitlines()
    assert lines[2].split("|")[-2].strip() == "-"


def test_the_command_writes_the_second_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detection, "DATA", {"an eleventh mode": detection.draw_far})
    monkeypatch.setattr(detection, "DRAWS", {"quick": {60: 1}})
    monkeypatch.setattr(real_features, "extract", lambda *arguments: None)
    arguments = ["--output", str(tmp_path), "--quick", "--jobs", "1", "--repeats", "1", "--metrics", "gicdm"]
    monkeypatch.setattr(sys, "argv", ["validity", *arguments, "--only", "small_class", "detection"])
    runpy.run_path(str(VALIDITY), run_name="__main__")
    page = (tmp_path / "ordinary_table.md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert all(title in page for title in ("## Ordinary data", "## Tolerances", "## Strangers found", "## Quick run"))
    assert not (tmp_path / "table.md").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["protocol"]["quick"]
    assert {row["check"] for row in results["results"]} == {"small_class"}
    assert [row["share"] for row in results["detection"]] == list(detection.SHARES)
    assert set(results["detection"][-1]["found"]) == set(detection.TESTS)
    assert {path.name for path in tmp_path.glob("*.png")} == {"ordinary.png", "detection.png"}
