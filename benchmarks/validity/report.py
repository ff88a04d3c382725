"""The scoreboard as a table and as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from board import Board
from checks import NUMBERS, Check
from columns import Metric
from criteria import Outcome
from storage import Store
from suite import SUITE

SUITE_NAMES = [check.name for check in SUITE]
LETTERS = {"high": "H", "low": "L", "": "T"}


def suite_table(board: Board, store: Store, checks: Sequence[Check], metrics: Sequence[Metric]) -> str:
    """Return which cells of the sanity suite each number passes."""
    titles = [title for metric in metrics for title in metric.title]
    passed, rows = [0] * len(titles), []
    for check in checks:
        letters = []
        for metric in metrics:
            outcomes = board.judge(store, check, metric)
            letters += ["".join(_letter(cell.get(number)) for cell in outcomes.values()) for number in NUMBERS]
        passed = [count + sum(letter in "THL" for letter in cell) for count, cell in zip(passed, letters, strict=True)]
        rows.append([check.title, *letters])
    rows.append([f"**passed of {2 * len(checks)}**", *map(str, passed)])
    return table(["check", *titles], rows)


def _letter(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    return LETTERS[outcome.kind] if outcome.passed else "F"


def protocol_table(board: Board, store: Store, checks: Sequence[Check], metrics: Sequence[Metric]) -> str:
    """Return verdict and deciding value of every other cell."""
    titles = [title for metric in metrics for title in metric.title]
    rows = []
    for check in checks:
        judged = [board.judge(store, check, metric) for metric in metrics]
        for cell in check.cells:
            entries = [
                _entry(outcomes.get(cell, {}).get(number), bool(board.too_expensive(check, metric)))
                for metric, outcomes in zip(metrics, judged, strict=True)
                for number in NUMBERS
            ]
            rows.append([f"{check.title}: {cell}", *entries])
    return table(["check", *titles], rows)


def _entry(outcome: Outcome | None, incomplete: bool) -> str:
    """Return letter and value; a failed shape shows by how much it misses instead."""
    if outcome is None:
        return "- *" if incomplete else "-"
    if outcome.value is not None:
        number = f" {outcome.value:.3f}"
    else:
        number = "" if outcome.passed else f" by {outcome.excess:.2f}"
    return _letter(outcome) + number + (" *" if incomplete else "")


def left_out(board: Board, checks: Sequence[Check], metrics: Sequence[Metric]) -> str:
    """Return which points were too expensive for which metrics, one line each."""
    lines = []
    for check in checks:
        for metric in metrics:
            if points := board.too_expensive(check, metric):
                lines.append(f"- {metric.name}, {check.title}: {'; '.join(points)}")
    return "\n".join(lines)


def failures(board: Board, store: Store, checks: Sequence[Check], metrics: Sequence[Metric]) -> str:
    """Return by how much each number fails which rule."""
    rows = []
    for metric in metrics:
        for number, title in zip(NUMBERS, metric.title, strict=True):
            for check in checks:
                for cell, outcomes in board.judge(store, check, metric).items():
                    outcome = outcomes.get(number)
                    if outcome is not None and not outcome.passed:
                        rows.append([title, check.title, cell, f"{outcome.excess:.3f}", outcome.where])
    return table(["number", "check", "cell", "misses by", "worst"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table that reads well as text, too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def to_json(board: Board, store: Store, checks: Sequence[Check], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Return all outcomes and the means they come from."""
    rows = []
    for check in checks:
        for metric in metrics:
            curves, outcomes = board.curves(store, check, metric), board.judge(store, check, metric)
            for number, title in zip(NUMBERS, metric.title, strict=True):
                cells = {cell: given[number] for cell, given in outcomes.items() if number in given}
                rows.append(
                    {
                        "check": check.name,
                        "metric": metric.name,
                        "number": number,
                        "title": title,
                        "repeats": board.repeats_of(check),
                        "cells": {cell: {"passed": o.passed, **asdict(o)} for cell, o in cells.items()},
                        "curves": [
                            {
                                "group": curve.label,
                                "x": curve.x.tolist(),
                                "mean": curve.y.tolist(),
                                "deviation": curve.values.std(0).tolist(),
                            }
                            for curve in curves.get(number, [])
                        ],
                        "seconds": board.seconds(store, check, metric),
                        "too_expensive": board.too_expensive(check, metric),
                    }
                )
    return rows
