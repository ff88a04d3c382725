"""The metrics of pruna."""

import pytest
import torch

from torch_fidelity_lsh.streaming import LSHPrecisionRecall

pytest.importorskip("pruna", reason="pruna is not installed (extra pruna)")
from pruna.evaluation.metrics.registry import MetricRegistry

import torch_fidelity_lsh.pruna as plugin


class Pool(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def batches(seed, brightness=1.0):
    random = torch.Generator().manual_seed(seed)
    return [brightness * torch.rand(30, 3, 8, 8, generator=random) for _ in range(4)]


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"metric_name must be one of lsh_precision, .*; got 'lsh'"):
        plugin.PrunaPrecisionRecall("lsh", device="cpu", feature=Pool())


@pytest.mark.parametrize("name", plugin.NAMES)
def test_the_registry_gives_the_numbers_of_the_metric(name):
    metric = MetricRegistry.get_metric(name, device="cpu", feature=Pool())
    own = LSHPrecisionRecall(Pool(), metrics=name.rsplit("_precision")[0].rsplit("_recall")[0].rsplit("_f_score")[0])
    for real, generated in zip(batches(0), batches(1, 0.9), strict=True):
        metric.update([], real, generated)
        own.update((real * 255).round().byte(), real=True)
        own.update((generated * 255).round().byte(), real=False)
    result = metric.compute()
    assert (result.name, result.higher_is_better) == (name, True)
    assert result.result == own.compute()[name].item()
    metric.reset()
    with pytest.raises(ValueError, match="There are no generated samples"):
        metric.compute()


def test_outputs_of_a_base_model_are_the_reference_of_pairs():
    metric = MetricRegistry.get_metric("lsh_recall", device="cpu", feature=Pool(), call_type="pairwise")
    assert metric.is_pairwise()
    for base, smashed in zip(batches(0), batches(1), strict=True):
        metric.update([], base, smashed)
    assert metric.compute().result > 0.8


def test_images_out_of_range_are_refused():
    metric = MetricRegistry.get_metric("lsh_precision", device="cpu", feature=Pool())
    with pytest.raises(ValueError, match=r"outputs must be images in uint8, or floats in \[0, 1\]"):
        metric.update([], batches(0)[0], 255 * batches(1)[0])
