"""Text of tables, of errors and of protocols."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch-fidelity-lsh", "torch-fidelity", "torch", "brevitas", "torch-pruning")

# Folders of packages, this one's included, which may lie elsewhere while it is developed.
_INSTALLED = (
    Path(__file__).parents[1],
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row, in which the columns of `rows` are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def described(error: BaseException) -> str:
    """Return type, text and place of an error: "KeyError: 'w' (model.py, line 12, in forward)".

    The place is the innermost line outside of this package and of installed ones; without one it is left out.
    """
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not is_installed(frame.filename)]
    return text + (f" ({Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name})" if own else "")


def is_installed(file: str) -> bool:
    """Tell whether a source file belongs to this package, to an installed one, or to Python itself."""
    return file.startswith("<frozen ") or any(Path(file).is_relative_to(folder) for folder in _INSTALLED)


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that the numbers depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
