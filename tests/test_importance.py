"""Scores of channels: what a channel does to the outputs decides what is pruned first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from generators import FAMILIES, LATENT, Family
from torch import Tensor, nn

from compressors import ChannelPruner, CompressionError
from compressors.prune import importance
from compressors.prune.importance import GateImportance, fisher, latent_sensitivity

Z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def draw(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(n, LATENT, generator=random),)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def scores(model: nn.Module, importances: GateImportance, layer: nn.Module) -> Tensor:
    """Ask as torch-pruning does: for the group of all output channels of a layer."""
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(model, Z)
    found = importances(graph.get_pruning_group(layer, tp.prune_linear_out_channels, list(range(layer.out_features))))
    assert found is not None
    return found


def test_fisher_is_the_squared_change_of_the_outputs_with_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "_PROJECTIONS", 3000)
    model = network()
    with torch.no_grad():
        hidden = importance._OUTPUT_GATE * model[1](model[0](Z))
        expected = (hidden[:, None] * model[2].weight).square().sum(1).mean(0)
    torch.testing.assert_close(scores(model, fisher(model, (Z,)), model[0]), expected, rtol=0.1, atol=0.01)


def test_channels_behind_a_saturated_output_matter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 1), nn.Tanh()).eval()
    with torch.no_grad():
        model[0].weight.mul_(0.1)
        model[2].weight.copy_(torch.tensor([[4.0, 4.0, 4.0, 0.01, 0.01, 0.01]]))
        assert model(Z).min() > 0.99
    found = scores(model, fisher(model, (Z,)), model[0])
    assert found.topk(3).indices.sort().values.tolist() == [0, 1, 2]
    assert found.max() > 1e-3


class Residual(nn.Module):
    """Two layers read the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.a(x) + self.b(x)


def test_a_channel_that_two_layers_read_has_one_gate_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "_PROJECTIONS", 3000)
    torch.manual_seed(0)
    model = Residual().eval()
    with torch.no_grad():
        model.b.weight[:, :3] = -model.a.weight[:, :3]  # these channels cancel
        hidden = importance._OUTPUT_GATE * model.first(Z).relu()
        expected = (hidden[:, None] * (model.a.weight + model.b.weight)).square().sum(1).mean(0)
    found = scores(model, fisher(model, (Z,)), model.first)
    assert found[:3].max() < 1e-10
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("name", ["fisher", "latent"])
def test_channels_without_effect_go_first_whatever_their_weights(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(LATENT, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight[:4] *= 100
        model[2].weight[:, :4] = 0
    z = draw(4, torch.Generator().manual_seed(0))
    result = ChannelPruner(0.5, importance=name, draw=draw).compress(model, z)
    assert result.report.sqnr_db is None or result.report.sqnr_db > 100
    by_weights = ChannelPruner(0.5).compress(model, z)
    assert by_weights.report.sqnr_db is not None
    assert by_weights.report.sqnr_db < 20


def test_the_latent_counts_only_where_it_passes() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:2] = 0  # constant channels
        model[0].bias[:2] = 5
    found = scores(model, latent_sensitivity(model, (Z,)), model[0])
    assert fisher(model, (Z,)).read[model[2]].abs().sum(0)[:2].min() > 0
    assert found.argsort()[:2].sort().values.tolist() == [0, 1] or found[:2].max() < found[2:].median()


class Structured(nn.Module):
    """Takes labels in a dict, a table for all samples, and a number as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(LATENT + 2, 8), nn.Linear(8, 3)

    def forward(self, z: Tensor, more: dict[str, Tensor], table: Tensor, scale: Tensor) -> Tensor:
        return self.second(self.first(torch.cat([z, table[more["y"]]], 1)).relu()) * scale


@pytest.mark.parametrize("name", [None, "fisher", "latent"])
def test_samples_may_have_labels_in_a_dict_and_arguments_without_batch_dimension(name: str | None) -> None:
    random = torch.Generator().manual_seed(0)

    def batch(count: int) -> tuple[Any, ...]:
        labels = torch.randint(12, (count,), generator=random)
        table = torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
        return torch.randn(count, LATENT, generator=random), {"y": labels}, table, torch.tensor(2.0)

    small = ChannelPruner(0.5, importance=name).compress(Structured(), batch(4), [batch(16)])
    assert small.recipe.steps[-1]["importance"] == (name or "fisher")
    assert small.model.first.out_features == 4


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("name", ["fisher", "latent", "lamp"])
def test_every_family_of_generators_can_be_scored(family: Family, name: str) -> None:
    options: dict[str, Any] = family.pruning or {}
    pruner = ChannelPruner(0.3, importance=name, draw=lambda n, random: family.inputs(n), **options)
    result = pruner.compress(family.build(), family.inputs())
    expected = ChannelPruner(0.3, **options).compress(family.build(), family.inputs())
    assert result.report.after.parameters == expected.report.after.parameters


def importance_used(pruner: ChannelPruner, calibration: Any = None) -> str:
    model = FAMILIES[0].build()
    used: str = pruner.compress(model, FAMILIES[0].inputs(), calibration).recipe.steps[-1]["importance"]
    return used


def test_fisher_is_the_default_where_there_are_samples() -> None:
    assert importance_used(ChannelPruner(0.3)) == "l2"
    assert importance_used(ChannelPruner(0.3), [FAMILIES[0].inputs(16)]) == "fisher"
    assert importance_used(ChannelPruner(0.3, draw=draw)) == "fisher"
    assert importance_used(ChannelPruner(0.3, importance="l2"), [FAMILIES[0].inputs(16)]) == "l2"


def test_an_endless_calibration_is_read_once() -> None:
    def endless() -> Iterator[tuple[Tensor, ...]]:
        while True:
            yield FAMILIES[0].inputs(4)

    assert importance_used(ChannelPruner(0.3), endless()) == "fisher"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"importance": "fischer"}, "importance must be one of fisher, latent, l2, lamp; got 'fischer'; did you mean"),
        ({"draw": 3}, r"draw must be a function draw\(n, random\) or None; got 3"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        ChannelPruner(0.3, **arguments)


def test_scores_that_need_samples_say_so() -> None:
    with pytest.raises(CompressionError, match="importance='fisher' needs samples: give draw, or calibration"):
        importance_used(ChannelPruner(0.3, importance="fisher"))
    with pytest.raises(CompressionError, match="calibration holds no batch"):
        importance_used(ChannelPruner(0.3), [])


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LATENT, 8), nn.Linear(8, 3))

    def forward(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self.layers(z)


def test_a_model_without_gradients_is_refused_with_the_way_out() -> None:
    with pytest.raises(CompressionError, match="no output of the model has a gradient; use importance='l2'"):
        ChannelPruner(0.3, draw=draw).compress(Detached(), draw(2, torch.Generator()))
