"""The validity scoreboard: its criteria, the published metrics it re-implements, and its bookkeeping."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import board
import checks
import columns
import criteria
import mixtures
import numpy as np
import peers
import protocols
import pytest
import suite
import torch
from prdc import compute_prdc
from scipy.stats import betabinom
from storage import Store

VALIDITY = Path(__file__).parents[1] / "benchmarks" / "validity"
START, END = criteria.START, criteria.END


def curve(values, x=None, intervals=None):
    x = np.arange(len(values)) if x is None else np.array(x)
    return criteria.Curve((), "all", x, np.array([values], dtype=float), intervals)


@pytest.mark.parametrize(
    ("rule", "values", "excess"),
    [
        (criteria.close(1, START), [0.97, 0, 0], -0.02),
        (criteria.close(0, END), [0, 0, 0.2], 0.15),
        (criteria.close(1, 1), [0, 0.9, 0], 0.05),
        (criteria.bell(1), [0, 1, 0], -0.1),
        (criteria.bell(1), [0.9, 1, 0], 0.1),
        (criteria.bell(2), [0, 1, 0.8, 0.5, 0], 0.1),
        (criteria.bell(2), [0.5, 0, 0.8, 0.5, 0.4], 0.3),
        (criteria.falling(), [1, 0.5, 0], -0.1),
        (criteria.falling(), [1, 0.9, 0.9], 0.1),
        (criteria.falling(), [0.7, 1, 0], 0.2),
        (criteria.rising(), [0, 0.5, 1], -0.1),
        (criteria.rising(), [1, 0.5, 0], 1.2),
        (criteria.dropped_at(1), [1, 0.7, 0], -0.2),
        (criteria.dropped_at(1), [1, 0.95, 0], 0.05),
        (criteria.flat(), [0.5, 0.52, 0.51], -0.03),
        (criteria.flat(), [0.5, 0.6, 0.5], 0.05),
        (criteria.converging(), [0, 0.9, 0.5, 0.52, 0.53], -0.02),
        (criteria.converging(), [0.5, 0.5, 0.5, 0.6, 0.5], 0.05),
    ],
)
def test_rules(rule, values, excess):
    assert rule.excess(curve(values)) == pytest.approx(excess)


def test_the_worst_curve_and_rule_decide():
    judge = criteria.all_keep(criteria.flat(), criteria.close(1, START))
    outcome = judge([curve([1, 1, 1]), replace(curve([0.8, 0.8]), label="d 8")])
    assert not outcome.passed
    assert outcome.excess == pytest.approx(0.15)
    assert outcome.where == "d 8: 1 at start"


def test_diversity_must_be_high_everywhere_or_low_everywhere():
    judge = criteria.either(high=criteria.all_keep(criteria.rising()), low=criteria.all_keep(criteria.bell(1)))
    high, low = curve([0, 0.5, 1]), curve([0, 1, 0])
    assert judge([high, high]).kind == "high"
    assert judge([low, low]).kind == "low"
    assert judge([low, low]).passed
    assert not judge([high, low]).passed


def test_the_suite_has_thirty_cells_a_number():
    for number in checks.NUMBERS:
        assert sum(number in judges for check in suite.SUITE for judges in check.cells.values()) == 30


@pytest.mark.parametrize("check", [*suite.SUITE, *protocols.PROTOCOLS], ids=lambda check: check.name)
def test_data_depend_on_names_alone(check):
    quick = check.grid(True)
    for group, points in quick.items():
        x = points[-1]
        if check.size(group, x)[0] > 2000:
            continue
        first, again = check.data(group, x, 1), check.data(group, x, 1)
        other = check.data(group, x, 2)
        assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
        assert np.array_equal(first[1], other[1]) == check.same_data
        assert first[0].shape[1] == first[1].shape[1]
        if check.standardized:
            np.testing.assert_allclose(first[1].mean(0), 0, atol=1e-9)


def test_a_perfect_diversity_passes_mode_dropping():
    check = next(check for check in suite.SUITE if check.name == "sequential_drop")
    (points,) = {tuple(points) for points in check.grid(False).values()}
    truth = curve([1 - x / 10 for x in points], points)
    assert all(judges["diversity"]([truth]).passed for judges in check.cells.values())
    assert not check.cells["property"]["fidelity"]([truth]).passed


def test_rounded_values_are_a_null_set():
    real, generated = (replace(curve([value, value]), group=(side,)) for side, value in (("real", 0), ("generated", 1)))
    check = next(check for check in suite.SUITE if check.name == "discrete")
    assert check.cells["bounds"]["fidelity"]([real, generated]).passed
    assert check.cells["bounds"]["diversity"]([real, generated]).excess == pytest.approx(0.95)
    assert check.cells["bounds"]["diversity"]([real, replace(generated, values=real.values)]).kind == "low"


def test_an_outlier_that_moves_a_curve_is_found():
    still = {side: replace(curve([0, 1, 0]), group=(8, side)) for side in ("none", "generated")}
    moved = replace(curve([0, 1, 0.3]), group=(8, "real"))
    curves = [*still.values(), moved]
    assert protocols.moved_by_outlier("real")(curves).value == pytest.approx(0.3)
    assert protocols.moved_by_outlier("generated")(curves).passed


def test_mixture_error_is_relative_to_no_mixture():
    assert mixtures.mixture_error(curve([0.8, 0.4, 0], [0, 0.5, 1])) == pytest.approx(0)
    assert mixtures.mixture_error(curve([1, 0.8, 0.6], [0, 0.5, 1])) == pytest.approx(0.3)


def test_interval_coverage_counts_repeats():
    ends = np.array([[0.97, 1.0]] * 95 + [[0.9, 0.99]] * 5)[:, None]
    outcome = mixtures.interval_coverage([curve([1.0], intervals=ends)])
    assert outcome.value == pytest.approx(0.95)
    assert outcome.passed
    assert mixtures.interval_coverage([curve([1.0])]) is None


# --- Published metrics ------------------------------------------------------------------------------------------------


@pytest.fixture(params=[2, 40], ids=["exact distances", "by products"])
def sets(request):
    """A pair of sets that overlap in part, of unequal sizes."""
    rng = np.random.default_rng(0)
    generated = rng.standard_normal((90, request.param)) + 0.5
    return torch.from_numpy(generated), torch.from_numpy(rng.standard_normal((120, request.param)))


def quietly(capsys, generated, real, k):
    result = compute_prdc(real.numpy(), generated.numpy(), nearest_k=k)
    capsys.readouterr()
    return result


def test_knn_is_that_of_prdc(sets, capsys):
    expected = quietly(capsys, *sets, k=3)
    assert peers.knn(*sets) == pytest.approx((expected["precision"], expected["recall"]))


def test_density_and_coverage_choose_k(sets, capsys):
    k = peers.coverage_neighborhood(120, 90)
    expected = quietly(capsys, *sets, k=k)
    assert peers.density_coverage(*sets) == pytest.approx((expected["density"], expected["coverage"]))
    assert capsys.readouterr().out == ""
    assert peers.coverage_neighborhood(1000, 1000) == 5
    assert peers.coverage_neighborhood(1000, 100) > peers.coverage_neighborhood(1000, 10000) == 2


def test_symmetric_is_the_smaller_of_both_directions(sets, capsys):
    generated, real = sets
    forward, backward = quietly(capsys, generated, real, 5), quietly(capsys, real, generated, 5)
    expected = min(forward["precision"], backward["coverage"]), min(forward["recall"], forward["coverage"])
    assert peers.symmetric(generated, real) == pytest.approx(expected)


def test_probabilistic_by_brute_force(sets):
    def supported(samples, support):
        radius = 1.2 * np.mean([np.sort(np.linalg.norm(support - s, axis=1))[4] for s in support])
        return np.mean([1 - np.prod(np.minimum(1, np.linalg.norm(support - s, axis=1) / radius)) for s in samples])

    generated, real = (side.numpy() for side in sets)
    expected = supported(generated, real), supported(real, generated)
    assert peers.probabilistic(*sets) == pytest.approx(expected, rel=1e-5)


def test_clipped_density_by_brute_force(sets):
    generated, real = (side.numpy() for side in sets)
    radii = np.array([np.sort(np.linalg.norm(real - r, axis=1))[5] for r in real])
    radii = np.minimum(radii, np.median(radii))

    def mean_count(samples, own):
        counts = [(np.linalg.norm(real - s, axis=1) <= radii).sum() - own for s in samples]
        return np.minimum(counts, 5).mean()

    assert peers.clipped(*sets)[0] == pytest.approx(min(1, mean_count(generated, 0) / mean_count(real, 1)))


def test_clipped_coverage_calibration():
    expected = peers.expected_coverage(200, 150, 5)
    counts = np.minimum(np.arange(151), 5)
    for good in (0, 1, 3, 4, 5, 20, 150):
        mean = (betabinom(good, 5, 195).pmf(np.arange(good + 1)) * counts[: good + 1]).sum() / 5
        assert expected[good] == pytest.approx(mean, abs=1e-12)


def test_clipped_is_linear_in_the_share_of_good_samples():
    rng = np.random.default_rng(0)
    real, generated = (torch.from_numpy(rng.standard_normal((2000, 4))) for _ in range(2))
    generated[:1000] += 100
    assert peers.clipped(generated, real) == pytest.approx((0.5, 0.5), abs=0.03)


@pytest.mark.parametrize("metric", [metric for metric in columns.METRICS if not metric.ours], ids=lambda m: m.name)
def test_peers_of_far_sets_are_zero(metric):
    rng = np.random.default_rng(0)
    real, generated = (torch.from_numpy(rng.standard_normal((100, 3)) + shift) for shift in (0, 50))
    assert metric.measure(generated, real, 0)[:2] == pytest.approx((0, 0), abs=1e-9)


# --- The board --------------------------------------------------------------------------------------------------------


def draw_pair(group, x, streams):
    return streams(x).standard_normal((20, 2)) + x, streams("real").standard_normal((20, 2))


@pytest.fixture
def fake(monkeypatch):
    """A board of one small check and two metrics that count their calls."""
    calls = []

    def metric(name):
        def measure(generated, real, seed):
            calls.append(name)
            return columns.Measurement(float(generated.mean()), seed / 2**32)

        return columns.Metric(name, (f"{name} P", f"{name} R"), measure, "first")

    cells = {"flat": dict.fromkeys(checks.NUMBERS, criteria.all_keep(criteria.flat()))}
    check = checks.Check("pair", "pair", lambda quick: {(): [0, 1]}, draw_pair, cells, repeats=(3, 3))
    metrics = {name: metric(name) for name in ("one", "two")}
    monkeypatch.setattr(board, "_pages", lambda features, demo: {"sanity": {"pair": check}})
    monkeypatch.setattr(board, "_metrics", lambda: metrics)
    return SimpleNamespace(board=board.Board(Path("none"), quick=False), calls=calls, metrics=metrics, check=check)


def values(fake, store, metric="one"):
    return [c.values.tolist() for c in fake.board.curves(store, fake.check, fake.metrics[metric])["fidelity"]]


def test_order_and_company_change_nothing(fake, tmp_path):
    everything, alone = Store(tmp_path / "a.jsonl"), board.Store(tmp_path / "b.jsonl")
    board.run(fake.board, fake.board.tasks(["pair"], ["one", "two"]), everything, jobs=1)
    board.run(fake.board, fake.board.tasks(["pair"], ["one"])[::-1], alone, jobs=1)
    assert values(fake, everything) == values(fake, alone)
    assert values(fake, everything) == values(fake, everything, "two")


def test_a_second_run_measures_what_changed(fake, tmp_path):
    path, tasks = tmp_path / "rows.jsonl", fake.board.tasks(["pair"], ["one", "two"])
    board.run(fake.board, tasks, Store(path), jobs=1)
    fake.calls.clear()
    board.run(fake.board, tasks, Store(path), jobs=1)
    assert fake.calls == []
    fake.metrics["two"] = replace(fake.metrics["two"], source="second")
    board.run(fake.board, tasks, Store(path), jobs=1)
    assert fake.calls == ["two"] * 6


def test_an_interrupted_run_goes_on(fake, tmp_path):
    path, tasks = tmp_path / "rows.jsonl", fake.board.tasks(["pair"], ["one"])
    store = Store(path)
    board.run(fake.board, tasks[:2], store, jobs=1)
    assert fake.board.curves(store, fake.check, fake.metrics["one"]) == {}
    path.write_text(path.read_text() + '{"key": "cut o')
    store = Store(path)
    fake.calls.clear()
    board.run(fake.board, tasks, store, jobs=1)
    assert len(fake.calls) == 2
    assert len(path.read_text().splitlines()) == 3
    assert np.shape(values(fake, store)) == (1, 3, 2)


def test_too_expensive_points_are_left_out_and_named(fake):
    check = replace(fake.check, size=lambda group, x: (10 ** int(x), 0))
    metric = replace(fake.metrics["one"], max_cost=1000)
    assert fake.board.too_expensive(check, metric) == ["all, 1"]
    assert fake.board.too_expensive(check, fake.metrics["two"]) == []


def test_processes_measure_the_same(tmp_path):
    quick = board.Board(tmp_path / "none.npz", quick=True)
    (task,) = quick.tasks(["scaling"], ["knn"])
    (row,) = board.in_processes(quick, [task], jobs=1)
    here = quick.measure(task)
    assert row["key"] == here["key"]
    assert [p["fidelity"] for p in row["points"]] == [p["fidelity"] for p in here["points"]]


def test_the_command_writes_table_and_numbers(tmp_path, monkeypatch, capsys):
    arguments = ["--output", str(tmp_path), "--quick", "--jobs", "1", "--only", "scaling", "--metrics", "clipped"]
    monkeypatch.setattr(sys, "argv", ["validity", *arguments])
    runpy.run_path(str(VALIDITY), run_name="__main__")
    out = capsys.readouterr().out
    assert "| scaling of one dimension | TT     | TT     |" in out
    assert "Quick run" in out
    assert (tmp_path / "table.md").read_text().strip() in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["protocol"]["quick"]
    assert {row["number"] for row in results["results"]} == {"fidelity", "diversity"}
    assert all(cell["passed"] and cell["excess"] < 0 for row in results["results"] for cell in row["cells"].values())
