"""Named architectures: how a file tells which class of model it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from compressors.common.checks import did_you_mean
from compressors.errors import CompressionError

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register_architecture(name: str, builder: Callable[..., nn.Module]) -> None:
    """Make `builder`, a function or class called with settings as keywords, known under `name`.

    Raises `CompressionError` where `name` is taken by another builder.
    """
    if not callable(builder):
        raise CompressionError(f"builder must be a function or class that returns an nn.Module; got {builder!r}")
    if _BUILDERS.setdefault(name, builder) is not builder:
        raise CompressionError(f"name: {name!r} is taken by another architecture, {_BUILDERS[name]!r}")


@dataclass(frozen=True)
class Architecture:
    """A registered builder and its settings, for models that are no longer of the class they were made from.

    Attributes:
        name: of `register_architecture`.
        settings: keywords of the builder, of types that JSON has.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether a builder of this name is registered."""
        return self.name in _BUILDERS

    def build(self) -> nn.Module:
        """Return a model of this architecture; raises `CompressionError` where the name is not registered."""
        if not self.known:
            raise CompressionError(
                f"architecture: {self.name!r} is not registered: import the module that registers it, or pass factory"
                f"{did_you_mean(self.name, _BUILDERS)}"
            )
        return _BUILDERS[self.name](**self.settings)
