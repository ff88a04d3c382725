"""Architecture search: spaces, exact costs, the supernet, derivation, and whole searches of a few steps."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import scenes
from torch import Tensor, nn
from torch_pruning.utils import count_ops_and_params

from compressors import CompressedModel, CompressionError, Pipeline, Quantizer
from compressors.common.measure import count_macs
from compressors.distil import DistillDistance
from compressors.distil.costs import Costs
from compressors.search import (
    ArchitectureSearch,
    Layer,
    SearchSpace,
    Skip,
    Supernet,
    WidthSearch,
    cyclegan,
    esrgan,
    save_report,
    search_student,
    tiny,
)
from compressors.search.cost import derive, expected_macs, extreme, macs_of
from compressors.search.operators import OPERATORS, SEARCHED, register_operator
from compressors.search.space import make_divisible
from compressors.search.strategies import trials
from compressors.search.supernet import straight_through
from compressors.study import StudySettings, run_study

SMALL = {"tiny": (tiny(), 32), "cyclegan": (cyclegan(2, 16), 16), "esrgan": (esrgan(2, 3, 32), 8)}
SIZE = (32, 32)
BUDGET = 600_000
FEW: dict[str, Any] = {"population": 6, "generations": 2}


def teacher(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tiny().build(tiny().uniform(1.0, "residual")).eval()


def draw(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.rand(n, 3, 32, 32, generator=random) * 2 - 1,)


def searched(folder: Path | None = None, **changes: Any) -> CompressedModel:
    options = {"steps": 4, "search_steps": 4, "trials": 2, "batch_size": 4, "held_out": 8, "progress": False, **FEW}
    given_draw = changes.pop("draw", draw)
    space = changes.pop("space", tiny())
    return search_student(
        changes.pop("teacher", None) or teacher(),
        space,
        changes.pop("budget", BUDGET),
        given_draw,
        folder=folder,
        **(options | changes),
    )


@pytest.fixture(scope="module")
def result() -> CompressedModel:
    return searched()


def logits(space: SearchSpace, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    tables = space.tables(SIZE)
    found = [[generator.normal(0, 2, table.shape[axis]) for table in tables] for axis in (0, 2)]
    return found[0], found[1]


def indices_of(space: SearchSpace, seed: int, size: int) -> Any:
    return space.indices(space.sample(random.Random(seed), (size, size)))


# Costs


@pytest.mark.parametrize("name", SMALL)
def test_the_cost_table_counts_what_torch_counts(name: str) -> None:
    space, size = SMALL[name]
    for seed in range(10):
        genotype = space.sample(random.Random(seed), (size, size))
        counted = count_macs(space.build(genotype), (torch.rand(1, 3, size, size),))[""]
        assert space.macs(genotype, (size, size)) == counted
        assert macs_of(space.tables((size, size)), space.indices(genotype)) == counted


def test_published_costs_of_the_two_spaces() -> None:
    assert [cyclegan().widths(layer) for layer in range(3)] == [
        (24, 32, 40, 56, 64), (40, 64, 88, 104, 128), (88, 128, 168, 216, 256),
    ]  # fmt: skip
    zebra = (
        *(("conv", width) for width in (24, 40, 88)), ("conv1x1", 128), ("conv1x1", 88), *[("dws", 88)] * 5,
        *[("residual", 88)] * 2, ("tconv", 128), ("tconv", 24), ("conv", 3),
    )  # fmt: skip
    network = cyclegan().build(zebra)
    assert cyclegan().macs(zebra, (256, 256)) == 4_169_793_536
    # What others count: transposed convolutions at their output's size; AGD's code, which then halves it as well.
    first, second, last = 88 * 128 * 9, 128 * 24 * 9, 24 * 3 * 49
    exact = first * 64**2 + second * 128**2 + last * 256**2
    assert 4_169_793_536 + 3 * (exact - last * 256**2) == pytest.approx(6.774e9, rel=1e-4)
    wrong = first * 128**2 + second * 64**2 + last * 16**2
    assert 4_169_793_536 - exact + wrong == pytest.approx(4.845e9, rel=1e-4)
    assert sum(parameter.numel() for parameter in network.parameters()) == 803_312
    space, size = esrgan(), (256, 256)
    assert space.fixed_macs(size) == 91_314_192_384
    assert (space.min_macs(size), space.max_macs(size)) == (92_887_056_384, 212_110_147_584)


def test_published_arithmetic_of_super_resolution() -> None:
    """RRDB: 16,697,987 parameters, 1176.61 G; 110.9 G are 450,090 parameters, 1.800 MB; which baseline is which."""
    fixed = sum(p.numel() for p in esrgan(1, 1).build(esrgan(1, 1).uniform(1.0, "conv1x1")).parameters()) - 64 * 64
    # At 256 x 256 each weight of the body is used 65,536 times.
    body = (110.9e9 - esrgan().fixed_macs((256, 256))) / 256**2
    total = fixed + body
    assert fixed == 151_235
    assert total == pytest.approx(450_090, abs=100)
    assert 4 * total / 1e6 == pytest.approx(1.800, abs=0.001)
    growth, width = 32, 64
    dense = sum((width + n * growth) * growth * 9 + growth for n in range(4)) + (width + 4 * growth) * width * 9 + width
    assert 69 * dense + fixed == 16_697_987
    # The head runs at 1, 2 and 4 times the size: positions of each of its layers.
    low = 256**2
    weights = [(1728, low), (69 * (dense - 4 * growth - width), low), (36_864, low), (36_864, 4 * low)]
    weights += [(36_864, 16 * low)] * 2 + [(1728, 16 * low)]
    macs = sum(count * positions for count, positions in weights)
    assert macs / 1e9 == pytest.approx(1174.85, abs=0.01)
    # What thop adds: .868 + .163 of biases and .73 of activations.
    assert macs / 1e9 + 0.868 + 0.163 + 0.73 == pytest.approx(1176.61, abs=0.01)
    assert pytest.approx((0.841, 0.326), abs=1e-3) == (1 - 110.9 / 699.36, 1 - 1.8 / 2.67)  # VDSR
    assert pytest.approx((0.906, 0.973), abs=1e-3) == (1 - 110.9 / 1176.61, 1 - 1.8 / 66.8)  # ESRGAN


def test_counters_differ_in_transposed_convolutions_and_norms_and_ours_is_exact() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.InstanceNorm2d(8), nn.ConvTranspose2d(8, 4, 3, 2, 1, 1, bias=False)
    )
    images = torch.rand(1, 3, 32, 32)
    assert count_macs(network, (images,))[""] == 3 * 8 * 9 * 16**2 + 8 * 4 * 9 * 16**2 == 129_024
    published = 3 * 8 * 9 * 16**2 + 8 * 4 * 9 * 32**2
    assert Costs.of(network, (images,)).macs_published == published
    assert count_ops_and_params(network, images)[0] == published + 8 * 16**2 == 352_256


@given(st.floats(3, 600), st.floats(3, 600), st.sampled_from([2, 4, 8]))
def test_rounded_widths_rise_and_multiples_stay(first: float, second: float, divisor: int) -> None:
    low, high = sorted((first, second))
    assert make_divisible(low, divisor, 3) <= make_divisible(high, divisor, 3) + divisor
    assert make_divisible(first, divisor, 3) >= max(3, 0.9 * first)
    multiple = divisor * math.ceil(first / divisor)
    assert make_divisible(multiple, divisor, 3) == max(3, multiple)


def test_the_expected_cost_is_the_mean_over_networks() -> None:
    space = tiny()
    tables = space.tables(SIZE)
    wide = [torch.from_numpy(table).double() for table in tables]
    one = indices_of(space, 3, 32)
    hot = [[torch.eye(t.shape[axis], dtype=torch.float64)[i[pick]] for t, i in zip(tables, one, strict=True)]
           for axis, pick in ((0, 0), (2, 1))]  # fmt: skip
    assert float(expected_macs(wide, *hot)) == macs_of(tables, one)
    generator = np.random.default_rng(0)
    probabilities = [[generator.dirichlet(np.ones(t.shape[axis])) for t in tables] for axis in (0, 2)]
    soft = [[torch.tensor(p) for p in side] for side in probabilities]
    drawn = [[generator.choice(len(p), 4000, p=p) for p in side] for side in probabilities]  # sides x layers x draws
    mean = np.mean([
        macs_of(tables, tuple((drawn[0][layer][n], drawn[1][layer][n]) for layer in range(len(tables))))
        for n in range(4000)
    ])  # fmt: skip
    assert float(expected_macs(wide, *soft)) == pytest.approx(mean, rel=0.02)
    parameter = soft[0][4].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda p: expected_macs(wide, [*soft[0][:4], p, *soft[0][5:]], soft[1]) / 1e6, (parameter,)
    )


# Derivation


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 1.2))
def test_a_derived_network_fills_the_budget_and_never_exceeds_it(seed: int, share: float) -> None:
    space = tiny()
    tables = space.tables(SIZE)
    low, high = space.min_macs(SIZE), space.max_macs(SIZE)
    budget = int(low + share * (high - low))
    found = macs_of(tables, derive(tables, *logits(space, seed), budget))
    assert found <= budget
    if 1.5 * low < budget <= high:
        assert found >= 0.92 * budget


def test_a_derived_network_is_the_best_under_the_budget_and_the_most_probable_one_without() -> None:
    layers = (Layer(8, ("conv",), (0.5, 1.0)), Layer(8, ratios=(0.5, 1.0)), Layer(3, ("conv",), (1.0,)))
    space = SearchSpace(layers, divisor=2)
    tables = space.tables(SIZE)
    networks = [((0, a), (o, b), (0, 0)) for a in range(2) for o in range(4) for b in range(2)]
    for seed in range(5):
        operators, widths = logits(space, seed)

        def value(network: Any, scores: Any = (operators, widths)) -> float:
            return sum(scores[0][n][o] + scores[1][n][w] for n, (o, w) in enumerate(network))

        best = 0.0
        for budget in np.linspace(space.min_macs(SIZE), space.max_macs(SIZE) - 1, 7).astype(int):
            found = derive(tables, operators, widths, int(budget), fill=0)
            allowed = [network for network in networks if macs_of(tables, network) <= 0.99 * budget]
            assert value(found) >= max(map(value, allowed), default=-math.inf)
            assert value(found) >= best or not allowed or best == 0.0
            best = value(found)
        most = tuple((int(o.argmax()), int(w.argmax())) for o, w in zip(operators, widths, strict=True))
        assert derive(tables, operators, widths, space.max_macs(SIZE), fill=0) == most


def test_a_budget_below_the_smallest_network_is_refused_with_the_smallest_at_this_size() -> None:
    space = tiny()
    tables = space.tables(SIZE)
    with pytest.raises(CompressionError, match="200,704"):
        derive(tables, *logits(space, 0), 200_703)
    assert derive(tables, *logits(space, 0), 200_704) == extreme(tables)
    with pytest.raises(CompressionError, match=r"32 x 32, 200,704 \(the largest: 6,340,608\)"):
        searched(budget=1000)
    with pytest.raises(CompressionError, match="smallest network"):
        searched(budget=0.01)


# Supernet


@pytest.mark.parametrize("name", SMALL)
def test_what_is_exported_is_the_slice_and_masks_at_full_width_give_its_value(name: str) -> None:
    space, size = SMALL[name]
    net, images = Supernet(space).double(), torch.rand(2, 3, size, size).double()
    for seed in range(4):
        indices = indices_of(space, seed, size)
        with torch.no_grad():
            sliced = net(images, indices)
            exported = net.exported(space.genotype(indices)).double().train()(images)
            for (operators, widths), (operator, width) in zip(net.logits(), indices, strict=True):
                operators.fill_(-100)[operator] = 100
                widths.fill_(-100)[width] = 100
            masked = net.mixed(images, 1.0)
        assert torch.equal(sliced, exported)
        torch.testing.assert_close(masked, sliced, rtol=0, atol=1e-12)


def test_straight_through_gates_are_exactly_one_hot() -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        gate = straight_through(torch.randn(5, requires_grad=True), 0.7)
        assert sorted(gate.tolist()) == [0, 0, 0, 0, 1]
        assert gate.requires_grad


def largest_gradients(space: SearchSpace, gate: Any) -> list[float]:
    torch.manual_seed(0)
    net = Supernet(space, gate)
    (net.mixed(torch.rand(2, 3, 32, 32), 1.0) - torch.rand(2, 3, 32, 32)).abs().mean().backward()
    assert all(parameter.grad is None for parameter in net.weights.parameters())
    searched_widths = [logits for logits in net.width_logits if len(logits) > 1]
    return [float(logits.grad.abs().max()) for logits in searched_widths]  # type: ignore[union-attr]


def test_a_norm_hides_the_scalar_gate_from_the_loss_and_not_the_mask() -> None:
    space = cyclegan(3, 16)
    assert min(largest_gradients(space, "mask")) > 1e-4
    assert min(largest_gradients(space, "scalar")) < 1e-4


def test_the_loss_of_a_network_gives_no_gradient_to_logits_and_that_of_logits_none_to_weights() -> None:
    net, images = Supernet(tiny()), torch.rand(2, 3, 32, 32)
    logits = [*net.operator_logits, *net.width_logits]
    net(images, indices_of(tiny(), 0, 32)).square().mean().backward()
    assert all(parameter.grad is None for parameter in logits)
    assert any(parameter.grad is not None for parameter in net.weights.parameters())
    net.zero_grad()
    net.mixed(images, 1.0).square().mean().backward()
    assert all(parameter.grad is None for parameter in net.weights.parameters())
    assert any(parameter.grad is not None for parameter in logits)


# Searches


def test_the_same_seed_gives_the_same_network_and_weights(result: CompressedModel) -> None:
    again = searched()
    assert again.recipe.architecture == result.recipe.architecture
    states = result.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_result_meets_the_budget_and_says_what_it_is(result: CompressedModel) -> None:
    step = result.recipe.steps[-1]
    assert step["macs"] == result.report.after.macs == count_macs(result.model, draw(1, torch.Generator()))[""]
    assert 0.92 * BUDGET <= step["macs"] <= BUDGET
    assert len(step["candidates"]) == 2
    assert step["supernet"]["step"] == 4
    assert result.report.before.macs == 6_340_608
    assert "600,000" in str(result.report)
    assert type(result.model).__name__ == "Student"


@pytest.mark.parametrize("strategy", ["gradient", "both", "trials"])
def test_other_strategies_meet_the_budget_too(strategy: str) -> None:
    found = searched(strategy=strategy, budget=0.1, steps=2, search_steps=2, trials=1)
    assert 0.9 * 634_060 <= found.report.after.macs <= 634_060


def test_the_teacher_is_left_alone_whatever_its_mode() -> None:
    model = teacher().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    searched(teacher=model, steps=1, search_steps=1, trials=1)
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_file_of_the_result_needs_no_class_and_holds_the_network_only(
    result: CompressedModel, tmp_path: Path
) -> None:
    result.save(tmp_path / "student.safetensors")
    loaded = CompressedModel.load(tmp_path / "student.safetensors")
    images = draw(2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded.model(*images), result.model(*images))
    assert (tmp_path / "student.safetensors").stat().st_size < 4 * result.report.after.parameters + 60_000


def test_search_and_eight_bits_in_one_pipeline_and_one_file(tmp_path: Path) -> None:
    stage = ArchitectureSearch(
        tiny(), BUDGET, draw, 2, search_steps=2, trials=1, batch_size=4, held_out=8, progress=False
    )
    images = draw(8, torch.Generator().manual_seed(1))
    small = Pipeline(stage, Quantizer(8)).compress(teacher(), images)
    assert small.report.after.bytes < 0.6 * 4 * small.report.after.parameters
    small.save(tmp_path / "small.safetensors")
    with torch.no_grad():
        assert torch.equal(CompressedModel.load(tmp_path / "small.safetensors").model(*images), small.model(*images))
        plain = stage.compress(teacher(), images).model(*images)
    error = (small.model(*images) - plain).detach().square().mean()
    assert 10 * math.log10(4 / float(error)) > 30


def test_a_data_set_of_inputs_serves_and_its_teacher_runs_once() -> None:
    calls = []
    model = teacher()
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    found = searched(teacher=model, draw=scenes(24, 0)[0], steps=2, search_steps=2, trials=1)
    assert found.report.after.macs <= BUDGET


def test_no_strategy_is_needed_for_a_known_network() -> None:
    genotype = tiny().uniform_at(BUDGET, "residual", SIZE)
    found = ArchitectureSearch(tiny(), BUDGET, draw, 2, genotype=genotype, batch_size=4, held_out=8, progress=False)
    assert found.compress(teacher(), draw(1, torch.Generator())).report.after.macs == tiny().macs(genotype, SIZE)


class Killed(Exception):
    pass


def test_a_killed_search_ends_with_the_same_network(result: CompressedModel, tmp_path: Path) -> None:
    def failing(after: int) -> Any:
        left = [after]

        def drawn(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
            left[0] -= 1
            if not left[0]:
                raise Killed
            return draw(n, random)

        drawn.__qualname__ = draw.__qualname__
        return drawn

    for after in (4, 12):
        with pytest.raises(CompressionError, match="Killed"):
            searched(tmp_path, draw=failing(after))
    again = searched(tmp_path)
    assert again.recipe.architecture == result.recipe.architecture
    states = result.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_search_killed_by_the_system_ends_with_the_same_network(result: CompressedModel, tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"from test_search import *; searched(Path({str(tmp_path)!r}))"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    while not (tmp_path / "trial-0.safetensors").exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9
    assert not (tmp_path / "student.safetensors").exists()
    again = searched(tmp_path)
    assert again.recipe.architecture == result.recipe.architecture
    states = result.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("after", [4, 12])
def test_ctrl_c_keeps_the_best_network_so_far(after: int) -> None:
    left = [after]

    def interrupting(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return draw(n, random)

    with pytest.warns(UserWarning, match="interrupted"):
        found = searched(draw=interrupting)
    assert found.recipe.steps[-1]["interrupted"]
    assert found.report.after.macs <= BUDGET


def test_a_report_has_costs_of_both_sides_and_baselines_at_the_same_cost(
    result: CompressedModel, tmp_path: Path
) -> None:
    space, images = tiny(), draw(1, torch.Generator())
    genotype = space.uniform_at(BUDGET, "residual", SIZE)
    given = ArchitectureSearch(space, BUDGET, draw, 4, genotype=genotype, batch_size=4, held_out=8, progress=False)
    uniform = given.compress(teacher(), images)
    save_report(result, teacher(), images, tmp_path, {"uniform, trained": uniform})
    report = json.loads((tmp_path / "search.json").read_text())
    assert report["student"]["macs"] == report["macs"] == report["student"]["flops"] / 2 <= report["budget"]
    assert report["teacher"]["macs"] == 6_340_608
    for side in ("teacher", "student"):
        assert report[side]["seconds"] > 0
        assert report[side]["bytes_8"] < 0.4 * report[side]["bytes_32"]
    rows = {row["name"]: row for row in report["baselines"]}
    assert list(rows) == [*(f"uniform {name}" for name in SEARCHED), "random", "uniform, trained"]
    assert all(row["macs"] >= BUDGET for name, row in rows.items() if name.startswith("uniform"))
    assert 0.92 * BUDGET <= rows["random"]["macs"] <= BUDGET
    assert rows["random"]["trial loss"] > 0
    assert rows["uniform, trained"] == {
        "name": "uniform, trained",
        "genotype": [list(pair) for pair in genotype],
        "macs": uniform.report.after.macs,
        "parameters": uniform.report.after.parameters,
        "loss": uniform.recipe.steps[-1]["training"]["best_loss"],
    }
    assert (tmp_path / "architecture.png").stat().st_size > 1000


def test_style_and_content_of_features_can_be_the_distance() -> None:
    pool = nn.AvgPool2d(2)
    loss = DistillDistance(pixel=1, style=1, content=1, tv=0.1, features=lambda images: [pool(images)])
    images = draw(2, torch.Generator())[0]
    assert set(DistillDistance(style=1, content=1, features=lambda x: [pool(x)]).terms(images, images)) == {
        "pixel", "style", "content",
    }  # fmt: skip
    assert searched(loss=loss, steps=1, search_steps=1, trials=1).report.after.macs <= BUDGET


def test_a_space_of_own_layers_and_operators_is_stored_with_the_network(tmp_path: Path) -> None:
    if "pooled" not in OPERATORS:
        register_operator(
            "pooled", lambda slot: nn.Sequential(*slot.conv(slot.before, slot.after, 1), nn.AvgPool2d(3, 1, 1))
        )
    space = SearchSpace(
        (Layer(8, ("conv",), (1.0,)), Layer(8, ("pooled", "residual"), (1.0,)), Layer(3, ("conv",), (1.0,))),
        skips=(Skip(1, 1),), output="none", divisor=2,
    )  # fmt: skip
    assert SearchSpace.from_dict(space.to_dict()) == space
    genotype = (("conv", 8), ("pooled", 8), ("conv", 3))
    network = space.build(genotype)
    twin = space.architecture(genotype).build()
    twin.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(network(images), twin(images))


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget must be multiply-accumulates"),
        ({"budget": 1.5}, "budget must be multiply-accumulates"),
        ({"budget": True}, "budget must be multiply-accumulates"),
        ({"strategy": "evolutoin"}, 'did you mean "evolution"'),
        ({"gate": "masks"}, 'did you mean "mask"'),
        ({"space": nn.Linear(2, 2)}, "search_widths needs none"),
        ({"space": esrgan(1, 1, 8)}, "maps 1 x 3 x 32 x 32 to 1 x 3 x 128 x 128"),
        ({"draw": iter([1])}, "may end early"),
        ({"draw": torch.rand(3, 3, 32, 32)}, "at least 8 inputs"),
        ({"draw": torch.rand(16, 32)}, "must be tensors C x H x W"),
        ({"draw": lambda n, random: (torch.rand(min(n, 3), 3, 32, 32),)}, "inputs for 4 samples|inputs for 8 samples"),
        ({"draw": lambda n, random: (torch.rand(n, 3, 30, 30),)}, "multiples of 4"),
        ({"folder": Path("nowhere")}, "folder: nowhere does not exist"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"draw": 3}, "draw must be a function"),
        ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
    ],
)
def test_unusable_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    model = nn.Conv2d(3, 3, 1) if "draw" in changes else teacher()
    with pytest.raises(CompressionError, match=message):
        searched(teacher=model, **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArchitectureSearch(tiny(), BUDGET, draw, 2, loss="l3"), "loss must be one of l1, mse; got 'l3'"),
        (lambda: ArchitectureSearch(tiny(), BUDGET, draw, 2, rate="x"), "rate must be a finite number; got 'x'"),
        (lambda: ArchitectureSearch(tiny(), BUDGET, 3, 2), "draw must be a function"),
        (lambda: WidthSearch(0.5, draw, 2, -1), "seed must be an integer of at least 0; got -1"),
        (lambda: WidthSearch(0.5, draw, 2, importance="x"), "importance must be one of"),
        (lambda: WidthSearch(0.5, draw, 2, exclude="a"), "exclude must be a tuple of layer names"),
        (lambda: esrgan(scale=3), "scale must be 2 or 4; got 3"),
    ],
)
def test_settings_are_checked_when_a_search_is_made(make: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        make()


def test_ctrl_c_early_in_the_last_training_keeps_the_network_of_the_trial() -> None:
    sizes = list[int]()

    def interrupting(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
        sizes.append(n)
        if sizes.count(8) == 2 and sizes[-2] == 8:  # the held-out inputs of the trial's and of the last training
            raise KeyboardInterrupt
        return draw(n, random)

    torch.manual_seed(0)
    far = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())  # from which an untrained student is
    with pytest.warns(UserWarning, match="interrupted"):
        found = searched(teacher=far, draw=interrupting, strategy="trials", trials=1, trial_steps=6, steps=8)
    step = found.recipe.steps[-1]
    assert step["interrupted"] == "interrupted at step 0 of 8"
    assert step["training"]["step"] == 6
    assert step["training"]["best_step"] > 0


def test_mutations_are_told_from_random_networks_where_some_of_these_are_equal() -> None:
    tried = list[tuple[str, str]]()
    children = iter("bcdefgh")
    task: Any = SimpleNamespace(
        sample=lambda: "a",
        mutated=lambda parent: next(children),
        trial=lambda origin, network: tried.append((origin, network)) or 0.0,
        rng=random.Random(0),
    )
    assert trials(task, 6) == []
    assert tried == [("random", "a"), ("evolution", "b"), ("evolution", "c"), ("evolution", "d")]


def test_a_file_of_the_result_loads_in_a_process_that_knows_nothing_of_searches(
    result: CompressedModel, tmp_path: Path
) -> None:
    result.save(tmp_path / "student.safetensors")
    code = "import sys; from compressors import CompressedModel; print(CompressedModel.load(sys.argv[1]).recipe.sizes)"
    command = [sys.executable, "-c", code, str(tmp_path / "student.safetensors")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "{}\n"


class OfTwo(nn.Conv2d):
    def forward(self, images: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(images) * weight.mean()


def test_a_generator_of_several_inputs_is_sent_to_the_search_of_widths() -> None:
    with pytest.raises(CompressionError, match="search_widths"):
        searched(teacher=OfTwo(3, 3, 1), draw=lambda n, random: (torch.rand(n, 3, 8, 8), torch.rand(n, 1)))


def test_a_budget_above_the_largest_network_is_lowered_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="6,340,608"):
        found = searched(budget=10**8, steps=1, search_steps=1, trials=1)
    assert found.report.after.macs == pytest.approx(6_340_608, rel=0.08)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Layer(8, ("conv2x2",)), "operators must be one of"),
        (lambda: Layer(8, ratios=(0.0, 1.0)), "ratios be shares above 0"),
        (lambda: Layer(8, kernel=2), "kernel odd"),
        (lambda: Layer(8, stride=2), "stride 2 is for"),
        (lambda: SearchSpace(()), "one or more Layer"),
        (lambda: SearchSpace((Layer(8),)), "its width must not be searched"),
        (lambda: SearchSpace((Layer(8), Layer(3, ("conv",), (1.0,))), skips=(Skip(1, 1),)), "needs one width"),
        (lambda: tiny().build((("conv", 8),)), "must have 10 layers"),
        (lambda: register_operator("dws", nn.Identity), "taken by another operator"),
    ],
)
def test_spaces_that_make_no_sense_are_refused(build: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        build()


def test_the_student_keeps_shape_and_range_and_refuses_odd_sizes(result: CompressedModel) -> None:
    with torch.no_grad():
        made = result.model(100 * torch.randn(2, 3, 64, 32))
    assert made.shape == (2, 3, 64, 32)
    assert made.abs().max() <= 1
    with warnings.catch_warnings(), pytest.raises(CompressionError, match="multiples of 4"):
        result.model(torch.rand(1, 3, 30, 32))


def test_searches_are_rows_of_a_study(tmp_path: Path, counting_extractor: Any) -> None:
    few: dict[str, Any] = {"trials": 1, "population": 2, "generations": 1, "batch_size": 4, "held_out": 8}
    ways = [
        ArchitectureSearch(tiny(), 0.2, draw, 2, search_steps=2, progress=False, **few),
        WidthSearch(0.5, draw, 2, progress=False, **few),
    ]
    options = StudySettings(output_range=(-1, 1), feature_extractor="counting", samples=24, references=("teacher",))
    table = run_study(teacher(), draw, ways, None, tmp_path, options)
    assert [row.compressor for row in table.rows] == ["float", "search 0.2", "search widths 0.5"]
    assert {row.status for row in table.rows} == {table.rows[0].status}
    assert all(row.macs < table.rows[0].macs for row in table.rows[1:])
