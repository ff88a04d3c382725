"""The message for a missing optional dependency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a failed import into an `ImportError` that says which optional extra to install."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}; install it with: pip install 'torch-fidelity-lsh[{name}]'") from error
