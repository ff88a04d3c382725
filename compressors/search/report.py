"""What a search found, as a report and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressors.common.extras import extra
from compressors.common.files import check_target, whole_file, write_json
from compressors.common.measure import Inputs
from compressors.common.text import versions
from compressors.core.model import CompressedModel
from compressors.distil.costs import Costs
from compressors.errors import CompressionError
from compressors.search.space import Genotype, SearchSpace


def search_report(
    result: CompressedModel,
    teacher: nn.Module,
    example_inputs: Inputs,
    baselines: Mapping[str, CompressedModel] | None = None,
) -> dict[str, Any]:
    """Return a report of a search as plain types that JSON has.

    Args:
        result: of `search_student`, `ArchitectureSearch`, or a `Pipeline` that begins with it.
        teacher: what it was searched for.
        example_inputs: arguments of one forward pass; costs are counted and latency is measured on them.
        baselines: networks of the space that were trained as long, by what they are called: results of
            ``ArchitectureSearch(..., genotype=...)``.

    Returns:
        "genotype", "budget", "macs", "candidates", "supernet", "training" as the step in the recipe has them (for one
        input of "size"); "teacher" and "student" with parameters, "macs" in multiply-accumulates, "flops", twice as
        many, "seconds" for a pass, "bytes_32" with all parameters in 32 bits, "bytes_8" with the weights of
        convolutions in 8; "file_bytes" of the result as it is stored; "versions"; and "baselines": for each operator
        the network that has it wherever it is offered, with one ratio of the widths, and costs no less than the budget;
        the random networks among the candidates; and those given. Each has its "macs" and "parameters", a "trial loss"
        after a short training if there was one, and a "loss" after the whole one, to compare with the "best_loss" of
        "training".

    Raises:
        CompressionError: `result`, or a baseline, is not of a search.
    """
    step = _step(result)
    kept = ("genotype", "size", "budget", "macs", "candidates", "supernet", "training", "interrupted")
    sides = {"teacher": _side(teacher, example_inputs), "student": _side(result.model, example_inputs)}
    found = {name: step[name] for name in kept}
    rows = _baselines(_space(result), step, baselines or {})
    return {**found, **sides, "file_bytes": result.report.after.bytes, "baselines": rows, "versions": versions()}


def _baselines(
    space: SearchSpace, step: Mapping[str, Any], trained: Mapping[str, CompressedModel]
) -> list[dict[str, Any]]:
    def row(name: str, genotype: Genotype, **losses: float) -> dict[str, Any]:
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in space.build(genotype).parameters())
        macs = space.macs(genotype, size)
        return {"name": name, "genotype": genotype, "macs": macs, "parameters": parameters, **losses}

    size = step["size"][0], step["size"][1]
    offered = dict.fromkeys(name for layer in space.layers if len(layer.operators) > 1 for name in layer.operators)
    rows = [row(f"uniform {name}", space.uniform_at(step["budget"], name, size)) for name in offered]
    drawn = [found for found in step["candidates"] if found["origin"] == "random"]
    rows += [row("random", _pairs(found["genotype"]), **{"trial loss": found["loss"]}) for found in drawn]
    steps = {name: _step(found) for name, found in trained.items()}
    return rows + [row(n, _pairs(found["genotype"]), loss=found["training"]["best_loss"]) for n, found in steps.items()]


def _pairs(genotype: Any) -> Genotype:
    return tuple((str(operator), int(width)) for operator, width in genotype)


def save_report(
    result: CompressedModel,
    teacher: nn.Module,
    example_inputs: Inputs,
    folder: str | Path,
    baselines: Mapping[str, CompressedModel] | None = None,
) -> None:
    """Write `search_report` as search.json and the architecture beside the teacher's as architecture.png.

    Raises `CompressionError` where `folder` does not exist or `result` was not searched for; `ImportError` without the
    extra ``plots``.
    """
    check_target(Path(folder) / "search.json")
    write_json(Path(folder) / "search.json", search_report(result, teacher, example_inputs, baselines))
    with whole_file(Path(folder) / "architecture.png", ".png") as path:
        _draw(result, teacher, path)


def _step(result: CompressedModel) -> dict[str, Any]:
    steps = [dict(step) for step in result.recipe.steps if {"genotype", "supernet"} <= step.keys()]
    if not steps:
        raise CompressionError("result: no step of it was an ArchitectureSearch")
    return steps[-1]


def _space(result: CompressedModel) -> SearchSpace:
    architecture = result.recipe.architecture
    assert architecture is not None
    return SearchSpace.from_dict(architecture.settings["space"])


def _side(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    costs = Costs.of(model, inputs)
    weights = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and isinstance(module.weight, torch.Tensor)
    )
    return {
        "parameters": costs.parameters,
        "macs": costs.macs,
        "flops": 2 * costs.macs,
        "seconds": costs.seconds,
        "bytes_32": 4 * costs.parameters,
        "bytes_8": weights + 4 * (costs.parameters - weights),
    }


def _draw(result: CompressedModel, teacher: nn.Module, path: Path) -> None:
    """Draw a bar of its width for each layer of the student, and of each convolution of the teacher."""
    with extra("plots"):
        from matplotlib.figure import Figure

    space, genotype = _space(result), _step(result)["genotype"]
    convs = [module for module in teacher.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    figure = Figure(figsize=(max(6.0, 0.35 * len(genotype) + 2), 5.5), layout="constrained")
    above, below = figure.subplots(2, 1)
    above.bar(range(len(convs)), [conv.out_channels for conv in convs], color="#8c8c8c")
    above.set_title(f"teacher: {len(convs)} convolutions", loc="left", fontsize=10)
    largest = [space.widths(layer)[-1] for layer in range(len(genotype))]
    below.bar(range(len(genotype)), largest, color="none", edgecolor="#b0b0b0", linewidth=0.8)
    operators = list(dict.fromkeys(operator for operator, _ in genotype))
    for number, operator in enumerate(operators):
        chosen = [layer for layer, (name, _) in enumerate(genotype) if name == operator]
        below.bar(chosen, [genotype[layer][1] for layer in chosen], color=f"C{number}", label=operator)
    below.set_title("student: width of each layer, within the largest on offer", loc="left", fontsize=10)
    below.legend(fontsize=8, ncols=len(operators), loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    for axes in (above, below):
        axes.set_ylabel("channels")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    below.set_xlabel("layer")
    figure.savefig(path, dpi=120)
