"""Studies of generators that are no modules: callables, pipelines of diffusers, models quantized elsewhere; pairs."""

import copy
import json
import math
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compressors import CompressionError, Quantizer
from compressors.common.bake import independent_copy
from compressors.common.foreign import has_foreign_tensors
from compressors.core.packing import stored_bytes
from compressors.core.recipe import Recipe
from compressors.study import PipelineGenerator, SeededGenerator, StudySettings, measure_generator, run_study
from compressors.study.pairs import paired_scores
from compressors.study.table import Table

SETTINGS = StudySettings(
    samples=24,
    metrics=("lsh",),
    references=("teacher",),
    feature_extractor="counting",
    feature_layer="small",
    batch_size=24,
    calibration=8,
)


def blocks(seed, count, brightness=1.0):
    """Images of 16 x 16 in blocks, floats in [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    return brightness * torch.rand(count, 3, 4, 4, generator=random).repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_a_callable_is_studied_with_others_as_rows(counting_extractor, tmp_path):
    ways = {"same": lambda seed, count: blocks(seed, count), "dark": lambda seed, count: blocks(seed, count, 0.3)}
    settings = StudySettings(**{**vars(SETTINGS), "paired": ("psnr", "ssim")})
    table = run_study(blocks, None, ways, None, tmp_path, settings)
    original, same, dark = table.rows
    assert same.scores == original.scores
    assert dark.scores["teacher"]["lsh_precision"] < 0.3 < original.scores["teacher"]["lsh_precision"]
    assert (original.paired, same.paired) == ({}, {"ssim": pytest.approx(1)})
    assert dark.paired["psnr"] < 12
    assert dark.paired["ssim"] < 0.9
    assert {original.parameters, dark.parameters, dark.macs, dark.bytes} == {None}
    assert str(table).splitlines()[1].split()[-2:] == ["PSNR", "SSIM"]
    assert Table.load(tmp_path / "results.json") == table
    assert "paired_psnr" in (tmp_path / "results.csv").read_text().splitlines()[0]
    seen = counting_extractor.images
    assert run_study(blocks, None, ways, None, tmp_path, settings) == table
    assert counting_extractor.images == seen


def test_pairs_are_scored_on_images_that_were_made_for_the_features(counting_extractor, tmp_path):
    def images_made(paired, folder):
        counts = []

        def dark(seed, count):
            counts.append(count)
            return blocks(seed, count, 0.3)

        run_study(blocks, None, {"dark": dark}, None, folder, StudySettings(**{**vars(SETTINGS), "paired": paired}))
        return sum(counts)

    assert images_made(("psnr",), tmp_path / "pairs") == images_made((), tmp_path / "none")


def test_measuring_a_callable_gives_the_scores_of_its_row(counting_extractor, tmp_path):
    real = (blocks(99, 40) * 255).byte()
    settings = StudySettings(**{**vars(SETTINGS), "references": ("real",)})
    row = run_study(blocks, None, [], real, tmp_path, settings).rows[0]
    assert measure_generator(blocks, None, real, settings) == row.scores["real"]


def test_images_may_come_in_any_usual_form(counting_extractor):
    def as_pictures(seed, count):
        return [Image.fromarray(each) for each in as_array(seed, count)]

    def as_array(seed, count):
        return (blocks(seed, count) * 255).round().byte().permute(0, 2, 3, 1).numpy()

    def as_output(seed, count):
        return type("Output", (), {"images": blocks(seed, count).permute(0, 2, 3, 1).numpy()})

    seeds = torch.tensor([5, 6, 7])
    images = [SeededGenerator(each)(seeds) for each in (blocks, as_pictures, as_array, as_output)]
    assert all(torch.equal(images[0], other) for other in images[1:])
    assert images[0].dtype == torch.uint8


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda seed, count: None, "asked for 8 images of 1 or 3 channels, and returned NoneType"),
        (lambda seed, count: [], "returned list"),
        (lambda seed, count: blocks(seed, count - 1), r"returned torch.float32 \(7, 3, 16, 16\)"),
        (lambda seed, count: 255 * blocks(seed, count), r"floats in \[0, 1\]; got torch.float32"),
        (lambda seed, count: blocks(seed, count) * math.nan, r"floats in \[0, 1\]"),
        (lambda seed, count: [np.zeros((8 + n, 8, 3), np.uint8) for n in range(count)], "returned list"),
        (lambda seed, count: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_callable_that_returns_no_images_is_refused(sample, message, counting_extractor, tmp_path):
    with pytest.raises(CompressionError, match=message):
        run_study(sample, None, [], None, tmp_path, SETTINGS)


def test_a_row_of_another_size_fails_alone(counting_extractor, tmp_path):
    ways = {"larger": lambda seed, count: blocks(seed, count).repeat(1, 1, 2, 2), "same": lambda *_: blocks(*_)}
    table = run_study(blocks, None, ways, None, tmp_path, SETTINGS)
    assert [row.status for row in table.rows] == ["measured", "failed", "measured"]
    assert "larger returns other shapes than the uncompressed model" in table.rows[1].note


def test_what_needs_a_draw_says_so(tmp_path):
    with pytest.raises(CompressionError, match=r"draw is None.*got Linear, which needs a function that draws"):
        run_study(nn.Linear(2, 2), None, [], None, tmp_path, SETTINGS)
    with pytest.raises(CompressionError, match="paired must be a tuple of one or more of psnr, ssim, lpips"):
        StudySettings(paired=("mse",))


def test_pairs_that_cannot_be_scored_fail_by_name(monkeypatch):
    images = torch.zeros(4, 3, 6, 6, dtype=torch.uint8)
    assert paired_scores(("psnr",), images, images) == {}
    with pytest.raises(CompressionError, match="paired: ssim cannot be calculated"):
        paired_scores(("ssim",), torch.zeros(4, 3, 6, 6), torch.zeros(4, 3, 7, 7))

    def fail(*_, **__):  # as where there is no network connection
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    larger = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(CompressionError, match="paired: lpips cannot be calculated: OSError: no route"):
        paired_scores(("lpips",), larger, larger)


@pytest.fixture
def pipeline():
    """A tiny random pipeline without prompts."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra zoo)")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16,),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
    )
    return diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDIMScheduler(num_train_timesteps=50))


def with_unet(pipeline, change):
    other = copy.deepcopy(pipeline)
    change(other.unet)
    return other


STEPS = {"num_inference_steps": 1}


def test_a_pipeline_of_diffusers_is_studied_end_to_end(pipeline, counting_extractor, tmp_path):
    def noise(unet):
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(3 * torch.randn_like(parameter))

    generator = PipelineGenerator(pipeline, **STEPS)
    ways = {"same": copy.deepcopy(pipeline), "broken": with_unet(pipeline, noise), "8 bits": Quantizer(8)}
    settings = StudySettings(**{**vars(SETTINGS), "paired": ("psnr", "ssim")})
    table = run_study(generator, None, ways, None, tmp_path, settings)
    rows = dict(zip(("float", *ways), table.rows, strict=True))
    assert [row.status for row in table.rows] == ["measured"] * 4, table
    assert rows["same"].scores == rows["float"].scores
    assert rows["same"].paired == {"ssim": pytest.approx(1)}
    assert rows["broken"].paired["psnr"] < 20 < rows["8 bits"].paired["psnr"]
    assert rows["float"].parameters == sum(each.numel() for each in pipeline.unet.parameters())
    assert rows["8 bits"].bytes < 0.5 * rows["float"].bytes
    again = run_study(generator, None, ways, None, tmp_path, settings)
    assert json.dumps(again.to_dict()) == json.dumps(table.to_dict())


def test_an_image_of_a_pipeline_depends_on_its_seed_alone(pipeline):
    generator = PipelineGenerator(pipeline, **STEPS)
    seeds, numbers = generator.draw(4, torch.Generator().manual_seed(0))
    images = generator(seeds, numbers)
    pipeline.set_progress_bar_config(disable=True)
    own = pipeline(generator=torch.Generator().manual_seed(int(seeds[2])), output_type="np", **STEPS).images
    assert (images[2].int() - torch.from_numpy(own[0] * 255).permute(2, 0, 1).round().int()).abs().max() <= 1


class Prompted:
    """What looks like a pipeline with prompts: each image is filled with the length of its prompt."""

    components: ClassVar[dict] = {}

    def set_progress_bar_config(self, **kwargs):
        pass

    def __call__(self, prompt, generator, output_type, height):
        noise = torch.stack([torch.rand(height, 8, 3, generator=each) for each in generator]) * 0.1
        return {"images": (noise + torch.tensor([len(each) / 10 for each in prompt])[:, None, None, None]).numpy()}[
            "images"
        ]


def test_each_prompt_is_taken_as_often_as_the_others():
    generator = PipelineGenerator(Prompted(), ["a", "bbb", "ccccc"], height=8)
    arguments = generator.draw(30, torch.Generator().manual_seed(0))
    lengths = (generator(*arguments).flatten(1).min(dim=1).values.float() / 25.5).round()
    assert lengths.unique(return_counts=True)[1].tolist() == [10, 10, 10]
    assert torch.equal(generator.of(Prompted())(*arguments), generator(*arguments))


@pytest.mark.parametrize("prompts", ["a dog", [], [1]])
def test_prompts_that_are_no_list_of_texts_are_refused(prompts):
    with pytest.raises(CompressionError, match="prompts must"):
        PipelineGenerator(Prompted(), prompts)
    with pytest.raises(CompressionError, match="pipeline must be a pipeline of diffusers; got function"):
        PipelineGenerator(blocks)


def quantized_by_torchao(unet):
    pytest.importorskip("torchao", reason="torchao is not installed (extra interop)")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(unet, Int8WeightOnlyConfig())


def quantized_by_quanto(unet):
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed (extra interop)")
    from optimum.quanto import freeze, qint8, quantize

    quantize(unet, weights=qint8)
    freeze(unet)


@pytest.mark.parametrize("quantized", [quantized_by_torchao, quantized_by_quanto])
def test_pipelines_quantized_elsewhere_are_rows(quantized, pipeline, counting_extractor, tmp_path):
    settings = StudySettings(**{**vars(SETTINGS), "paired": ("psnr",)})
    ways = {"int8": with_unet(pipeline, quantized)}
    table = run_study(PipelineGenerator(pipeline, **STEPS), None, ways, None, tmp_path, settings)
    original, int8 = table.rows
    assert int8.status == "measured", int8.note
    assert int8.paired["psnr"] > 30
    assert int8.parameters == original.parameters
    assert int8.macs is None
    linear = sum(m.weight.numel() for m in pipeline.unet.modules() if isinstance(m, nn.Linear))
    assert original.bytes - int8.bytes > 2.5 * linear  # of four bytes a weight one is left, and a scale a channel


@pytest.mark.parametrize("quantized", [quantized_by_torchao, quantized_by_quanto])
def test_a_copy_of_a_model_quantized_elsewhere_is_independent(quantized):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(5, 64)
    quantized(model)
    assert has_foreign_tensors(model)
    with torch.no_grad():
        expected = model(x)
        other = independent_copy(model)
        other[0].bias.fill_(100.0)
        assert torch.equal(model(x), expected)
        assert not torch.equal(other(x), expected)
    assert sum(stored_bytes(other, Recipe()).values()) < 64 * 64 * 2 + 64 * 8 * 2


def test_diffusers_is_not_imported_by_the_package():
    assert "diffusers" not in vars(sys.modules["compressors.study.seeded"])
