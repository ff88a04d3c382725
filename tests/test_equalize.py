"""Weights of few bits lose less where all channels of a layer have one range; the model itself computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressors import Quantizer
from compressors.quantize.equalize import equalize


class Uneven(nn.Module):
    """Layers whose channels differ in size, behind a batch norm and a PReLU; a SiLU; a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.ConvTranspose2d(4, 16, 4)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.ConvTranspose2d(16, 12, 4, 2, 1)
        self.slope = nn.PReLU(12)
        self.third = nn.Conv2d(12, 12, 3, padding=1)
        self.fourth = nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 3, 3, padding=1)
        self.norm.bias.data.normal_()
        sizes = torch.logspace(-1, 1, 16)[:, None, None, None]
        with torch.no_grad():  # the same function from channels of other sizes
            self.norm.weight /= sizes.flatten()
            self.norm.bias /= sizes.flatten()
            self.second.weight *= sizes
            self.second.weight /= sizes[:12].transpose(0, 1)
            self.second.bias /= sizes[:12].flatten()
            self.third.weight *= sizes[:12].transpose(0, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(z[:, :, None, None])))
        x = self.slope(self.second(x))
        x = nn.functional.silu(self.third(x))
        return self.last(x + torch.relu(self.fourth(x)))


READERS = ("second", "third", "fourth", "last")


def example() -> tuple[nn.Module, tuple[Tensor]]:
    return Uneven().eval(), (torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),)


def test_channels_get_one_range_where_the_outputs_stay_the_same_and_the_rest_stays_as_it_was() -> None:
    (model, inputs), (untouched, _) = example(), example()
    assert equalize(model, inputs, READERS) == ["second", "third"]  # not behind SiLU, nor before a sum
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), untouched(*inputs), rtol=1e-4, atol=1e-4)
    rows = model.third.weight / model.third.weight.abs().amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(rows.abs().amax((0, 2, 3)), torch.ones(12))
    for name in ("fourth", "last"):
        assert torch.equal(model.get_submodule(name).weight, untouched.get_submodule(name).weight)


def test_where_a_layer_has_one_scale_only_batch_norms_take_the_ranges() -> None:
    model, inputs = example()
    assert equalize(model, inputs, READERS, norms_only=True) == ["second"]


def test_layers_that_share_weights_or_run_twice_are_left_alone() -> None:
    model, inputs = example()
    model.fourth.weight = model.third.weight
    assert equalize(model, inputs, READERS) == ["second"]
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    twice = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), first)
    assert equalize(twice, (torch.randn(3, 5),), ("0", "2")) == []


class Clamped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-2, 2)


@pytest.mark.parametrize("bounded", [nn.ReLU6(), nn.Hardtanh(-2, 2), Clamped()])
def test_layers_around_a_bounded_activation_stay_though_the_examples_do_not_reach_the_bound(bounded: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), bounded, nn.Linear(16, 3)).eval()
    model[2].weight.data *= torch.logspace(-1, 1, 16)
    model[0].weight.data /= torch.logspace(-1, 1, 16)[:, None]
    examples, others = 0.01 * torch.randn(8, 4), 20 * torch.randn(64, 4)
    model[0].bias.data.abs_().div_(torch.logspace(-1, 1, 16)).clamp_(0.01, 1.5)
    with torch.no_grad():
        before = model(others)
        assert equalize(model, (examples,), ("2",)) == []
        assert torch.equal(model(others), before)


@pytest.mark.parametrize("bits", [3, 4])
def test_equalized_weights_lose_less(bits: int) -> None:
    model, inputs = example()
    plain, equalized = (
        Quantizer(bits, output_bits=None, exclude=("fourth", "last"), equalize=wanted).compress(model, inputs)
        for wanted in (False, True)
    )
    assert equalized.report.sqnr_db > plain.report.sqnr_db + 3
    assert equalized.report.notes == (f"quantize W{bits}: equalized the inputs of 2 layers",)
