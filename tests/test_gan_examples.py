import importlib
import json
from pathlib import Path

import pytest
import torch

from compressors.study.table import DISTANCES, PRECISION_RECALL, Row, Table

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def gans(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("gans")


@pytest.fixture
def train_gan(gans):
    return importlib.import_module("train_gan")


def images(channels):
    return torch.randint(256, (20, channels, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize(("arch", "channels"), [("dcgan", 1), ("sngan", 3)])
def test_training_resumes_to_the_same_weights(train_gan, tmp_path, arch, channels):
    gan = train_gan.GANSettings(arch, channels, width=2, latent=3)
    settings = train_gan.TrainSettings(steps=4, batch=6, shift=2, checkpoint=2)
    real, checkpoint = images(channels), tmp_path / "checkpoint.safetensors"

    def training(steps):
        started = train_gan.Training(gan, settings, torch.device("cpu"))
        if checkpoint.is_file():
            started.load(checkpoint)
        for _ in range(steps):
            started.advance(real)
        return started

    whole = training(4).finished_generator().state_dict()
    training(2).save(checkpoint)
    resumed = training(2).finished_generator().state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in resumed.items())


def test_a_checkpoint_of_other_settings_is_refused(train_gan, tmp_path):
    device, path = torch.device("cpu"), tmp_path / "checkpoint.safetensors"
    gan = train_gan.GANSettings(width=2)
    train_gan.Training(gan, train_gan.TrainSettings(), device).save(path)
    with pytest.raises(ValueError, match="belongs to other settings"):
        train_gan.Training(gan, train_gan.TrainSettings(seed=1), device).load(path)


def test_the_command_writes_generator_samples_and_results(train_gan, gans, tmp_path, monkeypatch):
    command = ["train_gan.py", "--quick", "--width", "2", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    train_gan.main()
    generator, settings, data = gans.load_generator(tmp_path / "generator.safetensors")
    assert (settings.arch, settings.width, data, generator.training) == ("dcgan", 2, "digits", False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["steps"], results["images"]) == (20, 1797)
    assert (tmp_path / "samples.png").is_file()


def test_the_shipped_generator_is_small_and_runs(gans):
    path = EXAMPLES / "assets" / "digits_dcgan.safetensors"
    assert path.stat().st_size <= 2_000_000
    generator, settings, data = gans.load_generator(path)
    output = generator(torch.randn(2, settings.latent))
    assert output.shape == (2, 1, 32, 32)
    assert output.abs().max() <= 1
    assert data == "digits"


def test_a_foreign_or_damaged_generator_is_refused_by_name(gans, train_gan, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other\.safetensors has format None"):
        gans.load_generator(path)

    train_gan.Training(gans.GANSettings(width=2), train_gan.TrainSettings(), torch.device("cpu")).save(path)
    with pytest.raises(ValueError, match=r"other\.safetensors holds a training .*; a generator of train_gan\.py is"):
        gans.load_generator(path)

    content = bytearray((EXAMPLES / "assets" / "digits_dcgan.safetensors").read_bytes())
    for position in (-1, len(content) // 2, 20):
        flipped = bytearray(content)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"other\.safetensors"):
            gans.load_generator(path)


def test_missing_data_are_named(gans, tmp_path):
    from data import load_images

    for name in ("mnist", "emoji"):
        with pytest.raises(FileNotFoundError, match="--data-root"):
            load_images(name, tmp_path)


def scored(name, words=None):
    """Return a row whose precision and recall are said to have changed so."""
    scores = {DISTANCES[0].key: 5.0}
    for score in (score for pair in PRECISION_RECALL.values() for score in pair):
        scores |= {score.key: 0.7, f"{score.key}_ci_low": 0.6, f"{score.key}_ci_high": 0.75}
    numbers = {"value": -0.1, "ci_low": -0.15, "ci_high": -0.05}
    keys = [score.key for metric in ("lsh", "lsh_knn") for score in PRECISION_RECALL[metric]]
    changes = {key: {**numbers, "word": word} for key, word in zip(keys, 2 * words, strict=True)} if words else {}
    reference = {"real": changes} if words else {}
    return Row(name, parameters=10, bytes=1000, scores={"real": scores}, changes=reference, samples="samples/x.png")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("keeps", "gains"), "no fall shown"),
        (("may keep", "loses"), "recall alone shown to fall"),
        (("loses", "keeps"), "precision alone shown to fall"),
        (("loses", "loses"), "both fall"),
    ],
)
def test_the_report_says_what_fell(gans, tmp_path, monkeypatch, words, said):
    import paper_report

    row = scored("mse W4", words)
    assert paper_report.verdict(row, "real", "lsh") == said

    study, output = (tmp_path / name / "gan" for name in ("study", "output"))
    study.mkdir(parents=True)
    (study / "real.png").touch()
    Table((scored("float"), row), {"samples": 40}).save_json(study / "results.json")
    monkeypatch.setattr("sys.argv", ["", "--study", str(study.parent), "--output", str(output.parent)])
    paper_report.main()
    page = (output.parent / "tables.md").read_text()
    assert "| gan | 10 | 40 | 5.00 | 0.70 [0.60, 0.75] |" in page
    assert f"| mse W4 | 1 | 5.0 | -0.10 [-0.15, -0.05] {words[0]} | -0.10 [-0.15, -0.05] {words[1]} |" in page
    assert (output / "real.png").is_file()


def test_the_study_repairs_what_it_quantizes_and_takes_files_of_generators(gans, monkeypatch, tmp_path):
    import paper_study

    subject = paper_study.trained(EXAMPLES / "assets" / "digits_dcgan.safetensors", tmp_path)
    assert (subject.name, subject.images.shape) == ("digits_dcgan", (1797, 1, 32, 32))
    ways = paper_study.compressors(2, (4, 3, 2), subject.draw)
    assert list(ways)[:4] == ["mse W8", "mse W6", "mse W5", "mse W4"]
    assert [label for label in ways if "repaired" in label] == [f"mse W{bits}, repaired" for bits in (4, 3, 2)]
    assert len(ways) == 2 * 6 + 3
    assert (ways["mse W4"].act_bits, ways["mse W4A4"].act_bits, ways["mse W4A4"].output_bits) == (None, 4, None)


def test_training_is_watched_epoch_by_epoch(gans, tmp_path, monkeypatch):
    monitor = importlib.import_module("monitor_training")
    monkeypatch.setattr("sys.argv", ["monitor_training.py", "--quick", "--output", str(tmp_path)])
    monitor.main()
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["step"] for row in results] == [10, 20]
    assert all(0 <= row[f"lsh_{side}"] <= 1 for row in results for side in ("precision", "recall"))
    assert (tmp_path / "curves.png").is_file()
