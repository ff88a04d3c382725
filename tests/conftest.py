"""What several test files need: tiny images, a counting feature extractor, a third-party metric."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import FeatureExtractorBase
from torch_fidelity.datasets import RandomlyGeneratedDataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY, MetricOption, register_metric


class CountingExtractor(FeatureExtractorBase):
    """Answers for upstream's released metrics only, as third-party extractors do, and counts its work."""

    created = 0
    images = 0

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        type(self).created += 1

    def forward(self, x):
        type(self).images += len(x)
        small = torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)
        features = {"small": small, "wide": torch.cat([small, small.square()], dim=1)}
        return tuple(features[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "small", "wide"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"isc": "small", "fid": "small", "kid": "small", "prc": "wide"}[metric]


@pytest.fixture(autouse=True)
def seeded():
    """Make every test draw the same numbers on every run, alone or with others."""
    torch.manual_seed(0)


@pytest.fixture
def counting_extractor(monkeypatch):
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "counting", CountingExtractor)
    CountingExtractor.created = CountingExtractor.images = 0
    return CountingExtractor


def mean_shift(featuresdict_1, featuresdict_2, feat_layer_name, **kwargs):
    shift = featuresdict_1[feat_layer_name].mean(dim=0) - featuresdict_2[feat_layer_name].mean(dim=0)
    return {"mean_shift": kwargs["shift_scale"] * float(shift.norm())}


@pytest.fixture
def shift_metric():
    """A third party's metric: ``shift=True``."""
    register_metric(
        "shift",
        mean_shift,
        keys=["mean_shift"],
        description="Calculate the distance between the means",
        options=[MetricOption("shift_scale", 1.0, float, "Factor on the result")],
    )
    yield METRICS_REGISTRY["shift"]
    del METRICS_REGISTRY["shift"]


@pytest.fixture
def spy_metric():
    """A metric ``spy=True`` that returns nothing; the fixture is what it was called with."""
    seen = {}
    register_metric("spy", lambda _1, _2, layer, **kwargs: seen.update(kwargs, layer=layer) or {}, keys=["spy"])
    yield seen
    del METRICS_REGISTRY["spy"]


@pytest.fixture(scope="session")
def images():
    """Two sets of 12 and 14 random images as data sets."""
    return tuple(RandomlyGeneratedDataset(n, 3, 32, 32, seed=n) for n in (12, 14))


@pytest.fixture(scope="session")
def image_folders(images, tmp_path_factory):
    """The same images as folders of PNG files."""
    folders = []
    for dataset in images:
        folder = tmp_path_factory.mktemp("images")
        for i in range(len(dataset)):
            Image.fromarray(dataset[i].permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
        folders.append(str(folder))
    return tuple(folders)


@pytest.fixture
def features():
    """Generated and real features from one distribution, 60 x 8 and 70 x 8."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(n, 8)).astype(np.float32) for n in (60, 70))


@pytest.fixture
def fake_mind(monkeypatch):
    """Upstream's unreleased metric ``mind``, as far as a caller can see it."""

    def mind_featuresdict_to_metric(featuresdict_1, featuresdict_2, feat_layer_name, **kwargs):
        difference = featuresdict_1[feat_layer_name].mean() - featuresdict_2[feat_layer_name].mean()
        return {"monge_inception_distance": float(difference)}

    module = ModuleType("torch_fidelity.metric_mind")
    module.KEY_METRIC_MIND = "monge_inception_distance"
    module.mind_featuresdict_to_metric = mind_featuresdict_to_metric
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(upstream.DEFAULTS, "mind", False)
    monkeypatch.setitem(upstream.DEFAULTS, "feature_layer_mind", None)
    monkeypatch.setitem(upstream.DEFAULT_FEATURE_EXTRACTOR, "mind", "inception-v3-compat")
