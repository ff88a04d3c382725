import csv
import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from torch_fidelity import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from compressors import ChannelPruner, CompressionError, ContractBroken, Pipeline, Quantizer
from compressors.study import StudySettings, run_study
from compressors.study.table import Table

SETTINGS = StudySettings(
    samples=40,
    metrics=("lsh",),
    output_range=(-1, 1),
    feature_extractor="tiny",
    batch_size=16,
    calibration=16,
    options={"kid_subsets": 2},
)

W8_W3 = (Quantizer(8), Quantizer(3))


class Tiny(FeatureExtractorBase):
    """Pools images of any size to 3 x 2 x 2, and counts them."""

    images = 0

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    def forward(self, x):
        assert x.dtype == torch.uint8
        type(self).images += len(x)
        return (nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1),)

    @staticmethod
    def get_provided_features_list():
        return ("pooled",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"fid": "pooled"}[metric]


class Spy(nn.Module):
    """A small conditional generator that remembers the latents it got, in all its copies."""

    seen: ClassVar[list[torch.Tensor]] = []

    def __init__(self, channels=1):
        super().__init__()
        self.linear = nn.Linear(6, 8 * 16)
        self.conv = nn.Conv2d(8, channels, 3, padding=1)

    def forward(self, z, label):
        Spy.seen.append(z.clone())
        h = self.linear(torch.cat([z, label], dim=1)).view(len(z), -1, 4, 4).relu()
        return torch.tanh(self.conv(h))


class Folder(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@dataclass(frozen=True)
class Failing:
    """A compressor whose result fails, early or late, with `error`."""

    error: BaseException
    late: bool = False
    name: str = "failing"

    def compress(self, model, example_inputs, calibration=None):
        if not self.late:
            raise self.error
        result = Quantizer(8).compress(model, example_inputs)
        broken = Late(result.model, self.error)
        return replace(result, model=broken)


class Late(nn.Module):
    def __init__(self, model, error):
        super().__init__()
        self.model, self.error = model, error

    def forward(self, z, label):
        if isinstance(self.error, ContractBroken):
            return self.model(z, label) * float("nan")
        raise self.error


def draw(count, random):
    return torch.randn(count, 4, generator=random), torch.nn.functional.one_hot(torch.arange(count) % 2).float()


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "tiny", Tiny)
    Tiny.images = 0
    Spy.seen.clear()
    return Tiny


@pytest.fixture
def generator():
    return Spy()


@pytest.fixture
def real():
    return torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8)


@pytest.fixture
def study(generator, real, tmp_path, monkeypatch):
    """Run a study of 40 images a row with the given changes; its folder is `tmp_path`."""

    def run(compressors=W8_W3, reference=real, model=generator, draw=draw, pictures=False, **changes):
        with monkeypatch.context() as patch:
            if not pictures:  # They take most of the time.
                patch.setattr("compressors.study.runner.save_pictures", lambda table, folder: None)
            return run_study(model, draw, compressors, reference, tmp_path, replace(SETTINGS, **changes))

    return run


def test_one_table_of_sizes_and_scores(study, tmp_path):
    pipeline = Pipeline(ChannelPruner(0.5), Quantizer(4, act_bits=6))
    metrics = ("fid", "kid", "lsh", "lsh_knn", "prc")
    table = study([Quantizer(3), ChannelPruner(0.5), pipeline], metrics=metrics, pictures=True)
    names = [row.compressor for row in table.rows]
    assert names == ["float", "quantize W3", "prune 0.5", "prune 0.5 + quantize W4A6"]
    assert [(row.bits, row.act_bits, row.ratio) for row in table.rows] == [
        (None, None, None),
        (3, None, None),
        (None, None, 0.5),
        (4, 6, 0.5),
    ]
    full, quantized, pruned, both = table.rows
    assert full.parameters == quantized.parameters == 6 * 128 + 128 + 8 * 9 + 1
    assert full.macs == 6 * 128 + 16 * 8 * 9
    assert both.parameters == pruned.parameters < full.parameters
    assert both.bytes < quantized.bytes < full.bytes == 4 * full.parameters
    assert all(row.status == "measured" and row.latency_ms > 0 for row in table.rows)
    expected = {"frechet_inception_distance", "kernel_inception_distance_mean", "lsh_precision_stderr"}
    assert expected | {"lsh_knn_recall_stderr", "precision", "recall"} <= full.scores["real"].keys()
    text = str(table)
    assert "against real:" in text
    assert "lsh_knn recall" in text
    assert "±" in text
    for picture in ("real", "real-bits", "real-ratio", "real-path", "real-size", "samples"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 1000
    assert all((tmp_path / row.samples).is_file() for row in table.rows)


def test_files_hold_the_table(study, tmp_path):
    table = study()
    assert Table.load(tmp_path / "results.json") == table
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["compressor"] for row in rows] == [row.compressor for row in table.rows]
    assert float(rows[1]["real_lsh_recall"]) == table.rows[1].scores["real"]["lsh_recall"]
    assert rows[0]["bits"] == ""


def test_both_references(study):
    table = study(references=("real", "teacher"))
    assert table.references == ("real", "teacher")
    teacher, real = (table.rows[0].scores[name]["lsh_precision"] for name in ("teacher", "real"))
    assert teacher > real
    assert "against teacher:" in str(table)


def test_the_teacher_alone_needs_no_images(study):
    table = study(reference=None, references=("teacher",))
    assert all(row.scores.keys() == {"teacher"} for row in table.rows)


def test_all_rows_get_the_same_latents_and_the_teacher_others(study):
    study(references=("real", "teacher"))
    starts = [z for z in Spy.seen if len(z) == SETTINGS.batch_size]
    counts = sorted((sum(torch.equal(z, other) for other in starts) for z in starts), reverse=True)
    # Both batches of samples once for each of three rows, the first 6 times more for each row's latency;
    # the rest belongs to the teacher, which is seen once.
    assert counts[-2:] == [1, 1]
    assert set(counts[:-2]) == {3, 18}


def test_reference_features_are_extracted_once(study, tiny):
    study([Quantizer(8)])
    assert tiny.images == 50 + 2 * 40
    study([Quantizer(8), Quantizer(4)])
    assert tiny.images == 50 + 3 * 40


def test_data_set_and_features_as_reference(study, real):
    from_tensor = study([]).rows[0].scores
    assert study([], Folder(real)).rows[0].scores == from_tensor
    features = Tiny("tiny", ["pooled"])(real.expand(-1, 3, -1, -1))[0].numpy()
    assert study([], features).rows[0].scores == from_tensor


def test_the_generator_is_left_as_it_was(study, generator):
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    study()
    assert generator.training
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


def test_finished_rows_are_not_measured_again(study, tiny):
    first = study()
    images = tiny.images
    again = study()
    assert again == first
    assert tiny.images == images


def test_a_new_compressor_measures_its_own_row_only(study, tiny):
    first = study([Quantizer(8), Quantizer(3)])
    images = tiny.images
    second = study({"W8": Quantizer(8), "W3 by mean": Quantizer(3, clip="sigma")})
    assert tiny.images == images + 40
    assert second.rows[0] == first.rows[0]
    assert replace(second.rows[1], compressor="quantize W8") == first.rows[1]
    assert second.rows[2].scores != first.rows[2].scores


def test_kept_features_serve_other_metrics(study, tiny):
    first = study(keep_features=True)
    images = tiny.images
    again = study(keep_features=True, metrics=("lsh", "prc"), options={"lsh_num_tables": 8})
    assert tiny.images == images
    assert first.rows[1].scores["real"].keys() < again.rows[1].scores["real"].keys()
    assert again == study(metrics=("lsh", "prc"), options={"lsh_num_tables": 8})
    assert tiny.images == images


def test_a_change_for_all_rows_measures_all(study, tiny, generator, real):
    study()
    for change in (
        {"samples": 41},
        {"metrics": ("fid",)},
        {"reference": real.flip(0)},
        {"model": Spy()},
        {"draw": lambda n, random: tuple(2 * item for item in draw(n, random))},
    ):
        images = tiny.images
        study(**change)
        assert tiny.images >= images + 3 * 40


def test_ctrl_c_keeps_the_rows(study, tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        study([Quantizer(8), Failing(KeyboardInterrupt(), late=True), Quantizer(3)])
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert [row["compressor"] for row in kept.values()] == ["float", "quantize W8"]
    images = tiny.images
    study([Quantizer(8), Quantizer(3)])
    assert tiny.images == images + 40


@pytest.mark.parametrize("late", [False, True])
def test_nan_marks_the_row_and_the_study_goes_on(study, tmp_path, late):
    table = study([Failing(ContractBroken("returns NaN"), late), Quantizer(3)], pictures=True)
    failed, measured = table.rows[1:]
    assert (failed.status, failed.scores, failed.samples) == ("failed", {}, "")
    assert failed.note.startswith("ContractBroken")
    assert (failed.bytes is not None) == late
    assert measured.status == "measured"
    assert f"failing: failed: {failed.note}" in str(table)
    assert (tmp_path / "real.png").is_file()


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError("no more")])
def test_out_of_memory_marks_the_row_which_is_tried_again(study, tiny, error):
    assert [row.status for row in study([Failing(error), Quantizer(3)]).rows] == [
        "measured",
        "out of memory",
        "measured",
    ]
    images = tiny.images
    assert study([Failing(MemoryError(), late=True, name=str(error))]).rows[1].status == "out of memory"
    assert tiny.images == images


def test_errors_of_the_program_are_not_hidden(study):
    with pytest.raises(RuntimeError, match="bug"):
        study([Failing(RuntimeError("bug"))])


class Returns(nn.Module):
    """Returns `value` of the wanted batch size."""

    def __init__(self, make):
        super().__init__()
        self.make, self.linear = make, nn.Linear(4, 4)

    def forward(self, z, label):
        return self.make(len(z))


@pytest.mark.parametrize(
    ("make", "declared", "message"),
    [
        (lambda n: torch.rand(n, 1, 4, 4), None, r"declare output_range=\(-1, 1\) or \(0, 1\)"),
        (lambda n: 255 * torch.rand(n, 3, 4, 4), (0, 1), "outside: they go from .* to 25"),
        (lambda n: 2 * torch.rand(n, 3, 4, 4) - 1, (0, 1), "outside"),
        (lambda n: torch.zeros(n, 3, 4, 4, dtype=torch.uint8), (0, 1), "returns torch.uint8"),
        (lambda n: torch.rand(n, 2, 4, 4), (0, 1), r"B x 3 x H x W; got \(8, 2, 4, 4\)"),
        (lambda n: [torch.rand(n, 3, 4, 4)], (0, 1), "got list"),
        (lambda n: torch.rand(5, 3, 4, 4), (0, 1), "led to 5 images"),
    ],
)
def test_images_of_the_wrong_kind_are_refused(study, make, declared, message):
    with pytest.raises(CompressionError, match=message):
        study([], model=Returns(make), output_range=declared)


@pytest.mark.parametrize(
    ("make", "declared"),
    [
        (lambda n: torch.full((n, 1, 4, 4), 102, dtype=torch.uint8), None),
        (lambda n: torch.full((n, 1, 4, 4), 0.4), (0, 1)),
        (lambda n: torch.full((n, 3, 4, 4), -0.2), (-1, 1)),
    ],
)
def test_images_are_converted_as_declared(make, declared):
    from compressors.common.generation import to_images

    images = to_images(make(2), declared)
    assert images.dtype == torch.uint8
    assert images.shape == (2, 3, 4, 4)
    assert (images == 102).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 1}, "samples must be an integer of at least 2; got 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"metrics": ("isc",)}, r"metrics must be .*lsh_knn; got \('isc',\)"),
        ({"metrics": "fid"}, "metrics must be a tuple"),
        ({"references": ("fake",)}, "references must be"),
        ({"output_range": (0, 255)}, "output_range must be"),
        ({"feature_extractor": "tinny"}, "feature_extractor must be one of .*tiny; got 'tinny'"),
        ({"feature_layer": "last"}, "feature_layer must be one of pooled"),
        ({"reference": None}, "got None"),
        ({"reference": torch.rand(9, 3, 4, 4)}, r"got torch.float32 \(9, 3, 4, 4\)"),
        ({"reference": Folder(torch.rand(9, 3, 4, 4))}, "uint8 tensors C x H x W; got torch.float32"),
        ({"reference": np.zeros((1, 12), np.float32)}, "at least 2"),
        ({"reference": "images"}, "got str"),
        ({"compressors": [Quantizer(4), Quantizer(4, per_channel=False)]}, "two are called 'quantize W4'"),
        ({"compressors": {"W4": 4}}, "'W4' has no method compress"),
        ({"draw": lambda n, random: torch.randn(n, 4)}, "what draw returns must be a non-empty tuple"),
    ],
)
def test_bad_settings_are_named(study, changes, message):
    with pytest.raises(CompressionError, match=message):
        study(**changes)


def test_a_damaged_file_of_rows_is_named(study, tmp_path):
    (tmp_path / "rows.json").write_text('{"a": ')
    with pytest.raises(CompressionError, match=r"rows\.json is damaged"):
        study()
