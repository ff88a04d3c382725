"""All that is asked of brevitas: layers replaced, ranges found, activations calibrated, biases corrected, export."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.extras import extra
from compressors.common.measure import Inputs, forward
from compressors.core.clip import Clip, ClipLike, as_clip
from compressors.core.recipe import LayerQuantization
from compressors.errors import CompressionError, ContractBroken

with extra("compress"), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about optional speed-ups that are not installed
    import brevitas.nn as qnn
    import brevitas.quant as bq
    from brevitas import config
    from brevitas.core.scaling.standalone import ParameterFromStatsFromParameterScaling
    from brevitas.core.stats import NegativeMinOrZero, NegativePercentileOrZero
    from brevitas.core.zero_point import ParameterFromStatsFromParameterZeroPoint
    from brevitas.graph.base import ModuleToModuleByInstance
    from brevitas.graph.calibrate import _BiasCorrection, bias_correction_mode, calibration_mode
    from brevitas.inject.enum import StatsOp

# Forward and state_dict of its layers warn about themselves at every use.
warnings.filterwarnings("ignore", module=r"brevitas\.")


class _QuantEmbedding(qnn.QuantEmbedding):  # type: ignore[misc]
    """With the name that torch gives the argument."""

    def forward(self, input: Tensor) -> Any:
        return super().forward(input)


QUANTIZED_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: qnn.QuantLinear,
    nn.Conv1d: qnn.QuantConv1d,
    nn.Conv2d: qnn.QuantConv2d,
    nn.Conv3d: qnn.QuantConv3d,
    nn.ConvTranspose1d: qnn.QuantConvTranspose1d,
    nn.ConvTranspose2d: qnn.QuantConvTranspose2d,
    nn.ConvTranspose3d: qnn.QuantConvTranspose3d,
    nn.Embedding: _QuantEmbedding,
}


def replace_layers(model: nn.Module, layers: Mapping[str, LayerQuantization], clip: ClipLike | None) -> None:
    """Turn the named layers of `model`, in place, into brevitas layers with scales that are frozen at first use.

    Each layer object becomes the quantized one: whoever refers to it, under any name, in a list or from a hook, refers
    to the quantized layer. Its parameters stay the same objects too, shared with other layers or not.
    """
    for name, layer in layers.items():
        module = model.get_submodule(name)
        options = {
            "weight_quant": _weight_quantizer(layer, as_clip(clip, layer.bits), module),
            "input_quant": _act_quantizer(layer),
            "bias_quant": None,
            "return_quant_tensor": False,
        }
        if isinstance(module, nn.Embedding):
            del options["input_quant"], options["bias_quant"]
        _become_quantized(module, options)


def _become_quantized(module: nn.Module, options: Mapping[str, Any]) -> None:
    """Turn `module` into the brevitas layer of its type; hooks, own attributes, parameters and mode are kept."""
    quantized = QUANTIZED_LAYERS[type(module)]
    before = dict(vars(module))
    own: dict[str, set[str]] = {group: set(before[group]) - {"weight", "bias"} for group in _GROUPS}
    plain = copy.copy(module)  # what brevitas reads settings and tensors from
    vars(plain).update({name: type(value)() for name, value in before.items() if "hook" in name and value is not None})
    for group, names in own.items():
        vars(plain)[group] = {name: value for name, value in before[group].items() if name not in names}

    def construct(**settings: Any) -> nn.Module:
        module.__class__ = quantized
        type(module).__init__(module, **settings)
        return module

    construct.__signature__ = inspect.signature(quantized)  # type: ignore[attr-defined]
    with _missing_ranges_accepted():
        ModuleToModuleByInstance(module, construct, **options).init_new_module(plain)
    after = vars(module)
    for group, names in own.items():
        after[group].update({name: before[group][name] for name in names})
    after["_parameters"].update(before["_parameters"])
    for name, value in before.items():
        if "hook" in name and isinstance(value, dict):
            value.update(after[name])  # the same dict, which handles that remove hooks refer to
        if "hook" in name or name not in after:
            after[name] = value
    after["_non_persistent_buffers_set"] |= before["_non_persistent_buffers_set"]
    module.to(module.get_parameter("weight").device)  # brevitas makes ranges on the CPU
    module.train(before["training"])


_GROUPS = ("_parameters", "_buffers", "_modules")


@contextmanager
def _missing_ranges_accepted() -> Iterator[None]:
    """Let brevitas load a float layer's state, which has no ranges yet."""
    before = config.IGNORE_MISSING_KEYS
    config.IGNORE_MISSING_KEYS = True
    try:
        yield
    finally:
        config.IGNORE_MISSING_KEYS = before


class _Given(nn.Module):
    """A "statistic" that ignores the weights: the explicit threshold."""

    def __init__(self, clip_at: float, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.clip_at = clip_at
        self.per_channel = stats_reduce_dim is not None

    def forward(self, weight: Tensor) -> Tensor:
        return weight.new_full((len(weight) if self.per_channel else 1,), self.clip_at)


def _weight_quantizer(layer: LayerQuantization, clip: Clip, module: nn.Module) -> Any:
    # brevitas cannot shape the scales of grouped transposed convolutions; an embedding's channels are its rows.
    grouped = isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1
    per_channel = layer.per_channel and not grouped and not isinstance(module, nn.Embedding)
    family = "Int8Weight" if layer.symmetric else "ShiftedUint8Weight"
    granularity = "PerChannel" if per_channel else "PerTensor"
    quantizer = getattr(bq, f"{family}{granularity}Float{'MSE' if clip.method == 'mse' else ''}")
    frozen: dict[str, Any] = {"scaling_impl": ParameterFromStatsFromParameterScaling}
    if not layer.symmetric:
        frozen["zero_point_impl"] = ParameterFromStatsFromParameterZeroPoint
    assert isinstance(module.weight, Tensor)
    return quantizer.let(bit_width=layer.bits, **frozen, **_range(clip, layer.symmetric, module.weight.detach()))


def _range(clip: Clip, symmetric: bool, weight: Tensor) -> dict[str, Any]:
    value: Any = clip.value
    if clip.method == "percentile" and symmetric:
        return {"scaling_stats_op": StatsOp.PERCENTILE, "high_percentile_q": value}
    if clip.method == "percentile":
        tail = (100 - value) / 2
        return {
            "scaling_stats_op": StatsOp.PERCENTILE_INTERVAL,
            "zero_point_stats_impl": NegativePercentileOrZero,
            "low_percentile_q": tail,
            "high_percentile_q": 100 - tail,
        }
    if clip.method == "sigma":
        return {"scaling_stats_op": StatsOp.MEAN_SIGMA_STD, "sigma": value}
    if clip.method == "threshold":
        threshold = float(value(weight)) if callable(value) else value
        if not 0 < threshold < float("inf"):
            raise CompressionError(f"clip: the function must return a threshold above 0; got {threshold}")
        return {"scaling_stats_impl": _Given, "clip_at": threshold}
    return {}


def _act_quantizer(layer: LayerQuantization) -> Any:
    if layer.act_bits is None:
        return None
    if layer.act_symmetric:
        return bq.Int8ActPerTensorFloat.let(bit_width=layer.act_bits, scaling_stats_op=StatsOp.MAX)
    return bq.ShiftedUint8ActPerTensorFloat.let(
        bit_width=layer.act_bits, scaling_stats_op=StatsOp.MIN_MAX, zero_point_stats_impl=NegativeMinOrZero
    )


def calibrate(model: nn.Module, batch: Inputs) -> None:
    """Set the input ranges of all quantized layers of `model` to what they see in `batch`."""
    with torch.no_grad(), calibration_mode(model):
        forward(model, batch, seed=0)


class _ChannelsLast(_BiasCorrection):  # type: ignore[misc]
    """brevitas looks for the channels of a linear layer in the wrong place where its input has four dimensions."""

    def channel_dim(self, inp: Tensor, module: nn.Module) -> int:
        return inp.dim() - 1 if isinstance(module, nn.Linear) else 1


def correct_biases(model: nn.Module, batch: Inputs) -> None:
    """Add to the bias of each quantized layer of `model` its mean output error on `batch`; adds missing biases."""
    mode = bias_correction_mode(model)
    mode.bias_correction = _ChannelsLast()
    with torch.no_grad(), mode:
        forward(model, batch, seed=0)


def integer_weight(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes (integers, shape of the weight), scale and zero point (that broadcast) of a brevitas layer.

    The weight the layer computes with is exactly (codes - zero point) * scale. The scale is fixed by the first call.
    """
    with torch.no_grad():
        weight: Any = layer.quant_weight()  # type: ignore[operator]
        return weight.int(), weight.scale, weight.zero_point


def set_weight(layer: nn.Module, codes: Tensor | None = None) -> None:
    """Make the weight of a brevitas layer what `codes` (integers, shape of the weight) stand for; None: its own."""
    own, scale, zero_point = integer_weight(layer)
    codes = own if codes is None else codes
    weight = layer.get_parameter("weight")
    weight.data = ((codes - zero_point) * scale).to(weight.dtype)


def round_weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Make the weights of the named brevitas layers what is stored of them; return what they were, by name."""
    layers = {name: model.get_submodule(name) for name in names}
    before = {name: layer.get_parameter("weight").detach().clone() for name, layer in layers.items()}
    for layer in layers.values():
        set_weight(layer)
    return before


def unround_weights(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Undo `round_weights`, given what it returned, but for weights that have changed since then: they stay."""
    for name, weights in before.items():
        layer = model.get_submodule(name)
        parameter = layer.get_parameter("weight")
        now = parameter.detach().clone()
        parameter.data.copy_(weights)
        set_weight(layer)
        parameter.data = torch.where(parameter == now, weights.to(now), now)


def check_rounded(model: nn.Module, names: Iterable[str], inputs: Inputs) -> None:
    """Raise `ContractBroken` where a forward pass leaves other weights in a brevitas layer than those stored of it."""
    layers = {name: model.get_submodule(name) for name in names}
    stored = {name: layer.get_parameter("weight").detach().clone() for name, layer in layers.items()}
    forward(model, inputs, seed=0)
    for name, layer in layers.items():
        if not torch.equal(layer.get_parameter("weight"), stored[name]):
            raise ContractBroken(
                f"{name}: a forward pass overwrites its weight, and the quantized one with it, as a forward pre-hook "
                f"may: compute the weight once, remove the hook, or leave the layer out by exclude=({name!r},)"
            )


def clip_range(layer: nn.Module, quantization: LayerQuantization) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest weight (that broadcast) the codes of a brevitas layer can stand for."""
    _, scale, zero_point = integer_weight(layer)
    levels = 2**quantization.bits - 1
    # Symmetric codes are brevitas's narrow range: as many below zero as above.
    low, high = (-(levels // 2), levels // 2) if quantization.symmetric else (0, levels)
    # A little wider, so that a largest weight is not moved by the rounding of its scale.
    return (low - zero_point) * scale * (1 + 1e-6), (high - zero_point) * scale * (1 + 1e-6)


def export_qcdq(model: nn.Module, inputs: tuple[Any, ...], path: Path, **options: Any) -> None:
    """Write a quantized model as ONNX with QuantizeLinear, Clip and DequantizeLinear nodes; `model` is untouched."""
    with extra("onnx"):
        import onnxoptimizer  # noqa: F401  brevitas needs it, and fails without a word
        from brevitas.export import export_onnx_qcdq

    export_onnx_qcdq(copy.deepcopy(model), args=inputs, export_path=str(path), **options)
