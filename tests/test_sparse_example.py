"""The README's loop, and the example from its command line to its report."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("sparse_gan")


def documented_loop():
    """Return the lines that docs/sparse/training.md adds to a loop, and those of the loop with them."""
    text = (ROOT / "docs" / "sparse" / "training.md").read_text()
    lines = (
        next(block for block in text.split("```diff\n")[1:] if "SparseTraining" in block).split("```")[0].splitlines()
    )
    return [line[1:] for line in lines if line.startswith("+")], [line[1:] for line in lines]


def test_a_dcgan_loop_needs_fewer_than_ten_lines():
    added, lines = documented_loop()
    assert 0 < len([line for line in added if line.strip()]) < 10
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.Unflatten(1, (-1, 1, 1)),
        nn.ConvTranspose2d(128, 16, 4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(16 * 16, 1)
    )
    scope = {
        "torch": torch,
        "relu": torch.relu,
        "generator": generator,
        "discriminator": discriminator,
        "optimizer_g": torch.optim.Adam(generator.parameters()),
        "optimizer_d": torch.optim.Adam(discriminator.parameters()),
        "loader": [(torch.randn(8, 1, 8, 8).sign(), None)] * 11,
    }
    exec("\n".join(lines), scope)
    assert scope["sparse"].iteration == 11
    assert len(scope["sparse"].meter.scores) == 1
    weights = [layer.weight for layer in scope["small"].model if isinstance(layer, nn.ConvTranspose2d)]
    share = sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert share == pytest.approx(0.1, abs=0.001)


@pytest.fixture
def tiny(example, counting_extractor, monkeypatch):
    """The example at a size that takes seconds: four arms, four steps, features that are pooled pixels."""
    settings = example.Settings(steps=4, width=2, critic=2, latent=4, batch=4, samples=60)
    chosen = ("dense", "pruned half-way", "static", "ADAPT strict")
    configs = {label: config for label, config in example.arms(settings).items() if label in chosen}
    monkeypatch.setattr(example, "Settings", lambda **_: settings)
    monkeypatch.setattr(example, "arms", lambda _: configs)

    monkeypatch.setattr(example, "EXTRACTOR", "counting")
    return settings, configs


def test_the_example_goes_on_where_it_was_interrupted(example, tiny, tmp_path, monkeypatch, capsys):
    _, configs = tiny
    monkeypatch.setattr("sys.argv", ["sparse_gan.py", "--output", str(tmp_path), "--seeds", "2", "--density", "0.5"])
    example.main()
    names = {"results.json", "table.md", "sparse_gan.png", "samples.png", "runs", "samples", "scores"}
    assert {path.name for path in tmp_path.iterdir()} == names
    results = json.loads((tmp_path / "results.json").read_text())
    labels = [*configs, example.POST_HOC]
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [(arm, seed) for arm in labels for seed in (0, 1)]
    for run in results["runs"]:
        assert run["generator_density"] == pytest.approx(1 if run["arm"] == "dense" else 0.2, abs=0.01)
        assert {"lsh_precision", "lsh_recall_ci_low", "lsh_knn_recall"} <= run["scores"].keys()
        differences = run["scores"]["differences"]
        assert list(differences) == [name for name in ("dense", "static", example.POST_HOC) if name != run["arm"]]
        for baseline, found in differences.items():
            other = next(each for each in results["runs"] if (each["arm"], each["seed"]) == (baseline, run["seed"]))
            expected = run["scores"]["lsh_precision_unclipped"] - other["scores"]["lsh_precision_unclipped"]
            if {run["arm"], baseline} != example.SAME_TRAINING:  # which are compared in pairs, with other folds
                assert found["lsh_precision"]["value"] == pytest.approx(expected)
    half_way = next(run for run in results["runs"] if run["arm"] == "pruned half-way")
    assert [point["generator_density"] < 1 for point in half_way["history"]] == [False, False, True, True]
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out + "\n"

    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*-*.json")}
    trained, measured = (tmp_path / folder / "ADAPT strict-1.json" for folder in ("runs", "scores"))
    before = json.loads(trained.read_text())
    trained.unlink()
    measured.unlink()
    example.main()
    assert {**json.loads(trained.read_text()), "seconds": 0} == {**before, "seconds": 0}
    assert {path for path, time in kept.items() if path.stat().st_mtime_ns != time} == {trained, measured}
    assert (tmp_path / "table.md").read_text() == table


def test_results_of_other_settings_are_not_mixed(example, tiny, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "protocol.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["sparse_gan.py", "--output", str(tmp_path), "--seeds", "1"])
    with pytest.raises(SystemExit, match="holds runs of other settings or versions: choose another --output"):
        example.main()


def test_differences_come_seed_by_seed_with_students_interval(example):
    import sparse_report

    def runs(arm, values):
        scores = [(seed, 10 * value, value, "gains" if value > 1 else "may keep") for seed, value in enumerate(values)]
        keys = list(sparse_report.SCORES.values())[1:]
        return [
            {
                "arm": arm,
                "seed": seed,
                "scores": {
                    sparse_report.FD: distance,
                    "differences": {"pruned": {key: {"value": value, "word": word} for key in keys}},
                },
            }
            for seed, distance, value, word in scores
        ]

    groups = {"sparse": runs("sparse", (1, 2, 3)), "pruned": runs("pruned", (0, 0, 0))}
    # Differences 1, 2, 3: mean 2, deviation 1, t of 2 degrees of freedom 4.303.
    header, _, row = sparse_report.differences(groups, "pruned").splitlines()
    assert header.startswith("| arm | FD |")
    change = "+2.00 [-0.48, +4.48] (1 may keep, 2 gains)"
    assert row == "| sparse | +20 [-5, +45] | " + " | ".join([change] * 4) + " |"


def test_arms_are_chosen_and_measured_without_the_dense_one(example, tiny, tmp_path, monkeypatch):
    command = ["sparse_gan.py", "--output", str(tmp_path), "--seeds", "1", "--arms", "static", "ADAPT strict"]
    monkeypatch.setattr("sys.argv", command)
    example.main()
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [(run["arm"], list(run["scores"]["differences"])) for run in runs] == [
        ("static", []),
        ("ADAPT strict", ["static"]),
    ]


@pytest.mark.parametrize("seeds", ["0", "-1", "two"])
def test_a_number_of_seeds_that_makes_no_sense(example, monkeypatch, capsys, seeds):
    monkeypatch.setattr("sys.argv", ["sparse_gan.py", "--seeds", seeds])
    with pytest.raises(SystemExit):
        example.main()
    assert f"must be an integer of at least 1; got {seeds}" in capsys.readouterr().err


@pytest.mark.parametrize(("density", "message"), [("0", "above 0, at most 1; got 0.0"), ("0.8", "cap=0.5 .* got 0.8")])
def test_a_density_that_makes_no_sense(example, tmp_path, monkeypatch, density, message):
    monkeypatch.setattr("sys.argv", ["sparse_gan.py", "--output", str(tmp_path), "--density", density])
    with pytest.raises(SystemExit, match=f"--density .*{message}"):
        example.main()


@pytest.mark.slow
def test_a_weaker_discriminator_has_a_higher_balance_ratio(example, monkeypatch):
    """Generator at density 0.3; tails of the ratio with discriminators of density 0.1 and 1, scikit-learn's digits."""
    import sparse_arms
    from data import load_images
    from sparse_report import tail_balance

    settings = example.Settings(steps=400, density=0.3, batch=16, rate=1e-3, critic_rate=1e-3)
    static = example.arms(settings)["static"]
    arms = {str(density): replace(static, discriminator_density=density) for density in (0.1, 1.0)}
    monkeypatch.setattr(sparse_arms, "arms", lambda _: arms)
    images = load_images("digits", Path())
    weak, strong = (tail_balance({"history": example.Arm(label, settings, images, 0).train(label)}) for label in arms)
    assert weak - strong >= 0.2
