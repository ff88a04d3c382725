"""Export to ONNX: integer weights with QuantizeLinear / DequantizeLinear nodes, for onnxruntime and others."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch

from compressors.common.checks import check_inputs
from compressors.common.extras import extra
from compressors.common.files import whole_file
from compressors.common.measure import run
from compressors.core.model import CompressedModel
from compressors.errors import CompressionError

_OPSET = 13


def export_onnx(compressed: CompressedModel, path: str | Path, example_inputs: tuple[Any, ...]) -> None:
    """Write `compressed` as an ONNX file (opset 13), whole or not at all.

    Quantized weights are int8 tensors, a quarter of the float size also below 8 bits (narrower codes are clipped, not
    packed). The first dimension of all inputs and outputs is free. onnxruntime computes the same as the model up to
    rounding: where activations are quantized, a value on the edge of two codes may fall on the other side.

    Args:
        compressed: the model to export, quantized or not.
        path: the file to write.
        example_inputs: arguments of one forward pass, all tensors.

    Raises:
        CompressionError: when `example_inputs` is not a tuple of tensors.
        ImportError: without the extra ``onnx``.
    """
    inputs = check_inputs("example_inputs", example_inputs)
    if not all(isinstance(item, torch.Tensor) for item in inputs):
        raise CompressionError("example_inputs: only tensors can be inputs of an ONNX model")
    with extra("onnx"):
        import onnx
        import onnxoptimizer  # noqa: F401  brevitas needs it
    outputs = [f"output{i}" for i in range(len(run(compressed.model, inputs)))]
    names = [f"input{i}" for i in range(len(inputs))]
    options: dict[str, Any] = {
        "input_names": names,
        "output_names": outputs,
        "dynamic_axes": {name: {0: "batch"} for name in (*names, *outputs)},
        "opset_version": _OPSET,
        "dynamo": False,  # the newer exporter writes float weights with a QuantizeLinear node
    }
    with whole_file(path, ".onnx") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter about its age, and of tracing
        if compressed.recipe.quantized:
            from compressors.core._brevitas import export_qcdq

            export_qcdq(compressed.model, inputs, temporary, keep_initializers_as_inputs=False, **options)
        else:
            torch.onnx.export(copy.deepcopy(compressed.model), inputs, str(temporary), **options)
        onnx.checker.check_model(str(temporary))
