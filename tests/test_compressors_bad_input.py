"""Each mistake gets one error that names the argument, what was given and what is accepted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from generators import DCGAN, LATENT
from torch import Tensor, nn

from compressors import (
    ChannelPruner,
    Clip,
    Clipper,
    CompressionError,
    ContractBroken,
    NothingCompressed,
    Pipeline,
    Quantizer,
    UnsupportedModule,
    export_onnx,
)

Z = (torch.randn(2, LATENT, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: Quantizer(1), "bits must be an integer from 2 to 8; got 1"),
        (lambda: Quantizer(9), "bits must be .* got 9"),
        (lambda: Quantizer(4.0), "bits must be .* got 4.0"),
        (lambda: Quantizer(True), "bits must be .* got True"),
        (lambda: Quantizer({"*": 16}), "bits must be .* got 16"),
        (lambda: Quantizer(8, act_bits=1), "act_bits must be .* got 1"),
        (lambda: Quantizer(8, exclude="rgb"), "exclude must be a tuple of layer names or glob patterns; got 'rgb'"),
        (lambda: Quantizer(8, min_coverage=90), "min_coverage must be a number from 0 to 1; got 90"),
        (lambda: Quantizer(8, clip="kl"), "clip must be one of max, percentile, .* got 'kl'"),
        (lambda: Quantizer(8, clip=-1.0), "'threshold' takes a number above 0 .* got -1.0"),
        (lambda: Quantizer(8, clip="sigma", symmetric=False), "'sigma' gives a range .* needs symmetric=True"),
        (lambda: Clip("percentile", 0.99), "'percentile' takes a number above 50 and below 100; got 0.99"),
        (lambda: Clip("mse", 3), "'mse' takes no value; got 3"),
        (lambda: Clip("sigma", len), "'sigma' takes a number; got"),
        (lambda: Clip("threshold"), "'threshold' takes a number .* got None"),
        (lambda: Clipper("max"), "clip='max' keeps every weight"),
        (lambda: Clipper(bits=0), "bits must be .* got 0"),
        (lambda: ChannelPruner(1), r"ratio must be a number from 0 to 1 \(exclusive\); got 1"),
        (lambda: ChannelPruner(-0.1), "ratio must be .* got -0.1"),
        (lambda: ChannelPruner("half"), "ratio must be .* got 'half'"),
        (lambda: ChannelPruner(float("nan")), "ratio must be .* got nan"),
        (lambda: ChannelPruner(0.5, importance="l1"), "importance must be one of fisher, latent, l2, lamp; got 'l1'"),
        (lambda: ChannelPruner(0.5, scope="all"), "scope must be one of local, global; got 'all'"),
        (lambda: ChannelPruner(0.5, round_to=0), "round_to must be an integer of at least 1; got 0"),
        (lambda: ChannelPruner(0.5, round_to=True), "round_to must be an integer of at least 1; got True"),
        (lambda: ChannelPruner(0.5, param_dims=None), "param_dims must be a mapping .* got None"),
        (lambda: ChannelPruner(0.5, exclude="rgb"), "exclude must be a tuple .* got 'rgb'"),
        (lambda: Pipeline(), "stages must be one or more compressors"),
        (lambda: Pipeline(DCGAN()), "stages must be one or more compressors"),
    ],
)
def test_settings_that_make_no_sense(create: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        create()


@pytest.mark.parametrize(
    ("compressor", "message"),
    [
        (Quantizer({"rgb": 8, "*": 4}), "bits: 'rgb' matches no layer; the layers are layers.0, layers.3, layers.6"),
        (Quantizer({"layers.0": 8}), r'bits: no pattern matches layers.3, layers.6; add "\*", or list them in exclude'),
        (Quantizer(4, exclude=("fc*",)), r"exclude: 'fc\*' matches no layer"),
        (ChannelPruner(0.5, exclude=("rgb",)), "exclude: 'rgb' matches no layer"),
        (ChannelPruner(0.5, param_dims={"const": 1}), "param_dims: const not among .* there are none"),
    ],
)
def test_names_that_are_not_in_the_model(compressor: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        compressor.compress(DCGAN(), Z)


@pytest.mark.parametrize("compressor", [Quantizer(4), ChannelPruner(0.5), Clipper(), Pipeline(Quantizer(4))])
@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (DCGAN(), Z[0], r"example_inputs must be a non-empty tuple .* such as \(z,\).* got Tensor"),
        (DCGAN(), (), "example_inputs must be a non-empty tuple"),
        (DCGAN(), (torch.randn(2, LATENT + 1),), "model does not run on example_inputs"),
        (DCGAN(), (torch.full((2, LATENT), float("nan")),), "non-finite values on example_inputs, before"),
        (
            DCGAN,
            Z,
            "model must be a torch.nn.Module or a .* got the class DCGAN; pass an instance of it",
        ),
        (nn.Sequential(), (1,), "model returns no tensor"),
    ],
    ids=["no tuple", "empty", "wrong size", "nan", "class", "no tensor"],
)
def test_models_and_inputs_that_cannot_run(compressor: Any, model: Any, inputs: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        compressor.compress(model, inputs)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "need calibration.* got None"),
        ([], "calibration holds no batch"),
        (Z[0], r"calibration must be a list of batches, such as \[\(z1,\), \(z2,\)\]; got Tensor"),
        ([Z[0]], "each calibration batch must be a non-empty tuple .* got Tensor"),
        ([(*Z, Z[0])], "calibration has a batch of 2 arguments; example_inputs has 1"),
        ([Z, (torch.randn(2, LATENT + 1),)], "cannot be joined"),
        ([(torch.randn(2, LATENT + 1),)], "brevitas failed"),
    ],
)
@pytest.mark.parametrize("options", [{"act_bits": 8}, {"bias_correction": True}])
def test_calibration_data_that_is_missing_or_does_not_fit(options: Any, calibration: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        Quantizer(8, **options).compress(DCGAN(), Z, calibration)


@pytest.mark.parametrize("create", [Quantizer, Clipper])
def test_a_clipping_function_that_returns_no_threshold(create: Any) -> None:
    for value in (0.0, float("nan")):
        with pytest.raises(CompressionError, match=r"^clip: the function .* above 0; got (0\.0|nan)"):
            create(clip=lambda weight, value=value: value).compress(DCGAN(), Z)


def test_excluding_every_layer_is_no_compression() -> None:
    with pytest.raises(NothingCompressed, match="leaves no layer"):
        Quantizer(4, exclude=("*",)).compress(DCGAN(), Z)


def test_keeping_every_layer_is_no_compression() -> None:
    with pytest.raises(
        NothingCompressed, match=r"ratio=0\.5 left (.*) of \1 parameters \(.*layers\.6: output channels"
    ):
        ChannelPruner(0.5, exclude=("*",)).compress(DCGAN(), Z)


def test_a_single_layer_is_not_a_model() -> None:
    with pytest.raises(UnsupportedModule, match=r"wrap it in nn\.Sequential"):
        Quantizer(4).compress(nn.Linear(LATENT, 4), Z)


def test_a_model_that_gives_nan_after_compression_is_reported() -> None:
    class Fragile(nn.Module):
        """Divides by a difference of weights that rounding makes zero."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(LATENT, 4)
            nn.init.constant_(self.layer.weight, 0.5)
            with torch.no_grad():
                self.layer.weight[0, 1] = 0.5001

        def forward(self, z: Tensor) -> Tensor:
            return self.layer(z) / (self.layer.weight[0, 1] - self.layer.weight[0, 0])

    with pytest.raises(ContractBroken, match="non-finite"):
        Quantizer(4, clip="max").compress(Fragile(), Z)


@pytest.mark.parametrize(
    ("package", "extra", "work"),
    [
        ("torch_pruning", "compress", lambda path: ChannelPruner(0.5).compress(DCGAN(), Z)),
        ("brevitas.nn", "compress", lambda path: Quantizer(8).compress(DCGAN(), Z)),
        ("onnx", "onnx", lambda path: export_onnx(ChannelPruner(0.0).compress(DCGAN(), Z), path / "m.onnx", Z)),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, extra: str, work: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for backend in ("compressors.core._brevitas", "compressors.prune._torch_pruning"):
        monkeypatch.delitem(sys.modules, backend, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.* install it with: pip install 'torch-fidelity-lsh\[{extra}\]'"):
        work(tmp_path)


def test_the_package_is_imported_without_its_backends() -> None:
    code = "import sys, compressors; assert not {'brevitas', 'torch_pruning', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bits_of_activations_are_not_taken_for_those_of_output_layers() -> None:
    with pytest.raises(TypeError, match="positional"):
        Quantizer(4, 4)  # type: ignore[misc]
