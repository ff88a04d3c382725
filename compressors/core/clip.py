"""Where to clip weights: the range that is kept, which quantization then divides into levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from compressors.common.checks import check_choice
from compressors.errors import CompressionError

Method = Literal["max", "percentile", "mse", "sigma", "threshold"]

_DEFAULTS: dict[str, float] = {"percentile": 99.9, "sigma": 3.0}


@dataclass(frozen=True)
class Clip:
    """How the range [-t, t] of weights is found; all statistics are brevitas's.

    `method` and what `value` means to it:

    - "max": t is the largest absolute weight; nothing is clipped. No value.
    - "percentile": `value` percent of the absolute weights are at most t, above 50 and below 100; default 99.9.
    - "mse": t minimises the squared error of the quantized weights (grid search). No value.
    - "sigma": t is mean + `value` standard deviations of the absolute weights, above 0; default 3.
    - "threshold": t is `value` itself, above 0, or what the function `value` returns for a layer's weight: the place
      for a clipping algorithm of one's own.

    The asymmetric ranges [low, high] exist for "max", "percentile" and "mse".
    """

    method: Method
    value: float | Callable[[Tensor], float] | None = None

    def __str__(self) -> str:
        return self.method if self.value is None else f"{self.method} {getattr(self.value, '__name__', self.value)}"

    def __post_init__(self) -> None:
        check_choice("clip", self.method, get_args(Method))
        value = self.value
        if value is None and self.method in _DEFAULTS:
            object.__setattr__(self, "value", _DEFAULTS[self.method])
        elif self.method in ("max", "mse"):
            if value is not None:
                raise CompressionError(f"clip {self.method!r} takes no value; got {value!r}")
        elif callable(value):
            if self.method != "threshold":
                raise CompressionError(f"clip {self.method!r} takes a number; got {value!r}")
        else:
            low, high = (50.0, 100.0) if self.method == "percentile" else (0.0, float("inf"))
            if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
                raise CompressionError(
                    f"clip {self.method!r} takes a number above {low:g} and below {high:g}; got {value!r}"
                )


ClipLike: TypeAlias = Clip | str | float | Callable[[Tensor], float]


def as_clip(clip: ClipLike | None, bits: int = 8) -> Clip:
    """Read the short forms: a method's name, a number or a function for "threshold", None for the default at `bits`."""
    if isinstance(clip, Clip):
        return clip
    if clip is None:
        return Clip("mse" if bits <= 4 else "max")
    if isinstance(clip, str):
        return Clip(clip)  # type: ignore[arg-type]
    return Clip("threshold", clip)


def check_clip(clip: ClipLike | None, symmetric: bool) -> None:
    """Raise `CompressionError` for a range that is unknown, or unknown for asymmetric codes."""
    method = as_clip(clip).method
    if method in ("sigma", "threshold") and not symmetric:
        raise CompressionError(f"clip {method!r} gives a range [-t, t]: it needs symmetric=True")
