"""How far seeds, numbers of tables of anchors and numbers of samples move our metrics: the evidence for their defaults.

    python benchmarks/stability.py --output DIR [--quick]

Two sets of ten modes each in 64 dimensions share seven, so that precision and recall are 0.7. One draw of the data is
measured with several seeds. Prints three tables; writes them, ``results.json`` and a picture.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
from storage import Row
from tqdm import tqdm

from compressors.common.files import whole_file, write_json, write_text
from torch_fidelity_lsh import LSHConfig, lsh_knn_precision_recall, lsh_precision_recall

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METRICS = {"lsh": lsh_precision_recall, "lsh_knn": lsh_knn_precision_recall}
DIMENSION = 64
TRUTH = 0.7
TABLES = LSHConfig().num_tables


def main() -> None:
    """Run the benchmark."""
    args = parse_arguments()
    seeds = range(3 if args.quick else 10)
    base = 1000 if args.quick else 2000
    sizes = (1000, 2000) if args.quick else (1000, 2000, 5000, 10_000, 20_000)
    small, large = (500, 2000) if args.quick else (1000, 10_000)
    plan = [("tables", name, base, base, count) for name in METRICS for count in (4, 8, 16, 32, 64)]
    plan += [("samples", name, size, size, TABLES) for name in METRICS for size in sizes]
    unequal = ((small, large), (large, small))
    plan += [("unequal", name, *pair, TABLES) for name in METRICS for pair in unequal]
    rows = [measure(*each, seeds) for each in tqdm(plan, desc="Settings", unit="setting")]
    text = "\n\n".join(f"## {title}\n\n{table(rows, section)}" for section, title in TITLES.items())
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    protocol = {
        "quick": args.quick,
        "seeds": len(seeds),
        "dimension": DIMENSION,
        "truth": TRUTH,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch-fidelity-lsh", "torch", "numpy")},
    }
    write_json(args.output / "results.json", {"protocol": protocol, "results": rows})
    write_text(args.output / "table.md", text + "\n")
    draw(rows, args.output / "stability.png")


TITLES = {
    "tables": "Number of tables",
    "samples": "Number of samples a side",
    "unequal": "Unequal numbers of samples",
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/stability"), help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="few seeds, small sets: under a minute")
    return parser.parse_args()


def draw_modes(first: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw samples x 64 from the ten modes after `first`, of thirteen."""
    centers = 2 * np.random.default_rng(0).standard_normal((13, DIMENSION))
    noise = rng.standard_normal((samples, DIMENSION))
    return (centers[rng.integers(first, first + 10, samples)] + noise).astype(np.float32)


def measure(section: str, metric: str, num_generated: int, num_real: int, tables: int, seeds: Sequence[int]) -> Row:
    """Measure one draw with all seeds."""
    generated = draw_modes(0, num_generated, np.random.default_rng([num_generated, 1]))
    real = draw_modes(3, num_real, np.random.default_rng([num_real, 2]))
    results = [METRICS[metric](generated, real, LSHConfig(num_tables=tables, seed=seed)) for seed in seeds]
    row: Row = {"section": section, "metric": metric, "generated": num_generated, "real": num_real, "tables": tables}
    for number in ("precision", "recall"):
        values = np.array([getattr(result, number) for result in results])
        row[number] = {
            "mean": float(values.mean()),
            "deviation": float(values.std(ddof=1)),
            "stderr": float(np.mean([getattr(result, f"{number}_stderr") for result in results])),
        }
    return row


def table(rows: list[Row], section: str) -> str:
    """Return the rows of a section as a markdown table."""
    header = "| metric | generated | real | tables | precision | deviation | recall | deviation |"
    lines = [header, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if row["section"] == section:
            values = [f"{row[side][key]:.3f}" for side in ("precision", "recall") for key in ("mean", "deviation")]
            lines.append(
                f"| `{row['metric']}` | {row['generated']:,} | {row['real']:,} | {row['tables']} | "
                f"{' | '.join(values)} |"
            )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draw the deviation between seeds against tables and samples, and the values against samples."""
    figure, (by_tables, by_samples, values) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for metric, color in zip(METRICS, ("tab:blue", "tab:orange"), strict=True):
        for side, style in (("precision", "-"), ("recall", "--")):
            label = f"{metric} {side}"
            for panel, section, x, key in (
                (by_tables, "tables", "tables", "deviation"),
                (by_samples, "samples", "real", "deviation"),
                (values, "samples", "real", "mean"),
            ):
                chosen = [row for row in rows if row["section"] == section and row["metric"] == metric]
                y = [row[side][key] for row in chosen]
                panel.plot([row[x] for row in chosen], y, style, marker=".", color=color, label=label)
    values.axhline(TRUTH, color="grey", linestyle=":", label="truth")
    by_tables.set(title="Deviation between seeds", xlabel="tables of anchors", ylabel="standard deviation")
    by_samples.set(title="Deviation between seeds", xlabel="samples a side")
    values.set(title="Value", xlabel="samples a side", ylim=(0.4, 1))
    for panel in (by_tables, by_samples, values):
        panel.set_xscale("log")
        panel.grid(alpha=0.3)
    counts = sorted({row["tables"] for row in rows if row["section"] == "tables"})
    by_tables.set_xticks(counts, [str(count) for count in counts])
    by_tables.minorticks_off()
    values.legend(fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
