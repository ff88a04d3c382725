"""Export to ONNX: integer weights with QuantizeLinear / DequantizeLinear nodes, for onnxruntime and others."""

from __future__ import annotations

import re
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressors.common.bake import independent_copy
from compressors.common.checks import check_count, check_inputs
from compressors.common.extras import extra
from compressors.common.files import check_target, whole_file
from compressors.common.measure import Inputs, copied, reference_outputs, run, sqnr_db
from compressors.common.text import described
from compressors.core.model import CompressedModel
from compressors.errors import CompressionError, ContractBroken

OPSET = 13
"""The default opset, the first in which integers can have a scale for each channel."""

# In dB. Where activations are quantized, values on the edge of two codes may fall on the other side.
_LEAST_AGREEMENT = 20


def export_onnx(
    compressed: CompressedModel, path: str | Path, example_inputs: tuple[Any, ...], opset: int = OPSET
) -> None:
    """Write `compressed` as an ONNX file, whole or not at all, that onnxruntime was seen to run.

    Quantized weights are int8 tensors, a quarter of the float size also below 8 bits (narrower codes are clipped, not
    packed). The first dimension of all inputs and outputs is free. onnxruntime computes the same as the model up to
    rounding: where activations are quantized, a value on the edge of two codes may fall on the other side.

    Args:
        compressed: the model to export, quantized or not.
        path: the file to write.
        example_inputs: arguments of one forward pass, all tensors.
        opset: version of the ONNX operators, at least 13 (default); some operators need a later one.

    Raises:
        CompressionError: an argument is wrong, or the model cannot be exported; the message says which opset serves.
        ContractBroken: onnxruntime does not run the file, or its outputs on `example_inputs` are others than the
            model's. Models that draw noise in forward are only run.
        ImportError: without the extra ``onnx``.
    """
    if not isinstance(compressed, CompressedModel):
        raise CompressionError(
            f"compressed must be a CompressedModel, as compressors return it; got {type(compressed).__name__}"
        )
    check_count("opset", opset, OPSET)
    check_target(path, ".onnx")
    inputs = check_inputs("example_inputs", example_inputs)
    odd = [f"item {i} is {type(item).__name__}" for i, item in enumerate(inputs) if not isinstance(item, Tensor)]
    if odd:
        raise CompressionError(f"example_inputs: only tensors can be inputs of an ONNX model; {', '.join(odd)}")
    tensors = {**compressed.model.state_dict(), **{f"example_inputs[{i}]": item for i, item in enumerate(inputs)}}
    for name, item in tensors.items():
        if isinstance(item, Tensor) and item.dtype in (torch.bfloat16, torch.float64):
            raise CompressionError(
                f"compressed: {name} is {item.dtype}, for which onnxruntime lacks operators: compress the model in "
                "float32, as in model.float()"
            )
    with extra("onnx"):
        import onnx
        import onnxruntime  # noqa: F401  the file is tried in it
    outputs = reference_outputs(compressed.model, inputs)
    names = [f"input{i}" for i in range(len(inputs))]
    results = [f"output{i}" for i in range(len(outputs))]
    options: dict[str, Any] = {
        "input_names": names,
        "output_names": results,
        "dynamic_axes": {name: {0: "batch"} for name in (*names, *results)},
        "opset_version": opset,
        "dynamo": False,  # the newer exporter writes float weights with a QuantizeLinear node
    }
    with whole_file(path, ".onnx") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter about its age, and of tracing
        try:
            # torch prints the graph of a model that it cannot export.
            with redirect_stdout(StringIO()):
                _write(compressed, copied(inputs), temporary, options)
            onnx.checker.check_model(str(temporary))
        except ImportError:
            raise
        except Exception as error:
            raise CompressionError(f"torch cannot export the model: {_reason(error, opset)}") from error
        _check(compressed, inputs, outputs, temporary)


def _write(compressed: CompressedModel, inputs: Inputs, path: Path, options: dict[str, Any]) -> None:
    if compressed.recipe.quantized:
        from compressors.core._brevitas import export_qcdq

        export_qcdq(compressed.model, inputs, path, keep_initializers_as_inputs=False, **options)
    else:
        torch.onnx.export(independent_copy(compressed.model), inputs, str(path), **options)


def _reason(error: Exception, opset: int) -> str:
    text = described(error)
    later = re.search(r"added in version (\d+)", text)
    operator = re.search(r"operator '([^']+)'", text)
    if later is None:
        half = "; quantized models in float16 are exported in part only: compress in float32" if "Half" in text else ""
        return text + half
    return f"{operator[1] if operator else 'an operator'} needs opset={later[1]} or later; got opset={opset}"


def _check(compressed: CompressedModel, inputs: Inputs, outputs: list[Tensor], path: Path) -> None:
    """Raise `ContractBroken` unless onnxruntime gives the outputs of the model."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    # Optimised, linear layers with quantized weights would have their inputs quantized as well.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 3
    feeds = {f"input{i}": item.detach().cpu().numpy() for i, item in enumerate(inputs)}
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        used = {node.name for node in session.get_inputs()}
        found = session.run(None, {name: value for name, value in feeds.items() if name in used})
    except Exception as error:
        raise ContractBroken(f"onnxruntime does not run the file: {described(error)}") from error
    got = [torch.from_numpy(values) for values in found]
    shapes, expected = ([tuple(item.shape) for item in side] for side in (got, outputs))
    if shapes != expected:
        raise ContractBroken(f"in onnxruntime the outputs have shapes {shapes}, in torch {expected}")
    agreement = sqnr_db([output.cpu() for output in outputs], got)
    if agreement is not None and agreement < _LEAST_AGREEMENT and not _draws_noise(compressed, inputs):
        raise ContractBroken(
            f"the file does not compute what the model does: in onnxruntime the outputs are {agreement:.1f} dB from "
            "those in torch; a forward that branches on values, or keeps them as Python numbers, is exported wrongly"
        )


def _draws_noise(compressed: CompressedModel, inputs: Inputs) -> bool:
    one, other = (run(compressed.model, inputs, seed) for seed in (0, 1))
    return sqnr_db(one, other) is not None
