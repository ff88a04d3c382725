"""The command line: results on stdout, everything else on stderr, mistakes in one line."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch_fidelity

from torch_fidelity_lsh import cli
from torch_fidelity_lsh.cli import main, make_parser
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY, MetricOption

COMMAND = Path(sys.executable).with_name("fidelity-lsh")


@pytest.fixture
def feature_files(features, tmp_path):
    paths = [str(tmp_path / f"{name}.npy") for name in ("generated", "real")]
    for path, values in zip(paths, features, strict=True):
        np.save(path, values)
    return paths


@pytest.fixture
def inputs(feature_files):
    return ["--input1", feature_files[0], "--input2", feature_files[1]]


def test_command_on_images_agrees_with_upstream(image_folders):
    call = {"input1": image_folders[0], "input2": image_folders[1], "feature_extractor": "efficientnet-lite0"}
    inputs = ["--input1", image_folders[0], "--input2", image_folders[1], "--feature-extractor", "efficientnet-lite0"]
    done = subprocess.run(
        [COMMAND, *inputs, "--prc", "--isc", "--cpu", "--json"], capture_output=True, text=True, check=True
    )
    expected = torch_fidelity.calculate_metrics(**call, prc=True, isc=True, cuda=False, verbose=False)
    assert json.loads(done.stdout) == pytest.approx(expected, rel=1e-4)
    assert "Creating feature extractor" in done.stderr


def test_command_ends_with_one_line_for_a_missing_input():
    done = subprocess.run([COMMAND, "--fid", "--input1", "/no/folder"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith('fidelity-lsh: error: input1: "/no/folder" does not exist. Accepted are:')
    assert "Traceback" not in done.stderr


def test_third_party_metric_gets_flags_and_help(shift_metric, inputs, capsys):
    assert main([*inputs, "--shift", "--shift-scale", "0", "--json", "--silent"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == {"mean_shift": 0.0}
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "--feature-layer-shift" in text
    assert "Factor on the result (default: 1.0)" in text


@pytest.mark.parametrize(("flag", "value"), [([], True), (["--no-spy-closely"], False), (["--spy-closely"], True)])
def test_switches_can_be_turned_off(flag, value, inputs, spy_metric, monkeypatch):
    option = MetricOption("spy_closely", True, bool, "Look at 100% of the samples")
    monkeypatch.setitem(METRICS_REGISTRY, "spy", replace(METRICS_REGISTRY["spy"], options=(option,)))
    assert main([*inputs, "--spy", *flag]) == 0
    assert spy_metric["spy_closely"] is value


def test_plain_output_is_upstreams(shift_metric, inputs, features, capsys):
    assert main([*inputs, "--shift"]) == 0
    shift = np.linalg.norm(features[0].mean(axis=0) - features[1].mean(axis=0))
    assert capsys.readouterr().out == f"mean_shift: {shift:.7g}\n"


def test_stdout_is_json_even_where_upstream_prints_remarks(features, tmp_path, capsys):
    path = str(tmp_path / "same.npy")
    np.save(path, features[0])
    assert main(["--input1", path, "--input2", path, "--kid", "--kid-subset-size", "30", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["kernel_inception_distance_mean"] < 0
    assert "KID values slightly less than 0 are valid" in output.err


def test_upstreams_options_arrive(shift_metric, inputs, monkeypatch):
    seen = {}
    monkeypatch.setattr(cli, "calculate_metrics", lambda **kwargs: seen.update(kwargs) or {})
    options = [
        "--no-cache",
        "--no-datasets-download",
        "--no-samples-shuffle",
        "--silent",
        "-b",
        "7",
        "--kid-subsets",
        "3",
    ]
    assert main([*inputs, *options, "--shift"]) == 0
    expected = {"cache": False, "datasets_download": False, "samples_shuffle": False, "verbose": False}
    expected |= {"batch_size": 7, "kid_subsets": 3, "shift": True, "shift_scale": 1.0, "fid": False}
    assert expected.items() <= seen.items()
    assert not seen.keys() & {"no_cache", "silent", "json", "gpu", "cpu"}


@pytest.mark.parametrize(("options", "wanted"), [(["--gpu", "2,3"], ("2,3", True)), (["--cpu"], ("0", False))])
def test_ranks_take_the_gpus_that_are_asked_for(options, wanted, inputs, monkeypatch):
    seen = []

    def ranks(cuda):
        seen.append((os.environ["CUDA_VISIBLE_DEVICES"], cuda))
        return contextlib.nullcontext()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(cli, "ranks_of_torchrun", ranks)
    monkeypatch.setattr(cli, "calculate_metrics", lambda **kwargs: {})
    assert main([*inputs, *options, "--fid"]) == 0
    assert seen == [wanted]


@pytest.mark.parametrize(
    ("options", "environment", "cuda"),
    [
        ([], "", False),
        (["--gpu", "0"], "", True),
        ([], "0", True),
        (["--cpu"], "0", False),
        (["--gpu", ""], "0", False),
    ],
)
def test_device_is_chosen_as_upstream_chooses_it(options, environment, cuda, inputs, monkeypatch):
    seen = {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    monkeypatch.setattr(cli, "calculate_metrics", lambda **kwargs: seen.update(kwargs) or {})
    assert main([*inputs, *options, "--fid"]) == 0
    assert seen["cuda"] is cuda


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shift-scal", "2"], 'unrecognized argument: --shift-scal; did you mean "--shift-scale"?'),
        (["--shift_scale=2"], 'unrecognized argument: --shift_scale; did you mean "--shift-scale"?'),
        (["--kid-subset", "2"], 'unrecognized argument: --kid-subset; did you mean "--kid-subsets"?'),
        (["stray"], "unrecognized argument: stray\n"),
        (["--shift-scale", "wide"], "argument --shift-scale: invalid float value: 'wide'"),
    ],
)
def test_wrong_options_exit_with_2_and_a_hint(options, message, shift_metric, inputs, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*inputs, "--shift", *options])
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert len(output.err.splitlines()) == 2  # The usage and the error.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "At least one metric must be requested"),
        (["--shift", "--feature-extractor", "vgg19"], '"vgg19" is not one of inception-v3-compat, vgg16'),
        (["--shift", "--input2", "/no/features.npy"], 'input2, file "/no/features.npy": there is no such file'),
        (["--kid", "--kid-subset-size", "1000"], "kid needs at least 1000 samples for kid_subset_size=1000"),
    ],
)
def test_users_mistakes_exit_with_1_and_one_line(options, message, shift_metric, inputs, capsys):
    assert main([*inputs, *options, "--silent"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("fidelity-lsh: error: ")
    assert message in output.err
    assert output.err.count("\n") == 1


def test_genuine_bugs_keep_their_traceback(inputs, monkeypatch):
    def broken(**kwargs):
        raise TypeError("a bug")

    monkeypatch.setattr(cli, "calculate_metrics", broken)
    with pytest.raises(TypeError, match="a bug"):
        main([*inputs, "--fid"])


def test_parser_is_upstreams_and_parsing_works_elsewhere_afterwards():
    before = argparse.ArgumentParser.parse_known_args
    options = make_parser()._option_string_actions
    assert argparse.ArgumentParser.parse_known_args is before
    assert {"--fid", "-f", "--kid-kernel-rbf-sigma", "--input1-model-z-size", "--save-cpu-ram"} <= options.keys()


def test_torch_fidelity_without_a_parser_is_reported(monkeypatch):
    monkeypatch.setattr("torch_fidelity.fidelity.main", lambda: None)
    with pytest.raises(RuntimeError, match="no longer builds its command line with argparse"):
        make_parser()


# Comparing two generators


@pytest.fixture
def generators(tmp_path):
    """Features of real samples, of a generator like them, and of one that dropped half of the modes."""
    rng = np.random.default_rng(0)

    def draw(kept):
        return (10 * np.eye(4, 16)[rng.integers(kept, size=400)] + rng.standard_normal((400, 16))).astype(np.float32)

    paths = {}
    for name, kept in (("real", 4), ("whole", 4), ("half", 2)):
        paths[name] = str(tmp_path / f"{name}.npy")
        np.save(paths[name], draw(kept))
    return paths


def compare_command(paths, a, b, *options):
    return main(["compare", "--input1", paths[a], "--against", paths[b], "--input2", paths["real"], *options])


def test_compare_says_what_a_generator_keeps_and_loses(generators, capsys):
    assert compare_command(generators, "half", "whole") == 0
    verdict, *numbers = capsys.readouterr().out.splitlines()
    assert verdict.startswith("A ")
    assert "loses recall: 0." in verdict
    assert [line.partition(":")[0] for line in numbers] == ["precision", "recall", "f_score"]


def test_compare_fails_a_build_where_a_difference_is_surely_too_large(generators, capsys):
    assert compare_command(generators, "half", "whole", "--fail-below", "-0.05") == 3
    assert compare_command(generators, "half", "whole", "--fail-below", "-0.9") == 0
    assert compare_command(generators, "whole", "whole", "--paired", "--fail-below", "-0.05") == 0


def test_compare_prints_json(generators, capsys):
    assert compare_command(generators, "half", "whole", "--json", "--metric", "lsh", "--lsh-num-tables", "8") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metric"] == "lsh"
    assert report["recall"]["ci_high"] < 0
