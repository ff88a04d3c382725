"""Which metrics of generative models tell the truth: checks with a known answer, for ours and for published ones.

    python benchmarks/validity --output DIR [--data-root ROOT] [--quick] [--pages PAGE ...] [--only CHECK ...]

Two pages: ``sanity``, the suite and the protocols of papers, and ``ordinary``, situations that users have, with the
fit of the intervals and the power to find strangers. Prints their tables; writes them with all numbers to the output
folder. Measurements are kept there (``measurements.jsonl``): a further run measures what is missing, or what changed
with the code of a check or metric.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # For what the benchmarks share.

import pictures
import report
import torch
from board import Board, run
from checks import Check
from columns import Metric
from demo import extract_demo
from detection import LEVEL, PERMUTATIONS, Detection
from intervals import HELD, WIDTH
from ordinary import ORDINARY
from real_features import extract, features_file
from storage import Store

from compressors.common.files import write_json, write_text

SUITE_LEGEND = (
    "Cells: property, then bounds (hypercube: value, then convergence). T passed, F failed; "
    "H, L passed as a diversity that is high, or low, for generators too wide."
)
PROTOCOL_LEGEND = "T passed, F failed, with the deciding value, or with what a shape misses. -: has no such number."
ORDINARY_LEGEND = (
    "Truth and its tolerance, then the mean of each metric over draws, fidelity and diversity. !: misses the truth by "
    "more. Coverage and the Clipped metrics weigh by frequency, by design: shares of classes count for them."
)
INTERVAL_LEGEND = (
    f"Share of 95 % intervals that hold the mean over draws, wanted {HELD[0]:.0%} to {HELD[1]:.0%}; half-width in "
    f"units of 1.96 deviations, wanted {WIDTH[0]} to {WIDTH[1]}. !: outside. Steady: the value does not vary."
)
DETECTION_LEGEND = (
    f"Share of draws in which the test finds the strangers, at a level of {LEVEL:.0%}; at a share of 0, false alarms. "
    "lsh, lsh_knn: their own test; the others by permutation. -: too few images."
)
PACKAGES = ("torch-fidelity-lsh", "torch-fidelity", "torch", "numpy", "prdc", "scipy", "scikit-learn")
DETECTION = "detection"
QUICK_METRICS = ["lsh", "lsh_knn", "knn"]
TABLES = {"sanity": "table.md", "ordinary": "ordinary_table.md"}


def main() -> None:
    """Run the benchmark."""
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    features = features_file(args.output, args.data_root, args.quick)
    board, store = Board(features, args.quick, args.repeats), Store(args.output / "measurements.jsonl")
    detection = Detection(features, args.quick, args.repeats) if DETECTION in args.only else None
    names = [name for name in args.only if name != DETECTION]
    start = time.perf_counter()
    try:
        torch.set_num_threads(args.jobs)
        sources = {board.checks[name].source_data for name in names}
        if detection or features.stem in sources:
            extract(features, args.data_root, args.quick)
        if board.demo.stem in sources:
            extract_demo(board.demo, args.quick)
        run(board, board.tasks(names, args.metrics), store, args.jobs)
        if detection:
            run(detection, detection.tasks(), store, args.jobs)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Measurements are kept; the same command goes on from here.")
    except FileNotFoundError as error:
        sys.exit(str(error))
    checks, metrics = [board.checks[name] for name in names], [board.metrics[name] for name in args.metrics]
    write_report(args, board, detection, store, checks, metrics, time.perf_counter() - start)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    board = Board(Path("features.npz"), quick=True)
    pages = {page: list(checks) for page, checks in board.pages.items()}
    pages["ordinary"].append(DETECTION)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/validity"), help="folder to write to")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST/raw; scikit-learn's digits if not given")
    parser.add_argument("--quick", action="store_true", help="short sweeps, few repeats, few metrics: a rough picture")
    parser.add_argument("--pages", nargs="+", choices=pages, default=list(pages), metavar="PAGE", help=", ".join(pages))
    parser.add_argument(
        "--only", nargs="+", choices=list(chain(*pages.values())), metavar="CHECK", help="instead of pages"
    )
    parser.add_argument(
        "--metrics", nargs="+", choices=board.metrics, metavar="NAME", help="default all, in a quick run three"
    )
    parser.add_argument("--repeats", type=positive, help="at most so many draws of each check's data")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, help="processes, each with one thread")
    args = parser.parse_args()
    args.only = args.only or list(chain(*(pages[page] for page in args.pages)))
    args.metrics = args.metrics or (QUICK_METRICS if args.quick else list(board.metrics))
    return args


def positive(text: str) -> int:
    """Read a number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return number


def write_report(
    args: argparse.Namespace,
    board: Board,
    detection: Detection | None,
    store: Store,
    checks: Sequence[Check],
    metrics: Sequence[Metric],
    seconds: float,
) -> None:
    """Print the tables and write everything."""
    pages = {page: [check for check in checks if check.name in board.pages[page]] for page in ("sanity", "ordinary")}
    sections = {
        "sanity": sanity_sections(board, store, pages["sanity"], metrics),
        "ordinary": ordinary_sections(board, detection, store, pages["ordinary"], metrics),
    }
    for page, given in sections.items():
        if not given:
            continue
        if args.quick:
            given["Quick run"] = "Few repeats, points and dimensions: borderline cells are noise."
        text = "\n\n".join(f"## {title}\n\n{body}" for title, body in given.items())
        print(text)
        write_text(args.output / TABLES[page], text + "\n")
    protocol = {
        "quick": args.quick,
        "jobs": args.jobs,
        "threads_per_job": 1,
        "seconds": round(seconds),
        "permutations": PERMUTATIONS["quick" if args.quick else "full"],
        "seeds": "each draw's and each metric's from the names of check, group, point and repeat",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    results: dict[str, object] = {"protocol": protocol, "results": report.to_json(board, store, checks, metrics)}
    results["truths"] = report.truths_to_json([check for check in checks if check in ORDINARY])
    results["intervals"] = report.intervals_to_json(board, store, [c for c in checks if c.ours_only], metrics)
    if detection:
        results["detection"] = report.detection_to_json(detection, store)
    write_json(args.output / "results.json", results)
    for path in pictures.draw_all(board, detection, store, args.output):
        print(f"Picture: {path}")


def sanity_sections(board: Board, store: Store, checks: Sequence[Check], metrics: Sequence[Metric]) -> dict[str, str]:
    """Return the tables of the first page by title."""
    suite = [check for check in checks if check.name in report.SUITE_NAMES]
    others = [check for check in checks if check not in suite]
    sections = {}
    if suite:
        sections["Sanity suite"] = f"{SUITE_LEGEND}\n\n{report.suite_table(board, store, suite, metrics)}"
    if others:
        sections["Protocols and known mixtures"] = (
            f"{PROTOCOL_LEGEND}\n\n{report.protocol_table(board, store, others, metrics)}"
        )
    if expensive := report.left_out(board, checks, metrics):
        sections["* Too expensive, not measured"] = expensive
    if checks and (ours := [metric for metric in metrics if metric.ours]):
        sections["Failed by ours"] = report.failures(board, store, checks, ours)
    return sections


def ordinary_sections(
    board: Board, detection: Detection | None, store: Store, checks: Sequence[Check], metrics: Sequence[Metric]
) -> dict[str, str]:
    """Return the tables of the second page by title."""
    ordinary = [check for check in checks if check in ORDINARY]
    intervals = [check for check in checks if check.ours_only]
    others = [check for check in checks if check not in (*ordinary, *intervals)]
    ours = [metric for metric in metrics if metric.ours]
    sections = {}
    if ordinary:
        sections["Ordinary data"] = f"{ORDINARY_LEGEND}\n\n{report.ordinary_table(board, store, ordinary, metrics)}"
        sections["Tolerances"] = report.tolerances(ordinary)
    if others:
        sections["Compression"] = f"{PROTOCOL_LEGEND}\n\n{report.protocol_table(board, store, others, metrics)}"
    if intervals and ours:
        sections["Intervals"] = f"{INTERVAL_LEGEND}\n\n{report.interval_table(board, store, intervals, ours)}"
    if detection:
        sections["Strangers found"] = f"{DETECTION_LEGEND}\n\n{report.detection_table(detection, store)}"
    return sections


if __name__ == "__main__":
    main()
