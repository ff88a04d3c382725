"""Measurements and reports on disk, for all benchmarks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch_fidelity_lsh.metric
from compressors.common.files import write_text

Row = dict[str, Any]


class Store:
    """Measurements by key, one line of JSON each, in a file that survives interruption at any time."""

    def __init__(self, path: Path) -> None:
        self.rows: dict[str, Row] = {}
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        # An interrupted run can leave half a line at the end.
        whole = [line for line in lines if line.endswith("\n")]
        for row in map(json.loads, whole):
            self.rows[row["key"]] = row
        if whole != lines:
            write_text(path, "".join(whole))
        self._path = path

    def add(self, row: Row) -> None:
        """Keep a measurement."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with self._path.open("a") as file:
            file.write(line)
        self.rows[row["key"]] = json.loads(line)  # As a later run will read it.


def digest(*paths: Path) -> str:
    """Return a digest of the contents of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def digest_of_folder(folder: Path) -> str:
    """Return a digest of the Python files in a folder and below it, of their places and contents."""
    files = sorted(folder.rglob("*.py"))
    names = "\n".join(file.relative_to(folder).as_posix() for file in files)
    return hashlib.sha256((names + digest(*files)).encode()).hexdigest()[:12]


def digest_of_metrics() -> str:
    """Return a digest of the code of this project's metrics; measurements by other code are made again."""
    return digest_of_folder(Path(torch_fidelity_lsh.metric.__file__).parent)
