"""The table of a study: one row per compressor, as text, CSV and JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from compressors.common.files import digest, write_json, write_text
from compressors.common.text import aligned
from compressors.errors import CompressionError

Status = Literal["measured", "failed", "out of memory"]

_SIZES = ("bits", "act_bits", "ratio", "parameters", "macs", "bytes", "latency_ms", "sqnr_db")


@dataclass(frozen=True)
class Score:
    """A number of a fidelity call that the printed table and the pictures show: its key, its title, its error's key."""

    key: str
    title: str
    stderr: str | None = None


def _pair(prefix: str, title: str, error: bool) -> tuple[Score, Score]:
    precision, recall = (
        Score(f"{prefix}{side}", f"{title} {side}", f"{prefix}{side}_stderr" if error else None)
        for side in ("precision", "recall")
    )
    return precision, recall


# Precision and recall by the metric's name in a fidelity call.
PRECISION_RECALL = {
    "lsh": _pair("lsh_", "lsh", error=True),
    "lsh_knn": _pair("lsh_knn_", "lsh_knn", error=True),
    "prc": _pair("", "kNN", error=False),
}
DISTANCES = (Score("frechet_inception_distance", "FID"), Score("kernel_inception_distance_mean", "KID"))
SCORES = (*DISTANCES, *(score for pair in PRECISION_RECALL.values() for score in pair))


@dataclass(frozen=True)
class Row:
    """One compressor of a study.

    Attributes:
        compressor: its label; "float" for the uncompressed model.
        bits: mean width of a quantized weight; None where nothing is quantized.
        act_bits: width of quantized activations, or None.
        ratio: share of channels that was pruned, or None.
        parameters: their number.
        macs: multiply-accumulates per image.
        bytes: size of the tensors in the packed file.
        latency_ms: milliseconds per image, median over batches, on the device of the study.
        sqnr_db: ratio of the outputs to the error in them, in dB; None where they are identical.
        scores: by reference ("real", "teacher"), what the fidelity call returned.
        samples: picture of the first samples, relative to the folder of the study.
        status: "failed" and "out of memory" rows have no scores, and the sizes only if the failure came late.
        note: what went wrong, or has to be known of the row.
    """

    compressor: str
    bits: float | None = None
    act_bits: int | None = None
    ratio: float | None = None
    parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    latency_ms: float | None = None
    sqnr_db: float | None = None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    samples: str = ""
    status: Status = "measured"
    note: str = ""

    @property
    def series(self) -> str:
        """The label with bits and ratios left open: rows of one series differ in how hard they compress."""
        return re.sub(r"(?<=[WA])\d+|(?<=prune )[\d.]+", "*", self.compressor)

    def interval(self, reference: str, score: Score) -> tuple[float, float] | None:
        """Return a score and half the width of its 95 % interval (0 where no error is known); None if not measured."""
        values = self.scores.get(reference, {})
        if score.key not in values:
            return None
        return values[score.key], 1.96 * values[score.stderr] if score.stderr else 0.0


@dataclass(frozen=True)
class Table:
    """The rows of a study, the uncompressed model first, and the protocol that led to them."""

    rows: tuple[Row, ...]
    protocol: Mapping[str, Any]

    @property
    def references(self) -> tuple[str, ...]:
        """What the rows were compared with: "real", "teacher" or both."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.scores))

    def __str__(self) -> str:
        """Return the table as text, one block per reference, then the notes; ± is half a 95 % interval."""
        blocks = [self._block(reference) for reference in self.references]
        notes = [
            f"{row.compressor}: {row.note}"
            if row.status == "measured"
            else f"{row.compressor}: {row.status}: {row.note}"
            for row in self.rows
            if row.note
        ]
        return "\n\n".join([*blocks, *notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the table as what JSON can hold."""
        return {"protocol": dict(self.protocol), "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def load(cls, path: str | Path) -> Table:
        """Read a file of `save_json`; raises `CompressionError` where its checksum does not fit its content."""
        try:
            content = json.loads(Path(path).read_bytes())
            if content.pop("sha256") != _checksum(content):
                raise ValueError("its checksum does not fit its content")
            return cls(tuple(Row(**row) for row in content["rows"]), content["protocol"])
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise CompressionError(
                f"path: {path} is damaged or no table of a study ({type(error).__name__}: {error}); "
                "the same study writes it again from its finished rows"
            ) from error

    def save_json(self, path: str | Path) -> None:
        """Write the table as JSON with a checksum, whole or not at all."""
        write_json(path, {**self.to_dict(), "sha256": _checksum(self.to_dict())})

    def save_csv(self, path: str | Path) -> None:
        """Write the table as CSV: sizes, then ``<reference>_<key>`` for every score, then status and note."""
        keys = {f"{ref}_{key}": (ref, key) for row in self.rows for ref in row.scores for key in row.scores[ref]}
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("compressor", *_SIZES, *keys, "status", "note"))
        for row in self.rows:
            scores = (row.scores.get(reference, {}).get(key) for reference, key in keys.values())
            writer.writerow((row.compressor, *(getattr(row, name) for name in _SIZES), *scores, row.status, row.note))
        write_text(path, text.getvalue())

    def _block(self, reference: str) -> str:
        shown = [score for score in SCORES if any(row.interval(reference, score) for row in self.rows)]
        header = ("compressor", "bits", "ratio", "parameters", "MACs", "kB", "ms", *(score.title for score in shown))
        lines = aligned([header, *(_cells(row, reference, shown) for row in self.rows)])
        return "\n".join([f"against {reference}:", *lines])


def _checksum(content: Any) -> str:
    return digest([json.dumps(content, sort_keys=True)])


def _cells(row: Row, reference: str, shown: list[Score]) -> tuple[str, ...]:
    sizes = (
        _number(row.bits, "g"),
        _number(row.ratio, "g"),
        _number(row.parameters, ","),
        _number(row.macs, ","),
        _number(None if row.bytes is None else row.bytes / 1000, ",.0f"),
        _number(row.latency_ms, ".2f"),
    )
    if row.status != "measured":
        return (row.compressor, *sizes, row.status, *[""] * (len(shown) - 1))
    return (row.compressor, *sizes, *(_scored(row, reference, score) for score in shown))


def _scored(row: Row, reference: str, score: Score) -> str:
    interval = row.interval(reference, score)
    if interval is None:
        return ""
    value, half = interval
    return f"{value:.4g}" if score in DISTANCES else f"{value:.3f}" + (f" ±{half:.3f}" if score.stderr else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
