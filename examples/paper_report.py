"""Turn the results of paper_study.py into the tables and pictures of the documentation.

    python examples/paper_report.py --study output/paper --output docs/study

copies each generator's table and pictures, and writes `tables.md`: how good the uncompressed generators are, and for
each compressed one what `torch_fidelity_lsh.compare` says of it and the uncompressed one.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from compressors.common.files import write_text
from compressors.study.table import DISTANCES, PRECISION_RECALL, Estimate, Row, Table

COPIED = ("results.json", "results.csv", "real.png", "teacher.png", "samples.png")
METRICS = ("lsh", "lsh_knn")
WORDS = ("no fall shown", "recall alone shown to fall", "precision alone shown to fall", "both fall")

Found = TypeVar("Found")


def verdict(row: Row, reference: str, metric: str) -> str:
    """Say which of precision and recall is shown to have fallen; the other may have, by less than can be shown."""
    precision, recall = (_found(row.change(reference, score)).word == "loses" for score in PRECISION_RECALL[metric])
    return WORDS[recall + 2 * precision]


def generators_table(tables: dict[str, Table]) -> str:
    """Return the scores of the uncompressed generators against real images, of those that have some."""
    scores = (DISTANCES[0], *(score for pair in PRECISION_RECALL.values() for score in pair))
    lines = [["generator", "parameters", "samples a side", *(score.title for score in scores)]]
    for name, table in tables.items():
        row = table.rows[0]
        if "real" in table.references:
            cells = [_shown(_found(row.estimate("real", score))) for score in scores]
            lines.append([name, f"{row.parameters:,}", str(table.protocol["samples"]), *cells])
    return markdown(lines)


def counts_table(tables: dict[str, Table]) -> str:
    """Return how often each verdict was given, by metric and reference."""
    lines = [["generator", "metric", "against", *WORDS]]
    for name, table in tables.items():
        for metric in METRICS:
            for reference in table.references:
                found = Counter(verdict(row, reference, metric) for row in measured(table))
                lines.append([name, metric, reference, *(str(found[word]) for word in WORDS)])
    return markdown(lines)


def changes_table(table: Table, reference: str) -> str:
    """Return by how much precision and recall of each row changed, with what `compare` calls it."""
    scores = [score for metric in METRICS for score in PRECISION_RECALL[metric]]
    lines = [["compressor", "kB", "FID", *(score.title for score in scores)]]
    for row in measured(table):
        distance = _found(row.estimate(reference, DISTANCES[0])).value
        changes = [str(_found(row.change(reference, score))) for score in scores]
        lines.append([row.compressor, f"{(row.bytes or 0) / 1000:.0f}", f"{distance:.1f}", *changes])
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
    parser.add_argument("--output", type=Path, default=Path("docs/study"), help="folder for the page")
    arguments = parser.parse_args()
    tables = {path.parent.name: Table.load(path) for path in sorted(arguments.study.glob("*/results.json"))}
    for name in tables:
        (arguments.output / name).mkdir(parents=True, exist_ok=True)
        for file in filter(Path.is_file, (arguments.study / name / file for file in COPIED)):
            shutil.copyfile(file, arguments.output / name / file.name)
    parts = [
        "# Tables of the study\n\nWritten by `examples/paper_report.py` from the `results.json` of each generator. "
        "Intervals are of 95 %; changes are from the uncompressed generator, samples of the same latents being pairs.",
        "## Uncompressed generators, against real images\n\n" + generators_table(tables),
        "## Verdicts, number of rows\n\n" + counts_table(tables),
    ]
    for name, table in tables.items():
        parts += [f"## {name}, against {ref}\n\n{changes_table(table, ref)}" for ref in table.references]
    write_text(arguments.output / "tables.md", "\n\n".join(parts) + "\n")


def _found(value: Found | None) -> Found:
    assert value is not None, "the study was run without this metric"
    return value


def _shown(found: Estimate) -> str:
    interval = f" [{found.low:.2f}, {found.high:.2f}]" if found.low < found.high else ""
    return f"{found.value:.2f}{interval}"


if __name__ == "__main__":
    main()
