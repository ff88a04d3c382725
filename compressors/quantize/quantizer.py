"""Post-training quantization by brevitas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from compressors.common.checks import check_bits, check_inputs, check_patterns, check_share, matching
from compressors.common.measure import Inputs, batch_size, called_layers
from compressors.common.text import described
from compressors.core.clip import ClipLike, check_clip
from compressors.core.coverage import check_coverage, check_layers, uncovered_layers
from compressors.core.graph import output_layers
from compressors.core.recipe import LayerQuantization
from compressors.core.stage import Stage, Work
from compressors.errors import CompressionError, NothingCompressed, UnsupportedModule
from compressors.quantize.equalize import equalize

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
            8. On a DCGAN of faces this costs 1.5 kB of 1.8 MB, and precision at 4 bits is .76 instead of .10. None
            treats them like the others; `bits` given by patterns is taken literally.
        act_bits: 2 to 8 for the inputs of all quantized layers but embeddings, per tensor, ranges from the extremes
            on the calibration data; None (default) leaves them in float.
        per_channel: one scale per output channel (default) or per tensor; embeddings and grouped transposed
            convolutions always have one per tensor.
        symmetric: weight codes symmetric around zero, without the lowest one (default), or all codes with a zero
            point, which pays at 2 and 3 bits.
        act_symmetric: the same for inputs; the default False suits what comes out of a ReLU.
        clip: range of the weights, see `Clip`; None (default) is "mse" up to 4 bits and "max" above.
        equalize: first give the input channels of each layer one range, by multiplying what makes them: batch norms,
            and where `per_channel` other layers. Exact but for rounding where a ReLU or LeakyReLU lies between; other
            layers, such as those behind a ReLU6, stay as they are. On a DCGAN of faces, all weights at 4 bits, it
            lowers FID from 2434 to 772.
        bias_correction: add each layer's mean output error on the calibration data to its bias.
        exclude: glob patterns of layers that stay in float.
        min_coverage: the share of parameters, 0 to 1, that must be in layers this quantizer knows, default 0.9; the
            rest stays in float.

    Sources: brevitas, https://github.com/Xilinx/brevitas, layerwise quantization; `equalize`: Nagel et al. 2019, arXiv
    1906.04721.
    """

    bits: int | Mapping[str, int] = 8
    _: KW_ONLY
    output_bits: int | None = 8
    act_bits: int | None = None
    per_channel: bool = True
    symmetric: bool = True
    act_symmetric: bool = False
    clip: ClipLike | None = None
    equalize: bool = False
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
        from compressors.core._brevitas import calibrate, check_rounded, correct_biases, replace_layers, round_weights

        calibrated = self.act_bits is not None or self.bias_correction
        if calibrated and work.calibration is None:
            raise CompressionError(
                "act_bits and bias_correction need calibration: batches of inputs, such as [(z1,), (z2,)]; got None"
            )
        batch = merged_calibration(work.calibration, work.inputs) if calibrated else ()
        names, coverage, notes = quantizable_layers(work, self.min_coverage)
        excluded = matching("exclude", self.exclude, names)
        notes |= dict.fromkeys(excluded, "float: excluded")
        # Where a layer's weight is used without the layer, nothing is there to quantize its input.
        called = called_layers(work.model, work.inputs) if self.act_bits is not None else set(names)
        layers = {
            name: self._layer(work.model.get_submodule(name), bits, name in called)
            for name, bits in self._bits_by_layer(work, names).items()
            if name not in excluded
        }
        if not layers:
            raise NothingCompressed(f"exclude={self.exclude!r} leaves no layer to quantize")
        notes |= dict.fromkeys(layers.keys() - called, "input in float: forward does not call the layer")
        report = work.report
        if self.equalize:
            count = len(equalize(work.model, work.inputs, layers, norms_only=not self.per_channel))
            report = replace(report, notes=(*report.notes, f"{self.name}: equalized the inputs of {count} layers"))
        layers = shared_scales(work.model, layers, names, own_bits=isinstance(self.bits, Mapping))
        try:
            replace_layers(work.model, layers, self.clip)
            if self.act_bits is not None:
                calibrate(work.model, batch)
            if self.bias_correction:
                correct_biases(work.model, batch)
            # A forward that reads a weight itself, to demodulate say, is to see what is stored.
            float_weights = round_weights(work.model, layers)
            check_rounded(work.model, layers, work.inputs)
        except CompressionError:
            raise
        except Exception as error:
            raise CompressionError(f"brevitas failed: {described(error)}") from error
        if isinstance(self.bits, int):
            raised = {name: layer for name, layer in layers.items() if layer.bits != self.bits}
            notes |= {name: f"{layer.bits} bits: makes the output" for name, layer in raised.items()}
        recipe = replace(work.recipe, quantized=layers)
        return replace(work, report=report).changed(notes, coverage, recipe=recipe, float_weights=float_weights)

    def _layer(self, module: nn.Module, bits: int, called: bool) -> LayerQuantization:
        act_bits = self.act_bits if called and not isinstance(module, nn.Embedding) else None
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


def quantizable_layers(work: Work, min_coverage: float) -> tuple[list[str], float, dict[str, str]]:
    """Return the names of the layers brevitas can quantize, the share of parameters covered, and why others are not.

    Raises `UnsupportedModule` where the share is below `min_coverage`, a layer cannot be replaced, or the model itself
    is a single layer.
    """
    from compressors.core._brevitas import QUANTIZED_LAYERS

    model, supported = work.model, tuple(QUANTIZED_LAYERS)
    if type(model) in supported:
        raise UnsupportedModule("model is a single layer, which cannot be replaced in place: wrap it in nn.Sequential")
    coverage = check_coverage(model, supported, min_coverage)
    names = [name for name, module in model.named_modules() if type(module) in supported]
    if not names:
        raise UnsupportedModule("model has no linear, convolution or embedding layer")
    check_layers(model, names)
    return names, coverage, uncovered_layers(model, supported)


def shared_scales(
    model: nn.Module, layers: Mapping[str, LayerQuantization], names: Sequence[str], own_bits: bool = False
) -> dict[str, LayerQuantization]:
    """Return `layers` with one set of codes for layers that share a weight: one scale for all where channels differ.

    Args:
        model: holds the layers.
        layers: those to quantize, by name.
        names: all that could be.
        own_bits: whether bits were given layer by layer; if not (default), the most of a group serve all of it.

    Raises:
        CompressionError: of layers that share a weight one is left out, or has other bits.
    """
    groups: dict[nn.Parameter, list[str]] = {}
    for name in names:
        groups.setdefault(model.get_submodule(name).get_parameter("weight"), []).append(name)
    found = dict(layers)
    for group in groups.values():
        if len(group) == 1:
            continue
        together = ", ".join(group)
        if len({name in layers for name in group}) > 1:
            raise CompressionError(f"exclude: {together} share one weight: exclude all or none of them")
        members = {name: layers[name] for name in group if name in layers}
        widths = {layer.bits for layer in members.values()}
        if len(widths) > 1 and own_bits:
            raise CompressionError(f"bits: {together} share one weight: give them the same bits")
        alike = len({_channel_dim(model.get_submodule(name)) for name in members}) == 1
        for name, layer in members.items():
            found[name] = replace(layer, bits=max(widths), per_channel=layer.per_channel and alike)
    return found


def _channel_dim(layer: nn.Module) -> int | None:
    """Return the dimension of a weight that has a scale for each channel; None where one scale serves all."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return 1 if layer.groups == 1 else None
    return None if isinstance(layer, nn.Embedding) else 0


def merged_calibration(calibration: Iterable[Any] | None, inputs: Inputs) -> Inputs:
    """Join calibration batches into one, arguments of the structure of `inputs`, tensors along dimension 0.

    Tensors in lists and dicts are joined too. What has no batch dimension must be the same in all batches: numbers,
    tensors without dimensions, and tensors whose length is not that of the batch.

    One batch, because brevitas averages the statistics of several, which narrows the ranges: on a small BigGAN 256
    latents gave 40 dB as one batch and 26 dB one by one.
    """
    if isinstance(calibration, Tensor | Mapping) or not isinstance(calibration, Iterable):
        raise CompressionError(
            f"calibration must be a list of batches, such as [(z1,), (z2,)]; got {type(calibration).__name__}"
        )
    batches = [check_inputs("each calibration batch", batch) for batch in calibration]
    if not batches:
        raise CompressionError("calibration holds no batch")
    wrong = [len(batch) for batch in batches if len(batch) != len(inputs)]
    if wrong:
        raise CompressionError(f"calibration has a batch of {wrong[0]} arguments; example_inputs has {len(inputs)}")
    (_, structure), *leaves = [tree_flatten(batch) for batch in (inputs, *batches)]
    for _, other in leaves:
        if other != structure:
            raise CompressionError(
                f"calibration has a batch of another structure than example_inputs: {other} for {structure}"
            )
    sizes = [batch_size(values) for values, _ in leaves]
    columns = zip(*(values for values, _ in leaves), strict=True)
    joined: Inputs = tree_unflatten([_joined(column, sizes) for column in columns], structure)
    return joined


def _joined(values: Sequence[Any], sizes: Sequence[int | None]) -> Any:
    """Return one argument for all batches, whose sizes are given."""
    first = values[0]
    if len(values) == 1:
        return first
    if all(isinstance(value, Tensor) and value.dim() for value in values) and sizes == [len(value) for value in values]:
        try:
            return torch.cat(list(values))
        except (RuntimeError, TypeError) as error:
            raise CompressionError(f"calibration batches cannot be joined along dimension 0: {error}") from error
    if all(_same(first, value) for value in values[1:]):
        return first
    got = ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) and v.dim() else repr(v) for v in values[:2])
    raise CompressionError(
        f"calibration batches cannot be joined along dimension 0: an argument without batch dimension differs between "
        f"them: {got}, ...; give one batch, or batches that agree in it"
    )


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    try:
        return bool(one == other)
    except Exception:  # Objects that do not compare.
        return False
