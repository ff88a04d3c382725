"""Errors of the compressors."""

from __future__ import annotations


class CompressionError(ValueError):
    """A request that cannot be carried out; base of all errors raised by this package."""


class UnsupportedModule(CompressionError):
    """The model holds parameters or layers that the compressor cannot treat; the message lists them."""


class NothingCompressed(CompressionError):
    """The compressor ran and left the model (nearly) as it was."""


class ContractBroken(CompressionError):
    """The compressed model no longer runs, or its outputs changed shape or dtype or are not finite."""
