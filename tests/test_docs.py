"""README and docs: every code block runs, every command is one that exists, the site builds without a warning."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch import nn

import torch_fidelity_lsh
from compressors import study
from torch_fidelity_lsh import cli, streaming, watch
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OFFLINE = "efficientnet-lite0"  # in place of the default extractor, whose weights need a network connection
EXTRACTOR = ("--feature-extractor", OFFLINE)


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(page.read_text()) if language in languages]


def pages_with(*languages: str) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if blocks(page, *languages)]


def commands(page: Path, program: str) -> list[list[str]]:
    lines = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip().startswith(program)]


@pytest.fixture(scope="session")
def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        **{f"{name}_images": rng.integers(0, 255, (24, 16, 16, 3), dtype=np.uint8) for name in ("generated", "real")},
        **{name: rng.normal(size=(200, 8)).astype(np.float32) for name in ("generated", "before", "real")},
    }


@pytest.fixture(scope="session")
def files(samples: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and files that the blocks name."""
    folder = tmp_path_factory.mktemp("files")
    for name, archive in {"generated": "samples.npz", "real": "VIRTUAL_imagenet256_labeled.npz"}.items():
        (folder / name).mkdir()
        for number, picture in enumerate(samples[f"{name}_images"]):
            Image.fromarray(picture).save(folder / name / f"{number}.png")
        np.savez(folder / archive, arr_0=samples[f"{name}_images"])
    for name in ("generated", "before", "real"):
        np.save(folder / f"{name}.npy", samples[name])
    statistics = ("--output", str(folder / "jit_in256_stats.npz"), "--format", "pytorch-fid")
    assert cli.main(["index", "--input", str(folder / "real"), *statistics, *EXTRACTOR, "--silent"]) == 0
    return folder


@pytest.fixture
def workplace(
    samples: dict[str, np.ndarray], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Run in a copy of the files, offline; return the names that are the reader's own."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    calculate = torch_fidelity_lsh.calculate_metrics

    def calculate_offline(**call: Any) -> dict[str, float]:
        of_images = {"feature_extractor": OFFLINE} if isinstance(call["input1"], str) else {}
        return calculate(**{**of_images, "cuda": False, "verbose": False, **call})

    for module in (torch_fidelity_lsh, torch_fidelity):
        monkeypatch.setattr(module, "calculate_metrics", calculate_offline)
    streamed = streaming.LSHPrecisionRecall
    monkeypatch.setattr(streaming, "LSHPrecisionRecall", lambda _, **options: streamed(OFFLINE, **options))
    monkeypatch.setattr(watch, "watch", partial(watch.watch, feature_extractor=OFFLINE))
    settings = partial(study.StudySettings, feature_extractor=OFFLINE, samples=24)
    monkeypatch.setattr(study, "StudySettings", settings)
    images = {name: torch.from_numpy(samples[name]).permute(0, 3, 1, 2) for name in samples if "images" in name}
    features = {f"features_{name}": torch.from_numpy(samples[name]) for name in ("generated", "real")}
    # A page registers this metric, which is gone again after the test.
    monkeypatch.setitem(METRICS_REGISTRY, "means", None)
    monkeypatch.delitem(METRICS_REGISTRY, "means")
    return {**images, **features, "generator": make_generator(), "make_generator": make_generator}


def make_generator() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 256),
        nn.Unflatten(1, (16, 4, 4)),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 16, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1),
        nn.Tanh(),
    ).eval()


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, workplace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for code in blocks(page, "python"):
            exec(compile(code, str(page), "exec"), workplace)


@pytest.mark.parametrize("page", [page for page in pages_with("") if commands(page.values[0], "fidelity-lsh")])
def test_the_commands_of_a_page_run(page: Path, workplace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for _, *arguments in commands(page, "fidelity-lsh"):
        if "--gpu" in arguments:
            place = arguments.index("--gpu")
            del arguments[place : place + 2]
        ready = any(word.endswith(".npy") for word in arguments)
        code = cli.main([*arguments, *(() if ready else EXTRACTOR), "--silent"])
        assert code in ((0, 3) if "--fail-below" in arguments else (0,)), capsys.readouterr().err


@pytest.mark.parametrize("page", [page for page in pages_with("") if commands(page.values[0], "python ")])
def test_the_scripts_of_a_page_exist_and_take_their_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, script, *arguments in commands(page, "python "):
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        shown = io.StringIO()
        with redirect_stdout(shown), pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        unknown = {word for word in arguments if word.startswith("--")} - set(re.findall(r"--[\w-]+", shown.getvalue()))
        assert not unknown, f"{script} has no {unknown}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "site" / "api.html").stat().st_size > 50_000


def test_the_version_to_cite_is_the_one_that_is_installed() -> None:
    assert f"version: {version('torch-fidelity-lsh')}\n" in (ROOT / "CITATION.cff").read_text()
