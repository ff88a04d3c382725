"""Compressors of one's own, their order, their teacher; and that a pipeline works on one copy that is measured once."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from generators import DCGAN, FAMILIES, LATENT, SNGAN, Family
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from compressors import (
    Architecture,
    ChannelPruner,
    Clipper,
    CompressedModel,
    CompressionError,
    Pipeline,
    Quantizer,
    register_architecture,
)
from compressors.common.bake import baked_copy
from compressors.core import architecture, report, stage
from compressors.core.packing import pack, stored_bytes
from compressors.core.stage import Stage, Work, begin, finish
from compressors.study import StudySettings, run_study

Z = (torch.randn(2, LATENT, generator=torch.Generator().manual_seed(0)),)


@dataclass(frozen=True)
class Zeroing:
    """A compressor that knows nothing of this package but what it calls: zeroes the smallest weights."""

    share: float

    @property
    def name(self) -> str:
        return f"zero {self.share:g}"

    def compress(self, model, example_inputs, calibration=None, *, teacher=None):
        work = begin(model, example_inputs)
        for parameter in work.model.parameters():
            if parameter.dim() > 1:
                limit = parameter.detach().abs().flatten().quantile(self.share)
                parameter.data[parameter.abs() <= limit] = 0
        step = {"compressor": "Zeroing", "share": self.share}
        return finish(work.changed({}, recipe=replace(work.recipe, sparse=True)).done(self.name, step))


@dataclass(frozen=True)
class Trainer(Stage):
    """A stage that trains, and takes quantized models; notes whom it got as a teacher."""

    teachers: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "train"

    @property
    def accepts_quantized(self) -> bool:
        return True

    def _apply(self, work: Work) -> Work:
        self.teachers.append(work.teacher)
        return work.changed({})


@dataclass(frozen=True)
class Search(Stage):
    """A stage that replaces the model by one of another class."""

    width: int

    @property
    def name(self) -> str:
        return f"search {self.width}"

    def _apply(self, work: Work) -> Work:
        found = Architecture("test sngan", {"width": self.width})
        recipe = replace(work.recipe, sizes={}, architecture=found)
        return work.changed({"fc": "found"}, 1.0, model=baked_copy(found.build()), recipe=recipe)


@pytest.fixture
def sngan_by_name(monkeypatch):
    monkeypatch.setattr(architecture, "_BUILDERS", {})
    register_architecture("test sngan", SNGAN)


def test_a_foreign_compressor_works_in_a_pipeline_and_in_a_file(tmp_path):
    model = DCGAN().eval()
    pipeline = Pipeline(ChannelPruner(0.5), Zeroing(0.8), Quantizer(4))
    result = pipeline.compress(model, Z)
    assert result.report.name == pipeline.name == "prune 0.5 + zero 0.8 + quantize W4"
    assert [step["compressor"] for step in result.recipe.steps] == ["ChannelPruner", "Zeroing", "Quantizer"]
    by_hand = Quantizer(4).compress(Zeroing(0.8).compress(ChannelPruner(0.5).compress(model, Z), Z), Z)
    assert torch.equal(by_hand.model(*Z), result.model(*Z))
    assert replace(by_hand.report, sqnr_db=result.report.sqnr_db) == result.report
    result.save(tmp_path / "small.safetensors")
    assert torch.equal(CompressedModel.load(tmp_path / "small.safetensors", DCGAN).model(*Z), result.model(*Z))


def test_a_foreign_compressor_and_a_compressed_model_are_rows_of_a_study(counting_extractor, tmp_path):
    def draw(count, random):
        return (torch.randn(count, LATENT, generator=random),)

    settings = StudySettings(
        samples=40, metrics=("lsh",), output_range=(-1, 1), feature_extractor="counting", batch_size=20
    )
    images = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8)
    model = DCGAN().eval()
    sparse = Zeroing(0.8).compress(model, draw(2, torch.Generator()))
    table = run_study(model, draw, {"zero": Zeroing(0.8), "same": sparse}, images, tmp_path, settings)
    uncompressed, *rows = table.rows
    assert [row.status for row in table.rows] == ["measured"] * 3
    assert all(row.bytes == sparse.report.after.bytes < 0.4 * uncompressed.bytes for row in rows)
    assert rows[0].scores == rows[1].scores
    assert rows[0].sqnr_db == rows[1].sqnr_db != uncompressed.sqnr_db


def test_a_foreign_compressor_that_returns_its_input_leaves_the_users_model_alone():
    @dataclass(frozen=True)
    class Nothing:
        name: str = "nothing"

        def compress(self, model, example_inputs, calibration=None, *, teacher=None):
            return CompressedModel(model, report.Report.of(model, example_inputs), stage.Recipe())

    model = DCGAN().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Pipeline(Nothing(), Quantizer(2)).compress(model, Z)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(CompressionError, match="broken: compress returned DCGAN; a CompressedModel is needed"):
        Pipeline(Broken()).compress(model, Z)


class Broken:
    name = "broken"

    def compress(self, model, example_inputs, calibration=None, *, teacher=None):
        return model


@pytest.mark.parametrize("stages", [2, 3])
def test_a_pipeline_copies_and_measures_the_model_once(stages, monkeypatch):
    calls = {"baked": 0, "counted": 0}

    def counting(name, function):
        def counted(*arguments):
            calls[name] += 1
            return function(*arguments)

        return counted

    monkeypatch.setattr(stage, "baked_copy", counting("baked", stage.baked_copy))
    monkeypatch.setattr(report, "count_macs", counting("counted", report.count_macs))
    Pipeline(*(ChannelPruner(0.5), Clipper("mse", 3), Quantizer(4))[-stages:]).compress(DCGAN().eval(), Z)
    assert calls == {"baked": 1, "counted": 2}  # sizes before and sizes after


def test_a_stream_of_calibration_serves_all_stages():
    stream = (Z for _ in range(2))
    quantizer = Quantizer(8, act_bits=8)
    model = DCGAN().eval()
    result = Pipeline(Reading(), quantizer).compress(model, Z, stream)
    assert torch.equal(result.model(*Z), quantizer.compress(model, Z, [Z, Z]).model(*Z))


@dataclass(frozen=True)
class Reading(Stage):
    name: str = "read"

    def _apply(self, work: Work) -> Work:
        assert work.calibration is not None
        assert len(list(work.calibration)) == 2
        return work.changed({})


def test_training_may_follow_quantization_and_pruning_may_not():
    result = Pipeline(ChannelPruner(0.5), Trainer(), Quantizer(4), Trainer()).compress(DCGAN().eval(), Z)
    assert result.report.name == "prune 0.5 + train + quantize W4 + train"
    assert set(result.float_weights) == set(result.recipe.quantized)
    assert Trainer().compress(result, Z).float_weights.keys() == result.float_weights.keys()
    wrong = r"stages: quantization comes last, .* and 'prune 0\.5' accepts no quantized model; got quantize W4 -> "
    with pytest.raises(CompressionError, match=wrong + r"train -> prune 0\.5"):
        Pipeline(Quantizer(4), Trainer(), ChannelPruner(0.5))
    with pytest.raises(CompressionError, match=wrong):
        Pipeline(Pipeline(Quantizer(4)), ChannelPruner(0.5))
    with pytest.raises(CompressionError, match="model is already quantized"):
        ChannelPruner(0.5).compress(result, Z)


def test_the_teacher_of_all_stages_is_the_model_that_the_pipeline_was_given():
    trainer, model, other = Trainer(), DCGAN().eval(), DCGAN().eval()
    Pipeline(Clipper("mse", 3), Pipeline(trainer, Zeroing(0.5)), Quantizer(4), trainer).compress(model, Z)
    assert all(teacher is model for teacher in trainer.teachers)
    assert len(trainer.teachers) == 2
    Pipeline(trainer).compress(model, Z, teacher=other)
    trainer.compress(model, Z)
    assert trainer.teachers[2] is other
    assert trainer.teachers[3] is None


def test_a_model_of_another_architecture_is_saved_and_loaded_like_others(sngan_by_name, tmp_path):
    teacher, path = DCGAN().eval(), tmp_path / "student.safetensors"
    for last in (Trainer(), Quantizer(4)):
        result = Pipeline(Search(8), ChannelPruner(0.25), last).compress(teacher, Z)
        result.save(path)
        for factory in (None, DCGAN):
            loaded = CompressedModel.load(path, factory)
            assert isinstance(loaded.model, SNGAN)
            assert torch.equal(loaded.model(*Z), result.model(*Z))
            assert (loaded.report, loaded.recipe) == (result.report, result.recipe)
        rows = {row.name: row for row in result.report.layers}
        assert rows["layers.0"].after == report.Size()
        assert rows["fc"].before == report.Size()
        assert rows["fc"].note == "found; pruned"
        for side in ("before", "after"):
            parameters = sum(getattr(row, side).parameters for row in rows.values())
            assert parameters == getattr(result.report, side).parameters
        assert result.report.after.bytes == sum(value.nbytes for value in pack(result.model, result.recipe).values())


def test_an_architecture_that_nobody_registered_is_named(sngan_by_name, tmp_path, monkeypatch):
    path = tmp_path / "student.safetensors"
    Search(8).compress(DCGAN().eval(), Z).save(path)
    monkeypatch.setattr(architecture, "_BUILDERS", {"test sngan2": SNGAN})
    wrong = "'test sngan' is not registered: import the module that registers it, .*; did you mean \"test sngan2\""
    with pytest.raises(CompressionError, match=wrong):
        CompressedModel.load(path)
    assert isinstance(CompressedModel.load(path, lambda: SNGAN(8)).model, SNGAN)
    with pytest.raises(CompressionError, match="'test sngan2' is taken by another architecture"):
        register_architecture("test sngan2", DCGAN)
    with pytest.raises(CompressionError, match=r"builder must be a function or class .* got 'SNGAN'"):
        register_architecture("other", "SNGAN")
    Quantizer(4).compress(DCGAN().eval(), Z).save(path)
    for factory, got in ((None, "got none"), (DCGAN(), "got a DCGAN"), ("DCGAN", "got a str")):
        with pytest.raises(CompressionError, match=f"factory must be a function that builds .*; {got}"):
            CompressedModel.load(path, factory)
    with pytest.raises(CompressionError, match=r"what factory returns must be a torch\.nn\.Module; got int"):
        CompressedModel.load(path, lambda: 1)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_bytes_of_the_report_are_those_of_the_packed_tensors(family: Family):
    inputs, pruner = family.inputs(), ChannelPruner(0.5, **family.pruning or {})
    quantizer = Quantizer(5, act_bits=6, symmetric=False, bias_correction=True)
    ways = [pruner, Zeroing(0.7), Pipeline(pruner, Zeroing(0.9), quantizer)]
    for way in ways:
        result = way.compress(family.build(), inputs, [inputs])
        packed = pack(result.model, result.recipe)
        found = {key: 0 for key in stored_bytes(result.model, result.recipe)}
        for key, value in packed.items():
            found[key if key in found else key.rpartition(".")[0]] += value.nbytes
        assert found == stored_bytes(result.model, result.recipe)
        assert result.report.after.bytes == sum(found.values())


def test_pruning_reaches_most_parameters_or_asks_for_less_coverage():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.const = nn.Parameter(torch.randn(1, 64, 4, 4))
            self.layers = nn.Sequential(nn.Conv2d(64, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))

        def forward(self, z):
            return self.layers(self.const.expand(len(z), -1, -1, -1))

    with pytest.raises(CompressionError, match=r"only 35% .* \(at least 90% wanted\); not covered: const"):
        ChannelPruner(0.5, param_dims={"const": 1}).compress(Loose(), Z)
    small = ChannelPruner(0.5, param_dims={"const": 1}, min_coverage=0.3).compress(Loose(), Z)
    assert small.report.after.parameters < small.report.before.parameters
    assert small.report.coverage == pytest.approx(547 / 1571)


@pytest.mark.parametrize("reparametrized", [parametrizations.spectral_norm, spectral_norm, weight_norm])
def test_frozen_weights_stay_frozen_when_a_reparametrisation_is_baked_in(reparametrized):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older one of weight norm
        free, frozen = (reparametrized(nn.Linear(4, 4)) for _ in range(2))
    baked = baked_copy(nn.Sequential(free, frozen.requires_grad_(False)))
    assert [parameter.requires_grad for parameter in baked.parameters()] == [True, True, False, False]


@pytest.mark.parametrize(
    ("imported", "blocked"),
    [
        (
            "compressors",
            ("matplotlib", "onnx", "onnxruntime", "brevitas", "torch_pruning", "torch_fidelity", "torch_fidelity_lsh"),
        ),
        ("compressors.sparse", ("torch_fidelity", "torchvision", "matplotlib", "torch_fidelity_lsh")),
    ],
)
def test_the_package_is_imported_without_what_it_does_not_need(imported, blocked):
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {imported}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_message_for_a_mistyped_name_suggests_the_nearest():
    mistakes = [
        (lambda: ChannelPruner(0.5, scope="globl"), '"global"'),
        (lambda: Quantizer(8, clip="percentil"), '"percentile"'),
        (lambda: Quantizer(8, exclude=("layer.3",)).compress(DCGAN(), Z), '"layers.3"'),
    ]
    for mistake, nearest in mistakes:
        with pytest.raises(CompressionError, match=f"did you mean {nearest}"):
            mistake()
