"""Text of tables and of protocols."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch-fidelity-lsh", "torch-fidelity", "torch", "brevitas", "torch-pruning")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row, in which the columns of `rows` are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that the numbers depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
