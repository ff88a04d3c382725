"""RelationLoss: the properties of the CRD paper's loss, and a direct reference that holds all n^3 cosines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compressors import CompressionError
from compressors.distil import Columns, Patches, RelationLoss, Rows

ALL = (Rows(), Columns(), Patches(4))
KINDS = pytest.mark.parametrize("slices", ALL, ids=lambda slices: type(slices).__name__)


def images(seed: int = 0, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(shape or (2, 3, 12, 16), generator=random, dtype=torch.float64) * 2 - 1


def direct(student: Tensor, teacher: Tensor, slices: str, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """The definition, image by image: difference tensors n x n x d, cosines n x n x n."""
    losses = []
    for pair in zip(student, teacher, strict=True):
        found = []
        for image in pair:
            if slices == "rows":
                z = torch.stack([image[:, i, :].flatten() for i in range(image.shape[1])])
            elif slices == "columns":
                z = torch.stack([image[:, :, i].flatten() for i in range(image.shape[2])])
            else:
                corners = [(y, x) for y in range(0, image.shape[1], 4) for x in range(0, image.shape[2], 4)]
                z = torch.stack([image[:, y : y + 4, x : x + 4].flatten() for y, x in corners])
            difference = z[None] - z[:, None]
            squared = difference.square().sum(2)
            d = torch.where(squared > 0, squared.clamp_min(1e-30).sqrt(), 0.0)
            unit = difference / d.clamp_min(1e-12)[:, :, None]
            found.append((d / d[d > 0].mean(), unit @ unit.mT))
        (d_s, c_s), (d_t, c_t) = found
        losses.append(distance * functional.smooth_l1_loss(d_s, d_t) + angle * functional.smooth_l1_loss(c_s, c_t))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("slices", ["rows", "columns", "patches"])
@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 0.0), (0.0, 2.0)])
def test_value_and_gradient_are_those_of_the_definition(slices: str, weights: tuple[float, float]) -> None:
    student, teacher = images(0).requires_grad_(), images(1)
    loss = RelationLoss(ALL, *weights, eps=1e-14).terms(student, teacher)[slices]
    expected = direct(student, teacher, slices, *weights)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    gradients = (torch.autograd.grad(value, student)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)


def test_many_vertices_in_many_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = images(0).requires_grad_(), images(1)
    whole = RelationLoss(ALL)(student, teacher)
    monkeypatch.setattr("compressors.distil.relation._ELEMENTS", 1)
    one_by_one = RelationLoss(ALL)(student, teacher)
    torch.testing.assert_close(one_by_one, whole, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(value, student)[0] for value in (one_by_one, whole))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-16)


@KINDS
def test_p1_zero_with_zero_gradient_where_student_and_teacher_agree(slices: Rows) -> None:
    student = images().requires_grad_()
    loss = RelationLoss([slices])(student, student.detach().clone())
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


@KINDS
@pytest.mark.parametrize("change", ["blur", "gamma", "noise", "unrelated"])
def test_p2_positive_where_they_differ(slices: Rows, change: str) -> None:
    teacher = images()
    student = {
        "blur": functional.avg_pool2d(teacher, 3, 1, 1),
        "gamma": ((teacher + 1) / 2) ** 1.5,
        "noise": teacher + images(1) / 10,
        "unrelated": images(1),
    }[change]
    assert RelationLoss([slices])(student, teacher) > 1e-5


COLOURS = torch.linalg.qr(images(3, 3, 3))[0]
BLIND = {
    "gain": lambda y: 0.3 * y,
    "negative": lambda y: -y,
    "colour offset": lambda y: y + torch.tensor([0.5, -0.2, 0.1]).view(3, 1, 1),
    "colour rotation": lambda y: torch.einsum("dc,bchw->bdhw", COLOURS, y),
}


@KINDS
@pytest.mark.parametrize("change", BLIND)
def test_p3_no_slice_sees_gain_sign_offset_or_a_rotation_of_colours(slices: Rows, change: str) -> None:
    teacher = images()
    assert RelationLoss([slices])(BLIND[change](teacher), teacher) < 1e-18


def test_p3_each_slice_is_blind_to_patterns_of_its_own_kind_and_to_no_other() -> None:
    teacher = images()
    same_in_all_rows, same_in_all_columns = images(1, 1, 3, 1, 16), images(1, 1, 3, 12, 1)
    tiles = images(1, 1, 3, 4, 4).repeat(1, 1, 3, 4)
    changed = {
        "rows": (teacher + same_in_all_rows, teacher.flip(3)),
        "columns": (teacher + same_in_all_columns, teacher.flip(2)),
        "patches": (teacher + tiles,),
    }
    for blind, students in changed.items():
        for student in students:
            terms = RelationLoss(ALL).terms(student, teacher)
            assert terms.pop(blind) < 1e-18
            assert min(terms.values()) > 1e-5


@KINDS
def test_p4_the_gradient_neither_shifts_nor_scales_the_items(slices: Rows) -> None:
    student = images().requires_grad_()
    (gradient,) = torch.autograd.grad(RelationLoss([slices])(student, images(1)), student)
    items, gradients = slices.items(student.detach()), slices.items(gradient)
    assert gradients.norm() > 1e-4
    assert gradients.sum(1).abs().max() < 1e-12
    assert ((items - items.mean(1, keepdim=True)) * gradients).sum().abs() < 1e-9


def test_p5_the_gradient_reaches_the_student_alone_and_is_right() -> None:
    student, teacher = images(0, 1, 1, 6, 5).requires_grad_(), images(1, 1, 1, 6, 5).requires_grad_()
    loss = RelationLoss([Rows(), Columns(), Patches(2)])
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), (student,))
    loss(student, teacher).backward()
    assert teacher.grad is None


def test_p7_the_order_of_items_counts_only_where_it_differs() -> None:
    student, teacher = images(0), images(1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    loss = RelationLoss([Rows()])
    torch.testing.assert_close(loss(student[:, :, order], teacher[:, :, order]), loss(student, teacher))
    assert (loss(student[:, :, order], teacher) - loss(student, teacher)).abs() > 1e-5


def test_p8_a_batch_is_the_mean_of_its_images() -> None:
    student, teacher = images(0, 5, 3, 12, 16), images(1, 5, 3, 12, 16)
    loss = RelationLoss(ALL)
    one_by_one = [loss(s[None], t[None]) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(loss(student, teacher), torch.stack(one_by_one).mean())


@pytest.mark.parametrize(("slices", "count"), [(Rows(5), 6), (Columns(5), 9), (Patches(10), 12), (Patches(), 96)])
def test_p9_images_need_be_neither_square_nor_divisible(slices: Rows, count: int) -> None:
    items = slices.items(images(0, 2, 3, 32, 48))
    assert items.shape[1] == slices.count(32, 48) == count
    assert RelationLoss([slices])(images(0, 2, 3, 32, 48), images(1, 2, 3, 32, 48)) > 0


def test_patches_are_an_eighth_of_the_shorter_side() -> None:
    assert Patches().block(256, 256) == (32, 32)
    assert Patches().block(24, 40) == (3, 3)
    assert Patches().block(7, 7) == (1, 1)


DEGENERATE = {
    "constant": lambda y: torch.full_like(y, 0.98),
    "repeated rows": lambda y: torch.cat([y[:, :, :1].expand(-1, -1, 6, -1), y[:, :, 6:]], 2),
    "repeated patches": lambda y: y[:, :, :4, :4].repeat(1, 1, 3, 4),
    "flat": lambda y: 0.98 + 1e-7 * y,
}


@pytest.mark.parametrize("student", DEGENERATE)
@pytest.mark.parametrize("teacher", [*DEGENERATE, "usual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_p11_constant_and_repeated_content_gives_no_nan_and_no_explosion(
    student: str, teacher: str, dtype: torch.dtype
) -> None:
    y = DEGENERATE[student](images().to(dtype)).requires_grad_()
    target = images(1).to(dtype)
    loss = RelationLoss(ALL)(y, DEGENERATE[teacher](target) if teacher in DEGENERATE else target)
    loss.backward()
    assert y.grad is not None
    assert loss.isfinite()
    assert y.grad.isfinite().all()
    assert y.grad.norm() < 1e6  # 1e10 in the released code


@pytest.mark.parametrize("slices", [Rows(5), Columns(6), Patches(8)])
def test_p11_fewer_than_three_items_are_refused_with_the_size(slices: Rows) -> None:
    with pytest.raises(CompressionError, match=r"images of 12 x 16 into 2 items; relations need at least 3"):
        RelationLoss([slices])(images(), images(1))


def flat_with_an_object(noise: float) -> Tensor:
    y = torch.full((1, 3, 16, 16), 0.98, dtype=torch.float64)
    y[:, :, 6:10, 5:11] = -0.5
    return (y + noise * images(1, 1, 3, 16, 16)).float()


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4])
def test_p12_near_equal_rows_keep_their_distances_in_float32_images(noise: float) -> None:
    student, teacher = flat_with_an_object(noise), images(2, 1, 3, 16, 16).float()
    expected = direct(student.double(), teacher.double(), "rows")
    torch.testing.assert_close(RelationLoss([Rows()], eps=1e-14)(student, teacher), expected, rtol=1e-6, atol=0)


def test_p12_autocast_changes_nothing() -> None:
    student, teacher = images(0).float(), images(1).float()
    expected = RelationLoss(ALL)(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert RelationLoss(ALL)(student, teacher) == expected


def test_sampled_vertices_give_the_exact_loss_on_average() -> None:
    student, teacher = images(0, 1, 3, 12, 12), images(1, 1, 3, 12, 12)
    torch.manual_seed(0)
    sampled = torch.stack([RelationLoss(ALL, vertices=2)(student, teacher) for _ in range(300)])
    exact = RelationLoss(ALL)(student, teacher)
    assert sampled.std() > 0
    assert (sampled.mean() - exact).abs() < 4 * sampled.std() / 300**0.5


def test_large_images_are_cut_into_thicker_strips_with_a_warning() -> None:
    student, teacher = images(0, 1, 1, 40, 30), images(1, 1, 1, 40, 30)
    with pytest.warns(UserWarning, match=r"Rows\(thickness=1\) .* 40 items.*using Rows\(thickness=3\)"):
        capped = RelationLoss([Rows()], max_items=16)(student, teacher)
    assert capped == RelationLoss([Rows(3)])(student, teacher)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slices": ()}, "slices must be Rows, Columns or Patches"),
        ({"distance_weight": -1.0}, "distance_weight must be a weight of at least 0"),
        ({"angle_weight": "2"}, "angle_weight must be a weight of at least 0; got '2'"),
        ({"eps": None}, "eps must be a finite number; got None"),
        ({"distance_weight": 0, "angle_weight": 0}, "both 0"),
        ({"vertices": 0}, "vertices must be an integer of at least 1; got 0"),
        ({"max_items": 2}, "max_items must be an integer of at least 3; got 2"),
        ({"eps": 0.0}, "eps must be above 0"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        RelationLoss(**arguments)


def test_images_of_other_shapes_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"one shape, B x C x H x W; got \(2, 3, 12, 16\) and \(2, 3, 12, 12\)"):
        RelationLoss()(images(), images(1, 2, 3, 12, 12))
    with pytest.raises(CompressionError, match="thickness must be an integer of at least 1; got 0"):
        Rows(0)


def test_the_benchmark_compares_two_forms_of_one_loss() -> None:
    import relation  # benchmarks/relation.py

    losses = {form: relation.measure(form, 32, 1)["loss"] for form in ("direct", "ours")}
    assert losses["ours"] == pytest.approx(losses["direct"], rel=1e-4)
