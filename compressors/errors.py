"""Errors of the compressors, and the message for a missing optional dependency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CompressionError(ValueError):
    """A request that cannot be carried out; base of all errors raised by this package."""


class UnsupportedModule(CompressionError):
    """The model holds parameters or layers that the compressor cannot treat; the message lists them."""


class NothingCompressed(CompressionError):
    """The compressor ran and left the model (nearly) as it was."""


class ContractBroken(CompressionError):
    """The compressed model no longer runs, or its outputs changed shape or dtype or are not finite."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a failed import into an `ImportError` that says which optional extra to install."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}; install it with: pip install 'torch-fidelity-lsh[{name}]'") from error
