"""Scores while a model trains: folders and files that appear, half-written ones, restarts, a folder that vanishes."""

import io
import json
import os
import shutil
import time
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_distributed import on_ranks

import torch_fidelity_lsh.watch
from torch_fidelity_lsh import calculate_metrics
from torch_fidelity_lsh.cli import main

CALL = {"feature_extractor": "counting", "cuda": False, "verbose": False, "save_cpu_ram": True, "lsh": True}


watch = partial(torch_fidelity_lsh.watch.watch, settle=0)


def samples(folder, seed, count=30):
    """Write images."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(np.random.default_rng(seed).integers(256, size=(count, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def place(counting_extractor, tmp_path):
    """A folder to watch, keywords with a reference and a cache, and the file of lines."""
    root = tmp_path / "run"
    root.mkdir()
    call = {**CALL, "input2": str(samples(tmp_path / "real", 0)), "cache_root": str(tmp_path / "cache")}
    return root, call, tmp_path / "scores.jsonl"


def names(lines):
    return [json.loads(line)["name"] for line in lines.read_text().splitlines()]


def test_what_appears_is_scored_once_and_the_reference_extracted_once(place, counting_extractor):
    root, call, lines = place
    appearing = iter([("step_1", 1), ("step_2", 2), None])

    def sleep(seconds):
        assert seconds == 5
        found = next(appearing)
        if found is None:
            raise KeyboardInterrupt
        samples(root / found[0], found[1])

    scored = []
    with pytest.raises(KeyboardInterrupt):
        scored.extend(watch(root, lines, every=5, sleep=sleep, **call))
    assert names(lines) == ["step_1", "step_2"]
    assert counting_extractor.images == 90  # 30 real ones, and 30 of each step
    expected = calculate_metrics(**{**call, "cache": False}, input1=str(root / "step_2"))
    line = json.loads(lines.read_text().splitlines()[1])
    assert {key: line[key] for key in expected} == expected


def test_a_second_run_goes_on_where_the_first_was_killed(place):
    root, call, lines = place
    samples(root / "a", 1)
    list(watch(root, lines, once=True, **call))
    with lines.open("a") as file:
        file.write('{"name": "b", "sta')  # the power went
    samples(root / "b", 2)
    assert [line["name"] for line in watch(root, lines, once=True, **call)] == ["b"]
    whole = [json.loads(line) for line in lines.read_text().splitlines() if line.endswith("}")]
    assert [line["name"] for line in whole] == ["a", "b"]
    assert not list(watch(root, lines, once=True, **call))
    samples(root / "a", 3)  # the same name, other samples
    assert [line["name"] for line in watch(root, lines, once=True, **call)] == ["a"]


def test_what_is_still_written_waits_and_what_is_broken_is_tried_again(place, capsys):
    root, call, lines = place
    samples(root / "broken", 2)
    (root / "broken" / "05.png").write_bytes(b"half a file")
    (root / "notes.txt").write_text("not scored")
    assert not list(watch(root, lines, once=True, settle=10, **call))
    assert not capsys.readouterr().err
    assert not list(watch(root, lines, once=True, **call))
    assert "broken: not scored: input1: cannot read image" in capsys.readouterr().err
    samples(root / "broken", 2)
    np.savez(root / "samples.npz", np.random.default_rng(5).integers(256, size=(30, 8, 8, 3), dtype=np.uint8))
    found = [line["name"] for line in watch(root, lines, once=True, **call)]
    assert sorted(found) == ["broken", "samples.npz"]


def test_what_is_still_copied_with_the_times_of_its_origin_waits(place):
    root, call, lines = place
    for path in samples(root / "copied", 1).iterdir():
        os.utime(path, (time.time() - 1e6,) * 2)  # as rsync -a and tar do
    assert not list(watch(root, lines, once=True, settle=60, **call))


def test_a_folder_that_vanishes_is_named_and_no_line_is_lost(place):
    root, call, lines = place
    samples(root / "a", 1)
    with pytest.raises(ValueError, match="the folder to watch, does not exist or is no folder"):
        list(watch(root, lines, sleep=lambda _: shutil.rmtree(root), **call))
    assert names(lines) == ["a"]


def test_a_call_that_can_score_nothing_ends_at_once(place):
    root, call, lines = place
    samples(root / "a", 1)
    with pytest.raises(ValueError, match='Unknown keyword "lsh_num_table"'):
        list(watch(root, lines, **call, lsh_num_table=3))
    with pytest.raises(ValueError, match=r'input2: ".*none" does not exist'):
        list(watch(root, lines, **{**call, "input2": str(root / "none"), "cache": False}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input1_model_z_sise": 3}, 'Unknown keyword "input1_model_z_sise"'),
        ({"input2": "generated_none"}, 'input2: "generated_none" does not exist'),
    ],
)
def test_a_wrong_option_is_no_entrys_fault_whatever_it_is_called(place, counting_extractor, wrong, message):
    root, call, lines = place
    samples(root / "a", 1)
    with pytest.raises(ValueError, match=message):
        list(watch(root, lines, once=True, **{**call, **wrong}))
    assert counting_extractor.images == 0


def test_the_reference_is_extracted_once_also_where_it_is_a_path(place, counting_extractor):
    root, call, lines = place
    samples(root / "a", 1)
    samples(root / "b", 2)
    assert len(list(watch(root, lines, once=True, **{**call, "input2": Path(call["input2"])}))) == 2
    assert counting_extractor.images == 90


def test_lines_hold_arrays_of_numbers(place, monkeypatch):
    root, call, lines = place
    samples(root / "a", 1)
    monkeypatch.setattr(torch_fidelity_lsh.watch, "calculate_metrics", lambda **_: {"ppl": np.ones(2)})
    list(watch(root, lines, once=True, **call))
    assert json.loads(lines.read_text())["ppl"] == [1, 1]


def score(input1, **call):
    if input1.endswith("broken.npy"):
        raise ValueError("input1: cannot be read")
    return {"score": 1.0}


def watch_on_rank(rank, root, lines):
    torch_fidelity_lsh.watch.calculate_metrics = score
    with redirect_stderr(io.StringIO()) as shown:
        names = [line["name"] for line in watch(root, lines, once=True)]
    return [names, shown.getvalue()]


def test_the_first_of_several_ranks_looks_and_writes_for_all(tmp_path):
    for name in ("a", "broken"):
        np.save(tmp_path / f"{name}.npy", np.ones(1))
    lines = tmp_path / "lines"
    (first, shown), (second, nothing) = on_ranks(2, watch_on_rank, tmp_path, str(tmp_path), str(lines))
    assert first == second == names(lines) == ["a.npy"]
    assert shown == "broken.npy: not scored: input1: cannot be read\n"
    assert not nothing


def test_the_command_appends_lines(place, capsys):
    root, call, _ = place
    samples(root / "a", 1)
    options = [
        "--feature-extractor",
        "counting",
        "--cpu",
        "--silent",
        "--save-cpu-ram",
        "--cache-root",
        call["cache_root"],
    ]
    assert main(["watch", str(root), "--input2", call["input2"], "--lsh", *options, "--settle", "0", "--once"]) == 0
    assert names(root / "scores.jsonl") == ["a"]
    assert main(["watch", str(root / "none"), "--input2", call["input2"], "--lsh", *options, "--once"]) == 1
    assert "the folder to watch, does not exist" in capsys.readouterr().err
