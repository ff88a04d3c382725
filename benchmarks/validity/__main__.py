"""Which metrics of generative models tell the truth: checks with a known answer, for ours and for published ones.

    python benchmarks/validity --output DIR [--data-root ROOT] [--quick] [--only CHECK ...] [--metrics NAME ...]

Prints the table of passed checks; writes it with all numbers to the output folder. Measurements are kept there
(``measurements.jsonl``): a further run measures what is missing, or what changed with the code of a check or metric.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import report
from board import Board, Store, run, write_atomically

PACKAGES = ("torch-fidelity-lsh", "torch-fidelity", "torch", "numpy", "prdc", "scipy", "scikit-learn")


def main() -> None:
    """Run the benchmark."""
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    board, store = Board(args.quick, args.repeats), Store(args.output / "measurements.jsonl")
    start = time.perf_counter()
    try:
        run(board, board.tasks(args.only, args.metrics), store, args.jobs)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Measurements are kept; the same command goes on from here.")
    write_report(args, board, store, time.perf_counter() - start)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    board = Board(quick=True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/validity"), help="folder to write to")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST/raw; scikit-learn's digits if not given")
    parser.add_argument("--quick", action="store_true", help="short sweeps, few repeats: minutes, and a rough picture")
    parser.add_argument("--only", nargs="+", choices=board.checks, default=list(board.checks), metavar="CHECK")
    parser.add_argument("--metrics", nargs="+", choices=board.metrics, default=list(board.metrics), metavar="NAME")
    parser.add_argument("--repeats", type=int, help="at most so many draws of each check's data")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, each with one thread")
    return parser.parse_args()


def write_report(args: argparse.Namespace, board: Board, store: Store, seconds: float) -> None:
    """Print the table and write everything."""
    checks = [board.checks[name] for name in args.only]
    metrics = [board.metrics[name] for name in args.metrics]
    parts = []
    if suite := [check for check in checks if check.name in report.SUITE_NAMES]:
        parts += [report.suite_table(board, store, suite, metrics)]
    parts += ["Failed:\n\n" + report.failures(board, store, checks, metrics)]
    text = "\n\n".join(parts)
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
    write_atomically(args.output / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(args.output / "table.md", text + "\n")


if __name__ == "__main__":
    main()
