"""The speed benchmark: its contestants, its bookkeeping, its laws and its verdicts, on tiny sizes."""

import contextlib
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bench
import contestants
import measure
import neighbours
import numpy as np
import pytest
import rivals
import sections
import storage
import synthetic
import targets
import torch
from contestants import CONTESTANTS, Size
from sections import FLOOR_SECTION, GROWTH, MEMORY, PEERS, SIZES

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"
TINY = Size(60, 80, 16)


def new_bench(folder, **settings):
    defaults = {
        "quick": False,
        "threads": 1,
        "device": "cpu",
        "machine": "test",
        "wait_policy": "passive",
        "limit_s": 300,
        "limit_bytes": 16 * bench.GIB,
    }
    return bench.Bench(store=storage.Store(folder / "measurements.jsonl"), **{**defaults, **settings})


def put(board, section, size, name, *seconds, peak_bytes=0):
    """Pretend to have measured."""
    for turn, value in enumerate(seconds):
        row = {"seconds": value, "peak_bytes": peak_bytes, "precision": 0.5, "recall": 0.5}
        board.store.add({"key": board._key(section, size, name, turn), **row})


@pytest.fixture
def board(tmp_path):
    return new_bench(tmp_path)


@pytest.fixture
def calls(monkeypatch):
    """Workers that measure nothing and take a second, those of prdc a minute."""
    made = []

    class Fake:
        def measure(self, name):
            made.append(name)
            return {"seconds": 60.0 if name == "prdc" else 1.0, "peak_bytes": 1, "precision": 1.0, "recall": 1.0}

    monkeypatch.setattr(bench, "worker", lambda *_, **__: contextlib.nullcontext(Fake()))
    monkeypatch.setattr(bench, "neighbours", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(contestants.Contestant, "installed", True)
    return made


# --- Contestants ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def features():
    return [torch.from_numpy(side) for side in synthetic.draw_features(*TINY)]


def brute_force(queries, side):
    radii = [np.sort(np.linalg.norm(side - y, axis=1))[3] for y in side]
    return np.mean([(np.linalg.norm(side - x, axis=1) <= radii).any() for x in queries])


@pytest.mark.parametrize("name", [name for name, each in CONTESTANTS.items() if each.exact])
def test_exact_rivals_agree_with_brute_force(features, name):
    if not CONTESTANTS[name].installed:
        pytest.skip(f"{CONTESTANTS[name].package} is not installed")
    generated, real = (side.numpy() for side in features)
    expected = brute_force(generated, real), brute_force(real, generated)
    assert 0 < expected[0] < 1
    assert CONTESTANTS[name].run(*features) == pytest.approx(expected)


def test_hnsw_is_close(features):
    pytest.importorskip("faiss")
    exact = rivals.prc_full(*features)
    assert rivals.faiss_hnsw(*features) == pytest.approx(exact, abs=0.05)


def test_inverted_lists_are_close_where_one_holds_all(features, monkeypatch):
    pytest.importorskip("faiss")
    assert all(0 <= share <= 1 for share in rivals.simet_ivf(*features))
    monkeypatch.setattr(rivals, "IVF_LISTS", 1)
    generated, real = (side.numpy() for side in features)
    for queries, side, share in zip((generated, real), (real, generated), rivals.simet_ivf(*features), strict=True):
        distances = np.linalg.norm(side[None] - queries[:, None], axis=2)
        radii = np.array([np.sort(np.linalg.norm(side - y, axis=1))[3] for y in side])
        assert share == pytest.approx((distances.min(1) <= radii[distances.argmin(1)]).mean())


@pytest.mark.parametrize("kind", neighbours.KINDS)
def test_neighbours_run_beside_a_block_and_end_with_it(kind):
    before = set(multiprocessing.active_children())
    with neighbours.neighbours(kind, 1, threads=1):
        running = set(multiprocessing.active_children()) - before
        assert len(running) == 1
    assert not any(process.is_alive() for process in running)


def test_features_depend_on_the_size_alone(features):
    generated, real = (side.numpy() for side in features)
    again = synthetic.draw_features(*TINY)
    assert np.array_equal(generated, again[0])
    assert np.array_equal(real, again[1])
    assert generated.shape == (60, 16)
    assert real.dtype == np.float32
    blocks = synthetic.draw_features(10, 2 * synthetic.BLOCK_ROWS, 2)[1]
    assert not np.array_equal(blocks[: len(blocks) // 2], blocks[len(blocks) // 2 :])


MEASURE_64_MIB = """
import dataclasses, json, contestants, measure, torch

kept, side = torch.ones(2**22), torch.zeros(60, 16)
contestant = dataclasses.replace(contestants.CONTESTANTS["floor"], run=lambda *_: torch.ones(2**24).sum() and None)
print(json.dumps(measure.run_once(contestant, side, side)))
"""


def test_peak_memory_is_what_a_call_adds():
    # In a process of its own: where earlier tests left freed memory, the call takes it and adds nothing.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_64_MIB], env=environment, capture_output=True, text=True, check=True
    )
    row = json.loads(done.stdout)
    assert 4 * 2**24 - 2**20 <= row["peak_bytes"] < 5 * 2**24
    assert row["seconds"] > 0
    assert row["precision"] is None


def test_a_worker_measures_and_tells_when_it_died():
    with measure.worker(TINY, threads=1, device="cpu", trim=True) as held:
        assert held.measure("floor")["seconds"] > 0
        with pytest.raises(RuntimeError, match="nobody at 60 against 80 x 16: its process ended with 1"):
            held.measure("nobody")


# --- Bookkeeping ------------------------------------------------------------------------------------------------------


def test_contestants_take_turns_until_they_used_enough(tmp_path, calls):
    few = replace(PEERS, sizes=(TINY,), contestants=("lsh", "prdc", "prc_full"), rounds=3)
    new_bench(tmp_path).run(few)
    assert calls == ["lsh", "prdc", "prc_full", "lsh", "prc_full", "lsh", "prc_full"]


def test_an_interrupted_run_goes_on(tmp_path, calls, monkeypatch):
    new_bench(tmp_path, rounds=1).run(FLOOR_SECTION)
    assert calls == ["floor", "lsh", "lsh_knn"] * 3
    calls.clear()
    path = tmp_path / "measurements.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]) + '{"key": "cut o')
    new_bench(tmp_path, rounds=1).run(FLOOR_SECTION)
    assert calls == ["lsh_knn"]
    calls.clear()
    monkeypatch.setitem(CONTESTANTS, "lsh", replace(CONTESTANTS["lsh"], source="changed"))
    new_bench(tmp_path, rounds=1).run(FLOOR_SECTION)
    assert calls == ["lsh"] * 3
    calls.clear()
    new_bench(tmp_path, rounds=1, threads=2).run(FLOOR_SECTION)
    assert len(calls) == 9


def test_too_slow_and_too_large_do_not_run(tmp_path, calls):
    # On prdc's law: 60 s at 10,000 x 2048, 240 s at twice as many.
    new_bench(tmp_path, rounds=1, limit_s=200).run(PEERS)
    second = calls.index("lsh", 1)
    assert "prdc" in calls[:second]
    assert "prdc" not in calls[second:]
    assert calls.count("prc_full") == 2  # Not at 50,000.


# --- Laws and verdicts ------------------------------------------------------------------------------------------------


def test_laws_extrapolate_from_the_next_smaller_size_and_say_so(board):
    small, middle, large = SIZES
    put(board, PEERS, small, "prc_batched", 10)
    put(board, PEERS, middle, "prc_batched", 50, 44, 48)
    assert board.estimate(PEERS, middle, "prc_batched") == (48, False)
    assert board.estimate(PEERS, large, "prc_batched") == (pytest.approx(48 * 2.5**2 * 2), True)
    assert board.estimate(PEERS, large, "prdc") is None
    put(board, MEMORY, small, "prc_full", 1, peak_bytes=10**9)
    put(board, MEMORY, small, "prc_batched", 1, peak_bytes=10**9)
    assert board.estimate(MEMORY, large, "prc_full", "peak_bytes") == (pytest.approx(25e9), True)
    assert board.estimate(MEMORY, large, "prc_batched", "peak_bytes") == (pytest.approx(5e9), True)


def test_obstacles_say_what_would_be_needed(board):
    small, middle, large = SIZES
    assert board.obstacle(PEERS, large, "prc_full") == "needs about 37 GiB; limit: 16 GiB"
    assert board.obstacle(PEERS, middle, "prdc") == ""
    put(board, PEERS, small, "prdc", 100)
    assert board.obstacle(PEERS, middle, "prdc") == "would take about 400 s; limit: 300 s"
    assert board.obstacle(MEMORY, small, "prdc") == "would take about 100 s; limit: 90 s"


def test_slope_is_the_exponent():
    n = [10, 100, 1000]
    assert bench.slope(n, [3 * x**0.7 for x in n]) == pytest.approx(0.7)


def test_growth_counts_the_samples_of_both_sides(board):
    for size in GROWTH.sizes:
        put(board, GROWTH, size, "lsh", 1e-5 * size.samples)
    assert board.costs("lsh")[30_000] == pytest.approx(1e-5)
    assert board.exponent("lsh").value == pytest.approx(0, abs=1e-12)
    assert board.exponent("lsh_knn") is None


def test_targets_are_judged_where_measured(board):
    small, _, large = SIZES
    put(board, PEERS, small, "lsh", 0.1)
    put(board, PEERS, small, "prc_full", 4.9)
    put(board, PEERS, small, "prc_batched", 5.0)
    put(board, PEERS, small, "faiss_exact", 2.1)
    put(board, PEERS, large, "lsh", 1)
    put(board, MEMORY, large, "lsh", 1, peak_bytes=301e6)
    verdicts = {t.text: (t.value(board), t.met(board)) for t in targets.all_targets()}
    assert len(verdicts) == 23
    at_small = f"{small}, times"
    assert verdicts[f"lsh faster than prc_full, {at_small}"] == ((pytest.approx(49), False), True)
    assert verdicts[f"lsh faster than faiss_exact, {at_small}"] == ((pytest.approx(21), False), True)
    assert verdicts[f"lsh faster than prc_batched, {large}, times"] == ((pytest.approx(5.0 * 50), True), False)
    assert verdicts[f"lsh: peak memory beyond the features, {large}, MB"][1] is False
    assert verdicts[f"lsh_knn faster than prc_full, {at_small}"] == (None, None)


# --- The command ------------------------------------------------------------------------------------------------------


def run_command(tmp_path, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["speed", "--output", str(tmp_path), *arguments])
    runpy.run_path(str(SPEED), run_name="__main__")
    return json.loads((tmp_path / "results.json").read_text())


def test_the_command_writes_tables_numbers_and_pictures(tmp_path, monkeypatch, capsys, calls):
    results = run_command(tmp_path, monkeypatch)
    captured = capsys.readouterr()
    assert (tmp_path / "table.md").read_text().strip() in captured.out
    assert "prc_full" not in captured.out.split("## Targets")[0]
    assert "| torch-fidelity prc " in captured.out
    assert "~" in captured.out
    assert {p.name for p in tmp_path.glob("*.png")} == {"times.png", "growth.png"}
    assert len(results["targets"]) == 23
    full = [r for r in results["results"] if r["contestant"] == "prc_full" and r["generated"] == 50_000]
    assert all(r["extrapolated"] and "GiB" in r["reason"] for r in full)
    assert {r["section"] for r in results["results"]} == set(sections.SECTIONS) - {"gpu"}
    assert "10,000 x 2,048, beside 3 jobs of torch" in captured.out
    assert results["protocol"]["threads"] >= 1


def test_a_small_run_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.Bench, "sizes", lambda self, section: (TINY,))
    arguments = ["--quick", "--only", "floor", "--threads", "1", "--repeats", "1"]
    results = run_command(tmp_path, monkeypatch, *arguments)
    assert "Not judged" in capsys.readouterr().out
    assert all(row["seconds"] > 0 for row in results["results"])
    assert results["targets"] == []


def test_what_is_not_installed_is_named(tmp_path, monkeypatch, capsys, calls):
    monkeypatch.setattr(contestants.Contestant, "installed", property(lambda self: self.package != "faiss"))
    results = run_command(tmp_path, monkeypatch, "--quick", "--only", "peers")
    captured = capsys.readouterr()
    assert "faiss IndexFlatL2 is left out: faiss is not installed" in captured.err
    assert "faiss" not in captured.out.replace("faiss HNSW is approximate", "").replace("by faiss-cpu", "")
    assert "faiss_exact" not in {row["contestant"] for row in results["results"]}


def test_measurements_of_changed_code_are_not_taken_for_those_of_the_present_one(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "top.py").write_text("a = 1")
    (tmp_path / "deep" / "below.py").write_text("b = 1")
    before = storage.digest_of_folder(tmp_path)
    assert storage.digest_of_folder(tmp_path) == before
    (tmp_path / "deep" / "below.py").write_text("b = 2")
    changed = storage.digest_of_folder(tmp_path)
    (tmp_path / "deep" / "below.py").rename(tmp_path / "deep" / "elsewhere.py")
    assert len({before, changed, storage.digest_of_folder(tmp_path)}) == 3
    assert storage.digest_of_metrics() in contestants.OURS_SOURCE
