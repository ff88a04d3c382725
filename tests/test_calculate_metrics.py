"""One call: upstream's values unchanged, features extracted once, mistakes named."""

import runpy
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch_fidelity
import torch_fidelity.utils
from PIL import Image
from torch.utils.data import TensorDataset
from torch_fidelity import FeatureExtractorInceptionV3, GenerativeModelModuleWrapper
from torchvision.models import vgg16

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.calculate import calculate_metrics

# No worker processes and no progress bars; small sets need small KID subsets.
QUICK = {
    "cuda": False,
    "verbose": False,
    "save_cpu_ram": True,
    "kid_subset_size": 3,
    "kid_subsets": 4,
    "isc_splits": 2,
    "prc_neighborhood": 2,
}


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Random weights for upstream's Inception class, in a file as upstream's."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: None)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["64"], feature_extractor_weights_path="none")
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)  # The default shrinks the signal until all images look alike.
    torch.save(network.state_dict(), path)
    return str(path)


def random_vgg16(**kwargs):
    torch.manual_seed(0)
    return vgg16()


def assert_contains(results, expected):
    assert {key: results[key] for key in expected} == expected


def test_upstreams_metrics_with_their_default_extractors_are_unchanged(
    images, shift_metric, inception_weights, monkeypatch
):
    monkeypatch.setattr(
        "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url",
        lambda *_, **__: torch.load(inception_weights, weights_only=True),
    )
    monkeypatch.setattr("torch_fidelity.feature_extractor_vgg16.torchvision_load_pretrained_vgg16", random_vgg16)
    first, second = (torch.utils.data.Subset(dataset, range(4)) for dataset in images)
    call = {**QUICK, "input1": first, "input2": second, "isc": True, "fid": True, "kid": True, "prc": True}
    call["feature_layer_fid"] = "64"  # The eigenvalues of 2048 dimensions take seconds.
    theirs = torch_fidelity.calculate_metrics(**call)
    ours = calculate_metrics(**call, shift=True)
    assert_contains(ours, theirs)
    assert ours.keys() - theirs.keys() == {"mean_shift"}


def test_upstreams_metrics_on_a_shared_extractor_are_unchanged(images, shift_metric, inception_weights):
    first, second = (torch.utils.data.Subset(dataset, range(4)) for dataset in images)
    call = {**QUICK, "input1": first, "input2": second, "isc": True, "fid": True, "kid": True, "prc": True}
    call |= {"feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": inception_weights}
    call["feature_layer_fid"] = "64"
    theirs = torch_fidelity.calculate_metrics(**call)
    assert_contains(calculate_metrics(**call, shift=True), theirs)


def test_each_input_passes_the_extractor_once(images, counting_extractor, shift_metric):
    call = {**QUICK, "input1": images[0], "input2": images[1], "feature_extractor": "counting"}
    calculate_metrics(**call, isc=True, fid=True, kid=True, prc=True, shift=True)
    assert counting_extractor.created == 1
    assert counting_extractor.images == len(images[0]) + len(images[1])


def test_without_a_registered_metric_the_numbers_are_upstreams(images, counting_extractor):
    call = {**QUICK, "input1": images[0], "input2": images[1], "feature_extractor": "counting"}
    for metrics in ({"fid": True}, {"fid": True, "prc": True, "kid": True, "isc": True}):
        assert calculate_metrics(**call, **metrics) == torch_fidelity.calculate_metrics(**call, **metrics)


def test_what_does_not_look_at_features_is_left_to_upstream(monkeypatch):
    seen = {}
    monkeypatch.setattr(upstream, "calculate_metrics", lambda **kwargs: seen.update(kwargs) or {"done": 1.0})
    model = GenerativeModelModuleWrapper(torch.nn.Linear(4, 4), 4, "normal", 0)
    call = {**QUICK, "input1": model, "input1_model_num_samples": 5, "ppl": True}
    assert calculate_metrics(**call) == {"done": 1.0}
    assert seen == call


def test_generator_as_input(images, counting_extractor, shift_metric):
    network = torch.nn.Sequential(torch.nn.Linear(4, 3 * 64), torch.nn.Unflatten(1, (3, 8, 8)), torch.nn.Sigmoid())

    class ToBytes(torch.nn.Module):
        def forward(self, z):
            return (network(z) * 255).to(torch.uint8)

    model = GenerativeModelModuleWrapper(ToBytes(), 4, "normal", 0)
    call = {**QUICK, "input1": model, "input1_model_num_samples": 9, "input2": images[1], "fid": True}
    call["feature_extractor"] = "counting"
    theirs = torch_fidelity.calculate_metrics(**call)
    assert_contains(calculate_metrics(**call, shift=True), theirs)


def test_paths_may_be_path_objects(image_folders, counting_extractor, shift_metric):
    call = {**QUICK, "feature_extractor": "counting", "shift": True}
    as_text = calculate_metrics(**call, input1=image_folders[0], input2=image_folders[1])
    assert calculate_metrics(**call, input1=Path(image_folders[0]), input2=Path(image_folders[1])) == as_text


@pytest.mark.parametrize(("given", "used"), [(None, "wide"), ("small", "small")])
def test_extractor_that_does_not_know_the_metric_is_asked_for_its_prc_layer(
    given, used, images, counting_extractor, spy_metric
):
    call = {**QUICK, "input1": images[0], "input2": images[1], "feature_extractor": "counting"}
    calculate_metrics(**call, spy=True, feature_layer_spy=given)
    assert spy_metric["layer"] == used


def test_metric_is_told_the_protocol(images, counting_extractor, spy_metric):
    call = {**QUICK, "input1": images[0], "input2": images[1], "feature_extractor": "counting", "spy": True}
    calculate_metrics(**call, rng_seed=7)
    expected = {"feature_extractor": "counting", "rng_seed": 7, "cuda": False, "verbose": False, "save_cpu_ram": True}
    assert expected.items() <= spy_metric.items()


def test_unreleased_metric_mind_is_found_and_shares_the_pass(images, counting_extractor, shift_metric, fake_mind):
    call = {**QUICK, "input1": images[0], "input2": images[1], "feature_extractor": "counting", "shift": True}
    results = calculate_metrics(**call, mind=True, feature_layer_mind="small")
    assert results.keys() == {"monge_inception_distance", "mean_shift"}
    assert counting_extractor.created == 1
    with pytest.raises(ValueError, match=r'"counting" has no layer for mind; set feature_layer_mind to one of: small'):
        calculate_metrics(**call, mind=True)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"kid_subset_sise": 5}, 'Unknown keyword "kid_subset_sise"; did you mean "kid_subset_size"?'),
        ({"shift_scales": 5}, 'Unknown keyword "shift_scales"; did you mean "shift_scale"?'),
        ({"xyzzy": 5}, 'Unknown keyword "xyzzy"$'),
        ({"shift": False}, "At least one metric must be requested"),
        ({"input1": None}, "input1 is missing"),
        ({"input2": None}, "input2 is missing"),
        ({"input1": "/no/such/folder"}, r'input1: "/no/such/folder" does not exist\. Accepted are: a folder of images'),
        ({"input1": __file__}, r"input1: .* is not of a known kind\. Accepted are"),
        ({"input2": 5}, "input2: got int"),
        ({"input2": [1.0, 2.0]}, "input2: got list"),
        ({"input1": TensorDataset(torch.zeros(0, 3, 4, 4))}, "input1: the data set is empty"),
        ({"feature_extractor": "countin"}, 'is not one of .*; did you mean "counting"'),
        ({"feature_layer_shift": "fc9"}, "fc9"),
    ],
)
def test_mistakes_are_named_before_the_slow_work(mistake, message, images, counting_extractor, shift_metric):
    call = {**QUICK, "input1": images[0], "input2": images[1], "feature_extractor": "counting", "shift": True}
    with pytest.raises(ValueError, match=message):
        calculate_metrics(**{**call, **mistake})
    assert counting_extractor.images == 0


def test_missing_gpu_is_said_in_one_line(images, counting_extractor, shift_metric, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    call = {"input1": images[0], "input2": images[1], "feature_extractor": "counting", "shift": True}
    with pytest.raises(ValueError, match=r"cuda=True \(the default\) needs a GPU .* pass cuda=False"):
        calculate_metrics(**call)


def test_deprecated_keyword_still_works_with_its_warning(images, counting_extractor, shift_metric):
    call = {**QUICK, "input1": images[0], "input2": images[1], "feature_extractor": "counting", "kid": True}
    with pytest.warns(FutureWarning, match='"kid_degree" is deprecated'):
        renamed = calculate_metrics(**call, shift=True, kid_degree=2)
    assert_contains(renamed, torch_fidelity.calculate_metrics(**call, kid_kernel_poly_degree=2))


def test_empty_folder_is_named(image_folders, counting_extractor, shift_metric, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r'input1: folder ".*" holds no images with the extensions png,jpg,jpeg'):
        calculate_metrics(**QUICK, input1=str(tmp_path), input2=image_folders[1], shift=True)


@pytest.mark.parametrize(
    ("metrics", "workers"), [({"shift": True}, False), ({"shift": True}, True), ({"fid": True}, False)]
)
@pytest.mark.parametrize("content", [b"not an image", b"truncated"])
def test_broken_image_is_named(metrics, workers, content, image_folders, counting_extractor, shift_metric, tmp_path):
    for path in Path(image_folders[0]).iterdir():
        whole = path.read_bytes()
        (tmp_path / path.name).write_bytes(whole)
    (tmp_path / "03.png").write_bytes(whole[: len(whole) // 2] if content == b"truncated" else content)
    call = {**QUICK, "save_cpu_ram": not workers, "feature_extractor": "counting", **metrics}
    with pytest.raises(ValueError, match=r'^input2: cannot read image ".*03\.png": [^\n]*$') as caught:
        calculate_metrics(**call, input1=image_folders[0], input2=str(tmp_path))
    assert caught.value.__suppress_context__


def test_images_of_different_sizes_are_named(image_folders, counting_extractor, shift_metric, tmp_path):
    for side in (16, 20):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{side}.png")
    call = {**QUICK, "input1": str(tmp_path), "input2": image_folders[1], "shift": True}
    call["feature_extractor"] = "counting"
    with pytest.raises(ValueError, match=r"input1: images differ in size: 16x16 .* 20x20 .* samples_resize_and_crop"):
        calculate_metrics(**call)
    assert calculate_metrics(**call, samples_resize_and_crop=16).keys() == {"mean_shift"}


def test_weights_that_cannot_be_downloaded_point_to_the_offline_extractor(images, shift_metric, monkeypatch):
    def no_network(**kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch_fidelity.feature_extractor_vgg16.torchvision_load_pretrained_vgg16", no_network)
    with pytest.raises(ValueError, match=r"A download failed \(Name or service not known\).*efficientnet-lite0"):
        calculate_metrics(**QUICK, input1=images[0], input2=images[1], shift=True)


def test_torch_fidelity_that_lacks_something_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.delattr(torch_fidelity.utils, "DEFAULT_FEATURE_EXTRACTOR")
    with pytest.raises(ImportError, match=r"installed torch-fidelity: cannot import name 'DEFAULT_FEATURE_EXTRACTOR'"):
        runpy.run_path(upstream.__file__)
