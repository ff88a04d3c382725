"""Models that others wrote: what they do that compressors must get right, or refuse with the way out."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors import (
    ChannelPruner,
    Clip,
    Clipper,
    CompressedModel,
    CompressionError,
    ContractBroken,
    Quantizer,
    UnsupportedModule,
    export_onnx,
)
from compressors.sparse import SparseConfig, SparseTraining, hand_over
from compressors.sparse.balance import measured_scores
from compressors.sparse.cost import ForwardCost

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def seeded(create: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create().eval()


def loaded(result: CompressedModel, create: Callable[[], nn.Module], path: Path) -> CompressedModel:
    result.save(path / "model.safetensors")
    return CompressedModel.load(path / "model.safetensors", create)


def notes(result: CompressedModel) -> dict[str, str]:
    return {row.name: row.note for row in result.report.layers}


class TwoNames(nn.Module):
    """One layer under three names: two in a list, one in a dict."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(8, 8)
        self.body = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 8), layer)
        self.by_name = nn.ModuleDict({"again": layer})

    def forward(self, x: Tensor) -> Tensor:
        return self.by_name["again"](self.body(x))


class TiedText(nn.Module):
    """The output layer has the weight of the embedding, and a bare parameter too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 20)
        self.out.weight = self.embedding.weight
        self.table = self.embedding.weight

    def forward(self, i: Tensor) -> Tensor:
        return self.out(self.embedding(i)) + self.embedding(i) @ self.table.T


class TiedConvolutions(nn.Module):
    """A decoder that has the weight of its encoder, with channels along another dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Conv2d(3, 6, 3, bias=False), nn.ConvTranspose2d(6, 3, 3, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Buffered(nn.Module):
    """Its outputs depend on a buffer that the state dict leaves out."""

    def __init__(self, scale: Tensor | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("scale", torch.ones(8) if scale is None else scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


SHARED: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "one layer under three names": (TwoNames, (X,)),
    "tied text model": (TiedText, (torch.arange(6),)),
    "tied convolutions": (TiedConvolutions, (X.reshape(1, 1, 4, 8).expand(2, 3, 4, 8),)),
    "half precision": (lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).half(), (X.half(),)),
    "bfloat16": (lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).bfloat16(), (X.bfloat16(),)),
    "double": (lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).double(), (X.double(),)),
}


@pytest.mark.parametrize(
    "compressor", [Quantizer(4), Quantizer(3, act_bits=8, symmetric=False), Clipper(Clip("percentile", 90))]
)
@pytest.mark.parametrize("name", SHARED)
def test_a_saved_model_loads_to_the_same_outputs(name: str, compressor: Any, tmp_path: Path) -> None:
    create, inputs = SHARED[name]
    result = compressor.compress(seeded(create), inputs, [inputs])
    again = loaded(result, create, tmp_path)
    with torch.no_grad():
        assert torch.equal(again.model(*inputs), result.model(*inputs))


def test_a_buffer_that_the_state_dict_leaves_out_is_in_the_file(tmp_path: Path) -> None:
    result = Quantizer(8).compress(Buffered(torch.arange(8.0)), (X,))
    assert torch.equal(loaded(result, Buffered, tmp_path).model(X), result.model(X))


def test_hooks_on_the_state_dict_take_nothing_out_of_the_file(tmp_path: Path) -> None:
    class Renaming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self._register_state_dict_hook(rename_and_drop)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    def rename_and_drop(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for key in list(state):
            value = state.pop(key)
            if key.startswith("a"):
                state[f"module.{key}"] = value

    result = Quantizer(4, act_bits=8).compress(seeded(Renaming), (X,), [(X,)])
    assert result.report.before.bytes == 2 * 72 * 4
    assert torch.equal(loaded(result, Renaming, tmp_path).model(X), result.model(X))


def test_a_factory_of_another_dtype_is_refused(tmp_path: Path) -> None:
    result = Quantizer(8).compress(nn.Sequential(nn.Linear(8, 8)).half(), (X.half(),))
    with pytest.raises(CompressionError, match=r"0\.bias has dtype torch.float32, in the file torch.float16"):
        loaded(result, lambda: nn.Sequential(nn.Linear(8, 8)), tmp_path)


def test_a_factory_that_does_not_share_the_weight_is_refused(tmp_path: Path) -> None:
    def untied() -> nn.Module:
        model = TiedConvolutions()
        model.decode.weight = nn.Parameter(model.decode.weight.clone())
        return model

    result = Quantizer(8).compress(TiedConvolutions(), SHARED["tied convolutions"][1])
    with pytest.raises(CompressionError, match=r"lacks \['decode\.weight'\].*must be shared in both"):
        loaded(result, untied, tmp_path)


def test_state_that_is_no_tensor_is_named_before_it_is_lost(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"steps": 3}

        def set_extra_state(self, state: Any) -> None: ...

    result = ChannelPruner(0).compress(nn.Sequential(nn.Linear(8, 90), nn.Linear(90, 8)), (X,))
    result.model.append(Extra(1, 1))
    with pytest.raises(UnsupportedModule, match=r"2: extra state, .*; keep it in a buffer"):
        result.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_tied_weight_is_counted_once_and_stays_tied() -> None:
    model, inputs = seeded(TiedText), SHARED["tied text model"][1]
    result = Quantizer(4, per_channel=True).compress(model, inputs)
    assert result.model.out.weight is result.model.embedding.weight is result.model.table
    assert result.report.before.parameters == 20 * 8 + 20
    assert result.report.coverage == 1
    # 160 codes of 4 bits, a scale for each of the two layers, and 20 biases.
    assert result.report.after.bytes == 80 + 2 * 4 + 20 * 4
    assert "counted there" in notes(result)["embedding"] + notes(result)["out"]
    assert len(result.model.out.weight.unique()) <= 15


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (Quantizer(4, exclude=("out",)), "exclude: embedding, out share one weight: exclude all or none"),
        (Quantizer({"out": 8, "*": 4}), "bits: embedding, out share one weight: give them the same bits"),
        (Clipper(exclude=("out",)), "exclude: embedding, out share one weight"),
    ],
)
def test_layers_that_share_a_weight_are_treated_alike(quantizer: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        quantizer.compress(TiedText(), SHARED["tied text model"][1])


def test_a_layer_that_forward_reaches_by_a_plain_list_is_quantized() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
            self.order = list(self.layers)[::-1]

        def forward(self, x: Tensor) -> Tensor:
            return self.order[0](self.order[1](x))

    result = Quantizer(2, clip="max").compress(seeded(Listed), (X,))
    weights = [layer.weight for layer in result.model.order]
    assert all(len(row.unique()) <= 3 for weight in weights for row in weight)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db < 15


def test_hooks_of_a_quantized_layer_still_run() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8)))
    model[0].register_forward_hook(lambda layer, inputs, output: output + 100)
    model[0].register_forward_pre_hook(lambda layer, inputs, keywords: ((inputs[0] * 2,), keywords), with_kwargs=True)
    model[0].register_full_backward_hook(lambda layer, into, out: (into[0] * 0,))
    result = Quantizer(8).compress(model, (X,))
    with torch.no_grad():
        assert float(result.model(X).mean()) == pytest.approx(float(model(X).mean()), abs=0.05)
    x = X.clone().requires_grad_()
    result.model(x).sum().backward()
    assert not x.grad.any()


def test_a_hook_can_be_removed_by_its_handle_after_quantizing_a_copy() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8)))
    result = Quantizer(8).compress(model, (X,))
    handle = result.model[0].register_forward_hook(lambda layer, inputs, output: output + 100)
    handle.remove()
    assert abs(float(result.model(X).mean())) < 10


def test_layers_can_be_called_by_keyword() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.embedding = nn.Linear(8, 8), nn.Embedding(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x) + self.embedding(input=torch.arange(4))

    assert Quantizer(8, act_bits=8).compress(seeded(Keywords), (X,), [(X,)]).report.sqnr_db > 30


def test_what_a_layer_holds_besides_its_weight_is_kept(tmp_path: Path) -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.layer.gain = nn.Parameter(torch.full((8,), 3.0))
            self.layer.register_buffer("shift", torch.ones(8))
            self.layer.after, self.layer.power = nn.Linear(8, 8), 2

        def forward(self, x: Tensor) -> Tensor:
            layer = self.layer
            return (layer.after(layer(x)) * layer.gain + layer.shift) ** layer.power

    model = seeded(Gained)
    model.layer.weight.requires_grad_(False)
    result = Quantizer(8).compress(model, (X,))
    assert result.report.sqnr_db > 25
    assert not result.model.layer.weight.requires_grad
    assert torch.equal(loaded(result, Gained, tmp_path).model(X), result.model(X))


class Overwriting:
    def __call__(self, layer: nn.Module, inputs: Any) -> None:
        layer.weight.data = layer.full.data * 2


def test_a_hook_that_overwrites_the_quantized_weight_is_found() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].full = nn.Parameter(model[0].weight.detach().clone())
    model[0].register_forward_pre_hook(Overwriting())
    with pytest.raises(ContractBroken, match=r"0: a forward pass overwrites its weight.*exclude=\('0',\)"):
        Quantizer(4).compress(model, (X,))


class Equalized:
    def __call__(self, layer: nn.Module, inputs: Any) -> None:
        layer.weight = layer.weight_orig * 2


def equalized() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.weight_orig = nn.Parameter(layer._parameters.pop("weight").detach())
    layer.register_forward_pre_hook(Equalized())
    model = nn.Sequential(layer)
    model(X)
    return model


def replaced_forward() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8))
    original = model[0].forward
    model[0].forward = lambda x: original(x)
    return model


class InPlainList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 8)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class Asserting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 9
        return self.layer(x)


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.memory = nn.MultiheadAttention(8, 2), nn.LSTM(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(self.attention(x, x, x)[0])[0]


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def with_a_lock() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8))
    model.lock = threading.Lock()
    return model


class Pipe:
    """As of diffusers: no module, but it holds one."""

    def __init__(self) -> None:
        self.unet = nn.Linear(8, 8)


@pytest.mark.parametrize("compressor", [Quantizer(8), Clipper(), ChannelPruner(0.5)])
@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: torch.jit.trace(nn.Linear(8, 8), X), "model is TorchScript.*pass the Python module"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(8, 8))), "model's layer 0 is TorchScript"),
        (
            lambda: torch.compile(nn.Sequential(nn.Linear(8, 8))),
            r"compiled by torch\.compile: compress model\._orig_mod",
        ),
        (lambda: nn.DataParallel(nn.Sequential(nn.Linear(8, 8))), r"wrapped in DataParallel: pass model\.module"),
        (lambda: nn.Sequential(nn.LazyLinear(8)), r"layer 0 \(LazyLinear\) has no weights yet: run the model once"),
        (lambda: nn.Sequential(nn.Linear(8, 8, device="meta")), "layer 0 is on the meta device"),
        (lambda: lambda z: z, "got the function <lambda>; write a torch.nn.Module"),
        (lambda: Asserting, "got the class Asserting; pass an instance of it"),
        (Pipe, "got Pipe; it holds the modules unet: pass the one"),
        (with_a_lock, "model cannot be copied: TypeError: .*lock.*take out of it"),
        (
            Asserting,
            r"does not run on example_inputs: AssertionError.*models.py, line \d+, in forward",
        ),
        (InPlainList, r"model has no parameters: .*nn\.ModuleList"),
        (Sequence, r"attention: MultiheadAttention: .*scaled_dot_product_attention.*memory: LSTM: .*nn\.Linear"),
        (lambda: nn.Sequential(Scaled(8, 8)), r"0: Scaled is a subclass of nn\.Linear.*module around it"),
    ],
    ids=lambda value: "" if callable(value) else str(value)[:25],
)
def test_a_model_that_cannot_be_treated_is_refused_with_the_way_out(create: Any, message: str, compressor: Any) -> None:
    inputs = (X[None],) if create is Sequence else (X,)
    with pytest.raises(CompressionError, match=message):
        compressor.compress(create(), inputs)


@pytest.mark.parametrize("compressor", [Quantizer(8), Clipper()])
@pytest.mark.parametrize(
    ("create", "message"),
    [
        (equalized, "0: its weight is no parameter but computed by the forward pre-hook Equalized from .*weight_orig"),
        (replaced_forward, "0: its forward was replaced on the object"),
    ],
)
def test_a_layer_that_computes_something_else_is_refused(create: Any, message: str, compressor: Any) -> None:
    with pytest.raises(UnsupportedModule, match=message):
        compressor.compress(create(), (X,))


@dataclass
class Output:
    sample: Tensor
    extra: Any = None


class Pair(NamedTuple):
    sample: Tensor
    extra: Any = None


@pytest.mark.parametrize("kind", [Output, Pair, lambda x: {"sample": [x]}], ids=["dataclass", "named tuple", "dict"])
def test_outputs_in_containers_are_compared(kind: Any) -> None:
    class Boxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            return kind(self.layer(x))

    assert 15 < Quantizer(4).compress(seeded(Boxed), (X,)).report.sqnr_db < 40


def test_the_error_of_complex_outputs_counts_both_parts() -> None:
    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.complex(torch.ones_like(x), self.layer(x))

    assert Quantizer(4).compress(seeded(Wave), (X,)).report.sqnr_db is not None


def test_a_generator_with_a_random_generator_and_computed_tensors_is_copied() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.random = nn.Linear(8, 8), torch.Generator().manual_seed(3)
            self.cache = {"last": [self.layer.weight * 2]}

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    model = Drawing()
    assert Quantizer(8).compress(model, (X,)).model.random.initial_seed() != 0
    assert model.random.get_state().equal(torch.Generator().manual_seed(3).get_state())


class WritesIntoItsInput(nn.Module):
    """On plain, listed and named arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, more: Any) -> Tensor:
        x *= 255
        more["inner"][0].mul_(2)
        return self.layer(x / 255 + more["inner"][0])


def test_inputs_that_forward_writes_into_stay_the_users_own(tmp_path: Path) -> None:
    inputs = (X.clone(), {"inner": [X.clone()]})
    model = seeded(WritesIntoItsInput)
    with torch.no_grad():
        expected = model(X.clone(), {"inner": [X.clone()]})
    options = {"act_bits": 8, "bias_correction": True}
    result = Quantizer(8, **options).compress(model, inputs, [inputs])
    assert torch.equal(inputs[0], X)
    assert torch.equal(inputs[1]["inner"][0], X)
    with torch.no_grad():
        error = result.model(X.clone(), {"inner": [X.clone()]}) - expected
    assert float(error.square().mean().sqrt() / expected.square().mean().sqrt()) < 0.02


def test_export_leaves_its_inputs_as_they_are(tmp_path: Path) -> None:
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x *= 255
            return self.layer(x / 255)

    x = X.clone()
    export_onnx(Quantizer(8).compress(Scaling(), (x,)), tmp_path / "m.onnx", (x,))
    assert torch.equal(x, X)


def test_measuring_the_balance_leaves_latents_and_images_as_they_are() -> None:
    class Scaling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            x *= 255
            return super().forward(x)

    latents, real = X.clone(), X.clone()
    measured_scores(Scaling(8, 8), Scaling(8, 1), (latents,), (real,), torch.zeros(4))
    assert torch.equal(latents, X)
    assert torch.equal(real, X)


class Named(nn.Module):
    """Takes a dict and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, batch: dict[str, Any], strength: float, mask: Tensor) -> Tensor:
        return self.layer(batch["z"][0] * strength) @ mask


def named(size: float, strength: float = 1.0, mask: Tensor | None = None) -> tuple[Any, ...]:
    return {"z": [X * size], "unused": None}, strength, torch.eye(8) if mask is None else mask


def test_calibration_in_dicts_is_joined() -> None:
    model, quantizer = seeded(Named), Quantizer(8, act_bits=8)
    batches = [named(size) for size in (0.1, 1, 10)]
    together = ({"z": [torch.cat([X * size for size in (0.1, 1, 10)])], "unused": None}, 1.0, torch.eye(8))
    joined, whole = (quantizer.compress(model, batches[2], given) for given in (batches, [together]))
    assert torch.equal(joined.model(*batches[2]), whole.model(*batches[2]))
    assert joined.report.sqnr_db > 35


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (named(1, 2.0), r"without batch dimension differs between them: 1\.0, 2\.0"),
        (named(1, mask=torch.ones(8, 8)), r"without batch dimension differs between them: \(8, 8\), \(8, 8\)"),
        (({"z": [X, X], "unused": None}, 1.0, torch.eye(8)), "another structure than example_inputs"),
        (({"w": [X], "unused": None}, 1.0, torch.eye(8)), "another structure than example_inputs"),
    ],
)
def test_calibration_that_cannot_be_joined_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        Quantizer(8, act_bits=8).compress(Named(), named(1), [named(1), batch])


def test_sizes_compare_only_for_inputs_of_one_shape_in_dicts_too() -> None:
    clipped = Clipper(Clip("percentile", 80)).compress(Named(), named(1))
    with pytest.raises(CompressionError, match="example_inputs have shapes"):
        Quantizer(8).compress(clipped, ({"z": [X[:2]], "unused": None}, 1.0, torch.eye(8)))


def test_linear_layers_over_images_get_the_bias_of_their_own_channels() -> None:
    """Channels last, 8 rows and 8 columns of 8 channels: brevitas alone takes the mean of rows."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8)))
    x = torch.rand(16, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    result = Quantizer(2, bias_correction=True).compress(model, (x,), [(x,)])
    error = (result.model(x) - model(x)).detach()
    assert error.mean((0, 1, 2)).abs().max() < 1e-5


def test_layers_that_stay_in_float_say_why() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.scaled = nn.Linear(8, 64), nn.LayerNorm(64), Scaled(64, 2)
            self.gain = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(self.norm(self.a(x))) * self.gain

    found = notes(Quantizer(8, min_coverage=0.5).compress(Mixed(), (X,)))
    assert found == {
        "": "float: parameters of its own, in no standard layer",
        "a": "",
        "norm": "float: has a value per channel",
        "scaled": "float: a subclass of Linear",
    }


def test_inputs_of_a_layer_whose_weight_is_used_without_it_count_as_float() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.called = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.called.forward(F.linear(x, self.used.weight))

    for model, layer in ((Functional(), "used"), (nn.TransformerEncoderLayer(8, 2, 64, batch_first=True), "linear1")):
        inputs = (torch.randn(2, 3, 8),)
        result = Quantizer(8, act_bits=8, min_coverage=0.5).compress(model, inputs, [inputs])
        row = next(row for row in result.report.layers if row.name == layer)
        assert (row.bits, row.act_bits, row.note) == (8, None, "input in float: forward does not call the layer")


def test_quantizing_needs_no_onnx() -> None:
    """As after pip install torch-fidelity-lsh[compress,plots]."""
    code = """
import sys
for name in ("onnx", "onnxoptimizer", "onnxruntime", "onnxscript", "onnx_ir"):
    sys.modules[name] = None
import torch
from compressors import Quantizer
x = (torch.randn(4, 8),)
Quantizer(4, act_bits=8, bias_correction=True).compress(torch.nn.Sequential(torch.nn.Linear(8, 8)), x, [x])
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        matrix = torch.eye(2, 3) + 0 * x.mean((1, 2, 3))[:, None, None]
        grid = F.affine_grid(matrix, [x.shape[0], 3, 8, 8], align_corners=False)
        return self.layer(F.grid_sample(x, grid, align_corners=False))


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("compressor", [Quantizer(8), Clipper(Clip("percentile", 90))])
def test_an_operator_that_needs_a_later_opset_names_it(compressor: Any, tmp_path: Path) -> None:
    result = compressor.compress(Turned(), (IMAGES,))
    with pytest.raises(CompressionError, match=r"affine_grid_generator needs opset=20 or later; got opset=13"):
        export_onnx(result, tmp_path / "m.onnx", (IMAGES,))
    assert list(tmp_path.iterdir()) == []
    export_onnx(result, tmp_path / "m.onnx", (IMAGES,), opset=20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_that_onnxruntime_does_not_compute_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    result = Quantizer(8).compress(nn.Sequential(nn.Linear(8, 8)).to(dtype), (X.to(dtype),))
    with pytest.raises(CompressionError, match=rf"is {dtype}, .*in float32, as in model\.float\(\)"):
        export_onnx(result, tmp_path / "m.onnx", (X.to(dtype),))


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    class Remembering(nn.Module):
        """Adds a number that is another at each call, which tracing makes a constant."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(8, 8), 0

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (1 if torch.jit.is_tracing() else -1)

    with pytest.raises(ContractBroken, match=r"does not compute what the model does.* dB from"):
        export_onnx(Quantizer(8).compress(Remembering(), (X,)), tmp_path / "m.onnx", (X,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compressed": nn.Linear(8, 8)}, "compressed must be a CompressedModel.*got Linear"),
        ({"opset": 12}, "opset must be an integer of at least 13; got 12"),
        ({"opset": 99}, "Unsupported onnx_opset_version: 99"),
        ({"example_inputs": (X, X)}, "does not run on example_inputs: TypeError"),
        ({"example_inputs": (X[:, :3],)}, "does not run on example_inputs: RuntimeError"),
        ({"example_inputs": ({"z": X},)}, "only tensors can be inputs of an ONNX model; item 0 is dict"),
    ],
)
def test_wrong_arguments_of_an_export(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"compressed": Quantizer(8).compress(nn.Sequential(nn.Linear(8, 8)), (X,)), "example_inputs": (X,)}
    with pytest.raises(CompressionError, match=message):
        export_onnx(path=tmp_path / "m.onnx", **{**given, **arguments})


def test_networks_in_data_parallel_are_trained_sparse_as_they_are() -> None:
    generator, discriminator = (nn.DataParallel(nn.Sequential(nn.Linear(8, size))) for size in (8, 1))
    sparse = SparseTraining(generator, discriminator, SparseConfig.static(10, 0.5, balance=None))
    assert sparse.generator is generator.module
    assert int(generator.module[0].weight.count_nonzero()) == 32


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ((lambda z: z, nn.Linear(8, 1)), "generator must be a torch.nn.Module; got the function"),
        ((nn.Linear(8, 8), nn.Linear), "discriminator must be a torch.nn.Module; got the class Linear"),
        ((nn.Sequential(nn.LazyLinear(8)), nn.Linear(8, 1)), "generator's layer 0 .* has no weights yet"),
    ],
)
def test_networks_that_cannot_be_trained_sparse(networks: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        SparseTraining(*networks, SparseConfig.static(10, 0.5))


def test_the_density_counts_a_shared_weight_once() -> None:
    model, inputs = TiedConvolutions(), SHARED["tied convolutions"][1]
    with torch.no_grad():
        model.encode.weight[:3] = 0
    assert hand_over(model, inputs).report.name == "sparse 0.5"


def test_the_cost_of_a_network_that_takes_a_dict_is_per_sample() -> None:
    assert ForwardCost(Named(), named(1)).samples == 4
    with pytest.raises(CompressionError, match="inputs must hold a tensor whose first dimension is the batch"):
        ForwardCost(nn.Sequential(nn.Identity()), (torch.tensor(1.0),))
