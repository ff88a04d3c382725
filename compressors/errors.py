"""Errors of the compressors."""

from __future__ import annotations

from typing import Any


class CompressionError(ValueError):
    """A request that cannot be carried out; base of all errors raised by this package."""


class UnsupportedModule(CompressionError):
    """The model holds parameters or layers that the compressor cannot treat; the message lists them."""


class NothingCompressed(CompressionError):
    """The compressor ran and left the model (nearly) as it was."""


class TrainingDiverged(CompressionError):
    """The loss of a training is not finite; `result` is the `CompressedModel` of the best state before."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class ContractBroken(CompressionError):
    """The compressed model no longer runs, or its outputs changed shape or dtype or are not finite."""
