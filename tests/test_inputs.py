"""Ready features instead of images: a published reference set, somebody else's network, a notebook's tensors."""

import numpy as np
import pytest
import torch
import torch_fidelity
from safetensors.torch import save_file
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from torch_fidelity_lsh import lsh_precision_recall, reduce_features
from torch_fidelity_lsh.fidelity.calculate import calculate_metrics
from torch_fidelity_lsh.fidelity.inputs import read_features

QUICK = {"verbose": False, "save_cpu_ram": True, "kid_subset_size": 20, "kid_subsets": 4}


def written(path, features):
    if path.suffix == ".npy":
        np.save(path, features)
    elif path.suffix == ".npz":
        np.savez_compressed(path, features)
    else:
        save_file({"any name": torch.from_numpy(features)}, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_files_of_features_give_what_arrays_give(suffix, features, shift_metric, tmp_path):
    files = [written(tmp_path / f"{i}{suffix}", side) for i, side in enumerate(features)]
    call = {**QUICK, "shift": True, "fid": True, "prc": True}
    from_arrays = calculate_metrics(**call, input1=features[0], input2=features[1])
    assert calculate_metrics(**call, input1=files[0], input2=files[1]) == from_arrays


def test_upstreams_metrics_on_ready_features_are_upstreams(features, fake_mind):
    results = calculate_metrics(
        **QUICK, input1=features[0], input2=features[1], isc=True, fid=True, kid=True, prc=True, mind=True
    )
    one, two = map(torch.from_numpy, features)
    statistics = (fid_features_to_statistics(one), fid_features_to_statistics(two))
    expected = {
        **torch_fidelity.metric_isc.isc_features_to_metric(one),
        **fid_statistics_to_metric(*statistics, verbose=False),
        **torch_fidelity.metric_kid.kid_features_to_metric(one, two, **QUICK),
        **torch_fidelity.metric_prc.prc_features_to_metric(one, two, **QUICK),
        "monge_inception_distance": float(one.mean() - two.mean()),
    }
    assert results == expected


def test_ready_features_on_both_sides_need_neither_extractor_nor_gpu(features, shift_metric, spy_metric, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("torch_fidelity_lsh.fidelity.upstream.create_feature_extractor", None)
    calculate_metrics(input1=features[0], input2=features[1], spy=True, fid=True, shift=True, verbose=False)
    stated = {"feature_extractor": None, "layer": "features", "cuda": False}
    assert stated.items() <= spy_metric.items()


def test_origin_of_ready_features_can_be_stated(features, counting_extractor, spy_metric):
    call = {"input1": features[0], "input2": features[1], "spy": True, "feature_extractor": "counting"}
    calculate_metrics(**call, verbose=False)
    assert {"feature_extractor": "counting", "layer": "wide"}.items() <= spy_metric.items()
    assert counting_extractor.created == 0


def test_inception_score_needs_only_one_side(features):
    results = calculate_metrics(input1=features[0], isc=True, verbose=False)
    assert results.keys() == {"inception_score_mean", "inception_score_std"}


def test_inception_score_of_images_ignores_ready_features_on_the_other_side(images, counting_extractor, features):
    call = {"input1": images[0], "isc": True, "feature_extractor": "counting", "cuda": False, "verbose": False}
    call["save_cpu_ram"] = True
    assert calculate_metrics(**call, input2=features[1]) == calculate_metrics(**call)


@pytest.mark.parametrize("ready_side", [1, 2])
def test_published_reference_features_against_images(ready_side, images, counting_extractor, shift_metric, tmp_path):
    call = {**QUICK, "cuda": False, "feature_extractor": "counting", "fid": True, "prc": True, "shift": True}
    expected = calculate_metrics(**call, input1=images[0], input2=images[1])
    dataset = images[ready_side - 1]
    extractor = FEATURE_EXTRACTORS_REGISTRY["counting"]("counting", ["small", "wide"])
    small, wide = extractor(torch.stack([dataset[i] for i in range(len(dataset))]))
    path = tmp_path / "reference.npz"
    np.savez(path, small=small.numpy(), wide=wide.numpy())
    sides = {f"input{i}": str(path) if i == ready_side else images[i - 1] for i in (1, 2)}
    assert calculate_metrics(**call, **sides) == pytest.approx(expected, rel=1e-5)


def test_reference_features_of_another_network_are_refused(images, counting_extractor, shift_metric, features):
    call = {"input1": images[0], "input2": features[1], "feature_extractor": "counting", "shift": True}
    message = (
        r'input1 has 24 features a sample \(layer "wide" of counting\) and input2 has 8 features a sample \(ready\)'
    )
    with pytest.raises(ValueError, match=message):
        calculate_metrics(**call, cuda=False, verbose=False, save_cpu_ram=True)


def test_ready_features_of_different_networks_are_refused(features):
    with pytest.raises(ValueError, match="fid needs features of one kind, but input1 has 7 features a sample"):
        calculate_metrics(input1=features[0][:, :7], input2=features[1], fid=True, verbose=False)


def test_perceptual_path_length_needs_a_generator(features):
    with pytest.raises(ValueError, match="ppl cannot be calculated from ready features"):
        calculate_metrics(input1=features[0], input2=features[1], ppl=True, fid=True)


def test_cache_name_for_ready_features_is_refused(features):
    with pytest.raises(ValueError, match="input2_cache_name names a cache of extracted features"):
        calculate_metrics(input1=features[0], input2=features[1], fid=True, input2_cache_name="x")


def test_file_of_several_arrays_is_read_by_layer_or_as_features(tmp_path):
    path = tmp_path / "set.npz"
    fc2, other = np.zeros((2, 3), np.float32), np.ones((2, 4), np.float32)
    np.savez(path, fc2=fc2, features=other)
    layers = read_features(str(path), ["fc2", "pooled"], "input1")
    assert layers["fc2"].shape == (2, 3)
    assert layers["pooled"].shape == (2, 4)


def test_ambiguous_file_lists_its_arrays(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(
        ValueError, match=r'input1, file ".*set\.npz": none of its arrays \(arr_0, arr_1\) is called "fc2"'
    ):
        read_features(str(path), ["fc2"], "input1")


@pytest.mark.parametrize(
    "values",
    [
        np.ones((4, 3), np.float64),
        np.ones((4, 3), np.float16),
        np.ones((4, 3), ">f4"),
        np.asfortranarray(np.ones((4, 3), np.float32))[::-1],
        np.broadcast_to(np.float32(1), (4, 3)),
        torch.ones(4, 3, dtype=torch.bfloat16),
        torch.ones(4, 3, requires_grad=True),
    ],
    ids=["float64", "float16", "big endian", "reversed", "read-only", "bfloat16", "requires grad"],
)
def test_any_float_tensor_or_array_is_read_as_extractors_deliver(values):
    features = read_features(values, ["fc2"], "input1")["fc2"]
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(features, torch.ones(4, 3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 3, 8, 8), np.uint8), "input1: an array of 5 x 3 x 8 x 8 looks like images"),
        (np.zeros(5, np.float32), r"input1 must be N x D with .*; got shape \(5,\)"),
        (np.ones((), np.float32), r"input1 must be N x D with .*; got shape \(\)"),
        (torch.zeros(0, 4), r"input1 must be N x D with .*; got shape \(0, 4\)"),
        (torch.zeros(5, 2, dtype=torch.int64), r"input1 must hold floating-point numbers; got dtype torch\.int64"),
        (np.zeros((5, 2), bool), "input1 must hold floating-point numbers; got dtype bool"),
        (np.full((5, 2), object()), "input1 must hold floating-point numbers; got dtype object"),
        (
            np.array([[1.0, np.nan], [1.0, 1.0], [np.inf, 0.0]]),
            "input1 holds NaN or infinite values in 2 of 3 rows, first in row 0",
        ),
    ],
)
def test_what_is_not_features_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        read_features(values, ["fc2"], "input1")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half a zip file"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_damaged_file_is_named(suffix, content, tmp_path, features):
    path = tmp_path / f"features{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf'^input2, file ".*features\{suffix}": damaged, or .* \(\w+: [^\n]*\)$'
    ) as caught:
        calculate_metrics(input1=features[0], input2=str(path), fid=True)
    assert caught.value.__suppress_context__


def test_damaged_member_of_an_archive_is_named(tmp_path, features):
    path = tmp_path / "features.npz"
    np.savez_compressed(path, features=features[0])
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'input1, file ".*": damaged'):
        read_features(str(path), ["fc2"], "input1")


def test_pickled_objects_are_not_loaded(tmp_path):
    path = tmp_path / "features.npy"
    np.save(path, np.array([{"features": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="holds something other than arrays of numbers"):
        read_features(str(path), ["fc2"], "input1")


def test_missing_file_is_named():
    with pytest.raises(ValueError, match=r'input1, file "/no/features\.npy": there is no such file'):
        read_features("/no/features.npy", ["fc2"], "input1")


LAYOUTS = {
    "backwards": lambda values, _: values[::-1],
    "every other column": lambda values, _: np.repeat(values, 2, axis=1)[:, ::2],
    "big endian": lambda values, _: values.astype(">f4"),
    "long double": lambda values, _: values.astype(np.longdouble),
    "half": lambda values, _: values.astype(np.float16),
    "read-only map": lambda values, path: (np.save(path, values), np.load(path, mmap_mode="r"))[1],
    "masked without a mask": lambda values, _: np.ma.MaskedArray(values),
    "sparse": lambda values, _: torch.from_numpy(values).to_sparse(),
    "transposed tensor": lambda values, _: torch.from_numpy(values.T.copy()).T,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_functions_calls_and_the_metric_read_arrays_alike(layout, tmp_path):
    sides = [np.round(np.random.default_rng(i).normal(size=(30, 200)), 1).astype(np.float16) for i in (1, 2)]
    sides = [side.astype(np.float32) for side in sides]
    given = [LAYOUTS[layout](side, tmp_path / f"{i}.npy") for i, side in enumerate(sides)]
    expected = lsh_precision_recall(*sides).to_dict()
    if layout == "backwards":
        assert lsh_precision_recall(*given).precision == expected["lsh_precision"]
    else:
        assert lsh_precision_recall(*given).to_dict() == expected
    assert calculate_metrics(input1=given[0], input2=given[1], lsh=True, verbose=False) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.ma.MaskedArray(np.ones((4, 3)), mask=np.eye(4, 3)),
            "holds masked values; fill them or leave their rows out",
        ),
        (torch.ones(4, 3, device="meta"), "is a tensor on the meta device"),
        (torch.ones(4, 3, dtype=torch.complex64), r"must hold floating-point numbers; got dtype torch\.complex64"),
        (np.full((4, 3), np.longdouble("1e400")), "holds NaN or infinite values"),
    ],
)
def test_arrays_that_are_no_features_are_refused_alike(values, message):
    for read in (lambda: calculate_metrics(input1=values, input2=values, lsh=True), lambda: reduce_features(values)):
        with pytest.raises(ValueError, match=message):
            read()


def test_numbers_too_large_for_single_precision_are_refused():
    values = np.full((4, 3), 1e200)
    with pytest.raises(
        ValueError, match=r"input1 holds values over 3\.4e\+38, the largest of float32; scale them down"
    ):
        calculate_metrics(input1=values, input2=values, lsh=True)
    with pytest.raises(ValueError, match="too large to measure distances between"):
        lsh_precision_recall(values, values)


def test_a_file_of_statistics_says_what_would_serve(tmp_path):
    np.savez(tmp_path / "fid.npz", mu=np.zeros(8), sigma=np.eye(8))
    with pytest.raises(
        ValueError, match=r"fid\.npz.*: holds the mean and covariance of features .*the features themselves"
    ):
        read_features(str(tmp_path / "fid.npz"), ["features"], "input2")


def test_a_layer_called_features_is_asked_for_once(tmp_path):
    np.savez(tmp_path / "set.npz", one=np.zeros((2, 3)), two=np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r'none of its arrays \(one, two\) is called "features"; name the one'):
        read_features(str(tmp_path / "set.npz"), ["features"], "input2")
