"""Turn the results of paper_study.py into the tables and pictures of the documentation.

    python examples/paper_report.py --study output/paper --training output/gan --output docs/study

copies each generator's table and pictures, and writes `tables.md`: how good the uncompressed generators are, and for
each compressed one whether precision and recall hold or fall.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from math import hypot
from pathlib import Path

from compressors.common.files import write_text
from compressors.study.table import DISTANCES, PRECISION_RECALL, Row, Score, Table

COPIED = ("results.json", "results.csv", "real.png", "teacher.png", "samples.png")
METRICS = ("lsh", "lsh_knn")


def change(row: Row, start: Row, reference: str, score: Score) -> tuple[float, float]:
    """Return by how much a score changed from `start`, and half the 95 % interval of the change.

    The interval takes the two errors as independent; the rows share their latents, so it errs on the wide side.
    """
    (value, half), (old, old_half) = (_interval(r, reference, score) for r in (row, start))
    return value - old, hypot(half, old_half)


def verdict(row: Row, start: Row, reference: str, metric: str) -> str:
    """Say which of precision and recall fell by more than the interval of its change."""
    precision, recall = (
        delta < -half for delta, half in (change(row, start, reference, score) for score in PRECISION_RECALL[metric])
    )
    words = {
        (False, False): "both hold",
        (False, True): "recall falls alone",
        (True, False): "precision falls alone",
        (True, True): "both fall",
    }
    return words[precision, recall]


def generators_table(tables: dict[str, Table], training: Path) -> str:
    """Return the uncompressed generators: how they were trained, and their scores against real images."""
    scores = (DISTANCES[0], *(score for pair in PRECISION_RECALL.values() for score in pair))
    lines = [["generator", "parameters", "steps", "samples a side", *(score.title for score in scores)]]
    for name, table in tables.items():
        steps = json.loads((training / name / "results.json").read_text())["steps"]
        row = table.rows[0]
        cells = [_shown(*_interval(row, "real", score)) for score in scores]
        lines.append([name, f"{row.parameters:,}", str(steps), str(table.protocol["samples"]), *cells])
    return markdown(lines)


def counts_table(tables: dict[str, Table]) -> str:
    """Return how often each verdict was given, by metric and reference."""
    words = ("both hold", "recall falls alone", "precision falls alone", "both fall")
    lines = [["generator", "metric", "against", *words]]
    for name, table in tables.items():
        for metric in METRICS:
            for reference in table.references:
                found = Counter(verdict(row, table.rows[0], reference, metric) for row in measured(table))
                lines.append([name, metric, reference, *(str(found[word]) for word in words)])
    return markdown(lines)


def changes_table(table: Table, reference: str) -> str:
    """Return by how much precision and recall of each row changed, and the verdicts."""
    start = table.rows[0]
    lines = [["compressor", "kB", "FID"]]
    for metric in METRICS:
        lines[0] += [f"{metric} precision", f"{metric} recall", metric]
    for row in measured(table):
        distance, _ = _interval(row, reference, DISTANCES[0])
        cells = [row.compressor, f"{(row.bytes or 0) / 1000:.0f}", f"{distance:.1f}"]
        for metric in METRICS:
            cells += [_shown(*change(row, start, reference, score), sign="+") for score in PRECISION_RECALL[metric]]
            cells.append(verdict(row, start, reference, metric))
        lines.append(cells)
    return markdown(lines)


def measured(table: Table) -> list[Row]:
    """Return the compressed rows that have scores."""
    return [row for row in table.rows[1:] if row.status == "measured"]


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """Return a table, the first line being its header."""
    header, *rest = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *rest])


def main() -> None:
    """Copy the results and write tables.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("output/paper"), help="output of paper_study.py")
    parser.add_argument("--training", type=Path, default=Path("output/gan"), help="outputs of train_gan.py")
    parser.add_argument("--output", type=Path, default=Path("docs/study"), help="folder for the page")
    arguments = parser.parse_args()
    tables = {path.parent.name: Table.load(path) for path in sorted(arguments.study.glob("*/results.json"))}
    for name in tables:
        (arguments.output / name).mkdir(parents=True, exist_ok=True)
        for file in COPIED:
            shutil.copyfile(arguments.study / name / file, arguments.output / name / file)
    parts = [
        "# Tables of the study\n\nWritten by `examples/paper_report.py` from the `results.json` of each generator. "
        "± is half a 95 % interval; changes are from the uncompressed generator.",
        "## Uncompressed generators, against real images\n\n" + generators_table(tables, arguments.training),
        "## Verdicts, number of rows\n\n" + counts_table(tables),
    ]
    for name, table in tables.items():
        parts += [f"## {name}, against {ref}\n\n{changes_table(table, ref)}" for ref in table.references]
    write_text(arguments.output / "tables.md", "\n\n".join(parts) + "\n")


def _interval(row: Row, reference: str, score: Score) -> tuple[float, float]:
    interval = row.interval(reference, score)
    assert interval is not None, f"{row.compressor} lacks {score.key}"
    return interval


def _shown(value: float, half: float, sign: str = "") -> str:
    digits = 3 if abs(value) < 10 else 1
    return f"{value:{sign}.{digits}f}" + (f" ±{half:.3f}" if half else "")


if __name__ == "__main__":
    main()
