"""Pictures of time against number of samples, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from bench import Bench
from sections import GROWTH, PEERS, Section

from compressors.common.files import whole_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

SHOWN = {
    "prdc": ("prdc", "tab:brown"),
    "prc_batched": ("torch-fidelity prc, save_cpu_ram", "tab:olive"),
    "prc_full": ("torch-fidelity prc", "tab:green"),
    "faiss_exact": ("faiss, exact", "tab:red"),
    "faiss_hnsw": ("faiss HNSW, approximate", "tab:purple"),
    "simet_ivf": ("simet, IVF, approximate", "tab:pink"),
    "lsh_knn": ("lsh_knn", "tab:orange"),
    "lsh": ("lsh", "tab:blue"),
}


def draw_all(bench: Bench, sections: Sequence[Section], folder: Path) -> list[Path]:
    """Draw what is measured; return the files."""
    drawn = []
    if PEERS in sections and len(_measured_sizes(bench)) > 1:
        drawn.append(draw_times(bench, folder / "times.png"))
    if GROWTH in sections and bench.exponent("lsh"):
        drawn.append(draw_growth(bench, folder / "growth.png"))
    return drawn


def _measured_sizes(bench: Bench) -> list[int]:
    return [size.real for size in bench.sizes(PEERS) if bench.estimate(PEERS, size, "lsh")]


def draw_times(bench: Bench, path: Path) -> Path:
    """Draw the time of everyone against the number of samples a side; hollow where a law gave it."""
    figure, panel = plt.subplots(figsize=(8, 5.5), layout="constrained")
    sizes = bench.sizes(PEERS)
    for name, (label, color) in SHOWN.items():
        if name not in bench.names(PEERS):
            continue
        points = [(s.real, e) for s in sizes if (e := bench.estimate(PEERS, s, name))]
        ours = name.startswith("lsh")
        x, y = [n for n, _ in points], [e.value for _, e in points]
        panel.plot(x, y, color=color, linewidth=2.5 if ours else 1.2, label=label, zorder=3 if ours else 2)
        for n, e in points:
            panel.plot(n, e.value, "o", color=color, markerfacecolor="white" if e.extrapolated else color, zorder=4)
    if not all(bench.rows(PEERS, size, name) for size in sizes for name in set(SHOWN).intersection(bench.names(PEERS))):
        panel.plot([], [], "o", color="grey", markerfacecolor="white", label="not measured: by its law")
    _log_axes(panel, [s.real for s in sizes], [f"{s.real:,}\nx {s.dimension:,}" for s in sizes])
    panel.set(xlabel="samples a side x dimension", ylabel="seconds", title=_title(bench, "Precision and recall"))
    # In the order of the lines at the right end.
    last = {label: float(line.get_ydata()[-1]) for line in panel.lines if (label := line.get_label()) in _labels()}
    handles, labels = panel.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: -last.get(labels[i], 0))
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside right center", fontsize=9)
    return _save(figure, path)


def _labels() -> list[str]:
    return [label for label, _ in SHOWN.values()]


def draw_growth(bench: Bench, path: Path) -> Path:
    """Draw the cost of a sample against the number of references, with the line of one that reads all of them."""
    figure, panel = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in bench.names(GROWTH):
        costs = bench.costs(name)
        label = f"{name}: exponent {bench.exponent(name).value:.2f}"
        panel.plot(list(costs), [1e6 * c for c in costs.values()], "o-", color=SHOWN[name][1], linewidth=2, label=label)
    n = np.array(list(costs))
    panel.plot(n, 1e6 * costs[n[0]] * n / n[0], "--", color="grey", label="comparing with every reference: 1")
    _log_axes(panel, list(costs), [f"{x:,}" for x in costs])
    size = bench.sizes(GROWTH)[0]
    title = _title(bench, f"{size.generated:,} generated against a growing reference, {size.dimension} dimensions")
    panel.set(xlabel="references", ylabel="µs per assessed sample", title=title)
    panel.legend()
    return _save(figure, path)


def _log_axes(panel: Axes, ticks: Sequence[int], labels: Sequence[str]) -> None:
    panel.loglog()
    panel.set_xticks(ticks, labels)
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="x", which="minor", length=0)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    panel.grid(alpha=0.3)


def _title(bench: Bench, text: str) -> str:
    return f"{text}\n{bench.machine}, {bench.threads} thread{'s' * (bench.threads > 1)}, {bench.device}"


def _save(figure: plt.Figure, path: Path) -> Path:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return path
