"""Features kept under a name: found again where nothing has changed, never taken for others, and never code."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
import torchvision
from PIL import Image
from torch import nn
from torch_fidelity.datasets import RandomlyGeneratedDataset

from torch_fidelity_lsh import calculate_metrics, create_reference
from torch_fidelity_lsh.fidelity import cache
from torch_fidelity_lsh.fidelity.feature_extractors_onnx import OnnxExtractor
from torch_fidelity_lsh.metric.files import read_tensors


@pytest.fixture
def call(image_folders, counting_extractor, tmp_path):
    """A call whose real images are kept as ``real``; the cache is ``tmp_path / "cache"``."""
    settings = {"cuda": False, "verbose": False, "save_cpu_ram": True, "feature_extractor": "counting", "fid": True}
    inputs = {"input1": image_folders[0], "input2": image_folders[1], "input2_cache_name": "real"}
    return {**settings, **inputs, "lsh": True, "cache_root": str(tmp_path / "cache")}


@pytest.fixture
def measured(counting_extractor):
    """Return a call's result, and the number of images that were looked at."""

    def measure(call):
        counting_extractor.images = 0
        return calculate_metrics(**call), counting_extractor.images

    return measure


def test_kept_features_give_the_same_numbers(call, measured):
    first, seen = measured(call)
    again, seen_again = measured(call)
    assert (again, seen, seen_again) == (first, 26, 12)
    assert sorted(path.name for path in Path(call["cache_root"]).iterdir()) == [
        "real-counting-features-small.safetensors",
        "real-counting-features-wide.safetensors",
    ]


def replace_an_image(folder):
    path = Path(folder) / "03.png"
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(path)


def replace_an_image_by_one_of_its_size_and_time(folder):
    path = Path(folder) / "03.png"
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-20] ^= 0  # The same bytes, written anew.
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def add_an_image(folder):
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(Path(folder) / "99.png")


@pytest.mark.parametrize("change", [replace_an_image, replace_an_image_by_one_of_its_size_and_time, add_an_image])
def test_a_folder_that_has_changed_is_measured_again(change, call, measured, image_folders, tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for path in Path(image_folders[1]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    call["input2"] = str(folder)
    measured(call)
    time.sleep(0.01)
    change(folder)
    with pytest.warns(
        UserWarning, match=r"input2_cache_name: what is kept as real was made of something else \(samples"
    ):
        result, seen = measured(call)
    assert seen == 12 + len(list(folder.iterdir()))
    assert result == calculate_metrics(**{**call, "cache": False})


@pytest.mark.parametrize(
    "change",
    [
        {"samples_resize_and_crop": 16},
        {"feature_extractor_internal_dtype": "float64"},
        {"input2": RandomlyGeneratedDataset(14, 3, 32, 32, seed=99)},
    ],
)
def test_other_settings_and_samples_are_measured_again(change, call, measured):
    measured(call)
    changed = {**call, **change}
    with pytest.warns(UserWarning, match="was made of something else"):
        result, seen = measured(changed)
    assert seen == 26
    assert result == calculate_metrics(**{**changed, "cache": False})


def test_a_data_set_with_one_other_item_is_measured_again(call, measured, images):
    class Changed(torch.utils.data.Dataset):
        def __init__(self, value):
            self.value = value

        def __len__(self):
            return 14

        def __getitem__(self, index):
            return images[1][index] if index != 7 else torch.full((3, 32, 32), self.value, dtype=torch.uint8)

    measured({**call, "input2": Changed(0)})
    with pytest.warns(UserWarning, match="was made of something else"):
        _, seen = measured({**call, "input2": Changed(1)})
    assert seen == 26


def test_other_weights_under_the_name_of_an_extractor_are_measured_again(
    call, measured, counting_extractor, monkeypatch
):
    monkeypatch.setattr(counting_extractor, "state_dict", lambda self: {"weight": torch.ones(1)})
    measured(call)
    monkeypatch.setattr(counting_extractor, "state_dict", lambda self: {"weight": torch.zeros(1)})
    with pytest.warns(UserWarning, match=r"was made of something else \(weights"):
        assert measured(call)[1] == 26


def test_a_release_of_a_package_with_other_weights_is_measured_again(call, monkeypatch):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: network)
    call = {**call, "feature_extractor": "torchvision:regnet_y_400mf/2"}
    first = calculate_metrics(**call)
    network[2].weight.data += 1
    with pytest.warns(UserWarning, match=r"was made of something else \(weights"):
        assert calculate_metrics(**call) != first


def test_another_onnx_file_of_a_package_is_another_extractor(tmp_path):
    class OfFile(OnnxExtractor):
        def __init__(self, path):
            nn.Module.__init__(self)
            self.path = path

    digests = set()
    for content in (b"1", b"2"):
        (tmp_path / "x.onnx").write_bytes(content)
        digests.add(cache._weights(OfFile(tmp_path / "x.onnx"), {"feature_extractor_weights_path": None}))
    assert len(digests) == 2


def test_one_name_for_two_sources_is_refused(call):
    with pytest.raises(
        ValueError, match='input1_cache_name and input2_cache_name are both "real", and the inputs differ'
    ):
        calculate_metrics(**call, input1_cache_name="real")
    same = {**call, "input1": call["input2"], "input1_cache_name": "real"}
    assert calculate_metrics(**same)["lsh_precision"] == 1


@pytest.mark.parametrize("name", ["../outside", "a/b", ""])
def test_a_name_may_not_lead_out_of_the_cache(name, call):
    with pytest.raises(ValueError, match="input2_cache_name must be a name without folders"):
        calculate_metrics(**{**call, "input2_cache_name": name})


def test_a_damaged_file_is_measured_again_and_said(call, measured):
    first, _ = measured(call)
    path = next(Path(call["cache_root"]).glob("*wide*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(
        UserWarning, match=r'input2_cache_name: ".*wide.*" is damaged.*; the features are extracted again'
    ):
        assert measured(call) == (first, 26)
    assert measured(call) == (first, 12)


class Bomb:
    """An object that leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_in_the_cache_does_not_run_code(call, measured, tmp_path):
    canary = tmp_path / "ran"
    folder = Path(call["cache_root"])
    folder.mkdir()
    for name in ("features-small", "features-wide", "stat-fid-small"):
        torch.save(Bomb(canary), folder / f"real-counting-{name}.pt")
        for suffix in (".safetensors", ".pkl"):
            (folder / f"real-counting-{name}{suffix}").write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.warns(UserWarning, match="is damaged"):
        calculate_metrics(**call)
    with pytest.raises(ValueError, match=r'real-counting.*\.pt" cannot be read as features that torch-fidelity'):
        calculate_metrics(**{**call, "cache": "upstream"})
    features = tmp_path / "features.safetensors"
    features.write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(ValueError, match=r"input2, file .* damaged"):
        calculate_metrics(**{**call, "input2": str(features), "input2_cache_name": None})
    assert not canary.exists()


@pytest.mark.parametrize("extractor", ["efficientnet-lite0", "vgg16", "inception-v3-compat"])
def test_a_weights_file_does_not_run_code(extractor, call, tmp_path):
    canary, path = tmp_path / "ran", tmp_path / "weights.pth"
    torch.save(Bomb(canary), path)
    with pytest.raises(ValueError, match=r'weights\.pth" (cannot be read as|does not hold) the weights of'):
        calculate_metrics(**{**call, "feature_extractor": extractor, "feature_extractor_weights_path": str(path)})
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", "dict"])
@pytest.mark.parametrize("extractor", ["efficientnet-lite0", "vgg16", "inception-v3-compat"])
def test_a_damaged_weights_file_is_one_line(extractor, content, call, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, path) if content == "dict" else path.write_bytes(content)
    with pytest.raises(ValueError, match=r'weights\.pth" (cannot be read as|does not hold) the weights of'):
        calculate_metrics(**{**call, "feature_extractor": extractor, "feature_extractor_weights_path": str(path)})
    with pytest.raises(ValueError, match=r'feature_extractor_weights_path: there is no file ".*gone"'):
        calculate_metrics(
            **{**call, "feature_extractor": extractor, "feature_extractor_weights_path": str(tmp_path / "gone")}
        )


def test_files_kept_by_torch_fidelity_are_read_only_when_asked(call, measured):
    theirs = torch_fidelity.calculate_metrics(**{k: v for k, v in call.items() if k != "lsh"})
    assert measured(call)[1] == 26
    for path in Path(call["cache_root"]).glob("*.safetensors"):
        path.unlink()
    call = {key: value for key, value in call.items() if key != "lsh"} | {"cache": "upstream"}
    assert measured(call) == (theirs, 12)


def test_features_that_cannot_be_kept_are_not_lost(call, measured, monkeypatch):
    expected = calculate_metrics(**{**call, "cache": False})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch_fidelity_lsh.metric.files.os.fsync", full)
    with pytest.warns(
        UserWarning, match=r"input2: its features could not be kept .*No space left on device.*real-count"
    ):
        assert measured(call) == (expected, 26)
    assert list(Path(call["cache_root"]).iterdir()) == []


def test_a_cache_that_cannot_be_a_folder_is_refused_first(call, counting_extractor, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r'cache_root: ".*file" is a file, not a folder'):
        calculate_metrics(**{**call, "cache_root": str(tmp_path / "file" / "below")})
    assert counting_extractor.created == 0


def test_cached_reference_needs_no_images_any_more_and_says_so(call, measured):
    first, _ = measured(call)
    with pytest.warns(
        UserWarning, match=r"input2 does not exist; what is used are features kept as real, of folder of 14"
    ):
        assert measured({**call, "input2": "/gone/long/ago"}) == (first, 12)
    with pytest.raises(ValueError, match=r'"/gone/long/ago" does not exist, and its features are not in the cache'):
        calculate_metrics(**{**call, "input2": "/gone/long/ago", "input2_cache_name": "other"})


def test_generator_samples_are_kept_for_the_same_weights_and_seed(call, measured):
    network = torch.nn.Sequential(torch.nn.Linear(4, 3 * 64), torch.nn.Unflatten(1, (3, 8, 8)))

    class ToBytes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.scale = network, 1.0

        def forward(self, z):
            return (self.scale * self.network(z)).clamp(0, 1).mul(255).to(torch.uint8)

    model = torch_fidelity.GenerativeModelModuleWrapper(ToBytes(), 4, "normal", 0)
    call = {**call, "input1": model, "input1_cache_name": "fake", "input1_model_num_samples": 20, "batch_size": 10}
    first, _ = measured(call)
    assert measured(call) == (first, 0)
    with pytest.warns(UserWarning, match="what is kept as fake was made of something else"):
        assert measured({**call, "rng_seed": 1, "input2_cache_name": None})[1] == 34
    measured(call)
    model.module.scale = 0.5  # No weight has changed.
    with pytest.warns(UserWarning, match="what is kept as fake was made of something else"):
        assert measured(call)[1] == 20


def test_what_a_file_was_made_from_can_be_read(call):
    create_reference(
        **{k: v for k, v in call.items() if k in ("cuda", "verbose", "feature_extractor", "cache_root")},
        input=call["input2"],
        input2_cache_name="real",
    )
    _, facts = read_tensors(next(Path(call["cache_root"]).iterdir()), cache.KIND, cache.VERSION)
    assert facts["feature_layer"] == "wide"
    assert facts["samples"].startswith("folder of 14 images, ")
