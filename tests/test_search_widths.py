"""Search for widths: any generator, pruned layer by layer under a budget and repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from generators import FAMILIES, LATENT
from models import resnet_generator
from torch import Tensor, nn

from compressors import ChannelPruner, CompressedModel, CompressionError, NothingCompressed, Pipeline, Quantizer
from compressors.common.measure import count_macs
from compressors.search import WidthSearch, search_widths

FEW: dict[str, Any] = {
    "steps": 4,
    "batch_size": 4,
    "held_out": 8,
    "trials": 2,
    "progress": False,
    "population": 4,
    "generations": 2,
}


def latents(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(n, LATENT, generator=random),)


def images(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.rand(n, 3, 16, 16, generator=random) * 2 - 1,)


def dcgan() -> nn.Module:
    return FAMILIES[0].build(0)


def translator() -> nn.Module:
    torch.manual_seed(0)
    return resnet_generator(4, 1)


@pytest.mark.parametrize(("build", "draw"), [(dcgan, latents), (translator, images)], ids=["dcgan", "translator"])
def test_a_share_of_the_cost_is_met_and_filled(build: Any, draw: Any, tmp_path: Path) -> None:
    model = build()
    budget = int(0.3 * count_macs(model, draw(1, torch.Generator()))[""])
    found = search_widths(model, 0.3, draw, **FEW)
    step = found.recipe.steps[-1]
    # A channel of the DCGAN, which has two groups, is up to 9 % of the budget.
    assert not step["interrupted"]
    assert 0.9 * budget <= step["macs"] == found.report.after.macs <= budget
    assert [step["compressor"] for step in found.recipe.steps] == ["WidthSearch"]
    assert "distill 4: loss" in found.report.notes[-1]
    found.save(tmp_path / "small.safetensors")
    again = search_widths(model, 0.3, draw, folder=tmp_path, **FEW)
    inputs = draw(2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = found.model(*inputs)
        assert torch.equal(CompressedModel.load(tmp_path / "small.safetensors", build).model(*inputs), expected)
        assert torch.equal(again.model(*inputs), expected)


class Killed(BaseException):
    pass


def test_a_killed_search_goes_on_from_its_files_to_the_same_widths(tmp_path: Path) -> None:
    left = [10]

    def draw(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
        left[0] -= 1
        if not left[0]:
            raise Killed
        return latents(n, random)

    with pytest.raises(Killed):
        search_widths(dcgan(), 0.5, draw, folder=tmp_path, **FEW)
    assert (tmp_path / "trial-0.safetensors").exists()
    found, again = search_widths(dcgan(), 0.5, draw, folder=tmp_path, **FEW), search_widths(dcgan(), 0.5, draw, **FEW)
    states = found.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_ctrl_c_in_evolution_keeps_the_best_so_far() -> None:
    seen = list[float]()

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        value = (student - teacher).abs().mean()
        seen.append(float(value.detach()))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return value

    with pytest.warns(UserWarning, match="interrupted in evolution"):
        found = search_widths(dcgan(), 0.5, latents, loss=loss, **FEW)
    step = found.recipe.steps[-1]
    assert step["macs"] <= step["budget"]
    assert not step["candidates"]
    assert step["training"]["step"] == FEW["steps"]
    assert step["interrupted"] == "interrupted in evolution"


def test_of_a_data_set_the_last_eighth_chooses() -> None:
    read = set[int]()

    class Seen(list[Tensor]):
        def __getitem__(self, index: Any) -> Any:
            read.add(int(index))
            return super().__getitem__(index)

    data = Seen(images(16, torch.Generator().manual_seed(0))[0])
    search_widths(translator(), 0.5, data, **FEW | {"trials": 1, "generations": 1, "steps": 1})
    assert read >= {14, 15}


def test_it_is_a_stage_before_quantization() -> None:
    search = WidthSearch(0.5, latents, **FEW)
    found = Pipeline(search, Quantizer(8)).compress(dcgan(), latents(4, torch.Generator()))
    assert found.report.after.bytes < 0.3 * found.report.before.bytes


def test_a_budget_below_one_channel_everywhere_is_refused_with_the_least_that_can_be() -> None:
    with pytest.raises(CompressionError, match="one channel in each group"):
        search_widths(dcgan(), 10, latents, **FEW)


def test_a_model_without_removable_channels_is_named() -> None:
    with pytest.raises(NothingCompressed, match="can lose channels"):
        search_widths(nn.Conv2d(3, 3, 3, padding=1), 0.5, images, **FEW)
    with pytest.raises(NothingCompressed, match="can lose channels"):
        search_widths(nn.Tanh(), 1, images, **FEW)


def test_channels_can_be_pruned_by_layer() -> None:
    model = nn.Sequential(nn.Linear(LATENT, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    found = ChannelPruner({"0": 0.25, "2": 0.5}).compress(model, latents(2, torch.Generator()))
    assert [layer.out_features for layer in found.model if isinstance(layer, nn.Linear)] == [6, 4, 3]
    assert found.report.name == "prune by layer"
    with pytest.raises(CompressionError, match="matches no layer"):
        ChannelPruner({"9": 0.25}).compress(model, latents(2, torch.Generator()))
    with pytest.raises(CompressionError, match="one ratio for all layers"):
        ChannelPruner({"0": 0.25}, scope="global")
