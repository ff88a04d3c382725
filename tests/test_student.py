"""Students by width, and what teacher and student cost."""

from __future__ import annotations

import warnings

import pytest
import torch
from generators import FAMILIES, Family
from models import UNet, resnet_generator
from torch import nn

from compressors import ChannelPruner, CompressionError, Quantizer, make_student
from compressors.common.latency import batch_ms
from compressors.common.measure import run
from compressors.distil.costs import Costs, cost_table

IMAGE = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1,)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("init", ["fresh", "pruned"])
def test_the_student_of_the_mobile_resnet_is_that_of_the_paper(init: str) -> None:
    student = make_student(resnet_generator(64, mobile=True), IMAGE, 0.75, init)
    assert parameters(student) == 137_347
    assert shapes(student) == shapes(resnet_generator(16, mobile=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # instance norms know how many channels they get
        student(*IMAGE)


def test_noise_of_a_model_on_the_cpu_leaves_gpus_alone_and_is_that_of_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork, devices = torch.random.fork_rng, list[object]()

    def forked(devices_: object = None, **options: object) -> object:
        devices.append(options.get("devices", devices_))
        return fork(devices=[])

    monkeypatch.setattr(torch.random, "fork_rng", forked)
    monkeypatch.setattr(torch, "manual_seed", None)  # which seeds GPUs too
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    inputs = (torch.zeros(8, 4),)
    ChannelPruner(0.5).compress(model, inputs, [inputs])
    make_student(model, inputs, 0.5)
    batch_ms(model, inputs, torch.device("cpu"))
    assert devices
    assert all(found == [] for found in devices)
    (noise,) = run(nn.Dropout(0.5), (torch.ones(100),), seed=3)
    monkeypatch.undo()
    torch.manual_seed(3)
    assert torch.equal(noise, nn.Dropout(0.5)(torch.ones(100)))


def test_the_student_of_the_unet_has_a_quarter_of_the_widths() -> None:
    teacher = UNet(16, downs=4).eval()
    assert shapes(make_student(teacher, IMAGE, 0.75)) == shapes(UNet(4, downs=4))


def test_fresh_weights_follow_the_seed_and_pruned_ones_the_teacher() -> None:
    teacher = FAMILIES[0].build()
    inputs = FAMILIES[0].inputs()
    first, again, other = (make_student(teacher, inputs, 0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.layers[3].weight, again.layers[3].weight)
    assert not torch.equal(first.layers[3].weight, other.layers[3].weight)
    assert first.layers[1].running_mean.abs().max() == 0
    pruned = make_student(teacher, inputs, 0.5, "pruned")
    rows = {tuple(row.flatten().tolist()) for row in teacher.layers[0].weight.transpose(0, 1)}
    assert all(tuple(row.flatten().tolist()) in rows for row in pruned.layers[0].weight.transpose(0, 1))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_students(family: Family) -> None:
    teacher, inputs = family.build(), family.inputs()
    student = make_student(teacher, inputs, 0.5, **(family.pruning or {}))
    assert student(*inputs).shape == teacher(*inputs).shape
    assert parameters(student) < 0.6 * parameters(teacher)


def test_a_student_goes_into_the_quantizer() -> None:
    student = make_student(FAMILIES[0].build(), FAMILIES[0].inputs(), 0.5)
    assert Quantizer(8).compress(student, FAMILIES[0].inputs()).report.name == "quantize W8"


def test_bad_settings_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"init must be one of fresh, pruned; got 'prune'; did you mean"):
        make_student(FAMILIES[0].build(), FAMILIES[0].inputs(), init="prune")
    with pytest.raises(CompressionError, match="ratio must be a number from 0 to 1"):
        make_student(FAMILIES[0].build(), FAMILIES[0].inputs(), 1.0)


def test_the_published_ratios_come_out_of_the_cost_report() -> None:
    image = (torch.zeros(1, 3, 256, 256),)
    original, student = (Costs.of(model, image) for model in (resnet_generator(64), resnet_generator(16, mobile=True)))
    assert (original.macs_published / 1e9, student.macs_published / 1e9) == pytest.approx((56.80, 1.408), abs=5e-3)
    assert (original.macs / 1e9, student.macs / 1e9) == pytest.approx((49.55, 0.955), abs=5e-3)
    assert original.macs_published / student.macs_published == pytest.approx(40.3, abs=0.06)
    assert round(original.parameters / 1e6, 3) / round(student.parameters / 1e6, 4) == pytest.approx(82.9, abs=0.05)
    table = cost_table(original, student)
    assert "MACs, published convention" in table
    assert "40.3x" in table
