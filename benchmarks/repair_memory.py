"""How much memory a repair takes, beyond a process that has run the generator once on a batch of the same size.

    python benchmarks/repair_memory.py --weights face-dcgan-64.safetensors --output output/repair-memory

Each batch size runs in a process of its own, on the DCGAN of faces (package gan_face_generate) at 4 bits, or without
--weights on the generator of digits; peaks are those of the process. Prints them; writes results.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from repair_gan import digits, faces

from compressors import Distiller, Quantizer
from compressors.common.files import write_json
from compressors.common.text import versions
from compressors.distil import RelationLoss


def peak() -> float:
    """Return the largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(weights: Path | None, batch: int) -> dict[str, float]:
    """Return MiB of the weights, and above the idle process of repairs without and with the relation term."""
    task = faces(weights) if weights else digits()
    inputs = task.draw(batch, torch.Generator().manual_seed(0))
    broken = Quantizer(4).compress(task.generator, inputs)
    with torch.no_grad():
        broken.model(*inputs)
    found, before = {"weights": broken.report.before.bytes / 2**20}, peak()
    for name, terms in {"L1": (), "L1 + relations": ((0.5, RelationLoss(angle_weight=0)),)}.items():
        repair = Distiller(task.draw, 3, batch_size=batch, held_out=batch, terms=terms, progress=False)
        repair.compress(broken, inputs, teacher=task.generator)
        found[name] = peak() - before
    return found


def main() -> None:
    """Measure each batch size in a process of its own, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="face-dcgan-64.safetensors; default: the generator of digits")
    parser.add_argument("--output", type=Path, default=Path("output/repair-memory"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="batches of 16 alone")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch:
        print(json.dumps(measure(arguments.weights, arguments.batch)))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = {}
    for batch in (16,) if arguments.quick else (16, 64):
        command = [sys.executable, __file__, "--batch", str(batch)]
        command += ["--weights", str(arguments.weights)] if arguments.weights else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows[batch] = json.loads(done.stdout.splitlines()[-1])
        print(batch, {name: f"{value:.0f} MiB" for name, value in rows[batch].items()})
    write_json(arguments.output / "results.json", {"versions": versions(), "MiB by batch size": rows})


if __name__ == "__main__":
    main()
