"""Channels that reshapes, attention, gates and flips carry to other layers: pruned rightly, or kept with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from generators import DCGAN, LATENT
from torch import Tensor, nn

from compressors import (
    ChannelPruner,
    Clip,
    Clipper,
    CompressedModel,
    CompressionError,
    NothingCompressed,
    Pipeline,
    Quantizer,
    UnsupportedModule,
)

IMAGE, SEQUENCE = (2, 3, 8, 8), (2, 5, 16)


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(width_in: int, width_out: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, padding=1, **options)


def between(change: Callable[[Tensor], Tensor], read: int = 16, made: int = 16) -> Callable[[], Net]:
    """A network that changes the `made` channels of a convolution into `read` channels of the next."""
    return lambda: Net(
        lambda net, x: net.d(F.relu(net.c(change(net.b(F.relu(net.a(x))))))),
        a=conv(3, 16),
        b=conv(16, made),
        c=conv(read, 32),
        d=conv(32, 3),
    )


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


def pixel_shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


def attention(net: Any, x: Tensor) -> Tensor:
    x = net.body(x)
    q, k, v = (layer(x).view(*x.shape[:2], 4, -1).transpose(1, 2) for layer in (net.q, net.k, net.v))
    mixed = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1) @ v
    return net.rgb(F.relu(net.wide(x + net.out(mixed.transpose(1, 2).flatten(2)))))


def fused_attention(net: Any, x: Tensor) -> Tensor:
    x = net.body(x)
    q, k, v = net.qkv(x).view(*x.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v)
    return net.rgb(F.relu(net.wide(x + net.out(mixed.transpose(1, 2).flatten(2)))))


def attentive(forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> Net:
    wide, rgb = nn.Linear(32, 64), nn.Linear(64, 3)
    return Net(forward, body=nn.Linear(16, 32), **layers, out=nn.Linear(32, 32), wide=wide, rgb=rgb)


def window_attention(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    n, c, h, w = x.shape
    tokens = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    q, k, v = net.qkv(tokens).reshape(len(tokens), 16, 3, 2, -1).permute(2, 0, 3, 1, 4)
    tokens = tokens + net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    tokens = tokens + net.fc2(F.gelu(net.fc1(tokens)))
    return net.d(tokens.view(n, h // 4, w // 4, 4, 4, -1).permute(0, 5, 1, 3, 2, 4).reshape(n, -1, h, w))


def sagan(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.a(x))
    n, _, h, w = x.shape
    q, k, v = (layer(x).view(n, -1, h * w) for layer in (net.q, net.k, net.v))
    mixed = (v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)).view(n, -1, h, w)
    return net.e(F.relu(net.d(net.gain * mixed + x)))


def with_gain(net: nn.Module) -> nn.Module:
    net.gain = nn.Parameter(torch.zeros(1))
    return net


def adain(dims: tuple[int, ...]) -> Callable[[], Net]:
    def forward(net: Any, x: Tensor) -> Tensor:
        style = net.style(x.flatten(1)[:, :8]).view(len(x), *dims, 1, 1)
        gain, bias = style.unbind(dims.index(2) + 1)
        return net.d(F.relu(net.c(net.norm(net.a(x)) * (1 + gain) + bias)))

    norm = nn.InstanceNorm2d(16)
    return lambda: Net(forward, a=conv(3, 16), style=nn.Linear(8, 32), norm=norm, c=conv(16, 32), d=conv(32, 3))


def film(net: Any, x: Tensor) -> Tensor:
    gain, bias = net.style(x.flatten(1)[:, :8])[:, :, None, None].chunk(2, 1)
    return net.c(F.relu(net.a(x) * (1 + gain) + bias))


def spade(net: Any, x: Tensor) -> Tensor:
    shared = F.relu(net.shared(x))
    return net.d(F.relu(net.norm(net.a(x)) * (1 + net.gain(shared)) + net.bias(shared)))


def squeezed(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.a(x))
    return net.d(x * net.up(F.relu(net.down(x.mean((2, 3))))).sigmoid()[:, :, None, None])


def halves(net: Any, x: Tensor) -> Tensor:
    first, second = net.a(x).chunk(2, 1)
    return net.d(F.relu(net.b(first)) + net.c(second))


def crossed(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.a(x))
    n, c, h, w = x.shape
    return net.d(F.relu(net.c(net.b(x) + x.view(n, c // 2, 2, h, w).flip(2).view(n, c, h, w))))


@dataclass(frozen=True)
class Case:
    """A network, the layers whose every second channel is dead, and those that are to keep their channels."""

    build: Callable[[], nn.Module]
    dead: tuple[str, ...] = ("b",)
    kept: tuple[str, ...] = ()
    shape: tuple[int, ...] = IMAGE


CASES = {
    "nothing": Case(between(lambda x: x)),
    "channel shuffle by view": Case(between(shuffled), kept=("b",)),
    "channel shuffle": Case(between(lambda x: F.channel_shuffle(x, 4)), kept=("b",)),
    "flip": Case(between(lambda x: x.flip(1)), kept=("b",)),
    "roll": Case(between(lambda x: x.roll(1, 1)), kept=("b",)),
    "indexed": Case(between(lambda x: x[:, torch.arange(15, -1, -1)]), kept=("b",)),
    "concat": Case(between(lambda x: torch.cat([x, -x], 1), 32)),
    "concat with flip": Case(between(lambda x: torch.cat([x, x.flip(1)], 1), 32), kept=("b",)),
    "repeat": Case(between(lambda x: x.repeat(1, 2, 1, 1), 32), kept=("b",)),
    "repeat interleave": Case(between(lambda x: x.repeat_interleave(2, 1), 32), kept=("b",)),
    "glu": Case(between(lambda x: F.glu(x, 1), 16, 32), kept=("b",)),
    "chunk gate": Case(between(lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), 16, 32)),
    "slice gate": Case(between(lambda x: x[:, :16] * x[:, 16:].sigmoid(), 16, 32), kept=("b",)),
    "maxout": Case(between(lambda x: x.view(len(x), 16, 2, *x.shape[2:]).amax(2), 16, 32), kept=("b",)),
    "pixel shuffle": Case(between(lambda x: F.pixel_shuffle(x, 2), 16, 64), kept=("b",)),
    "pixel shuffle by view": Case(between(pixel_shuffled, 16, 64), kept=("b",)),
    "pixel unshuffle": Case(between(lambda x: F.pixel_unshuffle(x, 2), 64), kept=("b",)),
    "noise": Case(between(lambda x: x + 0 * torch.randn_like(x))),
    "residual of a view": Case(
        lambda: Net(crossed, a=conv(3, 16), b=conv(16, 16), c=conv(16, 32), d=conv(32, 3)), ("a", "b"), ("a", "b")
    ),
    "heads": Case(
        lambda: attentive(attention, q=nn.Linear(32, 32), k=nn.Linear(32, 32), v=nn.Linear(32, 32)),
        ("q", "k", "v"),
        shape=SEQUENCE,
    ),
    "fused heads": Case(lambda: attentive(fused_attention, qkv=nn.Linear(32, 96)), ("qkv",), ("qkv",), SEQUENCE),
    "window attention": Case(
        lambda: Net(
            window_attention,
            a=conv(3, 16),
            qkv=nn.Linear(16, 48),
            out=nn.Linear(16, 16),
            fc1=nn.Linear(16, 32),
            fc2=nn.Linear(32, 16),
            d=conv(16, 3),
        ),
        ("fc1",),
        ("qkv",),
    ),
    "self-attention with a gain of zero": Case(
        lambda: with_gain(
            Net(
                sagan,
                a=conv(3, 32),
                q=nn.Conv2d(32, 4, 1),
                k=nn.Conv2d(32, 4, 1),
                v=nn.Conv2d(32, 32, 1),
                d=conv(32, 32),
                e=conv(32, 3),
            )
        ),
        ("d",),
    ),
    "adain, gains first": Case(adain((2, -1)), ("a",), ("a", "style")),
    "adain, in turns": Case(adain((-1, 2)), ()),
    "film": Case(lambda: Net(film, a=conv(3, 16), style=nn.Linear(8, 32), c=conv(16, 3)), ("a", "style")),
    "spade": Case(
        lambda: Net(
            spade,
            a=conv(3, 16),
            norm=nn.BatchNorm2d(16, affine=False),
            shared=conv(3, 8),
            gain=conv(8, 16),
            bias=conv(8, 16),
            d=conv(16, 3),
        ),
        ("a", "gain", "bias", "shared"),
    ),
    "squeeze and excite": Case(
        lambda: Net(squeezed, a=conv(3, 16), down=nn.Linear(16, 4), up=nn.Linear(4, 16), d=conv(16, 3)), ("a", "up")
    ),
    "two halves": Case(lambda: Net(halves, a=conv(3, 32), b=conv(16, 16), c=conv(16, 16), d=conv(16, 3)), ("a",)),
}


def own_weights(group: Any) -> Tensor:
    """Score rows by the weights that make them."""
    scores = torch.zeros(len(group[0].idxs))
    for item in group:
        layer = item.dep.target.module
        if item.dep.handler.__name__ == "prune_out_channels" and isinstance(layer, nn.Linear | nn.Conv2d):
            weight = layer.weight.detach().abs().flatten(1).sum(1)[item.idxs]
            scores.index_add_(0, torch.tensor(item.root_idxs), weight)
    return scores


def notes(result: CompressedModel) -> dict[str, str]:
    return {row.name: row.note for row in result.report.layers}


@pytest.mark.parametrize("name", CASES)
def test_dead_channels_can_go_and_the_output_stays(name: str) -> None:
    case = CASES[name]
    model, x = case.build().eval(), torch.randn(case.shape)
    with torch.no_grad():
        for layer in map(model.get_submodule, case.dead):
            layer.weight[::2], layer.bias[::2] = 0, 0
    layers = [layer for layer, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    others = tuple(layer for layer in layers if layer not in case.dead)
    pruner = ChannelPruner(0.5, importance=own_weights, exclude=others, min_effect=0)
    result = pruner.compress(model, (x,))
    reasons = notes(result)
    for layer in case.kept:
        if layer in case.dead:
            assert reasons[layer].startswith("output channels kept: ")
    for layer in set(case.dead) - set(case.kept):
        left = result.model.get_submodule(layer).weight
        assert len(left) == len(model.get_submodule(layer).weight) / 2
        assert left.flatten(1).any(1).all()
    torch.testing.assert_close(result.model(x), model(x), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_what_is_pruned_is_the_model_with_zeros_in_its_place(name: str) -> None:
    """Whatever was removed: the float copy with the same rows at zero gives the same output."""
    case = CASES[name]
    model, x = case.build().eval(), torch.randn(case.shape)
    result = ChannelPruner(0.3).compress(model, (x,))
    zeros = case.build().eval()
    zeros.load_state_dict(model.state_dict())
    for layer, small in result.model.named_modules():
        if isinstance(small, nn.Linear | nn.Conv2d):
            full = zeros.get_submodule(layer)
            stays = [row for row in range(len(full.bias)) if any(torch.isclose(full.bias[row], small.bias))]
            gone = [row for row in range(len(full.bias)) if row not in stays]
            with torch.no_grad():
                full.weight[gone], full.bias[gone] = 0, 0
    torch.testing.assert_close(result.model(x), zeros(x), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("channels", "side"), [(24, 4), (24, 8), (7, 3)])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3, 0.5, 0.9])
def test_a_share_of_the_channels_behind_a_linear_layer_goes(channels: int, side: int, ratio: float) -> None:
    model = Net(
        lambda net, z: net.d(F.relu(net.c(F.relu(net.norm(net.fc(z).view(len(z), -1, side, side)))))),
        fc=nn.Linear(LATENT, channels * side**2),
        norm=nn.BatchNorm2d(channels),
        c=conv(channels, 10),
        d=conv(10, 3),
    ).eval()
    small = ChannelPruner(ratio).compress(model, (torch.randn(2, LATENT),)).model
    left = {10: {0.05: 9, 0.1: 9, 0.2: 8, 0.3: 7, 0.5: 5, 0.9: 1}[ratio]}
    left |= {24: {0.05: 22, 0.1: 21, 0.2: 19, 0.3: 16, 0.5: 12, 0.9: 2}[ratio]}
    left |= {7: {0.05: 6, 0.1: 6, 0.2: 5, 0.3: 4, 0.5: 3, 0.9: 1}[ratio]}
    assert small.fc.out_features == left[channels] * side**2
    assert (small.norm.num_features, small.c.out_channels) == (left[channels], left[10])


def test_a_global_ranking_removes_the_share_of_all_channels_together() -> None:
    model = nn.Sequential(conv(3, 20), nn.ReLU(), conv(20, 12), nn.ReLU(), conv(12, 3))
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)
    for ratio in (0.1, 0.3, 0.5):
        small = ChannelPruner(ratio, scope="global", importance=importance).compress(model, (torch.randn(IMAGE),)).model
        assert small[0].out_channels + small[2].out_channels == int(32 * (1 - ratio))


@pytest.mark.parametrize("width", [1, 2])
def test_a_gate_of_one_channel_does_not_keep_what_it_multiplies(width: int) -> None:
    model = Net(
        lambda net, x: net.d(F.relu(net.a(x)) * net.gate(F.relu(net.b(x))).sigmoid()[:, :1]),
        a=conv(3, 16),
        b=conv(3, 16),
        gate=conv(16, width),
        d=conv(16, 3),
    )
    small = ChannelPruner(0.5, exclude=("gate",)).compress(model, (torch.randn(IMAGE),)).model
    assert (small.b.out_channels, small.gate.out_channels) == (8, width)
    assert small.a.out_channels == (8 if width == 1 else 16) or width == 2


@pytest.mark.parametrize(
    "mixer",
    [
        nn.MultiheadAttention(32, 4, batch_first=True),
        nn.LSTM(32, 32, batch_first=True),
        nn.GRU(32, 32, batch_first=True),
    ],
    ids=["MultiheadAttention", "LSTM", "GRU"],
)
def test_attention_modules_and_recurrent_layers_stay_whole_and_the_rest_is_pruned(mixer: nn.Module) -> None:
    several = isinstance(mixer, nn.MultiheadAttention)
    model = Net(
        lambda net, x: net.rgb(F.relu(net.wide(net.mix(*[net.body(x)] * (3 if several else 1))[0]))),
        body=nn.Linear(16, 32),
        mix=mixer,
        wide=nn.Linear(32, 256),
        rgb=nn.Linear(256, 64),
    ).eval()
    with pytest.raises(UnsupportedModule, match="not covered: mix"):
        ChannelPruner(0.5).compress(model, (torch.randn(SEQUENCE),))
    result = ChannelPruner(0.5, min_coverage=0.5).compress(model, (torch.randn(SEQUENCE),))
    assert (result.model.body.out_features, result.model.wide.out_features) == (32, 128)
    assert notes(result)["mix"] == f"kept whole: a {type(mixer).__name__}"


def test_every_layer_that_kept_its_size_has_one_reason() -> None:
    model = Net(
        lambda net, x: net.d(net.n(net.c(x).flip(1))),
        c=conv(3, 16),
        n=nn.BatchNorm2d(16),
        d=nn.Sequential(conv(16, 3), conv(3, 64), conv(64, 3)),
        unused=conv(3, 5),
    ).eval()
    found = notes(ChannelPruner(0.5).compress(model, (torch.randn(IMAGE),)))
    assert found["n"] == "kept: the channels of its input stay"
    assert found["d.2"] == "output channels kept: model output"
    assert found["unused"] == "output channels kept: not met in the trace"
    assert found["c"].startswith("output channels kept: forward does not carry its channels to other layers one by one")
    assert found["d.1"] == "pruned"


def test_shared_weights_that_lose_the_same_channels_stay_shared() -> None:
    model = Net(
        lambda net, x: net.out(F.relu(net.first(x) + net.second(-x))),
        first=nn.Linear(16, 32),
        second=nn.Linear(16, 32),
        out=nn.Linear(32, 4),
    )
    model.second.weight = model.first.weight
    small = ChannelPruner(0.5).compress(model, (torch.randn(4, 16),)).model
    assert small.first.weight.shape == (16, 16)
    assert small.second.weight is small.first.weight


def test_shared_weights_that_would_lose_different_channels_keep_them() -> None:
    model = Net(
        lambda net, x: net.out(F.relu(net.wide(net.second(F.relu(net.first(x)))))),
        first=nn.Linear(16, 16),
        second=nn.Linear(16, 16),
        wide=nn.Linear(16, 64),
        out=nn.Linear(64, 4),
    )
    model.second.weight = model.first.weight
    result = ChannelPruner(0.5).compress(model, (torch.randn(4, 16),))
    assert result.model.second.weight is result.model.first.weight
    assert result.model.wide.out_features == 32
    assert "the tied weights" in notes(result)["second"]


def test_hessian_importance_ranks_as_in_torch_pruning_and_leaves_gradients_alone() -> None:
    model, z = DCGAN().eval(), torch.randn(4, LATENT)
    importance = tp.importance.GroupHessianImportance()
    for i in range(3):
        model.zero_grad()
        model(z)[i].square().sum().backward()
        importance.accumulate_grad(model)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    result = ChannelPruner(0.5, importance=importance).compress(model, (z,))
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    alone = tp.pruner.BasePruner(
        model, z, importance=importance, pruning_ratio=0.5, ignored_layers=[model.layers[6]], global_pruning=False
    )
    alone.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), result.model.parameters(), strict=True))


def test_importances_that_hold_parameters_of_another_model_are_refused() -> None:
    model, other, z = DCGAN().eval(), DCGAN().eval(), torch.randn(4, LATENT)
    importance = tp.importance.GroupHessianImportance()
    other(z).square().sum().backward()
    importance.accumulate_grad(other)
    with pytest.raises(
        CompressionError, match="GroupHessianImportance holds parameters that are not those of the model"
    ):
        ChannelPruner(0.5, importance=importance).compress(model, (z,))
    weight = model.layers[0].weight
    with pytest.raises(CompressionError, match="holds parameters of a model, of which a copy is pruned"):
        ChannelPruner(0.5, importance=lambda group: weight.abs().sum() * torch.ones(len(group[0].idxs))).compress(
            model, (z,)
        )


@pytest.mark.parametrize(
    ("importance", "text"),
    [
        (lambda group: None, "returned None for every group"),
        (lambda group: torch.ones(3), r"must return a tensor of \d+ scores, .* got \(3,\)"),
        (lambda group: [1.0], "got list"),
        (lambda group: torch.full((len(group[0].idxs),), torch.nan), "returned NaN"),
    ],
)
def test_importances_without_usable_scores_are_named(importance: Any, text: str) -> None:
    with pytest.raises(CompressionError, match=f"importance {text}|importance .*{text}"):
        ChannelPruner(0.5, importance=importance).compress(DCGAN().eval(), (torch.randn(4, LATENT),))


def test_vectors_and_parameters_without_channels_are_declared() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        blur = F.conv2d(x, (net.taps[:, None] * net.taps).expand(3, 1, -1, -1), groups=3, padding=1)
        return net.d(F.relu(net.c(blur)) * net.gain[:, None, None])

    model = Net(forward, c=conv(3, 16), d=conv(16, 3))
    model.taps, model.gain = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(16))
    with pytest.raises(UnsupportedModule, match=r"or None for parameters that have none, .*param_dims=\{'taps': 0\}"):
        ChannelPruner(0.5).compress(model, (torch.randn(IMAGE),))
    with pytest.raises(CompressionError, match=r"gain has dimension 0 .*; got 1"):
        ChannelPruner(0.5, param_dims={"taps": None, "gain": 1}).compress(model, (torch.randn(IMAGE),))
    small = ChannelPruner(0.5, param_dims={"taps": None, "ga*": 0}).compress(model, (torch.randn(IMAGE),)).model
    assert (small.taps.shape, small.gain.shape) == ((3,), (8,))


def test_layers_derived_from_standard_ones_are_named_with_their_class() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, 2 * self.weight, self.bias)

    model = nn.Sequential(conv(3, 8), Doubled(8, 8, 1), conv(8, 64), conv(64, 3))
    with pytest.raises(UnsupportedModule, match=r"1\.weight .*Doubled is derived from nn\.Conv2d"):
        ChannelPruner(0.5).compress(model, (torch.randn(IMAGE),))
    result = ChannelPruner(0.5, param_dims={"1.*": None}).compress(model, (torch.randn(IMAGE),))
    assert (result.model[0].out_channels, result.model[2].out_channels) == (8, 32)
    assert "Doubled, which stays whole" in notes(result)["0"]


def test_a_stage_with_nothing_to_do_does_not_end_the_pipeline(tmp_path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 3))

    idle = Clipper(Clip("threshold", 100.0))
    result = Pipeline(ChannelPruner(0.5), idle, Quantizer(8)).compress(build(), (torch.randn(IMAGE),))
    assert result.report.name == "prune 0.5 + quantize W8"
    assert [step["compressor"] for step in result.recipe.steps] == ["ChannelPruner", "Quantizer"]
    assert result.report.notes[0].startswith("skipped: clip threshold 100.0: ")
    assert "skipped: clip threshold" in str(result.report)
    result.save(tmp_path / "m.safetensors")
    assert CompressedModel.load(tmp_path / "m.safetensors", build).report == result.report
    with pytest.raises(NothingCompressed, match=r"clip threshold 100\.0: .*; clip threshold 100\.0"):
        Pipeline(idle, idle).compress(build(), (torch.randn(IMAGE),))


class DenseBlocks(nn.Module):
    """Nested residual dense blocks, as the 23 of ESRGAN: paths through them double with each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.head, self.tail = conv(3, 8), conv(8, 3)
        self.grown = nn.ModuleList(conv(8, 4) for _ in range(2 * count))
        self.merged = nn.ModuleList(conv(12, 8) for _ in range(2 * count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for first in range(0, len(self.grown), 2):
            inner = x
            for block in (first, first + 1):
                grown = F.leaky_relu(self.grown[block](inner), 0.2)
                inner = inner + 0.2 * self.merged[block](torch.cat([inner, grown], 1))
            x = x + 0.2 * inner
        return self.tail(x)


def test_deep_nested_dense_blocks_are_pruned_like_shallow_ones() -> None:
    inputs = (torch.randn(IMAGE),)
    shallow, deep = (ChannelPruner(0.25).compress(DenseBlocks(count).eval(), inputs).model for count in (2, 24))
    assert [layer.out_channels for layer in deep.grown] == [3] * 48
    assert {layer.in_channels for layer in deep.merged} == {layer.in_channels for layer in shallow.merged} == {9}
    assert deep.head.out_channels == 6
