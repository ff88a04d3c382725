"""Layers that make the outputs are found in any architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generators import FAMILIES
from torch import Tensor, nn

from compressors.common.bake import baked_copy
from compressors.core.graph import output_layers

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)
LAST = {"dcgan": "layers.6", "cyclegan": "layers.10", "cyclegan_affine": "layers.10", "pix2pix": "up1"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_image_layer_of_every_family_is_found_also_when_frozen(family: Any) -> None:
    model = baked_copy(family.build()).requires_grad_(False)
    expected = "last" if family.name.startswith("esrgan") else LAST.get(family.name, "rgb")
    assert output_layers(model, family.inputs(), LAYERS) == [expected]
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Two(nn.Module):
    """A sum of two layers, and an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second, self.mask = (nn.Linear(4, 4) for _ in "bfsm")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x).relu_()
        return {"sum": (self.first(x) + self.second(x)).tanh(), "mask": self.mask(x).view(-1)}


def test_sums_and_several_outputs_have_several_layers() -> None:
    assert output_layers(Two(), (torch.randn(2, 4),), (nn.Linear,)) == ["first", "mask", "second"]
