"""Post-training quantization by brevitas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.checks import check_bits, check_inputs, check_patterns, check_share, matching
from compressors.core.clip import ClipLike, check_clip
from compressors.core.coverage import check_coverage
from compressors.core.graph import output_layers
from compressors.core.recipe import LayerQuantization
from compressors.core.stage import Stage, Work
from compressors.errors import CompressionError, NothingCompressed, UnsupportedModule

# Channels of an image: grey, colour, colour with transparency.
_FEW = 4


@dataclass(frozen=True)
class Quantizer(Stage):
    """Quantize the weights of linear, (transposed) convolution and embedding layers, and optionally their inputs.

    The result computes in float with values on the integer grid ("fake quantization"): it shows the quality at a bit
    width and is stored at that size, but is not faster. `export_onnx` writes a model with integer weights.

    Args:
        bits: 2 to 8 for all weights, or glob patterns of layer names to bits, such as ``{"rgb": 8, "*": 4}``; the
            first pattern that matches a layer counts, and each layer must match one or be in `exclude`.
        output_bits: 2 to 8 for the weights of output layers with up to 4 channels, at least as many as `bits`; default
            8. On a DCGAN of faces this costs 1.5 kB of 1.8 MB, and precision at 4 bits is .72 instead of .12. None
            treats them like the others; `bits` given by patterns is taken literally.
        act_bits: 2 to 8 for the inputs of all quantized layers but embeddings, per tensor, ranges from the extremes
            on the calibration data; None (default) leaves them in float.
        per_channel: one scale per output channel (default) or per tensor; embeddings and grouped transposed
            convolutions always have one per tensor.
        symmetric: weight codes symmetric around zero, without the lowest one (default), or all codes with a zero
            point, which pays at 2 and 3 bits.
        act_symmetric: the same for inputs; the default False suits what comes out of a ReLU.
        clip: range of the weights, see `Clip`; None (default) is "mse" up to 4 bits and "max" above.
        bias_correction: add each layer's mean output error on the calibration data to its bias.
        exclude: glob patterns of layers that stay in float.
        min_coverage: the share of parameters, 0 to 1, that must be in layers this quantizer knows, default 0.9; the
            rest stays in float.

    Source: brevitas, https://github.com/Xilinx/brevitas, layerwise quantization.
    """

    bits: int | Mapping[str, int] = 8
    output_bits: int | None = 8
    act_bits: int | None = None
    per_channel: bool = True
    symmetric: bool = True
    act_symmetric: bool = False
    clip: ClipLike | None = None
    bias_correction: bool = False
    exclude: Sequence[str] = ()
    min_coverage: float = 0.9

    def __post_init__(self) -> None:
        for bits in self.bits.values() if isinstance(self.bits, Mapping) else (self.bits,):
            check_bits("bits", bits)
        for name in ("output_bits", "act_bits"):
            if getattr(self, name) is not None:
                check_bits(name, getattr(self, name))
        check_clip(self.clip, self.symmetric)
        check_patterns("exclude", self.exclude)
        check_share("min_coverage", self.min_coverage)

    @property
    def name(self) -> str:
        """A short label, such as "quantize W4A8"."""
        widths = self.bits.values() if isinstance(self.bits, Mapping) else (self.bits,)
        inputs = "" if self.act_bits is None else f"A{self.act_bits}"
        return f"quantize W{'/'.join(map(str, dict.fromkeys(widths)))}{inputs}"

    @property
    def quantizes(self) -> bool:
        """True: only stages that accept quantized models can follow."""
        return True

    def _apply(self, work: Work) -> Work:
        from compressors.core._brevitas import calibrate, correct_biases, replace_layers, round_weights

        calibrated = self.act_bits is not None or self.bias_correction
        if calibrated and work.calibration is None:
            raise CompressionError(
                "act_bits and bias_correction need calibration: batches of inputs, such as [(z1,), (z2,)]; got None"
            )
        batch = merged_calibration(work.calibration, len(work.inputs)) if calibrated else ()
        names, coverage = quantizable_layers(work, self.min_coverage)
        excluded = matching("exclude", self.exclude, names)
        layers = {
            name: self._layer(work.model.get_submodule(name), bits)
            for name, bits in self._bits_by_layer(work, names).items()
            if name not in excluded
        }
        if not layers:
            raise NothingCompressed(f"exclude={self.exclude!r} leaves no layer to quantize")
        try:
            replace_layers(work.model, layers, self.clip)
            if self.act_bits is not None:
                calibrate(work.model, batch)
            if self.bias_correction:
                correct_biases(work.model, batch)
        except CompressionError:
            raise
        except Exception as error:
            raise CompressionError(f"brevitas failed: {type(error).__name__}: {error}") from error
        # A forward that reads a weight itself, to demodulate say, is to see what is stored.
        float_weights = round_weights(work.model, layers)
        notes = dict.fromkeys(excluded, "float: excluded")
        if isinstance(self.bits, int):
            raised = {name: layer for name, layer in layers.items() if layer.bits != self.bits}
            notes |= {name: f"{layer.bits} bits: makes the output" for name, layer in raised.items()}
        recipe = replace(work.recipe, quantized=layers)
        return work.changed(notes, coverage, recipe=recipe, float_weights=float_weights)

    def _layer(self, module: nn.Module, bits: int) -> LayerQuantization:
        act_bits = None if isinstance(module, nn.Embedding) else self.act_bits
        shape = tuple(module.get_parameter("weight").shape)
        return LayerQuantization(shape, bits, act_bits, self.per_channel, self.symmetric, self.act_symmetric)

    def _bits_by_layer(self, work: Work, names: Sequence[str]) -> dict[str, int]:
        if isinstance(self.bits, int):
            narrow = _narrow_outputs(work) if (self.output_bits or 0) > self.bits else set()
            return {name: self.output_bits if name in narrow and self.output_bits else self.bits for name in names}
        bits: dict[str, int] = {}
        for pattern, width in self.bits.items():
            bits = dict.fromkeys(matching("bits", [pattern], names), width) | bits
        excluded = matching("exclude", self.exclude, names)
        left = ", ".join(name for name in names if name not in bits and name not in excluded)
        if left:
            raise CompressionError(f'bits: no pattern matches {left}; add "*", or list them in exclude')
        return bits


def _narrow_outputs(work: Work) -> set[str]:
    """Return the names of the layers of few channels that make the outputs."""
    from compressors.core._brevitas import QUANTIZED_LAYERS

    channels = {
        name: getattr(module, "out_channels", getattr(module, "out_features", _FEW + 1))
        for name, module in work.model.named_modules()
    }
    return {name for name in output_layers(work.model, work.inputs, tuple(QUANTIZED_LAYERS)) if channels[name] <= _FEW}


def quantizable_layers(work: Work, min_coverage: float) -> tuple[list[str], float]:
    """Return the names of the layers brevitas can quantize, and the share of parameters that is covered.

    Raises `UnsupportedModule` where the share is below `min_coverage`, or the model itself is a single layer.
    """
    from compressors.core._brevitas import QUANTIZED_LAYERS

    if type(work.model) in QUANTIZED_LAYERS:
        raise UnsupportedModule("model is a single layer, which cannot be replaced in place: wrap it in nn.Sequential")
    coverage = check_coverage(work.model, tuple(QUANTIZED_LAYERS), min_coverage)
    return [name for name, module in work.model.named_modules() if type(module) in QUANTIZED_LAYERS], coverage


def merged_calibration(calibration: Iterable[Any] | None, arguments: int) -> tuple[Any, ...]:
    """Join calibration batches into one, tensors along dimension 0; each must be a tuple of `arguments` items.

    One batch, because brevitas averages the statistics of several, which narrows the ranges: on a small BigGAN 256
    latents gave 40 dB as one batch and 26 dB one by one.
    """
    if isinstance(calibration, Tensor) or not isinstance(calibration, Iterable):
        raise CompressionError(
            f"calibration must be a list of batches, such as [(z1,), (z2,)]; got {type(calibration).__name__}"
        )
    batches = [check_inputs("each calibration batch", batch) for batch in calibration]
    if not batches:
        raise CompressionError("calibration holds no batch")
    wrong = [len(batch) for batch in batches if len(batch) != arguments]
    if wrong:
        raise CompressionError(f"calibration has a batch of {wrong[0]} arguments; example_inputs has {arguments}")
    try:
        columns = zip(*batches, strict=True)
        return tuple(torch.cat(items) if isinstance(items[0], Tensor) else items[0] for items in columns)
    except (RuntimeError, TypeError) as error:
        raise CompressionError(f"calibration batches cannot be joined along dimension 0: {error}") from error
