"""The networks of the distillation examples have the published sizes."""

from __future__ import annotations

import pytest
import torch
from models import UNet, patchgan, resnet_generator
from torch import nn


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: resnet_generator(64), 11_378_179),
        (lambda: resnet_generator(64, mobile=True), 1_987_075),
        (lambda: resnet_generator(16, mobile=True), 137_347),
        (lambda: UNet(64), 54_413_955),
        (lambda: UNet(16), 3_404_451),
        (lambda: patchgan(3, 64), 2_764_737),
    ],
)
def test_parameters_are_those_of_the_published_networks(build: object, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build()) == count
