"""What was done to a model, as data: enough to tell it, and to rebuild the structure from the original class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from compressors.core.architecture import Architecture

# The attributes in which layers repeat the sizes of their tensors.
_SIZE_ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "num_groups",
    "num_parameters",
    "normalized_shape",
    "num_embeddings",
    "embedding_dim",
)


@dataclass(frozen=True)
class LayerSize:
    """The sizes of one layer: its size attributes and the shapes of its own tensors."""

    attributes: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, module: nn.Module) -> LayerSize:
        """Read the sizes of `module`, children excluded."""
        attributes = {name: getattr(module, name) for name in _SIZE_ATTRIBUTES if hasattr(module, name)}
        tensors = {**module._parameters, **module._buffers}
        return cls(attributes, {name: tuple(value.shape) for name, value in tensors.items() if value is not None})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerSize:
        """Read what `dataclasses.asdict`, and JSON after it, made of a `LayerSize`: lists were tuples."""
        attributes = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data["attributes"].items()
        }
        return cls(attributes, {key: tuple(shape) for key, shape in data["shapes"].items()})

    def apply(self, module: nn.Module) -> None:
        """Give `module` these sizes; tensors of another shape become zero."""
        for name, value in self.attributes.items():
            setattr(module, name, value)
        for name, shape in self.shapes.items():
            old = getattr(module, name)
            if tuple(old.shape) != shape:
                new = torch.zeros(shape, dtype=old.dtype, device=old.device)
                setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


def layer_sizes(model: nn.Module) -> dict[str, LayerSize]:
    """Return the sizes of all modules, by name."""
    return {name: LayerSize.of(module) for name, module in model.named_modules()}


@dataclass(frozen=True)
class LayerQuantization:
    """How one layer is quantized: the shape of its weight, bits of weight and (None: float) input, and the scales."""

    shape: tuple[int, ...]
    bits: int
    act_bits: int | None
    per_channel: bool
    symmetric: bool
    act_symmetric: bool


@dataclass(frozen=True)
class Recipe:
    """The steps taken, with all settings, and the structure they led to.

    Layer names are those of the model with its reparametrisations baked in.

    Attributes:
        steps: one JSON object per compressor, in order: its class and its settings.
        sizes: the layers whose sizes changed.
        quantized: the quantized layers.
        sparse: whether files leave out the zeros of weights that are not quantized.
        architecture: what builds the model before `sizes` and `quantized`; None (default): the original class does.
    """

    steps: tuple[Mapping[str, Any], ...] = ()
    sizes: Mapping[str, LayerSize] = field(default_factory=dict)
    quantized: Mapping[str, LayerQuantization] = field(default_factory=dict)
    sparse: bool = False
    architecture: Architecture | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain types that JSON has."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Read what `to_dict` gave."""
        return cls(
            tuple(data["steps"]),
            {name: LayerSize.from_dict(size) for name, size in data["sizes"].items()},
            {
                name: LayerQuantization(**{**layer, "shape": tuple(layer["shape"])})
                for name, layer in data["quantized"].items()
            },
            data["sparse"],
            data["architecture"] and Architecture(**data["architecture"]),
        )


def settings(compressor: Any) -> dict[str, Any]:
    """Return the class name and the fields of a compressor dataclass as JSON; callables become their names."""
    return {"compressor": type(compressor).__name__, **_as_json(compressor)}


def _as_json(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _as_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)
