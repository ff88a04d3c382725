"""What precision and recall cost in time and memory: ours, their floor, and others' on the same features.

    python benchmarks/speed --output DIR [--quick] [--only SECTION ...] [--busy N] [--threads N] [--device DEVICE]

Prints the tables; writes them, pictures and all numbers to the output folder. Measurements are kept there
(``measurements.jsonl``): a further run measures what is missing, or what changed with the code of a contestant.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # For what the benchmarks share.

import plots
import results
import tables
import torch
from bench import GIB, Bench
from contestants import CONTESTANTS
from rivals import HNSW_DESCRIPTION, IVF_DESCRIPTION
from sections import SECTIONS
from storage import Store
from synthetic import DESCRIPTION

from compressors.common.files import write_json, write_text

PACKAGES = (
    "torch-fidelity-lsh",
    "torch-fidelity",
    "torch",
    "numpy",
    "prdc",
    "scikit-learn",
    "faiss-cpu",
)
MEMORY_SHARE = 0.7  # The rest is for the features and the system.


def main() -> None:
    """Run the benchmark."""
    args = parse_arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no GPU")
    args.output.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()
    start = time.perf_counter()
    bench = Bench(
        store=Store(args.output / "measurements.jsonl"),
        quick=args.quick,
        threads=args.threads,
        device=args.device,
        machine=machine(args.device),
        wait_policy=os.environ.get("OMP_WAIT_POLICY", "default"),
        limit_s=args.limit_seconds,
        limit_bytes=args.memory_limit * GIB,
        rounds=args.repeats,
        busy=args.busy,
    )
    for contestant in CONTESTANTS.values():
        if not contestant.installed:
            print(
                f"{contestant.title} is left out: {contestant.package} is not installed "
                '(pip install "torch-fidelity-lsh[benchmark]")',
                file=sys.stderr,
            )
        elif args.device not in contestant.devices:
            print(f"{contestant.title} is left out: it does not run on {args.device}", file=sys.stderr)
    sections = [SECTIONS[name] for name in args.only]
    if not torch.cuda.is_available() and any(section.device == "cuda" for section in sections):
        print("What runs on a GPU is left out: torch finds none", file=sys.stderr)
    sections = [
        section
        for section in sections
        if (args.busy or not section.beside) and (torch.cuda.is_available() or section.device != "cuda")
    ]
    try:
        for section in sections:
            bench.run(section)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Measurements are kept; the same command goes on from here.")
    except RuntimeError as error:
        sys.exit(f"{error}. Measurements are kept.")
    text = tables.report(bench, sections)
    print(text)
    numbers = {
        "protocol": {
            "quick": args.quick,
            "threads": args.threads,
            "wait_policy": bench.wait_policy,
            "device": args.device,
            "machine": bench.machine,
            "memory_gib": round(memory_bytes() / GIB, 1),
            "system": platform.system(),
            "python": platform.python_version(),
            "versions": versions(),
            "features": DESCRIPTION,
            "limit_seconds": args.limit_seconds,
            "limit_gib": args.memory_limit,
            "hnsw": HNSW_DESCRIPTION,
            "ivf": IVF_DESCRIPTION,
            "busy": args.busy,
            "load_average_at_start": load,
            "seconds": round(time.perf_counter() - start),
        },
        **results.to_json(bench, sections),
    }
    write_json(args.output / "results.json", numbers)
    write_text(args.output / "table.md", text + "\n")
    for path in plots.draw_all(bench, sections, args.output):
        print(f"Picture: {path}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/speed"), help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="small sizes: two minutes, and a rough picture")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--threads", type=positive, default=available, help="of every contestant")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the features are")
    parser.add_argument(
        "--busy",
        type=int,
        default=3,
        metavar="N",
        help="measure beside so many processes that spin, too, and beside as many jobs of torch; 0: on idle cores only",
    )
    parser.add_argument("--repeats", type=positive, help="at most so many rounds")
    parser.add_argument(
        "--limit-seconds", type=float, default=300, help="contestants that would take longer are extrapolated"
    )
    parser.add_argument(
        "--memory-limit",
        type=float,
        default=round(MEMORY_SHARE * memory_bytes() / GIB, 1),
        metavar="GIB",
        help="contestants that would need more are extrapolated",
    )
    return parser.parse_args()


def positive(text: str) -> int:
    """Read a number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return number


def memory_bytes() -> int:
    """Return the size of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine(device: str) -> str:
    """Return the names of processor and, if features are there, GPU."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = models[0].split(":", 1)[1].strip() if models else platform.machine()
    name = f"{processor}, {os.cpu_count()} cores"
    return f"{name}, {torch.cuda.get_device_name()}" if device == "cuda" else name


def versions() -> dict[str, str]:
    """Return the versions of what is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
