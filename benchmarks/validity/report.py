"""The scoreboard as a table and as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from board import Board
from checks import NUMBERS, Check
from columns import Metric
from criteria import Outcome
from detection import TESTS, Detection
from intervals import Fit, fits
from ordinary import miss, situations_of
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


def ordinary_table(board: Board, store: Store, checks: Sequence[Check], metrics: Sequence[Metric]) -> str:
    """Return truths and values of ordinary data, those that miss marked, and how many each metric misses."""
    missed, judged, rows = [0] * len(metrics), 0, []
    for check in checks:
        measured = [board.curves(store, check, metric) for metric in metrics]
        for position, situation in enumerate(situations_of(check)):
            truths = dict(zip(NUMBERS, (situation.precision, situation.recall), strict=True))
            entries = []
            for column, curves in enumerate(measured):
                given = [(curves[number][position], truth) for number, truth in truths.items() if curves]
                entries.append(" ".join(f"{curve.at(0):.2f}{_mark(miss(curve, truth))}" for curve, truth in given))
                missed[column] += sum(miss(curve, truth) > 1e-9 for curve, truth in given)
            judged += len(truths)
            true = " ".join(f"{truth.value:.2f} ±{truth.tolerance:.2f}" for truth in truths.values())
            rows.append([check.title, situation.case, true, *(entry or "-" for entry in entries)])
    rows.append([f"**missed of {judged}**", "", "", *map(str, missed)])
    return table(["data", "case", "truth", *(metric.name for metric in metrics)], rows)


def _mark(excess: float) -> str:
    return "!" if excess > 1e-9 else ""


def tolerances(checks: Sequence[Check]) -> str:
    """Return why rows have the tolerances they have, one line for each reason."""
    rows: dict[str, list[str]] = {}
    for check in checks:
        for situation in situations_of(check):
            titles = rows.setdefault(situation.reason, [])
            if check.title not in titles:
                titles.append(check.title)
    return "\n".join(f"- {'; '.join(titles)}: {reason}." for reason, titles in rows.items())


def interval_table(board: Board, store: Store, checks: Sequence[Check], metrics: Sequence[Metric]) -> str:
    """Return how the intervals fit at each point: the share that holds the mean, and the width."""
    titles = [title for metric in metrics for title in metric.title]
    rows = []
    for check in checks:
        measured = [board.curves(store, check, metric) for metric in metrics]
        columns = [list(fits(curves.get(number, []))) for curves in measured for number in NUMBERS]
        for points in check.grid(board.quick).values():
            for position, x in enumerate(points):
                entries = [_fit(column[position]) if column else "-" for column in columns]
                rows.append([f"{check.title}: {x:g}", *entries])
    return table(["check", *titles], rows)


def _fit(fit: Fit) -> str:
    width = "steady" if fit.width is None else f"{fit.width:.2f}{_mark(fit.width_excess)}"
    return f"{fit.held:.0%}{_mark(fit.held_excess)} {width}"


def detection_table(detection: Detection, store: Store) -> str:
    """Return the share of draws in which each test finds strangers at 5 %; without strangers, of false alarms."""
    rows = []
    for row in detection.rows():
        found, (data, size, share) = detection.found(store, row), row
        rows.append([data, f"{size:,}", f"{share:g}", *(f"{found[t]:.2f}" if t in found else "-" for t in TESTS)])
    return table(["strangers", "samples a side", "share", *TESTS], rows)


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


def truths_to_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return what ordinary data are held against."""
    return [
        {
            "check": check.name,
            "case": situation.case,
            "precision": situation.precision._asdict(),
            "recall": situation.recall._asdict(),
            "reason": situation.reason,
        }
        for check in checks
        for situation in situations_of(check)
    ]


def intervals_to_json(
    board: Board, store: Store, checks: Sequence[Check], metrics: Sequence[Metric]
) -> list[dict[str, Any]]:
    """Return how the intervals fit at each point."""
    return [
        {"check": check.name, "metric": metric.name, "number": number, **fit._asdict()}
        for check in checks
        for metric in metrics
        for number, curves in board.curves(store, check, metric).items()
        for fit in fits(curves)
    ]


def detection_to_json(detection: Detection, store: Store) -> list[dict[str, Any]]:
    """Return the rates of all rows."""
    return [
        {
            "strangers": data,
            "samples": size,
            "share": share,
            "draws": len(detection.draws(size)),
            "found": detection.found(store, (data, size, share)),
        }
        for data, size, share in detection.rows()
    ]


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
