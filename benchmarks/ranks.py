"""A million references of 2,048 dimensions on two ranks, through the torchmetrics metric.

    python benchmarks/ranks.py --output DIR [--ranks 2] [--quick]

Each rank draws its share of synthetic features batch by batch, so that nobody ever holds all of them, and every rank
returns the same numbers. A smaller set goes through one process too, to see that it returns these numbers as well.
Prints a summary; writes ``results.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from storage import Row
from tqdm import tqdm

from compressors.common.files import write_json
from torch_fidelity_lsh.streaming import LSHPrecisionRecall

DIMENSION = 2048
INTRINSIC = 16
BATCH = 5000


def main() -> None:
    """Run the benchmark."""
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    references, generated = (20_000, 5_000) if args.quick else (1_000_000, 50_000)
    check = on_ranks(args.ranks, 20_000, 5_000), on_ranks(1, 20_000, 5_000)
    rows = on_ranks(args.ranks, references, generated)
    results = {
        "protocol": {
            "quick": args.quick,
            "ranks": args.ranks,
            "references": references,
            "generated": generated,
            "dimension": DIMENSION,
            "threads_per_rank": 1,
            "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
            "versions": {name: version(name) for name in ("torch-fidelity-lsh", "torch", "torchmetrics")},
        },
        "numbers_of_one_process": all(row["values"] == check[1][0]["values"] for row in check[0]),
        "same_on_all_ranks": all(row["values"] == rows[0]["values"] for row in rows),
        "results": rows,
    }
    write_json(args.output / "results.json", results)
    print(f"20,000 references: as one process: {results['numbers_of_one_process']}")
    print(f"{references:,} references on {args.ranks} ranks: the same on all: {results['same_on_all_ranks']}")
    for rank, row in enumerate(rows):
        print(
            f"rank {rank}: update {row['update_seconds']:.1f} s, compute {row['compute_seconds']:.1f} s, "
            f"peak {row['peak_gib']:.2f} GiB, {row['values']}"
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/ranks"), help="folder to write to")
    parser.add_argument("--ranks", type=int, default=2, help="number of processes")
    parser.add_argument("--quick", action="store_true", help="20,000 references")
    return parser.parse_args()


def on_ranks(size: int, references: int, generated: int) -> list[Row]:
    """Measure on so many ranks; return what each reports."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(report, (size, references, generated, folder), nprocs=size)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


def report(rank: int, size: int, references: int, generated: int, folder: str) -> None:
    """Measure on one rank; the sets do not depend on the number of ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    metric = LSHPrecisionRecall(feature=None, metrics=("lsh",))
    update_seconds = 0.0
    for real, count in ((True, references), (False, generated)):
        for batch in tqdm(range(rank, count // BATCH, size), desc="Batches", unit="batch", disable=rank > 0):
            features = draw_batch(batch, real)
            start = time.perf_counter()
            metric.update(features, real=real)
            update_seconds += time.perf_counter() - start
    start = time.perf_counter()
    values = {key: float(value) for key, value in metric.compute().items()}
    row = {
        "values": values,
        "update_seconds": update_seconds,
        "compute_seconds": time.perf_counter() - start,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    dist.destroy_process_group()
    write_json(Path(folder) / f"{rank}.json", row)


def draw_batch(batch: int, real: bool) -> torch.Tensor:
    """Draw 5,000 x 2,048 features: 16 dimensions embedded linearly, and noise; generated ones are shifted."""
    embedding = torch.randn(INTRINSIC, DIMENSION, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(2 * batch + real + 1)
    inner = torch.randn(BATCH, INTRINSIC, generator=random)
    inner[:, 0] += 0 if real else 0.5
    return (inner @ embedding).add_(torch.rand(BATCH, DIMENSION, generator=random))


if __name__ == "__main__":
    main()
