"""Curves of the checks that show best how metrics differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from board import Board
from checks import NUMBERS
from criteria import Curve
from detection import LEVEL, TESTS, Detection
from ordinary import ORDINARY, situations_of
from storage import Store

from compressors.common.files import whole_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

SHOWN = {"lsh": "lsh", "lsh_knn": "lsh_knn", "knn": "kNN (k = 3)", "clipped": "Clipped (K = 5)"}
OUTLIERS = {"none": ("black", "-"), "real": ("tab:orange", "--"), "generated": ("tab:blue", ":")}
COLORS = dict(zip(SHOWN, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))


def draw_all(board: Board, detection: Detection | None, store: Store, folder: Path) -> list[Path]:
    """Draw what is measured; return the files."""
    drawn = [
        draw_outlier(board, store, folder),
        draw_dropping(board, store, folder),
        draw_mixtures(board, store, folder),
        draw_ordinary(board, store, folder),
        draw_detection(detection, store, folder) if detection else None,
    ]
    return [path for path in drawn if path is not None]


def draw_outlier(board: Board, store: Store, folder: Path) -> Path | None:
    """Draw the mean shift with and without one outlier."""

    def draw(panel: Axes, number: str, curves: list[Curve]) -> None:
        for curve in curves:
            d, outlier = curve.group
            if d == 8:
                color, style = OUTLIERS[outlier]
                panel.plot(curve.x, curve.y, style, color=color, marker=".", label=f"outlier: {outlier}")

    figure = _panels(_curves(board, store, "one_outlier"), "mean of the generated samples (real: 0)", draw)
    if figure is None:
        return None
    figure.suptitle(
        "Mean shift in 8 dimensions with one of 1000 samples an outlier (real: at 9, generated: at -9): "
        "the curves should coincide",
        fontsize=11,
    )
    return _save(figure, folder / "outlier.png")


def draw_dropping(board: Board, store: Store, folder: Path) -> Path | None:
    """Draw sequential mode dropping."""

    def draw(panel: Axes, number: str, curves: list[Curve]) -> None:
        for curve in curves:
            panel.plot(curve.x, curve.y, marker=".", label=curve.label)
        x = curves[0].x
        panel.plot(x, np.ones(len(x)) if number == "fidelity" else 1 - x / 10, "--", color="grey", label="truth")

    figure = _panels(_curves(board, store, "sequential_drop"), "dropped modes, of 10", draw)
    if figure is None:
        return None
    figure.suptitle("Mode dropping: fidelity should stay, diversity should fall with the kept modes")
    return _save(figure, folder / "mode_dropping.png")


def draw_mixtures(board: Board, store: Store, folder: Path) -> Path | None:
    """Draw the known mixtures."""
    sides = {"fidelity": "mixture_precision", "diversity": "mixture_recall"}
    measured = {number: _curves(board, store, check) for number, check in sides.items()}
    if not all(measured.values()):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    for panel, (number, curves_by_metric) in zip(axes, measured.items(), strict=True):
        for name, curves in curves_by_metric.items():
            (curve,) = curves[number]
            title = board.metrics[name].title[NUMBERS.index(number)]
            panel.errorbar(
                curve.x, curve.y, curve.values.std(0), marker=".", color=COLORS[name], capsize=2, label=title
            )
        panel.plot([0, 1], [1, 0], "--", color="grey", label="truth")
        panel.grid(alpha=0.3)
        panel.legend()
    axes[0].set(title="Fidelity", xlabel="share of generated images of other digits", ylabel="value")
    axes[1].set(title="Diversity", xlabel="share of real images of other digits")
    figure.suptitle("Digits 0-4 mixed with digits 5-9, features of a network")
    return _save(figure, folder / "mixtures.png")


def draw_ordinary(board: Board, store: Store, folder: Path) -> Path | None:
    """Draw how far every metric is from the truth on ordinary data."""
    metrics = list(board.metrics.values())
    rows: list[str] = []
    distances: list[list[float]] = []
    for check in ORDINARY:
        measured = [board.curves(store, check, metric) for metric in metrics]
        for position, situation in enumerate(situations_of(check)):
            truths = zip(NUMBERS, (situation.precision, situation.recall), strict=True)
            rows.append(f"{check.title}: {situation.case}")
            distances.append(
                [
                    abs(curves[number][position].at(0) - truth.value) if curves else np.nan
                    for number, truth in truths
                    for curves in measured
                ]
            )
    if np.isnan(distances).all():
        return None
    titles = [metric.title[number] for number in range(len(NUMBERS)) for metric in metrics]
    figure, panel = plt.subplots(figsize=(11, 0.2 * len(rows) + 1.5), layout="constrained")
    image = panel.imshow(distances, vmin=0, vmax=1, cmap="OrRd", aspect="auto")
    panel.set_xticks(range(len(titles)), titles, rotation=60, ha="left")
    panel.xaxis.tick_top()
    panel.set_yticks(range(len(rows)), rows, fontsize=7)
    panel.axvline(len(metrics) - 0.5, color="black")
    figure.colorbar(image, label="distance of the mean from the truth", shrink=0.5)
    return _save(figure, folder / "ordinary.png")


def draw_detection(detection: Detection, store: Store, folder: Path) -> Path | None:
    """Draw the share of draws in which strangers are found."""
    rates: dict[tuple[str, int], dict[float, dict[str, float]]] = {}
    for data, size, share in detection.rows():
        if found := detection.found(store, (data, size, share)):
            rates.setdefault((data, size), {})[share] = found
    if not rates:
        return None
    data_names, sizes = (list(dict.fromkeys(names)) for names in zip(*rates, strict=True))
    figure, axes = plt.subplots(
        len(data_names),
        len(sizes),
        figsize=(3.6 * len(sizes) + 1, 2.6 * len(data_names) + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (data, size), by_share in rates.items():
        panel = axes[data_names.index(data), sizes.index(size)]
        for test in TESTS:
            points = [(share, found[test]) for share, found in by_share.items() if test in found]
            if points:
                panel.plot(*zip(*points, strict=True), marker=".", linestyle=_style(test), label=test)
        panel.axhline(LEVEL, linestyle=":", color="grey")
        panel.set_title(f"{data}, {size:,} a side", fontsize=9)
        panel.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("share of strangers")
    figure.supylabel("share of draws in which they are found")
    return _save(figure, folder / "detection.png")


def _style(test: str) -> str:
    return "-" if test.startswith("lsh") else "--"


def _curves(board: Board, store: Store, check: str) -> dict[str, dict[str, list[Curve]]]:
    measured = {name: board.curves(store, board.checks[check], board.metrics[name]) for name in SHOWN}
    return {name: curves for name, curves in measured.items() if curves}


def _panels(
    measured: dict[str, dict[str, list[Curve]]], xlabel: str, draw: Callable[[Axes, str, list[Curve]], None]
) -> plt.Figure | None:
    """Draw fidelity above diversity, one column for each metric, `None` if nothing is measured."""
    if not measured:
        return None
    figure, axes = plt.subplots(
        2,
        len(measured),
        figsize=(3.2 * len(measured), 5.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for column, (name, curves) in zip(axes.T, measured.items(), strict=True):
        column[0].set_title(SHOWN[name])
        column[1].set_xlabel(xlabel, fontsize=8)
        for panel, number in zip(column, NUMBERS, strict=True):
            draw(panel, number, curves[number])
            panel.grid(alpha=0.3)
            panel.set_ylim(-0.05, 1.1)
    for panel, number in zip(axes[:, 0], NUMBERS, strict=True):
        panel.set_ylabel(number)
    axes[0, 0].legend(fontsize=8)
    return figure


def _save(figure: plt.Figure, path: Path) -> Path:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return path
