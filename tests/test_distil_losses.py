"""DistillDistance, feature maps, and CRDDistiller: the student's loss in somebody's own training loop."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compressors import CompressionError
from compressors.distil import (
    BlockSchedule,
    CRDDistiller,
    DistillDistance,
    JointSchedule,
    LayerFeatures,
    RelationLoss,
    Rows,
    Weights,
    efficientnet_lite0,
    frozen,
    loaded,
    vgg16,
)


def images(seed: int = 0, *shape: int) -> Tensor:
    return torch.rand(shape or (2, 3, 16, 16), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, 2), nn.BatchNorm2d(5))


FEATURES = LayerFeatures(network(), ("0", "3"))


def test_each_term_is_its_formula() -> None:
    s, t = images(0), images(1)
    distance = DistillDistance(2, 3, 4, 5, features=FEATURES)
    style, content = torch.tensor(0.0), torch.tensor(0.0)
    for f, g in zip(FEATURES(s), FEATURES(t), strict=True):
        n = f[0].numel()
        grams = (torch.einsum("bchw,bdhw->bcd", maps, maps) / n for maps in (f, g))
        style += (next(grams) - next(grams)).abs().mean()
        content += (f - g).abs().mean()
    expected = {
        "pixel": 2 * (s - t).abs().mean(),
        "style": 3 * style,
        "content": 4 * content,
        "tv": 5 * ((s[..., 1:] - s[..., :-1]).abs().mean() + (s[:, :, 1:] - s[:, :, :-1]).abs().mean()),
    }
    torch.testing.assert_close(distance.terms(s, t), expected)
    torch.testing.assert_close(distance(s, t), sum(expected.values()))


def test_squared_differences_are_an_option_for_pixels_and_for_style() -> None:
    s, t = images(0), images(1)
    terms = DistillDistance(1, 1, features=FEATURES, pixel_norm="mse", style_norm="mse").terms(s, t)
    torch.testing.assert_close(terms["pixel"], (s - t).square().mean())
    grams = [[f.flatten(2) @ f.flatten(2).mT / f[0].numel() for f in FEATURES(x)] for x in (s, t)]
    torch.testing.assert_close(terms["style"], sum((a - b).square().mean() for a, b in zip(*grams, strict=True)))


def test_content_can_be_one_of_the_layers() -> None:
    s, t = images(0), images(1)
    content = DistillDistance(0, 0, 1, features=FEATURES, content_layers=(1,))(s, t)
    torch.testing.assert_close(content, (FEATURES(s)[1] - FEATURES(t)[1]).abs().mean())


def test_equal_images_have_distance_zero_and_constant_ones_no_variation() -> None:
    flat = torch.full((2, 3, 16, 16), 0.3)
    assert DistillDistance(1, 1, 1, 1, features=FEATURES)(flat, flat) == 0


def test_the_gradient_reaches_the_student_alone() -> None:
    s, t = images(0).requires_grad_(), images(1).requires_grad_()
    DistillDistance(1, 1, 1, 1, features=FEATURES)(s, t).backward()
    assert t.grad is None
    assert s.grad is not None
    assert s.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in FEATURES.parameters())


def test_style_in_half_precision_is_computed_in_single() -> None:
    s, t = images(0), images(1)
    expected = DistillDistance(0, 1, features=lambda x: [x])(s.bfloat16().float(), t.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = DistillDistance(0, 1, features=lambda x: [x.bfloat16()])(s, t)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel": 0}, "all 0"),
        ({"tv": -1}, "tv must be a weight of at least 0; got -1"),
        ({"pixel": "1"}, "pixel must be a weight of at least 0; got '1'"),
        ({"style": 1}, r"need features, such as compressors\.distil\.vgg16"),
        ({"pixel_norm": "l2"}, "pixel_norm must be one of l1, mse; got 'l2'"),
    ],
)
def test_bad_settings_of_the_distance_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        DistillDistance(**arguments)


def test_layers_are_named_and_the_network_is_left_alone() -> None:
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = LayerFeatures(model, ("0", "3"))
    first, second = features.train()(images())
    assert first.min() < 0  # what the in-place ReLU behind it has not touched
    assert second.shape == (2, 5, 6, 6)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(CompressionError, match=r"layers must name modules of the network.*\['relu'\].*0, 1, 2, 3"):
        LayerFeatures(model, ("relu",))


def test_vgg16_gives_the_four_layers_of_style_transfer() -> None:
    maps = vgg16(weights=None)(images(0, 1, 1, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert all(m.min() >= 0 for m in maps)


def test_efficientnet_sees_what_the_feature_extractor_of_the_metrics_sees() -> None:
    from torch_fidelity_lsh.fidelity.feature_extractor_efficientnet_lite0 import FeatureExtractorEfficientNetLite0

    byte_images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = FeatureExtractorEfficientNetLite0("efficientnet-lite0", ["pooled"])
    (last,) = efficientnet_lite0(("_bn1",))(byte_images / 127.5 - 1)
    pooled = last.clamp(0, 6).mean((2, 3))
    assert torch.corrcoef(torch.stack([pooled.flatten(), extractor(byte_images)[0].flatten()]))[0, 1] > 0.999
    assert [m.shape[1] for m in efficientnet_lite0()(images(0, 1, 1, 32, 32))] == [16, 24, 40, 112]


class Noisy(nn.Module):
    """A generator with noise and dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.rgb = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.rgb(self.layers(x + torch.randn_like(x))))


def critic() -> nn.Module:
    torch.manual_seed(1)
    spectral = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(spectral(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3))


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return Noisy(), Noisy()


def everything(model: nn.Module) -> list[object]:
    state = [value.clone() for value in model.state_dict().values()]
    return [*state, [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]]


def same(first: list[object], second: list[object]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def test_p6_a_student_step_leaves_teacher_and_discriminator_as_they_were() -> None:
    (teacher, student), discriminator = pair(), critic()
    next(iter(discriminator.parameters())).requires_grad_(False)
    before = everything(teacher), everything(discriminator)
    distiller = CRDDistiller(teacher, student, discriminator, weights=Weights(relation=1, gan=1, pixel=1))
    loss, parts = distiller.student_loss(images())
    loss.backward()
    assert set(parts) == {"relation", "gan", "pixel"}
    assert same(before[0], everything(teacher))
    assert same(before[1], everything(discriminator))
    assert all(p.grad is None for p in [*teacher.parameters(), *discriminator.parameters()])
    assert all(p.grad is not None for p in student.parameters())


def test_p6_the_student_learns_through_the_discriminator() -> None:
    (teacher, student), discriminator = pair(), critic()
    loss, _ = CRDDistiller(teacher, student, discriminator, weights=Weights(gan=1)).student_loss(images())
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.rgb.parameters())


def test_p6_everything_is_restored_also_when_a_step_fails() -> None:
    discriminator = critic()
    before = everything(discriminator)

    def fails() -> None:
        with frozen(discriminator):
            discriminator.eval()(images())
            discriminator.train()(images())
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fails()
    assert same(before, everything(discriminator))


def test_a_weight_that_is_no_number_and_a_layer_that_features_do_not_give_are_named() -> None:
    with pytest.raises(CompressionError, match="pixel must be a weight of at least 0; got '1'"):
        Weights(pixel="1")
    loss = DistillDistance(content=1, features=lambda x: [x, x], content_layers=(2,))
    with pytest.raises(CompressionError, match=r"content_layers must be positions of the 2 feature maps; got \(2,\)"):
        loss(images(), images())


def test_training_the_teacher_leaves_the_student_alone() -> None:
    (teacher, student), discriminator = pair(), critic()
    distiller = CRDDistiller(teacher, student, discriminator)
    distiller.student_loss(images())
    before = everything(student)
    discriminator(teacher(images())).mean().backward()
    assert same(before, everything(student))
    assert all(p.grad is None for p in student.parameters())


def test_both_generators_get_the_same_noise_and_the_teacher_drops_nothing() -> None:
    teacher, _ = pair()
    student = Noisy()
    student.load_state_dict(teacher.state_dict())
    student.layers[2].eval()
    _, parts = CRDDistiller(teacher, student, weights=Weights(pixel=1)).student_loss(images())
    assert parts["pixel"] < 1e-12
    assert teacher.layers[2].training


def test_co_training_imitates_the_teacher_from_before_its_step() -> None:
    teacher, student = pair()
    distiller = CRDDistiller(teacher, student, weights=Weights(pixel=1))
    torch.manual_seed(3)
    target = distiller.target(images())
    expected, _ = distiller.student_loss(images(), target=target)
    with torch.no_grad():
        teacher.rgb.bias += 1
    torch.manual_seed(3)
    found, _ = distiller.student_loss(images(), target=target)
    assert not target.requires_grad
    torch.testing.assert_close(found, expected)


def test_relations_alone_are_warned_of_and_nothing_at_all_is_refused() -> None:
    with pytest.warns(UserWarning, match="only relation terms are left, which ignore colour, sign and contrast"):
        CRDDistiller(*pair(), weights=Weights(relation=1, gan=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CRDDistiller(*pair(), critic(), weights=Weights(relation=1, gan=1))
        CRDDistiller(*pair())
    with pytest.raises(CompressionError, match="nothing to learn from"):
        CRDDistiller(*pair(), weights=Weights(gan=1))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (Weights.cyclegan(), Weights(25, 1e4, 10, 1, 0)),
        (Weights.pix2pix(), Weights(10, 2e4, 20, 1, 0)),
        (Weights.pix2pix_released(), Weights(10, 2e4, 20, 0, 0)),
        (Weights.small(), Weights(1, 0, 0, 0.05, 10)),
    ],
)
def test_presets_are_those_of_the_specification(weights: Weights, expected: Weights) -> None:
    assert weights == expected


def test_presets_with_style_need_features_and_use_them() -> None:
    with pytest.raises(CompressionError, match="style and content need features"):
        CRDDistiller(*pair(), critic(), weights=Weights.cyclegan())
    distiller = CRDDistiller(*pair(), critic(), weights=Weights.cyclegan(), features=FEATURES)
    loss, parts = distiller.student_loss(images())
    assert set(parts) == {"style", "content", "relation", "gan"}
    torch.testing.assert_close(loss, sum(part.double() for part in parts.values()))


def test_weights_may_change_during_training() -> None:
    distiller = CRDDistiller(*pair(), weights=Weights(relation=1, pixel=1), relation=RelationLoss([Rows()]))
    torch.manual_seed(0)
    _, before = distiller.student_loss(images())
    distiller.weights = replace(distiller.weights, relation=2)
    torch.manual_seed(0)
    _, after = distiller.student_loss(images())
    torch.testing.assert_close(after["relation"], 2 * before["relation"])


@pytest.mark.parametrize(
    ("gan", "expected"), [("lsgan", 4.0), ("hinge", 1.0), ("bce", 1.3133), (lambda scores: scores.sum(), -2.0)]
)
def test_losses_of_the_discriminators_verdict(gan: object, expected: float) -> None:
    def judge(network: nn.Module, y: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        assert inputs[0].shape == y.shape
        return 0 * network(y).mean((1, 2, 3)) - 1

    distiller = CRDDistiller(*pair(), critic(), weights=Weights(gan=1), gan=gan, judge=judge)
    assert distiller.student_loss(images())[0].item() == pytest.approx(expected, abs=1e-4)


def test_outputs_that_do_not_fit_are_refused() -> None:
    teacher, student = pair()
    targets = {
        r"one shape and dtype; got \(2, 3, 16, 16\) torch.float32 and \(2, 3, 8, 8\)": torch.zeros(2, 3, 8, 8),
        "one shape and dtype; got .* torch.float64": torch.zeros(2, 3, 16, 16, dtype=torch.float64),
        "outputs of the teacher reach 255 and those of the student": torch.full((2, 3, 16, 16), 255.0),
    }
    for message, target in targets.items():
        with pytest.raises(CompressionError, match=message):
            CRDDistiller(teacher, student).student_loss(images(), target=target)
    with pytest.raises(CompressionError, match="gan must be one of lsgan, hinge, bce"):
        CRDDistiller(teacher, student, gan="wgan")


def test_the_schedule_in_blocks_is_that_of_the_paper() -> None:
    schedule = BlockSchedule()
    assert [epoch for epoch in range(1, 201) if schedule.student_epochs(epoch)] == list(range(10, 201, 10))
    assert sum(map(schedule.student_epochs, range(1, 201))) == 800
    summer = BlockSchedule(interval=6)
    assert sum(map(summer.student_epochs, range(1, 201))) == 816


def test_the_joint_schedule_trains_the_student_in_every_step() -> None:
    assert [JointSchedule(3).trains_teacher(step) for step in range(6)] == [True, False, False, True, False, False]
    with pytest.raises(CompressionError, match="interval must be an integer of at least 1; got 0"):
        JointSchedule(0)


def test_the_best_teacher_is_lent_and_the_latest_comes_back() -> None:
    teacher, best = pair()
    latest = everything(teacher)

    def fails() -> None:
        with loaded(teacher, best.state_dict()):
            assert same(everything(teacher), everything(best))
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fails()
    assert same(everything(teacher), latest)
