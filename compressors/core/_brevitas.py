"""All that is asked of brevitas: layers replaced, ranges found, activations calibrated, biases corrected, export."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.extras import extra
from compressors.core.clip import Clip, ClipLike, as_clip
from compressors.core.recipe import LayerQuantization
from compressors.errors import CompressionError

with extra("compress"), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about optional speed-ups that are not installed
    import brevitas.nn as qnn
    import brevitas.quant as bq
    from brevitas.core.scaling.standalone import ParameterFromStatsFromParameterScaling
    from brevitas.core.stats import NegativeMinOrZero, NegativePercentileOrZero
    from brevitas.core.zero_point import ParameterFromStatsFromParameterZeroPoint
    from brevitas.export import export_onnx_qcdq
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.inject.enum import StatsOp

# Forward and state_dict of its layers warn about themselves at every use.
warnings.filterwarnings("ignore", module=r"brevitas\.")

QUANTIZED_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: qnn.QuantLinear,
    nn.Conv1d: qnn.QuantConv1d,
    nn.Conv2d: qnn.QuantConv2d,
    nn.Conv3d: qnn.QuantConv3d,
    nn.ConvTranspose1d: qnn.QuantConvTranspose1d,
    nn.ConvTranspose2d: qnn.QuantConvTranspose2d,
    nn.ConvTranspose3d: qnn.QuantConvTranspose3d,
    nn.Embedding: qnn.QuantEmbedding,
}


def replace_layers(model: nn.Module, layers: Mapping[str, LayerQuantization], clip: ClipLike | None) -> None:
    """Replace the named layers of `model`, in place, by brevitas layers with scales that are frozen at first use."""
    modules = dict(model.named_modules(remove_duplicate=False))
    weight_quantizers = {
        name: _weight_quantizer(layer, as_clip(clip, layer.bits), modules[name]) for name, layer in layers.items()
    }
    act_quantizers = {name: _act_quantizer(layer) for name, layer in layers.items()}
    options = {
        "weight_quant": lambda module, name: weight_quantizers[name],
        "input_quant": lambda module, name: act_quantizers[name],
        "bias_quant": None,
        "return_quant_tensor": False,
    }
    no_input = {key: value for key, value in options.items() if key in ("weight_quant", "return_quant_tensor")}
    layerwise_quantize(
        model,
        {old: (new, no_input if old is nn.Embedding else options) for old, new in QUANTIZED_LAYERS.items()},
        name_blacklist=[name for name in modules if name not in layers and type(modules[name]) in QUANTIZED_LAYERS],
    )
    # brevitas turns a layer used under two names into two layers: give both names the same one again.
    for name, module in modules.items():
        first = next(n for n, m in modules.items() if m is module)
        if first in layers and first != name:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, model.get_submodule(first))


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


def calibrate(model: nn.Module, batch: tuple[Any, ...]) -> None:
    """Set the input ranges of all quantized layers of `model` to what they see in `batch`."""
    with torch.no_grad(), calibration_mode(model):
        model(*batch)


def correct_biases(model: nn.Module, batch: tuple[Any, ...]) -> None:
    """Add to the bias of each quantized layer of `model` its mean output error on `batch`; adds missing biases."""
    with torch.no_grad(), bias_correction_mode(model):
        model(*batch)


def integer_weight(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes (integers, shape of the weight), scale and zero point (that broadcast) of a brevitas layer.

    The weight the layer computes with is exactly (codes - zero point) * scale. The scale is fixed by the first call.
    """
    with torch.no_grad():
        weight: Any = layer.quant_weight()  # type: ignore[operator]
        return weight.int(), weight.scale, weight.zero_point


def set_weight(layer: nn.Module, codes: Tensor) -> None:
    """Make the weight of a brevitas layer what `codes` (integers, shape of the weight) stand for."""
    _, scale, zero_point = integer_weight(layer)
    weight = layer.get_parameter("weight")
    weight.data = ((codes - zero_point) * scale).to(weight.dtype)


def round_weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Make the weights of the named brevitas layers what is stored of them; return what they were, by name."""
    before = {}
    for name in names:
        layer = model.get_submodule(name)
        before[name] = layer.get_parameter("weight").detach().clone()
        set_weight(layer, integer_weight(layer)[0])
    return before


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
    export_onnx_qcdq(copy.deepcopy(model), args=inputs, export_path=str(path), **options)
