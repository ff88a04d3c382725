"""Reference files that people already hold: ADM's, pytorch-fid's, clean-fid's, dgm-eval's; and samples in one file."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from torch_fidelity_lsh import calculate_metrics, create_statistics, reduce_features, save_samples, save_statistics
from torch_fidelity_lsh.cli import main
from torch_fidelity_lsh.fidelity.array_files import read_blocks
from torch_fidelity_lsh.fidelity.hook import installed
from torch_fidelity_lsh.fidelity.statistics import read_statistics

CALL = {"feature_extractor": "counting", "cuda": False, "verbose": False, "cache": False, "save_cpu_ram": True}
FID = "frechet_inception_distance"


class Arrays(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)


def pictures(n, seed):
    noise = np.random.default_rng(seed).integers(256, size=(n, 12, 16, 3))
    return (noise // 2 + np.arange(n)[:, None, None, None] % 40).astype(np.uint8)


def mean_and_covariance(features):
    return {"mu": np.mean(features, axis=0), "sigma": np.cov(features, rowvar=False)}


@pytest.fixture
def sets():
    return pictures(150, 0), pictures(170, 1)


@pytest.fixture
def statistics(sets, counting_extractor):
    """Mean and covariance of the real images, as tools for FID keep them."""
    extractor = counting_extractor("counting", ["small"])
    features = extractor(torch.from_numpy(sets[1]).permute(0, 3, 1, 2))[0].double().numpy()
    counting_extractor.created = counting_extractor.images = 0
    return mean_and_covariance(features)


@pytest.fixture
def adm(sets, statistics, tmp_path):
    """What guided-diffusion publishes: images, and statistics of two layers."""
    path = tmp_path / "VIRTUAL_imagenet.npz"
    np.savez(path, arr_0=sets[1], **statistics, mu_s=np.zeros(7), sigma_s=np.eye(7))
    return str(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_samples_in_one_file_give_what_the_images_give(save, sets, counting_extractor, tmp_path):
    paths = [str(tmp_path / f"{i}.npz") for i in range(2)]
    for path, images in zip(paths, sets, strict=True):
        save(path, images, np.zeros(len(images), np.int64))  # arr_1: labels, as ADM's sampler writes them
    flags = {"fid": True, "prc": True, "lsh": True, "lsh_knn": True, "isc": True}
    expected = calculate_metrics(**CALL, **flags, input1=Arrays(sets[0]), input2=Arrays(sets[1]))
    assert calculate_metrics(**CALL, **flags, input1=paths[0], input2=paths[1]) == expected


def test_a_file_of_adm_serves_fid_from_its_statistics_and_the_rest_from_its_images(sets, adm, counting_extractor):
    call = {**CALL, "input1": Arrays(sets[0]), "fid": True, "lsh": True}
    expected = calculate_metrics(**call, input2=Arrays(sets[1]))
    found = calculate_metrics(**call, input2=adm)
    assert found.pop(FID) == pytest.approx(expected.pop(FID), rel=1e-4)
    assert found == expected
    alone = {**CALL, "input1": Arrays(sets[0]), "input2": adm, "fid": True}
    counting_extractor.images = 0
    calculate_metrics(**alone)
    assert counting_extractor.images == len(sets[0])


def test_fid_of_two_files_of_statistics_needs_no_extractor(statistics, tmp_path, counting_extractor):
    fid_score = pytest.importorskip("pytorch_fid.fid_score", reason="pytorch-fid is not installed")
    other = {"mu": statistics["mu"] + 0.1, "sigma": statistics["sigma"] * 2}
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    np.savez_compressed(paths[0], **statistics)  # as pytorch-fid --save-stats and clean-fid do
    np.savez_compressed(paths[1], **other)
    call = {**CALL, "feature_extractor": None, "fid": True}
    found = calculate_metrics(**call, input1=str(paths[0]), input2=str(paths[1]))[FID]
    both = [fid_score.compute_statistics_of_path(str(path), None, 50, 2048, "cpu") for path in paths]
    assert found == pytest.approx(fid_score.calculate_frechet_distance(*both[0], *both[1]), rel=1e-6)
    assert counting_extractor.created == 0


@pytest.mark.parametrize("hooked", [False, True])
def test_a_call_of_the_fork_runs_as_it_is(hooked, sets, statistics, counting_extractor, tmp_path):
    path = tmp_path / "jit_in256_stats.npz"
    np.savez(path, **statistics)
    call = {**CALL, "input1": Arrays(sets[0]), "input2": None, "fid": True, "isc": True}
    if hooked:
        import torch_fidelity

        with installed():
            found = torch_fidelity.calculate_metrics(**call, fid_statistics_file=str(path))
    else:
        found = calculate_metrics(**call, fid_statistics_file=str(path))
    assert found[FID] == calculate_metrics(**{**call, "input2": str(path)})[FID]
    assert "inception_score_mean" in found


def test_statistics_stand_beside_images_that_serve_the_other_metrics(sets, statistics, counting_extractor, tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, mu=statistics["mu"] + 1, sigma=statistics["sigma"])
    call = {**CALL, "input1": Arrays(sets[0]), "input2": Arrays(sets[1]), "fid": True, "lsh": True}
    plain, found = calculate_metrics(**call), calculate_metrics(**call, fid_statistics_file=str(path))
    assert found["lsh_precision"] == plain["lsh_precision"]
    assert found[FID] > plain[FID] + 1


@pytest.mark.parametrize(("key", "rest"), [("reps", {"model": "dinov2", "hparams": {"a": 1}}), ("feats", {})])
def test_features_of_dgm_eval_and_clean_fid_are_read(key, rest, features, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **{key: features[1].astype(np.float64)}, **rest)  # dgm-eval pickles its settings; they stay unread
    call = {"input1": features[0], "fid": True, "lsh": True, "verbose": False}
    assert calculate_metrics(**call, input2=str(path)) == calculate_metrics(**call, input2=features[1])


def test_what_statistics_cannot_serve_is_refused_by_name(sets, statistics, counting_extractor, tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, **statistics)
    call = {**CALL, "input1": Arrays(sets[0]), "input2": str(path)}
    message = "kid, prc, lsh cannot be calculated from mean and covariance of features, which are all that input2 holds"
    with pytest.raises(ValueError, match=message):
        calculate_metrics(**call, fid=True, kid=True, prc=True, lsh=True)
    assert counting_extractor.created == 0


BAD = {
    "dimension": ({"mu": np.zeros(5), "sigma": np.eye(5)}, r"input1 has 12 features a sample .* and input2 has 5"),
    "shapes": (
        {"mu": np.zeros(5), "sigma": np.eye(4)},
        r"mu must be D numbers and sigma D x D; got \(5,\) and \(4, 4\)",
    ),
    "asymmetric": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [0, 1]])}, "sigma is not symmetric"),
    "NaN": ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "sigma holds NaN"),
    "negative": ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "sigma has a negative variance"),
    "integers": ({"mu": np.zeros(2, int), "sigma": np.eye(2)}, "mu must hold floating-point numbers; got int64"),
    "floats": (
        {"arr_0": np.zeros((9, 4, 4, 3))},
        "arr_0 must be images, uint8, N x H x W x 3.*got float64, 9 x 4 x 4 x 3",
    ),
    "channels first": ({"arr_0": np.zeros((9, 3, 4, 4), np.uint8)}, "arr_0 must be images.*got uint8, 9 x 3 x 4 x 4"),
    "none": ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "arr_0 must be images.*got uint8, 0 x 4 x 4 x 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_unsound_file_is_refused_before_the_other_side_is_extracted(case, sets, counting_extractor, tmp_path):
    arrays, message = BAD[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        calculate_metrics(**CALL, input1=Arrays(sets[0]), input2=str(tmp_path / "bad.npz"), fid=True, batch_size=10)
    assert counting_extractor.images <= 10


def test_a_layer_of_inception_says_its_dimension_before_weights_are_needed(sets, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(5), sigma=np.eye(5))
    call = {**CALL, "feature_extractor": None, "input1": Arrays(sets[0]), "fid": True}
    with pytest.raises(
        ValueError, match=r'of 5 features, and fid is asked for with layer "2048" of inception-v3-compat'
    ):
        calculate_metrics(**call, input2=str(tmp_path / "stats.npz"))


def test_a_file_that_is_no_statistics_is_refused_under_its_keyword(features, tmp_path):
    np.save(tmp_path / "x.npy", features[0])
    call = {"input1": features[0], "input2": features[1], "verbose": False}
    with pytest.raises(ValueError, match=r'fid_statistics_file: ".*x\.npy" holds no arrays mu and sigma'):
        calculate_metrics(**call, fid=True, fid_statistics_file=str(tmp_path / "x.npy"))
    with pytest.raises(ValueError, match=r'fid_statistics_file: "none\.npz" does not exist'):
        calculate_metrics(**call, fid=True, fid_statistics_file="none.npz")
    with pytest.raises(ValueError, match="fid_statistics_file is for fid, which is not requested"):
        calculate_metrics(**call, lsh=True, fid_statistics_file="none.npz")


def test_clean_fids_statistics_are_read_with_a_word_on_resizing(sets, statistics, counting_extractor, tmp_path):
    path = tmp_path / "cifar10_clean_train_32.npz"
    np.savez(path, **statistics)
    with pytest.warns(UserWarning, match="clean-fid, whose images were resized in another way"):
        calculate_metrics(**CALL, input1=Arrays(sets[0]), input2=str(path), fid=True)


@pytest.mark.parametrize("beside", [True, False])
def test_the_word_on_resizing_comes_once_for_a_file_of_statistics(beside, sets, statistics, tmp_path, recwarn):
    path = tmp_path / "cifar10_clean_train_32.npz"
    np.savez(path, **statistics)
    given = {"input2": Arrays(sets[1])} if beside else {}
    calculate_metrics(**CALL, input1=Arrays(sets[0]), **given, fid_statistics_file=str(path), fid=True)
    (warning,) = [str(each.message) for each in recwarn if "clean-fid" in str(each.message)]
    assert warning.startswith("fid_statistics_file:")


def test_an_array_of_another_tool_called_source_does_no_harm(statistics, tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, **statistics, source="cifar10")
    found = read_statistics(str(path), "input2")
    assert np.array_equal(found.mu, statistics["mu"])
    assert found.source == ""


def test_images_beside_statistics_serve_several_extractors(sets, adm):
    call = {**CALL, "input1": Arrays(sets[0]), "feature_extractor": ["counting/small", "counting/wide"], "fid": True}
    assert calculate_metrics(**call, input2=adm) == calculate_metrics(**call, input2=Arrays(sets[1]))


def test_statistics_that_were_written_are_those_of_the_samples(sets, counting_extractor, tmp_path):
    call = {**CALL, "input1": Arrays(sets[0]), "fid": True}
    statistics = create_statistics(**CALL, input=Arrays(sets[1]))
    save_statistics(statistics, tmp_path / "stats.npz")
    expected = calculate_metrics(**call, input2=Arrays(sets[1]))[FID]
    found = calculate_metrics(**call, input2=str(tmp_path / "stats.npz"))[FID]
    assert found == pytest.approx(expected, rel=1e-4)
    assert calculate_metrics(**call, input2=statistics)[FID] == found
    with pytest.raises(
        ValueError, match='input2 are of layer "small" of counting, and fid is asked for with layer "wide"'
    ):
        calculate_metrics(**call, feature_layer_fid="wide", input2=str(tmp_path / "stats.npz"))


def test_pytorch_fid_and_clean_fid_read_what_is_written(sets, counting_extractor, tmp_path):
    fid_score = pytest.importorskip("pytorch_fid.fid_score", reason="pytorch-fid is not installed")
    path = str(tmp_path / "stats.npz")
    statistics = create_statistics(**CALL, input=Arrays(sets[1]))
    save_statistics(statistics, path)
    mu, sigma = fid_score.compute_statistics_of_path(path, None, 50, 2048, "cpu")
    assert np.array_equal(mu, statistics.mu)
    assert fid_score.calculate_frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-6)
    clean = pytest.importorskip("cleanfid.fid", reason="clean-fid is not installed")
    assert clean.frechet_distance(mu, sigma, mu + 1, sigma) == pytest.approx(len(mu))


def test_the_command_writes_each_format(image_folders, counting_extractor, tmp_path, capsys):
    def index(name, *more):
        options = ["--feature-extractor", "counting", "--save-cpu-ram", "--cpu", "--silent", "--json", *more]
        assert main(["index", "--input", image_folders[1], "--output", str(tmp_path / name), *options]) == 0
        return json.loads(capsys.readouterr().out)

    assert index("adm.npz", "--format", "adm")["samples"] == 14
    assert index("stats.npz", "--format", "pytorch-fid")["source"] == 'layer "small" of counting'
    with np.load(tmp_path / "adm.npz") as file:
        assert file["arr_0"].shape == (14, 32, 32, 3)
    call = {**CALL, "input1": image_folders[0], "fid": True}
    expected = calculate_metrics(**call, input2=image_folders[1])[FID]
    assert calculate_metrics(**call, input2=str(tmp_path / "adm.npz"))[FID] == expected
    assert calculate_metrics(**call, input2=str(tmp_path / "stats.npz"))[FID] == pytest.approx(expected, rel=1e-3)


def test_images_of_other_sizes_are_not_written_as_one_array(tmp_path):
    class Growing(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.zeros(3, 8 + index // 2, 8, dtype=torch.uint8)

    with pytest.raises(ValueError, match="input: images differ in size: 8 x 8 first, then uint8, 2 x 3 x 9 x 8"):
        save_samples(tmp_path / "x.npz", input=Growing(), batch_size=2, cuda=False, save_cpu_ram=True)
    assert not list(tmp_path.iterdir())


def test_a_reference_has_no_covariance_to_give(features):
    with pytest.raises(ValueError, match="input is a reference, which keeps less than the features"):
        create_statistics(input=reduce_features(features[0]), verbose=False)


def test_features_in_place_of_images_are_not_written_as_images(features, tmp_path):
    with pytest.raises(ValueError, match="input must be images, and holds features or statistics"):
        save_samples(tmp_path / "x.npz", input=features[0], verbose=False)


def test_images_are_held_a_batch_at_a_time(tmp_path):
    path = tmp_path / "large.npz"
    np.savez_compressed(path, arr_0=np.zeros((400, 256, 256, 3), np.uint8))  # 79 MB
    tracemalloc.start()
    rows = sum(len(block) for block in read_blocks(str(path), "arr_0", "large", 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 400
    assert peak < 12e6


def test_a_damaged_array_of_images_is_named(sets, counting_extractor, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, arr_0=sets[0])
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("arr_0.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'input1, file ".*x\.npz": damaged'):
        calculate_metrics(**CALL, input1=str(path), isc=True)


def test_another_file_of_images_under_the_same_cache_name_is_noticed(sets, counting_extractor, tmp_path):
    path = tmp_path / "x.npz"
    call = {**CALL, "cache": True, "cache_root": str(tmp_path), "input1_cache_name": "x", "isc": True}
    np.savez(path, arr_0=sets[0])
    calculate_metrics(**call, input1=str(path))
    changed = sets[0].copy()
    changed[77, 3, 3, 1] ^= 1
    np.savez(path, arr_0=changed)
    with pytest.warns(UserWarning, match="what is kept as x was made of something else"):
        calculate_metrics(**call, input1=str(path))
