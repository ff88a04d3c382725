"""The pictures of a study: what quality and diversity do as compression grows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import save_image

from compressors.common.extras import extra
from compressors.common.files import whole_file
from compressors.study.settings import STRIP
from compressors.study.table import DISTANCES, PRECISION_RECALL, Row, Score, Table

with extra("plots"):
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import imread

PICTURED = 64
"""Samples in the picture of a row."""

_WIDTH = 4.6
"""Of one drawing, in inches; a column of the legend has as much."""

Knob: TypeAlias = Literal["bits", "ratio"]
Pair: TypeAlias = tuple[Score, Score]

_KNOBS: tuple[Knob, ...] = ("bits", "ratio")
_AXIS = {"bits": "bits per weight", "ratio": "share of channels pruned"}


def save_pictures(table: Table, folder: Path) -> None:
    """Write the pictures of a study into its folder, each whole or not at all.

    For every reference ``<reference>.png`` sums up, by one metric: precision and recall along bits and pruning, their
    path, size against quality; ``-bits``, ``-ratio``, ``-path`` and ``-size`` show all metrics. Without a metric of
    precision and recall there is ``-size`` alone. ``samples.png`` shows the first samples of each row.
    """
    for reference in table.references:
        pairs, quality = _pairs(table, reference), _quality(table, reference)
        figures = {"-size": _sizes(table, reference, quality)} if quality else {}
        if pairs:
            figures |= {"": _overview(table, reference), "-path": _paths(table, reference, pairs)}
            figures |= {f"-{knob}": _along(table, reference, pairs, knob) for knob in _KNOBS if _series(table, knob)}
        for suffix, figure in figures.items():
            _save(figure, folder / f"{reference}{suffix}.png")
    pictured = [row for row in table.rows if row.samples]
    if pictured:
        _save(_samples(pictured, folder), folder / "samples.png")


def save_samples(batches: Iterable[Tensor], path: Path) -> None:
    """Write the first 64 images of batches, uint8 B x 3 x H x W, as one PNG without gaps, 8 in a line."""
    images = torch.cat([batch.cpu() for batch in batches])[:PICTURED]
    with whole_file(path) as temporary:
        save_image(images.float() / 255, temporary, nrow=STRIP, padding=0)


def is_picture(path: Path) -> bool:
    """Tell whether a file is a picture that can be read."""
    try:
        imread(path)
    except Exception:  # Readers raise errors of many types.
        return False
    return True


def _overview(table: Table, reference: str) -> Figure:
    knobs = [knob for knob in _KNOBS if _series(table, knob)]
    figure, grid = _grid(2, len(knobs) + 1)
    pairs = _pairs(table, reference)
    pair = PRECISION_RECALL["lsh_knn"] if PRECISION_RECALL["lsh_knn"] in pairs else pairs[0]
    for score, line in zip(pair, grid, strict=True):
        for knob, axes in zip(knobs, line, strict=False):
            _draw_along(axes, table, reference, score, knob)
    _draw_path(grid[0, -1], table, reference, pair)
    _draw_size(grid[1, -1], table, reference, _quality(table, reference)[0])
    return _finished(figure, f"against {reference}")


def _along(table: Table, reference: str, pairs: list[Pair], knob: Knob) -> Figure:
    figure, grid = _grid(len(pairs), 2)
    for pair, line in zip(pairs, grid, strict=True):
        for score, axes in zip(pair, line, strict=True):
            _draw_along(axes, table, reference, score, knob)
    return _finished(figure, f"against {reference}")


def _paths(table: Table, reference: str, pairs: list[Pair]) -> Figure:
    figure, grid = _grid(1, len(pairs))
    for pair, axes in zip(pairs, grid[0], strict=True):
        _draw_path(axes, table, reference, pair)
    return _finished(figure, f"against {reference}, from the uncompressed model (circle) to the smallest")


def _sizes(table: Table, reference: str, scores: list[Score]) -> Figure:
    figure, grid = _grid(1, len(scores))
    for score, axes in zip(scores, grid[0], strict=True):
        _draw_size(axes, table, reference, score)
    return _finished(figure, f"against {reference}")


def _samples(rows: list[Row], folder: Path) -> Figure:
    figure = Figure(figsize=(7, 0.6 * len(rows)), layout="constrained")
    for row, axes in zip(rows, figure.subplots(len(rows), 1, squeeze=False)[:, 0], strict=True):
        image = imread(folder / row.samples)
        axes.imshow(image[: image.shape[1] // STRIP])
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(row.compressor, rotation=0, ha="right", va="center", fontsize=7)
    return figure


def _draw_along(axes: Axes, table: Table, reference: str, score: Score, knob: Knob) -> None:
    """Draw a score from the uncompressed model, at the left, to the most compressed one, a line per series."""
    series = _series(table, knob)
    float_at = {"bits": 32.0, "ratio": 0.0}[knob]
    steps = sorted({getattr(row, knob) or float_at for rows in series.values() for row in rows}, reverse=knob == "bits")
    for label, rows in series.items():
        values = np.array([row.estimate(reference, score) for row in rows])
        positions = [steps.index(getattr(row, knob) or float_at) for row in rows]
        axes.errorbar(positions, values[:, 0], _bars(values), marker=".", capsize=2, label=label)
    axes.set_xticks(range(len(steps)), ["float" if step == float_at else f"{step:.3g}" for step in steps])
    axes.set(xlabel=_AXIS[knob], ylabel=score.title, ylim=(-0.03, 1.03))


def _draw_path(axes: Axes, table: Table, reference: str, pair: Pair) -> None:
    """Draw precision over recall as compression grows, a line per series."""
    precision, recall = pair
    for label, rows in _series(table).items():
        y, x = (np.array([row.estimate(reference, score) for row in rows]) for score in (precision, recall))
        axes.errorbar(x[:, 0], y[:, 0], _bars(y), _bars(x), marker=".", capsize=2, label=label)
        axes.plot(x[0, 0], y[0, 0], "ko", fillstyle="none")
    axes.set(xlabel=recall.title, ylabel=precision.title, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))


def _draw_size(axes: Axes, table: Table, reference: str, score: Score) -> None:
    """Draw a score over the size in the file, a line per series."""
    for label, series in _series(table).items():
        rows = [row for row in series if row.bytes]
        if not rows:  # Generators that do not show their weights.
            continue
        values = np.array([row.estimate(reference, score) for row in rows])
        sizes = [row.bytes / 1000 for row in rows if row.bytes]
        axes.errorbar(sizes, values[:, 0], _bars(values), marker=".", label=label)
    axes.set(xlabel="kB", ylabel=score.title, xscale="log")


def _bars(estimates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return how far intervals reach below and above their values, 2 x N, of estimates N x 3."""
    value, low, high = estimates.T
    return np.stack([value - low, high - value])


def _series(table: Table, knob: Knob | None = None) -> dict[str, list[Row]]:
    """Return the measured rows by series, each from the uncompressed model on; `knob`: those that vary in it alone."""
    start, *rest = (row for row in table.rows if row.status == "measured")
    found: dict[str, list[Row]] = {}
    for row in sorted(rest, key=lambda row: (-(row.bits or 0), row.ratio or 0)):
        turned = [name for name in _KNOBS if getattr(row, name) is not None]
        if knob is None or turned == [knob]:
            found.setdefault(row.series, [start]).append(row)
    return found


def _pairs(table: Table, reference: str) -> list[Pair]:
    return [pair for pair in PRECISION_RECALL.values() if table.rows[0].estimate(reference, pair[0])]


def _quality(table: Table, reference: str) -> list[Score]:
    """Return the measured distances, or else the measured precisions."""
    distances = [score for score in DISTANCES if table.rows[0].estimate(reference, score)]
    return distances or [precision for precision, _ in _pairs(table, reference)]


def _grid(lines: int, columns: int) -> tuple[Figure, np.ndarray[tuple[int, int], np.dtype[np.object_]]]:
    figure = Figure(figsize=(_WIDTH * columns, 3.6 * lines), layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False)


def _finished(figure: Figure, title: str) -> Figure:
    """Add title and one legend, and hide what nothing was drawn on."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        drawn, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
        axes.set_visible(bool(drawn))
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    columns = int(figure.get_figwidth() / _WIDTH)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize="small")
    return figure


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
