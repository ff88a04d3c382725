"""Folders of results that a second run goes on with, of one setting or refused, and how their tables are written."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressors.common.files import write_json
from compressors.common.text import versions


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder for models of these settings; leave with a message where it holds those of others."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        sys.exit(f"{folder} holds models of other settings: choose another --output, or delete it")
    write_json(path, settings)


def averaged(values: Sequence[float], form: str = ".2f", form_of_deviation: str | None = None) -> str:
    """Return the mean and, behind ±, the standard deviation of some values; nothing of none."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):{form_of_deviation or form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


class Table:
    """Rows of results.json in a folder, written as they come: a run that is cut off keeps those that were finished.

    Args:
        folder: claimed here, see `claim`.
        settings: of all rows.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        claim(folder, settings)
        self.path = folder / "results.json"
        self.content: dict[str, Any] = {"settings": settings, "versions": versions(), "rows": []}
        if self.path.is_file():
            self.content = json.loads(self.path.read_text())
        self.rows: list[dict[str, Any]] = self.content["rows"]

    def has(self, label: str, seed: int) -> bool:
        """Tell whether there is such a row."""
        return any((row["row"], row["seed"]) == (label, seed) for row in self.rows)

    def add(self, label: str, seed: int, **values: Any) -> None:
        """Print a row and write the table."""
        self.rows.append({"row": label, "seed": seed, **values})
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in self.rows[-1].items()}, flush=True)
        self.write()

    def write(self) -> None:
        """Write the table."""
        write_json(self.path, self.content)
