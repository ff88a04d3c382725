"""Which metrics of generative models tell the truth: checks with a known answer, for ours and for published ones.

    python benchmarks/validity --output DIR [--data-root ROOT] [--quick] [--only CHECK ...] [--metrics NAME ...]

Prints the table of passed checks; writes it with all numbers to the output folder. Measurements are kept there
(``measurements.jsonl``): a further run measures what is missing, or what changed with the code of a check or metric.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # For what the benchmarks share.

import pictures
import report
import torch
from board import Board, run
from real_features import extract, features_file
from storage import Store

from compressors.common.files import write_json, write_text

SUITE_LEGEND = (
    "Cells: property, then bounds (hypercube: value, then convergence). T passed, F failed; "
    "H, L passed as a diversity that is high, or low, for generators too wide."
)
PROTOCOL_LEGEND = "T passed, F failed, with the deciding value, or with what a shape misses. -: has no such number."
PACKAGES = ("torch-fidelity-lsh", "torch-fidelity", "torch", "numpy", "prdc", "scipy", "scikit-learn")


def main() -> None:
    """Run the benchmark."""
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    features = features_file(args.output, args.data_root, args.quick)
    board, store = Board(features, args.quick, args.repeats), Store(args.output / "measurements.jsonl")
    start = time.perf_counter()
    try:
        if any(board.checks[name].source_data for name in args.only):
            torch.set_num_threads(args.jobs)
            extract(features, args.data_root, args.quick)
        run(board, board.tasks(args.only, args.metrics), store, args.jobs)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Measurements are kept; the same command goes on from here.")
    except FileNotFoundError as error:
        sys.exit(str(error))
    write_report(args, board, store, time.perf_counter() - start)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    board = Board(Path("features.npz"), quick=True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/validity"), help="folder to write to")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST/raw; scikit-learn's digits if not given")
    parser.add_argument("--quick", action="store_true", help="short sweeps, few repeats: minutes, and a rough picture")
    parser.add_argument("--only", nargs="+", choices=board.checks, default=list(board.checks), metavar="CHECK")
    parser.add_argument("--metrics", nargs="+", choices=board.metrics, default=list(board.metrics), metavar="NAME")
    parser.add_argument("--repeats", type=positive, help="at most so many draws of each check's data")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, help="processes, each with one thread")
    return parser.parse_args()


def positive(text: str) -> int:
    """Read a number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return number


def write_report(args: argparse.Namespace, board: Board, store: Store, seconds: float) -> None:
    """Print the table and write everything."""
    checks = [board.checks[name] for name in args.only]
    metrics = [board.metrics[name] for name in args.metrics]
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
    if ours := [metric for metric in metrics if metric.ours]:
        sections["Failed by ours"] = report.failures(board, store, checks, ours)
    if args.quick:
        sections["Quick run"] = "Few repeats, points and dimensions: borderline cells are noise."
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    print(text)
    protocol = {
        "quick": args.quick,
        "jobs": args.jobs,
        "threads_per_job": 1,
        "seconds": round(seconds),
        "seeds": "each draw's and each metric's from the names of check, group, point and repeat",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    results = {"protocol": protocol, "results": report.to_json(board, store, checks, metrics)}
    write_json(args.output / "results.json", results)
    write_text(args.output / "table.md", text + "\n")
    for path in pictures.draw_all(board, store, args.output):
        print(f"Picture: {path}")


if __name__ == "__main__":
    main()
