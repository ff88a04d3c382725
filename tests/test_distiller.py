"""Distiller: a stage that trains a compressed generator on its teacher's outputs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from generators import DCGAN, FAMILIES, LATENT, SNGAN
from torch import Tensor, nn

from compressors import (
    ChannelPruner,
    CompressedModel,
    CompressionError,
    Distiller,
    Pipeline,
    Quantizer,
    TrainingDiverged,
    export_onnx,
)
from compressors.distil import DistillDistance, RelationLoss

Z = (torch.randn(4, LATENT, generator=torch.Generator().manual_seed(0)),)


def draw(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(n, LATENT, generator=random),)


def teacher(seed: int = 0) -> nn.Module:
    return FAMILIES[0].build(seed)


def distiller(steps: int = 40, **changes: Any) -> Distiller:
    options = {"batch_size": 8, "held_out": 16, "progress": False}
    return Distiller(draw, steps, **(options | changes))


def error(model: nn.Module | CompressedModel, guide: nn.Module) -> float:
    inputs = draw(64, torch.Generator().manual_seed(99))
    with torch.no_grad():
        return float(
            ((model.model if isinstance(model, CompressedModel) else model)(*inputs) - guide(*inputs)).abs().mean()
        )


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


PRUNED = ChannelPruner(0.5).compress(teacher(), Z)
QUANTIZED = Quantizer(3).compress(teacher(), Z)


@pytest.mark.parametrize(("broken", "share"), [(PRUNED, 0.7), (QUANTIZED, 0.8)], ids=["pruned", "quantized"])
def test_a_broken_generator_is_repaired_on_inputs_it_has_not_seen(broken: CompressedModel, share: float) -> None:
    guide = teacher()
    before = error(broken, guide)
    result = distiller(150).compress(broken, Z, teacher=guide)
    assert error(result, guide) < share * before
    assert result.report.after == broken.report.after


def test_the_students_copy_is_trained_and_nothing_else_is_touched() -> None:
    guide, untouched = teacher().train(), teacher()
    kept = {key: value.clone() for key, value in PRUNED.model.state_dict().items()}
    result = distiller(5).compress(PRUNED, Z, teacher=guide)
    assert same(guide, untouched)
    assert guide.training
    assert all(parameter.grad is None for parameter in guide.parameters())
    assert all(torch.equal(kept[key], value) for key, value in PRUNED.model.state_dict().items())
    assert not same(result.model, PRUNED.model)
    assert not result.model.training


def test_a_repaired_quantized_model_is_stored_in_codes_and_loads_to_the_same_outputs(tmp_path: Path) -> None:
    result = distiller(30, rate=1e-3).compress(QUANTIZED, Z, teacher=teacher())
    result.save(tmp_path / "model.safetensors")
    loaded = CompressedModel.load(tmp_path / "model.safetensors", teacher)
    with torch.no_grad():
        assert torch.equal(loaded.model(*Z), result.model(*Z))
    assert loaded.report == result.report
    weight = result.model.get_submodule("layers.3").get_parameter("weight")
    assert len(weight[:, 0].unique()) <= 7
    assert result.report.after.bytes == QUANTIZED.report.after.bytes


def test_quantized_training_starts_from_the_weights_before_rounding_and_goes_on_from_its_own() -> None:
    name = "layers.3"
    assert torch.equal(QUANTIZED.float_weights[name], teacher().get_submodule(name).get_parameter("weight"))
    first = distiller(2, rate=1e-6).compress(QUANTIZED, Z, teacher=teacher())
    torch.testing.assert_close(first.float_weights[name], QUANTIZED.float_weights[name], atol=1e-5, rtol=0)
    second = distiller(2, rate=1e-6).compress(first, Z, teacher=teacher())
    torch.testing.assert_close(second.float_weights[name], QUANTIZED.float_weights[name], atol=1e-5, rtol=0)


def test_a_training_of_ones_own_of_the_quantized_model_is_gone_on_from() -> None:
    name, stored = "layers.3", Quantizer(3).compress(teacher(), Z)
    own = stored.model.get_submodule(name).get_parameter("weight")
    moved = torch.rand(own.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        own[moved] += 0.3
    result = distiller(1, rate=1e-9).compress(stored, Z, teacher=teacher())
    started = torch.where(moved, own, stored.float_weights[name])
    torch.testing.assert_close(result.float_weights[name], started.detach(), atol=1e-5, rtol=0)


def test_a_repaired_quantized_model_exports_to_the_same_outputs(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    result = distiller(10, rate=1e-3).compress(QUANTIZED, Z, teacher=teacher())
    export_onnx(result, tmp_path / "model.onnx", Z)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {"input0": Z[0].numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), result.model(*Z), atol=1e-4, rtol=0)


def test_report_and_recipe_tell_what_was_done() -> None:
    result = distiller(40).compress(PRUNED, Z, teacher=teacher())
    step = result.recipe.steps[-1]
    assert (step["compressor"], step["draw"], step["steps"], step["seed"]) == ("Distiller", "draw", 40, 2020)
    training = step["training"]
    assert training["rate"] == 1e-3
    assert training["step"] == 40
    assert training["best_loss"] == min(loss for _, _, loss in training["history"])
    assert training["best_loss"] < training["start_loss"]
    assert result.report.name == "prune 0.5 + distill 40"
    assert f"best of step {training['best_step']} of 40" in str(result.report)
    with torch.no_grad():
        clean, noise = teacher()(*Z), result.model(*Z) - teacher()(*Z)
    assert result.report.sqnr_db == pytest.approx(
        10 * torch.log10(clean.square().sum() / noise.square().sum()).item(), abs=1e-3
    )


@pytest.mark.parametrize(
    ("broken", "rate"), [(Quantizer(8), 1e-4), (Quantizer(3), None), (Quantizer(2), 3e-4), (ChannelPruner(0.5), 1e-3)]
)
def test_the_rate_follows_the_damage(broken: Quantizer | ChannelPruner, rate: float | None) -> None:
    student = broken.compress(teacher(), Z)
    chosen = distiller(1).compress(student, Z, teacher=teacher()).recipe.steps[-1]["training"]["rate"]
    if rate is None:
        assert 1e-4 < chosen < 3e-4
    else:
        assert chosen == rate


def test_a_pipeline_repairs_after_pruning_and_after_quantizing_with_its_input_as_teacher(tmp_path: Path) -> None:
    stages = ChannelPruner(0.5), distiller(20), Quantizer(4), distiller(10, rate=1e-3)
    piped = Pipeline(*stages).compress(teacher(), Z)
    assert piped.report.name == "prune 0.5 + distill 20 + quantize W4 + distill 10"
    assert len(piped.report.notes) == 2
    one_by_one: CompressedModel | nn.Module = teacher()
    for stage in stages:
        one_by_one = stage.compress(one_by_one, Z, teacher=teacher())
    assert same(piped.model, one_by_one.model)
    assert piped.report == one_by_one.report
    piped.save(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(CompressedModel.load(tmp_path / "model.safetensors", teacher).model(*Z), piped.model(*Z))


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not() -> None:
    runs = [distiller(20, seed=seed).compress(PRUNED, Z, teacher=teacher()) for seed in (1, 1, 2)]
    assert same(runs[0].model, runs[1].model)
    assert not same(runs[0].model, runs[2].model)


def test_the_callers_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    distiller(3).compress(PRUNED, Z, teacher=teacher())
    assert torch.equal(torch.rand(3), expected)


def batch_norms(model: nn.Module) -> list[Tensor]:
    return [module.running_mean for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_batch_norm_statistics_stay_unless_asked_for() -> None:
    for train_norms in (False, True):
        result = distiller(20, rate=1e-3, train_norms=train_norms).compress(PRUNED, Z, teacher=teacher())
        pairs = zip(batch_norms(result.model), batch_norms(PRUNED.model), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) is not train_norms


def test_a_sparse_network_stays_as_sparse() -> None:
    student = teacher(1)
    zero = torch.rand(student.layers[3].weight.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    with torch.no_grad():
        student.layers[3].weight[zero] = 0
    weight = (
        distiller(20).compress(student, Z, teacher=teacher()).model.get_submodule("layers.3").get_parameter("weight")
    )
    assert torch.equal(weight == 0, zero)
    assert not torch.equal(weight, student.layers[3].weight)


def test_the_best_state_is_kept_also_when_training_makes_it_worse() -> None:
    guide = teacher()
    mild = Quantizer(8).compress(guide, Z)
    result = distiller(20, rate=3.0).compress(mild, Z, teacher=guide)
    assert result.recipe.steps[-1]["training"]["best_step"] == 0
    with torch.no_grad():
        assert torch.equal(result.model(*Z), mild.model(*Z))


def test_a_moving_average_can_be_the_result() -> None:
    plain = distiller(40).compress(PRUNED, Z, teacher=teacher())
    averaged = distiller(40, average=0.9).compress(PRUNED, Z, teacher=teacher())
    assert not same(plain.model, averaged.model)
    assert averaged.recipe.steps[-1]["training"]["best_loss"] < averaged.recipe.steps[-1]["training"]["start_loss"]


class Recorded(nn.Module):
    """A loss that keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        self.calls.append((student, target))
        return (student - target).square().mean()


def test_loss_and_further_terms_are_free() -> None:
    own, relation = Recorded(), RelationLoss(angle_weight=0)
    terms = ((0.5, relation), (0.1, DistillDistance(0, tv=1)))
    result = distiller(2, loss=own, terms=terms).compress(PRUNED, Z, teacher=teacher())
    assert len(own.calls) == 2 + 3  # steps; looks before, between and after
    assert all(not target.requires_grad for _, target in own.calls)
    first, history = own.calls[0], result.recipe.steps[-1]["training"]["history"]
    with torch.no_grad():
        expected = own(*first) + 0.5 * relation(*first) + 0.1 * DistillDistance(0, tv=1)(*first)
    assert history[0][2] == pytest.approx(float(expected))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_of_generators_can_be_trained(family: Any) -> None:
    guide = family.build()
    inputs = family.inputs(4)
    student = family.build(seed=1)
    result = Distiller(lambda n, random: family.inputs(n), 2, batch_size=4, held_out=4, progress=False).compress(
        student, inputs, teacher=guide
    )
    assert result.recipe.steps[-1]["training"]["step"] == 2


def until(step: int, event: Callable[[], Any]) -> Callable[[int, torch.Generator], tuple[Tensor, ...]]:
    """Return a draw that does something else once, at a step; the held-out inputs are its first call."""
    calls = iter(range(10**6))

    def drawn(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
        return event() if next(calls) == step + 1 else draw(n, random)

    drawn.__qualname__ = "draw"
    return drawn


def raises(error: BaseException) -> Callable[[], Any]:
    def event() -> Any:
        raise error

    return event


def resumable(path: Path, drawn: Callable[..., Any] = draw, **changes: Any) -> CompressedModel:
    options = {"batch_size": 8, "held_out": 16, "progress": False, "checkpoint": path} | changes
    return Distiller(drawn, 45, **options).compress(changes.pop("model", PRUNED), Z, teacher=teacher())


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, average: float | None) -> None:
    drawn = until(31, lambda: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if not child:
        resumable(tmp_path / "killed.safetensors", drawn, average=average)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    steps: list[int] = []

    def counted(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
        steps.append(n)
        return draw(n, random)

    counted.__qualname__ = "draw"
    resumed = resumable(tmp_path / "killed.safetensors", counted, average=average)
    whole = resumable(tmp_path / "whole.safetensors", average=average)
    assert steps.count(8) == 45 - 30  # the last look was after step 30
    assert same(resumed.model, whole.model)
    assert resumed.recipe.steps[-1]["training"] == whole.recipe.steps[-1]["training"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = resumable(tmp_path / "run.safetensors")
    second = resumable(tmp_path / "run.safetensors", until(0, raises(AssertionError("trained again"))))
    assert same(first.model, second.model)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    resumable(tmp_path / "run.safetensors")
    with pytest.raises(CompressionError, match=r"checkpoint: .*run\.safetensors belongs to another training"):
        resumable(tmp_path / "run.safetensors", seed=1)


def shifted(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (draw(n, random)[0] + 1,)


def pixels(weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda student, teacher: weight * (student - teacher).abs().mean()


@pytest.mark.parametrize(
    ("before", "now"),
    [({"loss": pixels(1)}, {"loss": pixels(2)}), ({"drawn": lambda *a: draw(*a)}, {"drawn": lambda *a: shifted(*a)})],
    ids=["loss", "draw"],
)
def test_a_checkpoint_is_refused_where_functions_of_one_name_compute_something_else(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any]
) -> None:
    path = tmp_path / "run.safetensors"
    first = resumable(path, **before)
    assert same(resumable(path, **before).model, first.model)
    with pytest.raises(CompressionError, match=r"checkpoint: .* training with another draw, loss or terms"):
        resumable(path, **now)


def test_a_loss_that_draws_random_numbers_resumes(tmp_path: Path) -> None:
    def noisy(student: Tensor, teacher: Tensor) -> Tensor:
        return ((student - teacher) * torch.rand(())).abs().mean()

    path = tmp_path / "run.safetensors"
    assert same(resumable(path, loss=noisy).model, resumable(path, loss=noisy).model)


def test_ctrl_c_keeps_the_best_state_and_says_so() -> None:
    drawn = until(20, raises(KeyboardInterrupt()))
    with pytest.warns(UserWarning, match="interrupted at step 20 of 40; the best state is kept"):
        result = Distiller(drawn, 40, batch_size=8, progress=False).compress(PRUNED, Z, teacher=teacher())
    training = result.recipe.steps[-1]["training"]
    assert (training["step"], training["note"]) == (20, "interrupted at step 20 of 40")
    assert training["best_step"] > 0
    assert "interrupted at step 20 of 40" in result.report.notes[-1]
    shorter = Distiller(draw, 40, batch_size=8, progress=False).compress(PRUNED, Z, teacher=teacher())
    assert training["history"] == shorter.recipe.steps[-1]["training"]["history"][:11]


def test_nan_is_an_error_that_holds_the_best_state_before() -> None:
    nans = until(20, lambda: (torch.full((8, LATENT), torch.nan),))
    with pytest.raises(
        TrainingDiverged, match=r"the loss is nan at step 20, at a rate of .*lower rate=0.001"
    ) as caught:
        Distiller(nans, 40, batch_size=8, progress=False).compress(PRUNED, Z, teacher=teacher())
    result = caught.value.result
    assert isinstance(result, CompressedModel)
    assert result.recipe.steps[-1]["training"]["best_step"] > 0
    assert all(value.isfinite().all() for value in result.model.state_dict().values())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda: (Z[0][:3],),
            r"draw\(8, random\) at step 3 led to outputs \(3, 3, 16, 16\) .* for 8 samples each time",
        ),
        (raises(StopIteration()), r"draw\(8, random\) fails: StopIteration"),
        (lambda: Z[0], r"what draw returns must be a non-empty tuple .*; got Tensor"),
    ],
)
def test_inputs_that_end_early_are_refused(returned: Callable[[], Any], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        Distiller(until(3, returned), 5, batch_size=8, progress=False).compress(PRUNED, Z, teacher=teacher())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda student, target: (student - target).abs(),
            r"must return a scalar tensor; .*<lambda> returned shape \(8,",
        ),
        (lambda student, target: 0.5, "must return a scalar tensor; .* returned float"),
        (lambda student, target: (student.detach() - target).mean(), "must have a gradient by the student's output"),
    ],
)
def test_a_loss_that_cannot_train_is_refused(loss: Callable[[Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        distiller(5, loss=loss, held_out=8).compress(PRUNED, Z, teacher=teacher())


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_out_of_memory_names_the_batch_size(error: Exception) -> None:
    def loss(student: Tensor, target: Tensor) -> Tensor:
        raise error

    with pytest.raises(CompressionError, match="out of memory with batch_size=8: use a smaller one"):
        distiller(5, loss=loss).compress(PRUNED, Z, teacher=teacher())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draw": iter([Z])}, r"draw must be a function draw\(n, random\) .*; got list_iterator"),
        ({"steps": 0}, "steps must be an integer of at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
        ({"rate": 0}, "rate must be a number above 0; got 0"),
        ({"rate": "x"}, "rate must be a finite number; got 'x'"),
        ({"average": "x"}, "average must be a finite number; got 'x'"),
        ({"terms": ((("1"), DistillDistance()),)}, "terms must be pairs of a weight above 0 and a function"),
        ({"terms": 1}, "terms must be pairs of a weight above 0 and a function; got 1"),
        ({"clip_norm": -1}, "clip_norm must be a number above 0; got -1"),
        ({"loss": "l2"}, "loss must be one of l1, mse; got 'l2'"),
        ({"terms": (RelationLoss(),)}, "terms must be pairs of a weight above 0 and a function"),
        ({"average": 1.0}, "average must be a decay above 0 and below 1, or None; got 1.0"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        Distiller(**({"draw": draw, "steps": 5} | changes))


def test_frozen_parameters_stay_and_a_wholly_frozen_model_is_refused() -> None:
    student = teacher(1)
    student.layers[0].requires_grad_(False)
    result = distiller(3).compress(student, Z, teacher=teacher())
    assert torch.equal(result.model.layers[0].weight, student.layers[0].weight)
    assert not torch.equal(result.model.layers[3].weight, student.layers[3].weight)
    assert {row.name: row.note for row in result.report.layers}["layers.0"] == "not trained: frozen"
    with pytest.raises(CompressionError, match=r"no parameter to train: all are frozen \(requires_grad=False\)"):
        distiller(3).compress(student.requires_grad_(False), Z, teacher=teacher())


class Scaled(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.generator, self.change = DCGAN(), change

    def forward(self, z: Tensor) -> Any:
        return self.change(self.generator(z))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, :, :8], r"one shape and dtype; got \(16, 3, 16, 16\) .* \(16, 3, 8, 16\)"),
        (lambda y: y.double(), "one shape and dtype; got .*float32 and .*float64"),
        (lambda y: 127.5 * (y + 1), "outputs of the teacher reach .* and those of the student"),
        (lambda y: (y, y), "student and teacher return 1 and 2 tensors"),
    ],
)
def test_a_teacher_with_other_outputs_is_refused(change: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        distiller(3).compress(teacher(1), Z, teacher=Scaled(change).eval())


def test_without_a_teacher_the_error_says_where_it_comes_from() -> None:
    with pytest.raises(CompressionError, match=r"teacher: Distiller needs the model to imitate.*a Pipeline passes"):
        distiller(3).compress(PRUNED, Z)


class Noisy(SNGAN):
    """A generator with noise of its own."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z + torch.randn_like(z))


def test_student_and_teacher_get_the_same_noise() -> None:
    torch.manual_seed(0)
    guide = Noisy().eval()
    result = distiller(1).compress(guide, Z, teacher=guide)
    assert result.recipe.steps[-1]["training"]["start_loss"] == 0


def test_several_outputs_are_learnt_together() -> None:
    torch.manual_seed(0)
    guide, student = (Scaled(lambda y: {"image": y, "half": y[:, :, ::2], "index": y.argmax(1)}).eval() for _ in "ts")
    result = distiller(30).compress(student, Z, teacher=guide)
    training = result.recipe.steps[-1]["training"]
    assert training["best_loss"] < 0.9 * training["start_loss"]


def test_the_bar_with_the_loss_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    distiller(3, progress=True).compress(PRUNED, Z, teacher=teacher())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "distill" in captured.err
    assert "loss=" in captured.err
