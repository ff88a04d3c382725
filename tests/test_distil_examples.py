"""The examples that repair and distil, from the command line to their tables and pictures."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)

    def command(name: str, *arguments: str) -> Any:
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", *arguments])
        module.main()
        return module

    return command


def test_the_demonstration_ends_with_repaired_rows_under_real_against_real(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("compression_study", "--output", str(tmp_path), "--samples", "100")
    lines = capsys.readouterr().out.splitlines()
    assert [re.split("  +", line)[0] for line in lines[1:9]] == [
        "real against real (halves)",
        "float",
        "8 bits",
        "4 bits",
        "4 bits, repaired",
        "half the channels",
        "half the channels, repaired",
        "both, repaired",
    ]
    assert "FID: lower is better" in lines[9]
    assert all(line.count("±") == 4 for line in lines[1:9])
    with Image.open(tmp_path / "repaired.png") as picture:
        assert picture.width > 500
    ceiling = json.loads((tmp_path / "ceiling.json").read_text())["real against real, every second image"]
    assert ceiling["lsh_knn_precision"] > 0.6  # of 250 images a side


def test_repaired_models_are_measured_from_their_files_in_any_features_and_not_made_again(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--output", str(tmp_path), "--rows", "W4 everywhere*", "--samples", "60"]
    example = run("repair_gan", *command)
    (kept,) = (tmp_path / "models-1").iterdir()
    written = kept.stat().st_mtime_ns
    run("repair_gan", *command, "--features", "pixels")
    assert kept.stat().st_mtime_ns == written
    for features in ("efficientnet-lite0", "pixels"):
        results = json.loads((tmp_path / f"results-{features}.json").read_text())
        (table,) = results["seeds"].values()
        assert [row["compressor"] for row in table["rows"]] == [
            "float",
            "W4 everywhere",
            "W4 everywhere, equalized",
            "W4 everywhere, repaired",
        ]
        assert table["protocol"]["feature_extractor"] == features
    assert "| W4 everywhere, repaired |" in capsys.readouterr().out
    task = example.digits()
    inputs = task.draw(8, torch.Generator().manual_seed(0))
    label = "W4 everywhere, repaired"
    rows = example.ways(task, 1, 0.05)
    (tmp_path / "new").mkdir()
    again = example.made(label, rows, task, tmp_path / "new", {})
    with torch.no_grad():
        expected = example.made(label, rows, task, tmp_path / "models-1", {}).model(*inputs)
        assert torch.equal(again.model(*inputs), expected)
    with pytest.raises(SystemExit, match="holds models of other settings"):
        example.claim(tmp_path, {"share": 0.5})


def test_students_of_four_ways_share_a_teacher_and_a_table(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = run("distill_emoji", "--output", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["row"] for row in results["rows"]] == ["teacher", *example.ARMS]
    assert all(row["MSE"] > 0 and row["FID"] > 0 for row in results["rows"])
    assert results["costs"][1]["parameters"] < results["costs"][0]["parameters"] / 50
    assert (tmp_path / "samples.png").is_file()
    assert "MSE + CRD + D" in capsys.readouterr().out


def test_a_super_resolution_network_is_read_compressed_and_repaired(run: Any, tmp_path: Path) -> None:
    compact = pytest.importorskip("spandrel.architectures.Compact")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = compact.Compact(num_feat=16, num_conv=2, upscale=4)
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    (tmp_path / "train_lr").mkdir()
    for index in range(22):
        pixels = torch.randint(256, (48, 48, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "train_lr" / f"{index}.png")
    arguments = ["--weights", str(tmp_path / "network.safetensors"), "--data", str(tmp_path), "--rows", "W4"]
    run("repair_sr", *arguments, "--output", str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["row"] for row in results["rows"]] == ["bicubic", "teacher", "W4", "W4, repaired"]
    assert results["rows"][3]["PSNR to teacher"] >= results["rows"][2]["PSNR to teacher"]
    assert (tmp_path / "out" / "W4-1-repaired.safetensors").is_file()


def test_a_student_is_trained_quantized_and_compared_with_its_teacher(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("student_digits", "--output", str(tmp_path))
    assert "where A is the student" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["metric"], results["paired"]) == ("lsh_knn", True)
    assert results["recall"]["ci_low"] <= results["recall"]["difference"] <= results["recall"]["ci_high"]
    assert (tmp_path / "student.safetensors").stat().st_size < 150_000
