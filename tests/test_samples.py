"""Inputs of every kind that people have: each is looked at first, and what is wrong is said with its name and cause."""

import numpy as np
import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torch_fidelity import GenerativeModelModuleWrapper
from torch_fidelity.registry import DATASETS_REGISTRY

from torch_fidelity_lsh import calculate_metrics
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY, register_metric

CALL = {"cuda": False, "verbose": False, "save_cpu_ram": True}
LITE = {**CALL, "feature_extractor": "efficientnet-lite0", "lsh": True}


class Items(Dataset):
    """A data set of given items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class WithoutLength(Dataset):
    def __getitem__(self, index):
        return image()


class Endless(IterableDataset):
    def __iter__(self):
        yield image()


def image(value=7, size=(3, 8, 8)):
    return torch.full(size, value, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def no_extractor(monkeypatch):
    """Weights are not to be loaded before inputs are looked at; ``no_extractor.append(1)`` allows it."""
    allowed = []
    from torch_fidelity_lsh.fidelity import upstream

    create = upstream.create_feature_extractor

    def guarded(*args, **kwargs):
        assert allowed, "weights were loaded before the inputs were looked at"
        return create(*args, **kwargs)

    monkeypatch.setattr(upstream, "create_feature_extractor", guarded)
    return allowed


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Endless(), "an IterableDataset has no items by number"),
        (WithoutLength(), r"the data set WithoutLength has no length \(__len__\)"),
        (Items([]), "the data set is empty"),
        (TensorDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)), "the first is a tuple; wrap the data set"),
        (Items([{"image": image()}]), "the first is a dict; wrap the data set"),
        (Items([np.zeros((3, 8, 8), np.uint8)]), "the first is of type ndarray"),
        (Items([torch.rand(3, 8, 8)]), r"the first is float32, 3 x 8 x 8; \(image \* 255\)\.round"),
        (Items([image(size=(1, 8, 8))]), r"the first is uint8, 1 x 8 x 8; image\.expand\(3, -1, -1\)"),
        (Items([image(size=(8, 8))]), "the first is uint8, 8 x 8"),
        (Items([image(size=(8, 8, 3))]), "the first is uint8, 8 x 8 x 3"),
        (Items([KeyError("lost")]), "item 0 of the data set cannot be read: KeyError: 'lost'"),
    ],
)
@pytest.mark.parametrize("argument", ["input1", "input2"])
def test_a_data_set_of_no_use_is_refused_before_weights_are_loaded(dataset, message, argument):
    other = {"input1": "input2", "input2": "input1"}[argument]
    with pytest.raises(ValueError, match=f"^{argument}: .*{message}"):
        calculate_metrics(**{**LITE, argument: dataset, other: Items([image()] * 4)})


@pytest.mark.parametrize("workers", [True, False])
@pytest.mark.parametrize(
    ("late", "message"),
    [
        (image(size=(3, 8, 9)), "items of the data set differ: item 0 is uint8, 3 x 8 x 8; item 3 is uint8, 3 x 8 x 9"),
        (torch.rand(3, 8, 8), "items of the data set differ: item 0 is uint8, 3 x 8 x 8; item 3 is float32"),
        (ZeroDivisionError("by zero"), "item 3 of the data set cannot be read: ZeroDivisionError: by zero"),
        (None, "item 3 of the data set is of type NoneType"),
    ],
)
def test_a_bad_item_further_on_is_named_with_its_cause(late, message, workers, no_extractor):
    no_extractor.append(1)
    dataset = Items([image(), image(), image(), late])
    with pytest.raises(ValueError, match=f"^input2: {message}") as caught:
        calculate_metrics(**{**LITE, "save_cpu_ram": not workers}, input1=Items([image()] * 4), input2=dataset)
    if isinstance(late, Exception):
        assert "raise item" in str(caught.value.__cause__)


def test_images_of_any_size_pass_one_at_a_time(no_extractor):
    no_extractor.append(1)
    dataset = Items([image(value, (3, 8, 8 + value)) for value in range(6)])
    assert calculate_metrics(**LITE, input1=dataset, input2=dataset, batch_size=1)["lsh_precision"] == 1


def test_an_extractors_own_error_is_not_laid_on_the_images(
    image_folders, counting_extractor, no_extractor, monkeypatch
):
    no_extractor.append(1)

    def broken(self, x):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(counting_extractor, "forward", broken)
    call = {**CALL, "feature_extractor": "counting", "fid": True}
    with pytest.raises(RuntimeError, match="out of memory"):
        calculate_metrics(**call, input1=image_folders[0], input2=image_folders[1])


def test_features_that_an_extractor_makes_nan_are_named(images, counting_extractor, no_extractor, monkeypatch):
    no_extractor.append(1)
    forward = counting_extractor.forward

    def half_nan(self, x):
        return tuple(torch.where(torch.arange(len(x))[:, None] % 2 == 0, torch.nan, f) for f in forward(self, x))

    monkeypatch.setattr(counting_extractor, "forward", half_nan)
    with pytest.raises(ValueError, match=r'input1: layer "small" of counting is NaN or infinite for 6 of 12 samples'):
        calculate_metrics(**CALL, feature_extractor="counting", input1=images[0], input2=images[1], fid=True)


class Network(torch.nn.Module):
    """A generator of 3 x 8 x 8 images, class-conditional if it is given labels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 192, generator=torch.Generator().manual_seed(0)))

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        out = torch.sigmoid(z @ self.weight).view(-1, 3, 8, 8)
        if labels is not None:
            out = out * (1 + labels.view(-1, 1, 1, 1)) / 11
        return (out * 255).to(torch.uint8)


@pytest.fixture
def conditional():
    return GenerativeModelModuleWrapper(Network(), 4, "normal", 10)


def test_a_conditional_generator_is_measured_on_the_samples_of_the_seed(
    conditional, images, counting_extractor, no_extractor
):
    no_extractor.append(1)
    call = {**CALL, "feature_extractor": "counting", "fid": True, "input2": images[1], "batch_size": 8}
    result = calculate_metrics(**call, input1=conditional, input1_model_num_samples=20)
    rng, drawn = np.random.RandomState(2020), []
    for number in (8, 8, 4):
        z = torch.from_numpy(rng.randn(number, 4)).float()
        drawn.append(Network()(z, torch.from_numpy(rng.randint(0, 10, number))))
    assert calculate_metrics(**call, input1=Items(torch.cat(drawn))) == result


def test_a_conditional_generator_on_the_command_line(image_folders, counting_extractor, no_extractor, tmp_path, capsys):
    from torch_fidelity_lsh.cli import main

    no_extractor.append(1)
    torch.jit.script(Network()).save(tmp_path / "g.pth")
    options = ["--input1", str(tmp_path / "g.pth"), "--input1-model-z-size", "4", "--input1-model-num-classes", "10"]
    options += ["--input1-model-num-samples", "20", "--input2", image_folders[1], "--fid", "--cpu", "--silent"]
    assert main([*options, "--feature-extractor", "counting"]) == 0
    assert "frechet_inception_distance" in capsys.readouterr().out


def test_a_generator_with_a_state_of_its_own_is_not_asked_twice_for_a_batch(images, counting_extractor, no_extractor):
    no_extractor.append(1)

    class Prepared(torch_fidelity.GenerativeModelBase):
        """Hands out images made before, in turn."""

        z_size, z_type, num_classes, given = 1, "normal", 0, 0

        def forward(self, z):
            self.given += len(z)
            return torch.stack([images[0][i] for i in range(self.given - len(z), self.given)])

    call = {**CALL, "feature_extractor": "counting", "fid": True, "input2": images[1], "batch_size": 5}
    drawn = calculate_metrics(**call, input1=Prepared(), input1_model_num_samples=12)
    assert drawn == calculate_metrics(**call, input1=images[0])


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda z: torch.rand(len(z), 3, 8, 8), "must return a batch of images, uint8, .*; got float32, 3 x 8 x 8"),
        (lambda z: (torch.zeros(len(z), 3, 8, 8),), "got tuple"),
        (lambda z: torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"got shape \(1, 3, 8, 8\) for 6 rows of noise"),
        (lambda z: 1 / 0, r"the generator failed on noise of shape \(6, 4\): ZeroDivisionError"),
    ],
)
def test_a_generators_output_is_looked_at_before_weights_are_loaded(forward, message):
    network = torch.nn.Identity()
    network.forward = forward
    model = GenerativeModelModuleWrapper(network, 4, "normal", 0)
    with pytest.raises(ValueError, match=f"^input1: .*{message}"):
        calculate_metrics(**LITE, input1=model, input1_model_num_samples=6, input2=Items([image()] * 4))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x04."])
@pytest.mark.parametrize("name", ["g.pth", "g.onnx"])
def test_a_damaged_generator_file_is_one_line(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    call = {**LITE, "input1_model_num_samples": 6, "input1_model_z_size": 4}
    with pytest.raises(ValueError, match=rf'^input1: ".*{name}" cannot be read as a generator, a[^\n]*$'):
        calculate_metrics(**call, input1=path, input2=Items([image()] * 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "input1_model_num_samples, the number of samples .*, must be an integer of at least 1; got None"),
        ({"input1_model_num_samples": 0}, "got 0"),
        ({"input1_model_num_samples": 2.5}, "got 2.5"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
    ],
)
def test_numbers_of_samples_are_checked_first(settings, message, conditional):
    with pytest.raises(ValueError, match=message):
        calculate_metrics(**LITE, **settings, input1=conditional, input2=Items([image()] * 4))


def test_a_generator_left_in_training_mode_is_told(images, counting_extractor, no_extractor):
    no_extractor.append(1)
    model = GenerativeModelModuleWrapper(torch.nn.Sequential(Network(), torch.nn.Identity()), 4, "normal", 0)
    model.module.append(torch.nn.Dropout(0.0))
    call = {**CALL, "feature_extractor": "counting", "fid": True, "input1_model_num_samples": 6, "input2": images[1]}
    model.module[-1].forward = lambda x: x
    calculate_metrics(**call, input1=model)
    with pytest.warns(UserWarning, match=r"input1: the generator is in training mode.*\.eval\(\)"):
        calculate_metrics(**call, input1=model.train())


@pytest.mark.parametrize(
    ("metric", "rows", "settings", "message"),
    [
        ("fid", (1, 9), {}, "fid needs at least 2 samples for a covariance, and input1 has 1"),
        ("fid", (9, 1), {}, "fid needs at least 2 samples for a covariance, and input2 has 1"),
        ("isc", (5, 9), {}, "isc needs at least 10 samples for isc_splits=10, and input1 has 5"),
        ("kid", (9, 9), {}, "kid needs at least 1000 samples for kid_subset_size=1000, and input1 has 9"),
        ("kid", (9, 9), {"kid_subset_size": 1}, "kid_subset_size must be an integer of at least 2; got 1"),
        (
            "kid",
            (9, 9),
            {"kid_subset_size": 5, "kid_subsets": 0},
            "kid_subsets must be an integer of at least 1; got 0",
        ),
        ("isc", (9, 9), {"isc_splits": 2.0}, "isc_splits must be an integer of at least 1; got 2.0"),
        ("prc", (9, 3), {}, "prc needs at least 4 samples for prc_neighborhood=3, and input2 has 3"),
        ("lsh", (1, 9), {}, "features_generated must hold at least 2 samples for these settings; got 1"),
        ("lsh_knn", (3, 9), {}, "features_generated must hold at least 4 samples for these settings; got 3"),
    ],
)
def test_the_smallest_number_of_samples_is_said(metric, rows, settings, message):
    sides = {f"input{side}": torch.randn(n, 300) for side, n in enumerate(rows, start=1)}
    call = {**CALL, **settings, **sides, metric: True}
    with pytest.raises(ValueError, match=message):
        calculate_metrics(**call)


def test_too_few_images_are_refused_before_weights_are_loaded():
    with pytest.raises(ValueError, match="fid needs at least 2 samples for a covariance, and input1 has 1"):
        calculate_metrics(
            **CALL,
            feature_extractor="efficientnet-lite0",
            fid=True,
            input1=Items([image()]),
            input2=Items([image()] * 9),
        )


@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("columns", [1, 2, 300])
def test_very_few_rows_give_a_number_or_one_line(rows, columns):
    for factor in (0, 1e-30, 1, 1e30):
        sides = [factor * torch.rand(rows, columns) for _ in range(2)]
        for metric in ("lsh", "lsh_knn"):
            try:
                result = calculate_metrics(**CALL, input1=sides[0], input2=sides[1], **{metric: True})
            except ValueError as error:
                assert "input" in str(error) or "features" in str(error)  # noqa: PT017
            else:
                assert np.isfinite(list(result.values())).all()


def test_no_number_leaves_that_is_none():
    huge = 1e30 * torch.randn(20, 8)
    with pytest.raises(ValueError, match=r"frechet_inception_distance came out as .*: input1 holds values up to"):
        calculate_metrics(**CALL, input1=huge, input2=huge * 0.5, fid=True)


def test_a_metric_of_somebody_elses_may_not_return_nan(features):
    register_metric("gap", lambda *_, **__: {"gap": float("nan")}, keys=["gap"])
    try:
        with pytest.raises(ValueError, match="gap came out as nan"):
            calculate_metrics(**CALL, input1=features[0], input2=features[1], gap=True)
    finally:
        del METRICS_REGISTRY["gap"]


def test_a_registered_data_set_that_cannot_be_opened_is_named(monkeypatch, counting_extractor, no_extractor):
    def broken(root, download):
        raise RuntimeError("the archive is damaged")

    no_extractor.append(1)
    monkeypatch.setitem(DATASETS_REGISTRY, "mine", broken)
    call = {**CALL, "feature_extractor": "counting", "fid": True, "cache": False}
    with pytest.raises(ValueError, match='input2: data set "mine" cannot be opened: the archive is damaged'):
        calculate_metrics(**call, input1=Items([image()] * 4), input2="mine")
