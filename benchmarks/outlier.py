"""What one outlier among a thousand samples does to precision and recall, ours and torch-fidelity's.

Two Gaussian sets far apart have precision and recall 0. One generated or real sample is then moved between or beyond
them. Prints one table and writes ``results.json`` to the output folder.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch_fidelity.metric_prc import prc_features_to_metric
from tqdm import tqdm

from torch_fidelity_lsh import lsh_features_to_metric, lsh_knn_features_to_metric

SAMPLES = 1000
SHIFT = 3.0
METRICS = {"": prc_features_to_metric, "lsh_": lsh_features_to_metric, "lsh_knn_": lsh_knn_features_to_metric}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/outlier"), help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="one seed instead of ten")
    args = parser.parse_args()
    seeds = range(1 if args.quick else 10)
    settings = [(d, outlier) for d in (1, 8, 64) for outlier in ("none", "real", "generated")]
    rows = []
    for dimension, outlier in tqdm(settings, desc="Sets", unit="set"):
        runs = [measure(dimension, outlier, seed) for seed in seeds]
        means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        rows.append({"dimension": dimension, "outlier": outlier, **means})
    print_table(rows)
    args.output.mkdir(parents=True, exist_ok=True)
    protocol = {
        "samples": SAMPLES,
        "shift": SHIFT,
        "seeds": len(seeds),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch-fidelity-lsh", "torch-fidelity", "torch", "numpy")},
    }
    (args.output / "results.json").write_text(json.dumps({"protocol": protocol, "results": rows}, indent=2) + "\n")


def measure(dimension: int, outlier: str, seed: int) -> dict[str, float]:
    """Return precision and recall of all metrics for one draw."""
    rng = np.random.default_rng([seed, dimension])
    generated = rng.standard_normal((SAMPLES, dimension)) + 2 * SHIFT
    real = rng.standard_normal((SAMPLES, dimension))
    # Beyond the other set, seen from its own: the ball around it, or around its neighbour, spans both.
    if outlier == "real":
        real[0] = 2 * SHIFT + 3
    elif outlier == "generated":
        generated[0] = -3
    values = {}
    for prefix, metric in METRICS.items():
        result = metric(torch.from_numpy(generated), torch.from_numpy(real), verbose=False)
        values |= {prefix + name: result[prefix + name] for name in ("precision", "recall")}
    return values


def print_table(rows: list[dict[str, float | str | int]]) -> None:
    """Print one row per setting."""
    keys = list(rows[0])
    print("".join(f"{key:>18}" for key in keys))
    for row in rows:
        print("".join(f"{row[key]:>18.3f}" if isinstance(row[key], float) else f"{row[key]:>18}" for key in keys))


if __name__ == "__main__":
    main()
