"""Schedules of the share of active weights that is dropped and grown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compressors.common.checks import check_choice, check_number
from compressors.errors import CompressionError

KINDS = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class Schedule:
    """A share that changes over training.

    Attributes:
        start: share at the beginning, 0 to 1. Default 0.5.
        end: share that "cosine" ends at, 0 to `start`; "linear" ends at 0. Default 0.005.
        kind: "cosine" (default), "linear" or "constant".

    Source: Dettmers and Zettlemoyer 2019 (arXiv 1907.04840), cosine decay of the pruning rate.
    """

    start: float = 0.5
    end: float = 0.005
    kind: str = "cosine"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        for name in ("start", "end"):
            check_number(name, getattr(self, name))
        if not 0 <= self.start <= 1:
            raise CompressionError(f"start must be a number from 0 to 1; got {self.start!r}")
        if not 0 <= self.end <= self.start:
            raise CompressionError(f"end must be a number from 0 to start={self.start!r}; got {self.end!r}")

    def at(self, iteration: int, iterations: int) -> float:
        """Return the share after `iteration` of `iterations`."""
        progress = min(iteration / iterations, 1.0)
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2
        return self.start * (1 - progress) if self.kind == "linear" else self.start


def due(iteration: int, interval: int, iterations: int) -> bool:
    """Tell whether something that happens every `interval` iterations happens now; it never does at the very end."""
    return 0 < iteration < iterations and iteration % interval == 0
