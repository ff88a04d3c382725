"""What a study keeps in its folder: finished rows and features, each with a checksum."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from compressors.common.files import digest, read_file, write_file, write_text
from compressors.errors import CompressionError
from compressors.study.table import Row

_KIND = "features of a study"


class KeptRows:
    """The finished rows of a folder, by key, in a JSON file of one line a row.

    Several studies may write to the file at the same time: each adds its rows to those of the others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._damaged = 0
        self._rows = self._read()

    def get(self, key: str | None) -> Row | None:
        """Return a row; None if there is none, or no key."""
        return None if key is None else self._rows.get(key)

    def add(self, key: str, row: Row) -> None:
        """Keep a row; raises `CompressionError` where the file cannot be written."""
        try:
            with FileLock(self.path.with_name(f"{self.path.name}.lock")):
                self._rows = {**self._read(), key: row}
                lines = (_line(key, row) for key, row in self._rows.items())
                write_text(self.path, "{\n" + ",\n".join(lines) + "\n}\n")
        except OSError as error:
            raise CompressionError(f"{self.path} cannot be written: {error}") from error

    def _read(self) -> dict[str, Row]:
        """Return the rows that are whole, and warn of others."""
        if not self.path.is_file():
            return {}
        rows = {}
        lines = [line for line in self.path.read_bytes().split(b"\n") if line not in (b"{", b"}", b"")]
        for line in lines:
            try:
                ((key, content),) = json.loads(b"{" + line.rstrip(b",") + b"}").items()
                checksum = content.pop("sha256")
                if checksum == _checksum(key, content):
                    rows[key] = Row(**content)
            except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
                continue
        damaged = len(lines) - len(rows)
        if damaged > self._damaged:
            warnings.warn(
                f"{self.path}: {damaged} of {len(lines)} lines are damaged, or of another version: "
                "the rows they held are measured again",
                stacklevel=2,
            )
        self._damaged = damaged
        return rows


def _line(key: str, row: Row) -> str:
    content = asdict(row)
    return f"{json.dumps(key)}: {json.dumps({**content, 'sha256': _checksum(key, content)}, allow_nan=False)}"


def _checksum(key: str, content: dict[str, object]) -> str:
    return digest([key, json.dumps(content, sort_keys=True)])


def write_features(path: Path, features: Tensor) -> Tensor:
    """Keep features, float32 N x D, under the name of the file; return them."""
    write_file(path, _KIND, {"features": features}, {"key": path.stem})
    return features


def read_features(path: Path) -> Tensor | None:
    """Return what `write_features` wrote; None, with a warning, for a damaged file, and None if there is no file."""
    if not path.is_file():
        return None
    try:
        tensors, content = read_file(path, _KIND)
        if content["key"] != path.stem:
            raise CompressionError(f"path: {path} was renamed: it holds the features of {content['key']}")
    except CompressionError as error:
        warnings.warn(f"{error}: these features are extracted again", stacklevel=2)
        return None
    return tensors["features"]
