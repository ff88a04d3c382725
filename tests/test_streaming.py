"""The metric in a training loop: batches in any order, kept references, torchmetrics' own demands."""

import copy
import pickle
from urllib.error import URLError

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from torch_fidelity_lsh import LSHConfig, lsh_knn_precision_recall, lsh_precision_recall
from torch_fidelity_lsh.streaming import LSHPrecisionRecall

CONFIG = LSHConfig(num_tables=8, seed=3)


@pytest.fixture
def sides():
    """Generated and real features, 150 x 200 and 180 x 200."""
    return torch.randn(150, 200) + 0.05, torch.randn(180, 200)


def filled(sides, batch_size=50, **settings):
    metric = LSHPrecisionRecall(feature=None, config=CONFIG, **settings)
    for real, features in enumerate(sides):
        for batch in features.split(batch_size):
            metric.update(batch, real=bool(real))
    return metric


def test_batches_give_the_numbers_of_the_functions(sides):
    result = filled(sides, metrics=("lsh", "lsh_knn")).compute()
    for name, measure in (("lsh", lsh_precision_recall), ("lsh_knn", lsh_knn_precision_recall)):
        expected = measure(*sides, CONFIG)
        for number in ("precision", "recall", "f_score"):
            assert result[f"{name}_{number}"] == torch.tensor(getattr(expected, number))


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_and_order_change_nothing(sides, batch_size):
    backwards = [side.flip(0) for side in sides]
    assert filled(backwards, batch_size).compute() == filled(sides).compute()


def test_real_samples_are_kept_for_the_next_epoch(sides):
    metric = filled(sides, reset_real_features=False)
    first = metric.compute()
    metric.reset()
    metric.update(sides[0], real=False)
    assert metric.compute() == first


def test_reset_forgets_all_by_default(sides):
    metric = filled(sides)
    metric.reset()
    with pytest.raises(ValueError, match=r"There are no generated samples: call update\(..., real=False\) first"):
        metric.compute()
    metric.update(torch.randn(10, 30), real=True)  # Another dimension is welcome now.


def test_what_is_kept_does_not_grow_with_the_dimension():
    metric = filled([torch.randn(100, 5000), torch.randn(100, 5000)])
    assert sum(values.nbytes for values in (*metric.real, *metric.generated)) == 200 * 512


def test_metric_can_be_pickled_and_cloned(sides):
    metric = filled(sides)
    expected = metric.compute()
    for other in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert other.compute() == expected


def test_state_dict_carries_the_samples(sides):
    metric = filled(sides)
    metric.persistent(True)
    fresh = LSHPrecisionRecall(feature=None, config=CONFIG)
    fresh.persistent(True)
    fresh.load_state_dict(metric.state_dict())
    assert fresh.compute() == metric.compute()


def test_half_precision_of_the_model_changes_nothing(sides):
    metric = filled(sides)
    expected = metric.compute()
    metric._computed = None
    assert metric.half().set_dtype(torch.float16).compute() == expected


def test_a_copy_goes_its_own_way(sides):
    metric = filled(sides)
    expected = metric.compute()
    other = copy.deepcopy(metric)
    other.update(torch.randn(150, 200) + 5, real=False)
    assert metric.compute() == expected != other.compute()
    assert other.to("cpu").double().compute()["lsh_precision"].dtype == torch.float32


def test_calling_the_metric_adds_samples_as_update_does(sides):
    metric = LSHPrecisionRecall(feature=None, config=CONFIG)
    for real, features in enumerate(sides):
        for batch in features.split(50):
            assert metric(batch, real=bool(real)) is None
    assert metric.compute() == filled(sides).compute()
    assert metric.update_count == 7


def test_states_can_be_merged(sides):
    halves = [filled([side[start::2] for side in sides], metrics=("lsh", "lsh_knn")) for start in (0, 1)]
    halves[0].merge_state(halves[1])
    assert halves[0].compute() == filled(sides, metrics=("lsh", "lsh_knn")).compute()
    only_real = LSHPrecisionRecall(feature=None, config=CONFIG)
    only_real.update(sides[1], real=True)
    only_real.merge_state({name: getattr(halves[1], name) for name in halves[1]._defaults})
    assert only_real.compute() == filled([sides[0][1::2], torch.cat([sides[1], sides[1][1::2]])]).compute()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: filled([torch.randn(50, 100)] * 2), "must have as many features; got 100 and 200"),
        (
            lambda: LSHPrecisionRecall(feature=None, config=LSHConfig(num_tables=8, seed=4)),
            "config: seed of rank 0",
        ),
    ],
)
def test_states_of_another_kind_are_not_merged_to_a_number(other, message, sides):
    metric = filled(sides)
    metric.merge_state(other())
    with pytest.raises(ValueError, match=message):
        metric.compute()


def test_states_are_gathered_by_whatever_gathers_them(sides):
    """As torchmetrics' own tester has it: two ranks in one process, which a function gathers from."""
    ranks = [filled([side[start::2] for side in sides]) for start in (0, 1)]
    kept = {name: [getattr(rank, name) for rank in ranks] for name in ("real", "generated")}
    plain = {name: [getattr(rank, name) for rank in ranks] for name in ("dimension", "forgets_real", "settings")}

    def gather(value, group=None):
        for name, lists in kept.items():
            if any(torch.equal(value, torch.cat(held)) for held in lists):
                return [torch.cat(held) for held in kept[name]]
        return next(values for values in plain.values() if torch.equal(values[0], value))

    ranks[0].sync(dist_sync_fn=gather, distributed_available=lambda: True)
    assert ranks[0]._is_synced
    synced = LSHPrecisionRecall.compute.__wrapped__(ranks[0])
    ranks[0].unsync()
    assert synced == filled(sides).compute()
    assert ranks[0].compute() == filled([side[::2] for side in sides]).compute()


def test_metrics_of_a_collection_that_share_their_states_stay_right(sides):
    def make():
        both = {"pr": LSHPrecisionRecall(None, config=CONFIG), "knn": LSHPrecisionRecall(None, "lsh_knn", CONFIG)}
        return both | {"kept": LSHPrecisionRecall(None, config=CONFIG, reset_real_features=False)}

    together, alone = MetricCollection(make(), compute_groups=True), make()
    for epoch in range(2):
        for metrics in ([together], alone.values()):
            for metric in metrics:
                for real, features in enumerate(sides):
                    for batch in (features + epoch).split(60):
                        metric.update(batch, real=bool(real))
        expected = {name: metric.compute() for name, metric in alone.items()}
        found = together.compute()
        assert found == {f"{name}_{key}": value for name, values in expected.items() for key, value in values.items()}
        assert {name: metric.compute() for name, metric in together.items()} == expected
        for metric in (together, *alone.values()):
            metric.reset()


def test_metric_works_in_a_collection_and_plots(sides):
    collection = MetricCollection({"pr": filled(sides)})
    values = collection.compute()
    assert set(values) == {"lsh_precision", "lsh_recall", "lsh_f_score"}
    figure, _ = collection["pr"].plot([collection["pr"].compute()] * 2)
    plt.close(figure)


def test_images_go_through_a_module():
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
    images = torch.rand(40, 3, 8, 8)
    metric = LSHPrecisionRecall(feature=pool)
    metric.update(images, real=True)
    metric.update(images, real=False)
    expected = lsh_precision_recall(pool(images), pool(images))
    assert metric.compute()["lsh_precision"] == torch.tensor(expected.precision)


@pytest.mark.parametrize("feature", ["counting", "counting/wide"])
def test_images_go_through_an_extractor_of_torch_fidelity(feature, counting_extractor):
    metric = LSHPrecisionRecall(feature=feature, normalize=True)
    images = torch.rand(40, 3, 8, 8)
    for real in (True, False):
        metric.update(images, real=real)
    assert counting_extractor.images == 80
    assert int(metric.dimension) == 24
    assert metric.compute()["lsh_recall"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature": "vgg"}, 'feature: "vgg" is not one of .*did you mean "vgg16"'),
        ({"feature": 1.5}, "feature must be a name, a layer's number, a module or None; got float"),
        ({"feature": None, "metrics": ()}, "metrics must name at least one of lsh, lsh_knn"),
        ({"feature": None, "metrics": ("lsh_kn",)}, "metrics must be of lsh, lsh_knn; got 'lsh_kn'; did you mean"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSHPrecisionRecall(**arguments)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.randn(10, 7), r"must have 200 features each, as before; got \(10, 7\)"),
        (torch.full((10, 200), torch.nan), "NaN or infinite values in 10 of 10 rows"),
    ],
)
def test_unusable_batches_are_refused_and_nothing_is_lost(sides, features, message):
    metric = filled(sides)
    expected = filled(sides).compute()
    with pytest.raises(ValueError, match=message):
        metric.update(features, real=True)
    assert metric.compute() == expected


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
            r"must be floats in \[0, 1\] with normalize=True; got torch\.uint8",
        ),
        (torch.rand(4, 3, 8, 8) * 2 - 1, r"must be in \[0, 1\] with normalize=True; got values from -"),
        (torch.rand(4, 3, 8, 8) * 255, r"must be in \[0, 1\] with normalize=True; got values from"),
        (torch.full((4, 3, 8, 8), torch.nan), "got values from nan to nan"),
        (torch.full((4, 3, 8, 8), torch.inf), "got values from inf to inf"),
    ],
)
def test_images_that_are_not_in_the_range_promised_are_refused(images, message, counting_extractor):
    metric = LSHPrecisionRecall("counting", normalize=True)
    with pytest.raises(ValueError, match=message):
        metric.update(images, real=True)
    assert len(metric.real) == 0


def test_one_metric_may_be_named_without_a_list(sides):
    assert filled(sides, metrics="lsh_knn").compute().keys() == filled(sides, metrics=["lsh_knn"]).compute().keys()


@pytest.mark.parametrize("empty", [torch.zeros(0, 200), torch.zeros(0), np.zeros((0, 200)), torch.zeros(0, 3, 8, 8)])
def test_an_empty_last_batch_adds_nothing(sides, empty):
    metric = filled(sides)
    expected = metric.compute()
    for real in (True, False):
        metric.update(empty, real=real)
    assert metric.compute() == expected


def test_arrays_are_taken_like_tensors(sides, counting_extractor):
    arrays = [side.numpy().astype(">f8")[::-1] for side in sides]
    metric = LSHPrecisionRecall(feature=None, config=CONFIG)
    for real, array in enumerate(arrays):
        metric.update(array, real=bool(real))
    assert metric.compute() == filled(sides).compute()
    images = np.random.default_rng(0).integers(256, size=(30, 3, 8, 8)).astype(np.uint8)
    metric = LSHPrecisionRecall("counting")
    for real in (True, False):
        metric.update(images, real=real)
    assert metric.compute()["lsh_precision"] == 1


@pytest.mark.parametrize("made", [(torch.zeros(4, 5),), {"features": torch.zeros(4, 5)}, None])
def test_a_module_that_returns_no_tensor_is_named(made):
    module = torch.nn.Identity()
    module.forward = lambda _: made
    with pytest.raises(ValueError, match=rf"feature: the module must return a tensor N x D; got {type(made).__name__}"):
        LSHPrecisionRecall(module).update(torch.zeros(4, 3, 8, 8), real=True)


def test_without_a_network_one_line_says_which_weights_are_wanted_and_where(monkeypatch):
    def no_network(**kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch_fidelity.feature_extractor_vgg16.torchvision_load_pretrained_vgg16", no_network)
    with pytest.raises(
        ValueError, match=r"A download failed \(Name or.*vgg16-.*\.pth goes into the folder .*checkpoints"
    ):
        LSHPrecisionRecall("vgg16")
