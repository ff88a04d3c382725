"""Scores while a model trains: folders and files that appear, half-written ones, restarts, a folder that vanishes."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from torch_fidelity_lsh import calculate_metrics
from torch_fidelity_lsh.cli import main
from torch_fidelity_lsh.watch import watch

CALL = {"feature_extractor": "counting", "cuda": False, "verbose": False, "save_cpu_ram": True, "lsh": True}


def samples(folder, seed, count=30, age=100.0):
    """Write images that were finished some seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(np.random.default_rng(seed).integers(256, size=(count, 8, 8, 3), dtype=np.uint8)):
        path = folder / f"{i:02}.png"
        Image.fromarray(image).save(path)
        os.utime(path, (time.time() - age,) * 2)
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
    samples(root / "b", 2, age=50)
    assert [line["name"] for line in watch(root, lines, once=True, **call)] == ["b"]
    whole = [json.loads(line) for line in lines.read_text().splitlines() if line.endswith("}")]
    assert [line["name"] for line in whole] == ["a", "b"]
    assert not list(watch(root, lines, once=True, **call))
    samples(root / "a", 3, age=20)  # the same name, other samples
    assert [line["name"] for line in watch(root, lines, once=True, **call)] == ["a"]


def test_what_is_still_written_waits_and_what_is_broken_is_tried_again(place, capsys):
    root, call, lines = place
    samples(root / "young", 1, age=1)
    samples(root / "broken", 2)
    (root / "broken" / "05.png").write_bytes(b"half a file")
    os.utime(root / "broken" / "05.png", (time.time() - 100,) * 2)
    (root / "notes.txt").write_text("not scored")
    assert not list(watch(root, lines, once=True, **call))
    assert "broken: not scored: input1: cannot read image" in capsys.readouterr().err
    samples(root / "broken", 2)
    np.savez(root / "samples.npz", np.random.default_rng(5).integers(256, size=(30, 8, 8, 3), dtype=np.uint8))
    found = [line["name"] for line in watch(root, lines, once=True, settle=0, **call)]
    assert sorted(found) == ["broken", "samples.npz", "young"]


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
    assert main(["watch", str(root), "--input2", call["input2"], "--lsh", *options, "--once"]) == 0
    assert names(root / "scores.jsonl") == ["a"]
    assert main(["watch", str(root / "none"), "--input2", call["input2"], "--lsh", *options, "--once"]) == 1
    assert "the folder to watch, does not exist" in capsys.readouterr().err
