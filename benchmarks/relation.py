"""Time and memory of the row term of `RelationLoss`, beside the direct form with its n x n x d differences.

    python benchmarks/relation.py --output output/relation

Each form runs forward and backward in a process of its own; memory is its peak above the same process when idle.
Prints them; writes results.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from compressors.common.files import write_json
from compressors.common.text import versions
from compressors.distil import RelationLoss, Rows

FORMS = ("direct", "ours", "ours, 64 vertices")


def direct(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss by its definition, in float32 as in the authors' code: differences n x n x d, cosines n x n x n."""
    found = []
    for images in (student, teacher):
        z = images.movedim(2, 1).flatten(2)[0]
        difference = z[None] - z[:, None]
        squared = difference.square().sum(2)
        distances = torch.where(squared > 0, squared.clamp_min(1e-12).sqrt(), 0.0)
        unit = difference / distances.clamp_min(1e-12)[:, :, None]
        found.append((distances / distances[distances > 0].mean(), unit @ unit.mT))
    (d_s, c_s), (d_t, c_t) = found
    return functional.smooth_l1_loss(d_s, d_t) + 2 * functional.smooth_l1_loss(c_s, c_t)


def measure(form: str, size: int, repeats: int) -> dict[str, float]:
    """Return seconds (median) and MiB above an idle process of one forward and backward."""
    torch.manual_seed(0)
    teacher, student = torch.rand(2, 1, 3, size, size)
    student.requires_grad_()
    ours = RelationLoss([Rows()], vertices=64 if "64" in form else None, max_items=size)
    loss = direct if form == "direct" else ours
    small = torch.rand(1, 3, 8, 8, requires_grad=True)
    loss(small, torch.rand(1, 3, 8, 8)).backward()  # code is loaded, threads are started
    idle, times = _peak(), []
    for _ in range(repeats):
        start = time.perf_counter()
        value = loss(student, teacher)
        value.backward()
        times.append(time.perf_counter() - start)
    return {"loss": float(value), "seconds": statistics.median(times), "mib": _peak() - idle}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure all forms, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/relation"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="64 x 64 pixels, once")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size, repeats = (64, 1) if arguments.quick else (256, 5)
    if arguments.form:
        print(json.dumps(measure(arguments.form, size, repeats)))
        return
    rows = {}
    print(f"rows of a {size} x {size} image, {torch.get_num_threads()} threads, forward and backward")
    for form in FORMS:
        command = [sys.executable, __file__, "--form", form, *(["--quick"] if arguments.quick else [])]
        rows[form] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row = rows[form]
        print(f"{form:20} loss {row['loss']:.6f}   {row['seconds']:8.3f} s   {row['mib']:8.0f} MiB")
    arguments.output.mkdir(parents=True, exist_ok=True)
    protocol = {"size": size, "repeats": repeats, "threads": torch.get_num_threads(), "versions": versions()}
    write_json(arguments.output / "results.json", {**protocol, "forms": rows})


if __name__ == "__main__":
    main()
