"""The report of a compression: sizes before and after, per layer and in total, as data and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressors.common.measure import Inputs, count_macs
from compressors.common.text import aligned, versions
from compressors.core.packing import layer_of, stored_bytes
from compressors.core.recipe import Recipe
from compressors.core.sharing import shared_parameters


@dataclass(frozen=True)
class Size:
    """Parameters; multiply-accumulates of one forward pass of the example inputs; bytes in the packed file."""

    parameters: int = 0
    macs: int = 0
    bytes: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.parameters + other.parameters, self.macs + other.macs, self.bytes + other.bytes)


@dataclass(frozen=True)
class LayerRow:
    """One layer before and after; `bits` and `act_bits` are None in float; `note` says what was done or why not."""

    name: str
    type: str
    before: Size
    after: Size
    bits: int | None = None
    act_bits: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a compression did to the size of a model, and to its outputs.

    `name` labels the compressors; `before` and `after` are totals over `layers`, the MACs (those of functional calls
    included) for forward arguments of `input_shapes`. Bytes are those of the tensors in the file that
    `CompressedModel.save` writes, without its header. `coverage` is the share of the parameters, 0 to 1, that the last
    compressor could treat. `sqnr_db` is the signal to quantization noise ratio of the outputs on the example inputs,
    10 log10(sum r^2 / sum (r - y)^2) for outputs r before and y after (None: no error); it ranks settings on one model
    and says nothing about the quality of images. `notes` are remarks on the whole model, such as how a training
    went, or a stage that had nothing to do.
    """

    name: str
    before: Size
    after: Size
    layers: tuple[LayerRow, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    coverage: float = 1.0
    sqnr_db: float | None = None
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> Report:
        """Measure an uncompressed model."""
        rows, total = _measure(model, inputs, Recipe())
        types = {name: type(module).__name__ for name, module in model.named_modules()}
        layers = tuple(LayerRow(name, types[name], size, size) for name, size in rows.items())
        return cls("", total, total, layers, shapes_of(inputs))

    def updated(
        self, model: nn.Module, inputs: Inputs, recipe: Recipe, notes: Mapping[str, str], sqnr_db: float | None
    ) -> Report:
        """Return the report with `model` as what came after.

        Args:
            model: the compressed model.
            inputs: forward arguments, as in `of`.
            recipe: what led to it.
            notes: the remarks on layers, by name.
            sqnr_db: see `Report`.
        """
        sizes, total = _measure(model, inputs, recipe)
        before = {row.name for row in self.layers}
        new = {name: type(model.get_submodule(name)).__name__ for name in sizes if name not in before}
        # Layers that a model of another architecture has not, or has in addition, count as empty where they are not.
        rows = (*self.layers, *(LayerRow(name, kind, Size(), Size()) for name, kind in new.items()))
        layers = []
        for row in rows:
            layer = recipe.quantized.get(row.name)
            bits, act_bits = (layer.bits, layer.act_bits) if layer else (None, None)
            after, note = sizes.get(row.name, Size()), notes.get(row.name, "")
            layers.append(replace(row, after=after, bits=bits, act_bits=act_bits, note=note))
        return replace(self, after=total, layers=tuple(layers), sqnr_db=sqnr_db)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types that JSON has."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Read what `to_dict` gave."""
        layers = tuple(
            LayerRow(**{**row, "before": Size(**row["before"]), "after": Size(**row["after"])})
            for row in data["layers"]
        )
        sizes = {key: Size(**data[key]) for key in ("before", "after")}
        shapes = tuple(tuple(shape) for shape in data["input_shapes"])
        return cls(**{**data, **sizes, "layers": layers, "input_shapes": shapes, "notes": tuple(data["notes"])})

    def __str__(self) -> str:
        """Return a table: one line per layer, and the total."""
        header = ("layer", "type", "parameters", "MACs", "bytes", "bits", "note")
        total = LayerRow("total", "", self.before, self.after)
        lines = aligned([header, *(_cells(row) for row in (*self.layers, total))])
        error = "outputs identical" if self.sqnr_db is None else f"output SQNR {self.sqnr_db:.1f} dB"
        return "\n".join([f"{self.name}: {error}, coverage {self.coverage:.0%}", *lines, *self.notes])


def shapes_of(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of all that forward arguments hold, in dicts and lists too; () for what is no tensor."""
    return tuple(tuple(item.shape) if isinstance(item, Tensor) else () for item in tree_leaves(inputs))


def _measure(model: nn.Module, inputs: Inputs, recipe: Recipe) -> tuple[dict[str, Size], Size]:
    """Return the size of every module with tensors of its own (quantizers belong to their layer), and the total."""
    macs = count_macs(model, inputs)
    modules = dict(model.named_modules())
    rows: dict[str, Size] = {}
    for key, size in stored_bytes(model, recipe).items():
        owner, _, leaf = key.rpartition(".")
        layer = layer_of(key, recipe) or owner
        parameter = modules[layer]._parameters.get(leaf) if layer == owner else None
        rows.setdefault(layer, Size(macs=macs.get(layer, 0) if layer else 0))
        rows[layer] += Size(0 if parameter is None else parameter.numel(), bytes=size)
    for name in shared_parameters(model):
        layer = name.rpartition(".")[0]
        rows.setdefault(layer, Size(macs=macs.get(layer, 0) if layer else 0))
    rows = {name: rows[name] for name in modules if name in rows}
    total = sum(rows.values(), Size())
    return rows, replace(total, macs=macs[""])


def _cells(row: LayerRow) -> tuple[str, ...]:
    pairs = zip(
        (row.before.parameters, row.before.macs, row.before.bytes),
        (row.after.parameters, row.after.macs, row.after.bytes),
        strict=True,
    )
    counts = (f"{b:,}" if a == b else f"{b:,} -> {a:,}" for b, a in pairs)
    bits = "" if row.bits is None else f"W{row.bits}" + (f"A{row.act_bits}" if row.act_bits else "")
    return (row.name, row.type, *counts, bits, row.note)
