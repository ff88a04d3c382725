"""``lsh`` and ``lsh_knn`` beside FID: from Python, from code that calls torch_fidelity, from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity import calculate_metrics as imported_long_before

import torch_fidelity_lsh
from torch_fidelity_lsh.fidelity.metric_lsh import lsh_features_to_metric, lsh_knn_features_to_metric

METRICS = {"fid": True, "prc": True, "lsh": True, "lsh_knn": True}
ENDS = [f"{name}_ci_{end}" for name in ("precision", "recall", "f_score") for end in ("low", "high")]
ERRORS = [f"{name}_{kind}" for name in ("precision", "recall") for kind in ("unclipped", "stderr", "pvalue")]
NUMBERS = ("precision", "recall", "f_score", "effective_generated", "effective_real", *ERRORS, *ENDS)
LSH_KEYS = {f"{metric}_{number}" for metric in ("lsh", "lsh_knn") for number in NUMBERS}


@pytest.fixture
def call(images, counting_extractor):
    quick = {"cuda": False, "verbose": False, "save_cpu_ram": True}
    return {**quick, "input1": images[0], "input2": images[1], "feature_extractor": "counting"}


def test_one_flag_adds_lsh_to_upstreams_metrics_in_one_pass(call, images, counting_extractor):
    theirs = torch_fidelity.calculate_metrics(**call, fid=True, prc=True)
    counting_extractor.images = 0
    ours = torch_fidelity_lsh.calculate_metrics(**call, **METRICS)
    assert ours.keys() == theirs.keys() | LSH_KEYS
    assert {key: ours[key] for key in theirs} == theirs
    assert counting_extractor.images == len(images[0]) + len(images[1])
    assert all(type(value) is float and np.isfinite(value) for value in ours.values())


def test_values_are_those_of_the_features(call, images, counting_extractor):
    ours = torch_fidelity_lsh.calculate_metrics(**call, lsh=True, lsh_knn=True, lsh_num_tables=9, rng_seed=3)
    extractor = counting_extractor("counting", ["wide"])
    generated, real = (extractor(torch.stack([s[i] for i in range(len(s))]))[0] for s in images)
    options = {"lsh_num_tables": 9, "rng_seed": 3}
    expected = lsh_features_to_metric(generated, real, **options) | lsh_knn_features_to_metric(
        generated, real, **options
    )
    assert ours == pytest.approx(expected, abs=1e-6)


def test_code_that_calls_torch_fidelity_needs_one_line(call):
    expected = torch_fidelity_lsh.calculate_metrics(**call, **METRICS)
    with torch_fidelity_lsh.installed():
        assert imported_long_before(**call, **METRICS) == expected


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"lsh_num_table": 9}, 'Unknown keyword "lsh_num_table"; did you mean "lsh_num_tables"?'),
        ({"lsh_num_tables": 0}, "^lsh_num_tables must be an integer of at least 1"),
        ({"rng_seed": -1}, "^rng_seed must be an integer of at least 0; got -1"),
        ({"lsh_kn": True}, 'Unknown keyword "lsh_kn"; did you mean "lsh_knn"?'),
    ],
)
def test_wrong_options_are_refused_before_features_are_extracted(mistake, message, call, counting_extractor):
    with pytest.raises(ValueError, match=message):
        torch_fidelity_lsh.calculate_metrics(**call, lsh=True, **mistake)
    assert counting_extractor.images == 0


def test_names_are_taken():
    with pytest.raises(ValueError, match='"lsh" is already registered'):
        torch_fidelity_lsh.register_metric("lsh", lambda *_, **__: {}, keys=["x"])


def run(*arguments):
    command = Path(sys.executable).with_name("fidelity-lsh")
    return subprocess.run([command, *arguments], capture_output=True, text=True, check=False)


def test_command_prints_json_only(image_folders):
    inputs = ["--input1", image_folders[0], "--input2", image_folders[1], "--feature-extractor", "efficientnet-lite0"]
    done = run(*inputs, "--prc", "--lsh", "--lsh-knn", "--lsh-num-tables", "9", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"precision", "recall", "f_score"} | LSH_KEYS


def test_command_reads_ready_features(features, tmp_path):
    for name, values in zip("12", features, strict=True):
        np.save(tmp_path / f"{name}.npy", values)
    done = run("--input1", tmp_path / "1.npy", "--input2", tmp_path / "2.npy", "--fid", "--lsh", "--silent")
    assert done.returncode == 0, done.stderr
    results = dict(line.split(": ") for line in done.stdout.splitlines())
    expected = torch_fidelity_lsh.calculate_metrics(
        input1=features[0], input2=features[1], fid=True, lsh=True, verbose=False
    )
    assert results == {key: f"{value:.7g}" for key, value in expected.items()}
    assert done.stderr == ""
