"""sensitivity: what each layer's bits or channels alone cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from generators import DCGAN, FAMILIES, LATENT, SNGAN
from torch import Tensor, nn

from compressors import ChannelPruner, CompressionError, Pipeline, Quantizer, sensitivity
from compressors.common.measure import run, sqnr_db


def draw(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(n, LATENT, generator=random),)


def dcgan() -> nn.Module:
    return FAMILIES[0].build()


def measured(model: nn.Module, *ways: Any) -> dict[tuple[str, ...], float | None]:
    table, _ = sensitivity(model, draw, ways, progress=False)
    return {row.layers: row.sqnr_db for row in table.rows}


def test_the_cost_of_a_layer_is_that_of_quantizing_it_alone() -> None:
    found = measured(dcgan(), Quantizer(3))
    assert list(found) == [("layers.0",), ("layers.3",), ("layers.6",)]
    (inputs,) = [draw(32, torch.Generator().manual_seed(2020))]
    alone = Quantizer({"layers.3": 3}, exclude=("layers.0", "layers.6")).compress(dcgan(), inputs)
    assert found["layers.3",] == pytest.approx(sqnr_db(run(dcgan(), inputs), run(alone.model, inputs)))
    assert found["layers.6",] > found["layers.3",] + 10  # the output layer keeps 8 bits


def test_layers_whose_channels_go_together_are_pruned_together() -> None:
    found = measured(SNGAN().eval(), ChannelPruner(0.5))
    assert ("blocks.0.conv1",) in found
    assert any({"blocks.0.conv2", "blocks.0.skip"} <= set(layers) for layers in found)
    assert not any("rgb" in layers for layers in found)


def test_what_a_way_excludes_stays_excluded() -> None:
    assert list(measured(dcgan(), Quantizer(4, exclude=("layers.0",)))) == [("layers.3",), ("layers.6",)]
    assert list(measured(dcgan(), ChannelPruner(0.5, exclude=("layers.0",)))) == [("layers.3",)]


def test_table_and_picture_show_all_ways(tmp_path: Path) -> None:
    model = dcgan()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    table, picture = sensitivity(model, draw, [Quantizer(8), Quantizer(2), ChannelPruner(0.3)], progress=False)
    lines = str(table).splitlines()
    assert lines[0].split("  ")[0] == "layers"
    assert all(way in lines[0] for way in ("quantize W8, dB", "quantize W2, dB", "prune 0.3, dB"))
    assert len(lines) == 4
    by_way = {row.way: row.sqnr_db for row in table.rows if row.layers == ("layers.3",)}
    assert by_way["quantize W8"] > by_way["quantize W2"] + 20
    picture.savefig(tmp_path / "picture.png")
    assert len(picture.axes[0].lines) == 3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.middle = nn.Linear(8, 8)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.middle(self.embedding(tokens)))


def test_layers_that_share_a_weight_are_one_row_and_their_weight_counts_once() -> None:
    def tokens(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randint(20, (n,), generator=random),)

    table, _ = sensitivity(Tied(), tokens, [Quantizer(4), Quantizer({"*": 3})], samples=8, progress=False)
    rows = {row.layers: row.parameters for row in table.rows}
    assert rows == {("embedding", "out"): 160, ("middle",): 72}


def test_two_ways_of_one_name_are_refused_in_place_of_showing_one_of_them() -> None:
    with pytest.raises(CompressionError, match="ways: two are called 'quantize W4'"):
        sensitivity(dcgan(), draw, [Quantizer(4), Quantizer(4, symmetric=False)], progress=False)


def test_outputs_that_were_all_zero_and_are_not_any_more_are_no_identical_ones() -> None:
    zeros, ones = [torch.zeros(4)], [torch.ones(4)]
    assert sqnr_db(zeros, zeros) is None
    assert sqnr_db(zeros, ones) < -3000
    assert sqnr_db(ones, zeros) == 0


def test_other_compressors_are_refused() -> None:
    with pytest.raises(CompressionError, match="ways must be Quantizer or ChannelPruner, one or more; got"):
        sensitivity(DCGAN(), draw, [Pipeline(Quantizer(4))])
