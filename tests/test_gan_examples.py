import json
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def gans(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return pytest.importorskip("gans")


@pytest.fixture
def train_gan(gans):
    return pytest.importorskip("train_gan")


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


def test_a_foreign_file_is_refused(gans, tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds no generator of train_gan\.py"):
        gans.load_generator(tmp_path / "other.safetensors")


def test_missing_data_are_named(gans, tmp_path):
    from data import load_images

    for name in ("mnist", "emoji"):
        with pytest.raises(FileNotFoundError, match="--data-root"):
            load_images(name, tmp_path)
