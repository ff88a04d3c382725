"""The table of a study: one row per compressor, as text, CSV and JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from compressors.common.files import check_target, digest, write_json, write_text
from compressors.common.text import aligned
from compressors.errors import CompressionError
from compressors.study.pairs import PAIRED

Status = Literal["measured", "failed", "out of memory"]
Block: TypeAlias = tuple[str, list[tuple[str, ...]]]
"""A title, and lines of text in cells, the header first."""

_SIZES = ("bits", "act_bits", "ratio", "parameters", "macs", "bytes", "latency_ms", "sqnr_db")


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval, which are the value itself where no interval is known."""

    value: float
    low: float
    high: float


class Change(NamedTuple):
    """A difference to the uncompressed model, the ends of its 95 % interval, and what `compare` calls it."""

    value: float
    low: float
    high: float
    word: str

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}] {self.word}"


@dataclass(frozen=True)
class Score:
    """A number of a fidelity call that the printed table and the pictures show.

    Attributes:
        key: its key.
        title: its title.
        has_interval: whether the call returns a 95 % interval, under ``<key>_ci_low`` and ``<key>_ci_high``.
    """

    key: str
    title: str
    has_interval: bool = False


def _pair(prefix: str, title: str, has_interval: bool) -> tuple[Score, Score]:
    precision, recall = (Score(f"{prefix}{side}", f"{title} {side}", has_interval) for side in ("precision", "recall"))
    return precision, recall


# Precision and recall by the metric's name in a fidelity call.
PRECISION_RECALL = {
    "lsh": _pair("lsh_", "lsh", has_interval=True),
    "lsh_knn": _pair("lsh_knn_", "lsh_knn", has_interval=True),
    "prc": _pair("", "kNN", has_interval=False),
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
        changes: by reference and score, what `torch_fidelity_lsh.compare` says of this model and the uncompressed one,
            samples of the same latents being pairs: "value", "ci_low", "ci_high", and a "word", which is "loses",
            "gains", "keeps" (surely loses less than 0.05) or "may keep". None for the uncompressed model.
        paired: "psnr" in dB, "ssim", "lpips" of the first images and those of the uncompressed model, as far as the
            settings ask for them; without "psnr" where all are the same.
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
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    paired: Mapping[str, float] = field(default_factory=dict)
    samples: str = ""
    status: Status = "measured"
    note: str = ""

    @property
    def series(self) -> str:
        """The label with bits and ratios left open: rows of one series differ in how hard they compress."""
        return re.sub(r"(?<=[WA])\d+|(?<=prune )[\d.]+", "*", self.compressor)

    def estimate(self, reference: str, score: Score) -> Estimate | None:
        """Return a score and its interval; None if it was not measured."""
        values = self.scores.get(reference, {})
        if score.key not in values:
            return None
        ends = [f"{score.key}_ci_low", f"{score.key}_ci_high"] if score.has_interval else [score.key] * 2
        return Estimate(values[score.key], *(values[end] for end in ends))

    def change(self, reference: str, score: Score) -> Change | None:
        """Return how a score differs from that of the uncompressed model; None if that was not measured."""
        found = self.changes.get(reference, {}).get(score.key)
        return None if found is None else Change(found["value"], found["ci_low"], found["ci_high"], found["word"])


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
        """Return the table as text: for each reference the scores, then the changes, and the notes at last.

        Intervals, in brackets, are of 95 %.
        """
        blocks = (block for reference in self.references for block in self._blocks(reference))
        texts = ["\n".join([f"{title}:", *aligned(lines)]) for title, lines in blocks]
        return "\n\n".join([*texts, *self._notes()])

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
        """Write the table as CSV: sizes, scores, changes, status and note.

        Scores are called ``<reference>_<key>``, changes ``<reference>_<key>_change`` with ``_ci_low``, ``_ci_high`` and
        ``_word``.
        """
        cells = [_flat(row) for row in self.rows]
        keys = list(dict.fromkeys(key for row in cells for key in row))
        text = StringIO()
        writer = csv.DictWriter(text, ("compressor", *_SIZES, *keys, "status", "note"), lineterminator="\n")
        writer.writeheader()
        for row, numbers in zip(self.rows, cells, strict=True):
            known = {name: getattr(row, name) for name in ("compressor", *_SIZES, "status", "note")}
            writer.writerow({**known, **numbers})
        write_text(path, text.getvalue())

    def save_html(self, path: str | Path, folder: str | Path | None = None) -> None:
        """Write a page that shows the table, the pictures, and the same latents through every row.

        One HTML file with all pictures inside and no script; text in it is escaped.

        Args:
            path: file to write, ending in ``.html``.
            folder: folder of the study, whose pictures are shown. Default: that of `path`.

        Raises:
            CompressionError: a picture cannot be read, or the file cannot be written there.
            ImportError: jinja2 is missing; the message names the extra.
        """
        from compressors.study.report import write_study_page  # of an extra

        target = check_target(path, ".html")
        source = target.parent if folder is None else Path(folder)
        tables = {reference: list(self._blocks(reference)) for reference in self.references}
        samples = [(row.compressor, row.samples) for row in self.rows if row.samples]
        write_study_page(target, source, tables, samples, self._notes(), self.protocol)

    def _notes(self) -> list[str]:
        return [
            f"{row.compressor}: {row.note}"
            if row.status == "measured"
            else f"{row.compressor}: {row.status}: {row.note}"
            for row in self.rows
            if row.note
        ]

    def _blocks(self, reference: str) -> Iterator[Block]:
        shown = [score for score in SCORES if any(row.estimate(reference, score) for row in self.rows)]
        header = ("compressor", "bits", "ratio", "parameters", "MACs", "kB", "ms", *(score.title for score in shown))
        pairs = [name for name in PAIRED if any(name in row.paired for row in self.rows)]
        lines = [(*_cells(row, reference, shown), *_paired(row, pairs)) for row in self.rows]
        yield f"against {reference}", [(*header, *map(str.upper, pairs)), *lines]
        changed = [row for row in self.rows if row.changes]
        if changed:
            compared = [score for score in shown if changed[0].change(reference, score)]
            lines = [
                ("compressor", *(score.title for score in compared)),
                *((row.compressor, *(str(row.change(reference, score)) for score in compared)) for row in changed),
            ]
            yield f"against {reference}, changes from the uncompressed model", lines


def _flat(row: Row) -> dict[str, float | str]:
    """Return the scores and changes of a row under the names of their columns."""
    scores = {f"{ref}_{key}": value for ref, values in row.scores.items() for key, value in values.items()}
    changes = {
        f"{ref}_{key}_change" + ("" if name == "value" else f"_{name}"): value
        for ref, found in row.changes.items()
        for key, change in found.items()
        for name, value in change.items()
    }
    return {**scores, **changes, **{f"paired_{name}": value for name, value in row.paired.items()}}


def _checksum(content: Any) -> str:
    return digest([json.dumps(content, sort_keys=True)])


def _cells(row: Row, reference: str, shown: list[Score]) -> tuple[str, ...]:
    sizes = (
        _number(row.bits, ".3g"),
        _number(row.ratio, ".3g"),
        _number(row.parameters, ","),
        _number(row.macs, ","),
        _number(None if row.bytes is None else row.bytes / 1000, ",.0f"),
        _number(row.latency_ms, ".2f"),
    )
    if row.status != "measured":
        return (row.compressor, *sizes, row.status, *[""] * (len(shown) - 1))
    return (row.compressor, *sizes, *(_scored(row, reference, score) for score in shown))


def _paired(row: Row, names: list[str]) -> tuple[str, ...]:
    return tuple(f"{row.paired[name]:.4g}" if name in row.paired else "" for name in names)


def _scored(row: Row, reference: str, score: Score) -> str:
    found = row.estimate(reference, score)
    if found is None:
        return ""
    if score in DISTANCES:
        return f"{found.value:.4g}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if score.has_interval else f"{found.value:.2f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
