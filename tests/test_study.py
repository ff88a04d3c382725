import csv
import json
import random
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from torch_fidelity import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from compressors import ChannelPruner, CompressionError, ContractBroken, Distiller, Pipeline, Quantizer
from compressors.sparse import MaskSet, hand_over, prune_by_magnitude
from compressors.study import StudySettings, extract_features, measure_generator, run_study
from compressors.study.features import Extractor
from compressors.study.table import PRECISION_RECALL, Row, Table

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


class Endless(IterableDataset):
    def __iter__(self):
        return iter(lambda: torch.zeros(1, 4, 4, dtype=torch.uint8), None)


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
    pipeline = Pipeline(ChannelPruner(0.5), Quantizer(4, act_bits=6, output_bits=None))
    metrics = ("fid", "kid", "lsh", "lsh_knn", "prc")
    table = study([Quantizer(3, output_bits=None), ChannelPruner(0.5), pipeline], metrics=metrics, pictures=True)
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
    assert "against real, changes from the uncompressed model:" in text
    assert "lsh_knn recall" in text
    for picture in ("real", "real-bits", "real-ratio", "real-path", "real-size", "samples"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 1000
    assert all((tmp_path / row.samples).is_file() for row in table.rows)


def test_rows_are_compared_with_the_uncompressed_model_in_pairs(study, real, generator, tmp_path):
    table = study({"same": generator, "W3": Quantizer(3)}, metrics=("fid", "lsh"), references=("real", "teacher"))
    start, same, quantized = table.rows
    assert start.changes == {}
    for reference in ("real", "teacher"):
        assert same.changes[reference].keys() == {"lsh_precision", "lsh_recall", "lsh_f_score"}
        assert all(change["value"] == 0 for change in same.changes[reference].values())
        before, after = (row.scores[reference]["lsh_precision_unclipped"] for row in (start, quantized))
        change = quantized.change(reference, PRECISION_RECALL["lsh"][0])
        assert change.value == pytest.approx(after - before, abs=0.3)  # Pairs share folds, which moves single values.
        assert change.low <= change.value <= change.high
        assert f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}] {change.word}" in str(table)


def test_a_change_is_shown_with_its_interval_and_word():
    change = {"value": -0.95, "ci_low": -1, "ci_high": -0.9, "word": "loses"}
    row = Row("W2", changes={"real": {"lsh_recall": change}})
    assert str(row.change("real", PRECISION_RECALL["lsh"][1])) == "-0.95 [-1.00, -0.90] loses"
    assert row.change("teacher", PRECISION_RECALL["lsh"][1]) is None


def test_the_uncompressed_model_is_compared_with_in_a_later_run_too(study, tiny, tmp_path):
    both = study([Quantizer(8), Quantizer(3)])
    for file in tmp_path.glob("features/*"):
        file.unlink()
    for file in tmp_path.glob("rows.json"):
        lines = file.read_text().splitlines()
        file.write_text("\n".join(line for line in lines if "quantize W3" not in line))
    images = tiny.images
    assert study([Quantizer(8), Quantizer(3)]).rows[2].changes == both.rows[2].changes
    assert tiny.images == images + 50 + 2 * 40


def test_files_hold_the_table(study, tmp_path):
    table = study()
    assert Table.load(tmp_path / "results.json") == table
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["compressor"] for row in rows] == [row.compressor for row in table.rows]
    assert float(rows[1]["real_lsh_recall"]) == table.rows[1].scores["real"]["lsh_recall"]
    change = table.rows[1].changes["real"]["lsh_recall"]
    assert float(rows[1]["real_lsh_recall_change_ci_low"]) == change["ci_low"]
    assert rows[1]["real_lsh_recall_change_word"] == change["word"]
    assert rows[0]["real_lsh_recall_change"] == ""
    assert rows[0]["bits"] == ""


def test_no_damage_turns_a_table_into_another(study, tmp_path):
    study()
    path, chance = tmp_path / "results.json", random.Random(0)
    content = path.read_bytes()
    for _ in range(300):
        broken = bytearray(content)
        broken[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken[: chance.choice((len(content), chance.randrange(len(content))))])
        if path.read_bytes().split() == content.split():
            continue  # A blank in place of another.
        with pytest.raises(CompressionError, match=r"results\.json is damaged or no table of a study"):
            Table.load(path)


def test_both_references(study):
    table = study(references=("real", "teacher"))
    assert table.references == ("real", "teacher")
    teacher, real = (table.rows[0].scores[name]["lsh_precision_unclipped"] for name in ("teacher", "real"))
    assert teacher != real
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


def test_the_extractor_runs_on_the_device_that_it_is_given(monkeypatch):
    class Weighted(Tiny):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.layer = nn.Linear(1, 1)

    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "tiny", Weighted)
    assert Extractor("tiny", None, torch.device("meta")).network.layer.weight.is_meta


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
    for change, rows in (
        ({"samples": 41}, 3),
        ({"metrics": ("fid",)}, 2),  # The features of the uncompressed model are kept.
        ({"reference": real.flip(0)}, 3),
        ({"model": Spy()}, 3),
        ({"draw": lambda n, random: tuple(2 * item for item in draw(n, random))}, 3),
    ):
        images = tiny.images
        study(**change)
        assert tiny.images >= images + rows * 40


def test_ctrl_c_keeps_the_rows(study, tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        study([Quantizer(8), Failing(KeyboardInterrupt(), late=True), Quantizer(3)])
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert [row["compressor"] for row in kept.values()] == ["float", "quantize W8"]
    images = tiny.images
    study([Quantizer(8), Quantizer(3)])
    assert tiny.images == images + 40


class Interrupting:
    """Draws latents; Ctrl-C comes in the given call."""

    def __init__(self, call):
        self.left = call

    def __call__(self, count, random):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return draw(count, random)


def test_ctrl_c_in_a_training_leaves_no_row_of_the_half_trained_model(study, tmp_path):
    training = Distiller(Interrupting(20), 40, batch_size=4, held_out=8, progress=False)
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt, match="interrupted at step"):
        study([Pipeline(Quantizer(8), training)])
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert [row["compressor"] for row in kept.values()] == ["float"]


def test_a_model_whose_training_was_interrupted_before_is_a_row(study, generator):
    training = Distiller(Interrupting(20), 40, batch_size=4, held_out=8, progress=False)
    with pytest.warns(UserWarning, match="interrupted"):
        half = training.compress(generator, draw(4, torch.Generator()), teacher=generator)
    assert study([half]).rows[1].status == "measured"


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


@pytest.mark.parametrize("late", [False, True])
def test_a_row_with_a_bug_does_not_end_the_study_and_is_tried_again(study, tiny, late):
    table = study([Failing(RuntimeError("bug"), late), Quantizer(3)])
    failed, measured = table.rows[1:]
    assert (failed.status, measured.status) == ("failed", "measured")
    assert failed.note.startswith("RuntimeError: bug (test_study.py, line ")
    assert failed.note.endswith("in forward)" if late else "in compress)")
    images = tiny.images
    # Under the same name, mended.
    again = study({"failing": Quantizer(8), "quantize W3": Quantizer(3)})
    assert [row.status for row in again.rows] == ["measured"] * 3
    assert tiny.images == images + 40


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
        (
            {"reference": Folder([torch.zeros(1, 4, n, dtype=torch.uint8) for n in (4, 5)])},
            "images of one size: Runtime",
        ),
        ({"reference": Endless()}, "must know its length: give Endless a method __len__"),
        ({"compressors": Quantizer(4)}, "compressors must be a list of compressors, or .*; got Quantizer"),
        ({"compressors": [Quantizer(4), Quantizer(4, per_channel=False)]}, "two are called 'quantize W4'"),
        ({"compressors": {"W4": 4}}, "'W4' has no method compress"),
        ({"draw": lambda n, random: torch.randn(n, 4)}, "what draw returns must be a non-empty tuple"),
    ],
)
def test_bad_settings_are_named(study, changes, message):
    with pytest.raises(CompressionError, match=message):
        study(**changes)


def plain_function(z):
    return z


class Pipe:
    """Holds networks and is called, as pipelines of diffusers are."""

    def __init__(self):
        self.unet, self.vae, self.scheduler = nn.Linear(4, 4), nn.Linear(4, 4), "ddim"

    def __call__(self):
        return None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (plain_function, "generator must be a torch.nn.Module; got the function plain_function; write a torch.nn.Mod"),
        (Spy, r"generator must be a torch.nn.Module; got the class Spy; pass an instance of it, Spy\(...\)"),
        (Pipe(), "got Pipe; it holds the modules unet, vae: pass the one that is to be compressed"),
        (None, "generator must be a torch.nn.Module; got NoneType"),
    ],
)
def test_what_is_no_module_is_refused_with_the_way_out(study, model, message):
    with pytest.raises(CompressionError, match=message):
        study([], model=model)


def test_a_draw_that_ignores_its_generator_is_refused(study):
    with pytest.raises(CompressionError, match=r"draw returns other values when it is called again with the same seed"):
        study([], draw=lambda n, random: (torch.randn(n, 4), torch.zeros(n, 2)))


def test_a_failing_draw_is_named_with_its_place(study):
    def broken(n, random):
        raise KeyError("labels")

    with pytest.raises(CompressionError, match=r"draw\(8, random\) fails: KeyError: 'labels' \(test_study.py, line "):
        study([], draw=broken)


def test_a_draw_of_fewer_samples_than_asked_for_is_refused(study):
    def eight(n, random):
        return draw(8, random)

    with pytest.raises(CompressionError, match="for 40 samples and led to 24 images"):
        study([], draw=eight)


def test_one_generator_alone_gets_the_scores_of_its_row(study, generator, real):
    metrics = ("lsh", "prc")
    small = Pipeline(ChannelPruner(0.5), Quantizer(4)).compress(generator, draw(8, torch.Generator()))
    table = study({"small": small}, metrics=metrics)
    settings = replace(SETTINGS, metrics=metrics)
    features = extract_features(real, settings)
    for model, row in zip((generator.train(), small), table.rows, strict=True):
        assert measure_generator(model, draw, real, settings) == row.scores["real"]
        assert measure_generator(model, draw, features, settings) == row.scores["real"]
    assert generator.training


def test_a_generator_that_cannot_be_measured_alone_is_refused(real):
    with pytest.raises(CompressionError, match=r"model must be a torch.nn.Module; got the function plain_f"):
        measure_generator(plain_function, draw, real, SETTINGS)
    with pytest.raises(
        CompressionError, match=r"does not run on what draw\(8, random\) returns: .*\(test_study.py, li"
    ):
        measure_generator(Spy(), lambda n, random: (torch.randn(n, 2, generator=random),) * 2, real, SETTINGS)
    with pytest.raises(CompressionError, match="reference must be images"):
        measure_generator(Spy(), draw, None, SETTINGS)


def test_models_compressed_elsewhere_are_rows(study, generator, tmp_path):
    pruner = ChannelPruner(0.5, importance="l2")  # which needs no samples
    small = pruner.compress(generator, draw(3, torch.Generator().manual_seed(1)))
    other = Spy()
    ways = {"W8": Quantizer(8), "pruned": small, "the same module": small.model, "other": other}
    table = study(ways, pictures=True)
    assert (tmp_path / "real.png").is_file()
    _, _, pruned, module, foreign = table.rows
    assert pruned.scores == module.scores != foreign.scores
    sizes = ("parameters", "macs", "bytes", "sqnr_db")
    row = study([pruner]).rows[1]
    assert row.scores == pruned.scores
    for name in sizes:
        assert getattr(row, name) == getattr(pruned, name) == getattr(module, name)
    assert (row.ratio, pruned.ratio, module.ratio) == (0.5, 0.5, None)
    assert foreign.parameters == table.rows[0].parameters
    assert other.training
    assert generator.training


def test_a_sparse_network_is_a_row(study, generator):
    masks = MaskSet(generator)
    prune_by_magnitude(masks, 0.2)
    masks.apply(generator)
    full, sparse, named = study(
        {"sparse": (made := hand_over(generator, draw(2, torch.Generator()), masks)), "2": made}
    ).rows
    assert sparse.bytes < full.bytes
    assert (sparse.parameters, sparse.macs, sparse.scores) == (full.parameters, full.macs, full.scores)
    assert replace(named, compressor="sparse") == sparse
    assert study([made]).rows[1].compressor == "sparse 0.2"


def test_channels_pruned_by_layer_are_a_row_without_one_ratio(study):
    whole, by_layer = study([ChannelPruner(0.5), ChannelPruner({"linear": 0.5})]).rows[1:]
    assert (whole.status, whole.ratio) == ("measured", 0.5)
    assert (by_layer.status, by_layer.ratio) == ("measured", None)


def test_a_model_that_returns_other_images_than_the_generator_fails_as_a_row(study):
    table = study({"wide": Spy(channels=3), "W8": Quantizer(8)})
    assert table.rows[1].note == (
        "ContractBroken: wide returns other shapes than the uncompressed model: (8, 3, 4, 4); the uncompressed one "
        "returns (8, 1, 4, 4)"
    )
    assert table.rows[2].status == "measured"


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ({"W4": Quantizer}, "'W4' has no method compress and is no model: <class"),
        ([Spy()], "has no name; pass a mapping of labels to compressors"),
    ],
)
def test_what_is_no_way_to_a_row_is_refused(study, ways, message):
    with pytest.raises(CompressionError, match=message):
        study(ways)


def test_a_folder_that_cannot_be_made_is_named_before_the_work(study, tmp_path, generator, real):
    (tmp_path / "file").touch()
    with pytest.raises(CompressionError, match=r"folder: .*file cannot be made"):
        run_study(generator, draw, [], real, tmp_path / "file", SETTINGS)
    assert not Spy.seen


def test_scores_do_not_depend_on_the_autocast_of_the_caller(study, tmp_path):
    first = study()
    (tmp_path / "rows.json").unlink()
    with torch.autocast("cpu", torch.bfloat16):
        again = study()
    assert [row.scores for row in again.rows] == [row.scores for row in first.rows]


class Scribbler(Spy):
    """Computes what Spy does, and writes into its inputs."""

    def forward(self, z, label):
        image = super().forward(z, label)
        z *= 255
        label.zero_()
        return image


def test_a_forward_that_writes_into_its_input_changes_no_number(study, tmp_path, generator):
    clean = study()
    scribbler = Scribbler()
    scribbler.load_state_dict(generator.state_dict())
    dirty = study(model=scribbler)
    for row, other in zip(clean.rows, dirty.rows, strict=True):
        assert (row.scores, row.sqnr_db) == (other.scores, other.sqnr_db)
        assert imread(tmp_path / row.samples).tolist() == imread(tmp_path / other.samples).tolist()


def test_an_extractor_that_writes_into_its_input_changes_no_picture_or_reference(study, tmp_path, real, monkeypatch):
    class Writing(Tiny):
        def forward(self, x):
            features = super().forward(x)
            x.zero_()
            return features

    before = real.clone()
    clean = study()
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "tiny", Writing)
    dirty = study()
    assert torch.equal(real, before)
    for row, other in zip(clean.rows, dirty.rows, strict=True):
        assert row.scores == other.scores
        assert row.samples != other.samples
        assert imread(tmp_path / row.samples).tolist() == imread(tmp_path / other.samples).tolist()


def test_the_random_state_of_the_caller_stays(study):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    study([Quantizer(8)])
    assert torch.equal(torch.rand(2), expected)
