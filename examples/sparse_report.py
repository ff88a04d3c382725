"""The table and the pictures of sparse_gan.py, from the results of its runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from math import isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from paper_report import markdown
from scipy.stats import ttest_1samp

from compressors.common.files import whole_file, write_json, write_text

Run = dict[str, Any]
Value = Callable[[Run], float]

FD = "frechet_inception_distance"
SCORES = {
    "FD": FD,
    "lsh precision": "lsh_precision",
    "lsh recall": "lsh_recall",
    "lsh_knn precision": "lsh_knn_precision",
    "lsh_knn recall": "lsh_knn_recall",
}
WORDS = ("loses", "may keep", "keeps", "gains")
# Share of the training over which the balance ratio of the tables is averaged.
TAIL = 0.25


def write_report(folder: Path, protocol: dict[str, Any], labels: Sequence[str], baselines: Sequence[str]) -> str:
    """Write `results.json`, `table.md`, `sparse_gan.png` and `samples.png` to `folder`; return the tables as text.

    `labels` names the arms in the order of the tables, `baselines` those that the others are compared with.
    """
    runs = [_run(path) for path in sorted((folder / "runs").glob("*-*.json"))]
    groups = {label: [run for run in runs if run["arm"] == label] for label in labels}
    content = {"protocol": protocol, "runs": [run for group in groups.values() for run in group]}
    write_json(folder / "results.json", content)
    compared = [f"Differences to {name!r}, seed by seed:\n\n{differences(groups, name)}" for name in baselines]
    text = "\n\n".join(
        (
            "Mean ± standard deviation over seeds. FD: Fréchet distance of the features. Balance ratio: mean over the "
            f"last {TAIL:.0%} of the steps. Cost: multiply-accumulates of the training, % of dense, corrected and as "
            "in the reference. Differences: mean over seeds of what `torch_fidelity_lsh.compare` finds, the 95 % "
            "interval by Student's t, which takes in how trainings vary, and how many seeds `compare` says what of.",
            _training(groups),
            _quality(groups),
            *compared,
        )
    )
    write_text(folder / "table.md", text + "\n")
    _save(_overview(groups, protocol), folder / "sparse_gan.png")
    _save(_samples(groups, folder / "samples"), folder / "samples.png")
    return text


def _run(path: Path) -> Run:
    scores = path.parents[1] / "scores" / path.name
    return {**json.loads(path.read_text()), "scores": json.loads(scores.read_text())}


def tail_balance(run: Run) -> float:
    """Return the mean balance ratio over the end of a training; NaN if it is unknown somewhere."""
    tail = run["history"][-max(1, round(TAIL * len(run["history"]))) :]
    return fmean(nan if point["balance"] is None else point["balance"] for point in tail)


def _training(groups: dict[str, list[Run]]) -> str:
    columns: dict[str, tuple[Value, str]] = {
        "G density": (lambda run: run["generator_density"], ".2f"),
        "final D density": (lambda run: run["history"][-1]["discriminator_density"], ".2f"),
        "balance ratio": (tail_balance, ".2f"),
        "cost, corrected": (lambda run: 100 * run["cost"]["corrected"], ".0f"),
        "cost, reference": (lambda run: 100 * run["cost"]["reference"], ".0f"),
        "kB dense": (lambda run: run["size"]["dense_bytes"] / 1000, ".0f"),
        "kB sparse": (lambda run: run["size"]["sparse_bytes"] / 1000, ".0f"),
    }
    return _means({label: group for label, group in groups.items() if group[0]["history"]}, columns)


def _quality(groups: dict[str, list[Run]]) -> str:
    return _means(groups, {title: (_score(key), ".0f" if title == "FD" else ".2f") for title, key in SCORES.items()})


def _means(groups: dict[str, list[Run]], columns: dict[str, tuple[Value, str]]) -> str:
    lines = [["arm", "seeds", *columns]]
    for label, group in groups.items():
        cells = [_mean(list(map(value, group)), form) for value, form in columns.values()]
        lines.append([label, str(len(group)), *cells])
    return markdown(lines)


def differences(groups: dict[str, list[Run]], baseline: str) -> str:
    """Return the differences of each arm to `baseline` seed by seed: mean, its interval, and what `compare` says."""
    lines = [["arm", *SCORES]]
    for label, group in groups.items():
        if label == baseline:
            continue
        distances = [
            run["scores"][FD] - other["scores"][FD] for run, other in zip(group, groups[baseline], strict=True)
        ]
        cells = [_interval(distances, "+.0f")]
        for key in list(SCORES.values())[1:]:
            found = [run["scores"]["differences"][baseline][key] for run in group]
            words = Counter(change["word"] for change in found)
            said = ", ".join(f"{words[word]} {word}" for word in WORDS if words[word])
            cells.append(f"{_interval([change['value'] for change in found], '+.2f')} ({said})")
        lines.append([label, *cells])
    return markdown(lines)


def _score(key: str) -> Value:
    return lambda run: run["scores"][key]


def _mean(values: list[float], form: str) -> str:
    """Return the mean and the standard deviation, which is left out where it rounds to 0 or is unknown."""
    known = len(values) > 1 and not any(map(isnan, values))
    spread = format(stdev(values), form) if known else "0"
    return f"{fmean(values):{form}}" + (f" ± {spread}" if float(spread) else "")


def _interval(values: list[float], form: str) -> str:
    """Return the mean over seeds and its 95 % interval by Student's t, where seeds differ."""
    mean = format(fmean(values), form)
    if len(set(values)) == 1:
        return mean
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{mean} [{low:{form}}, {high:{form}}]"


def _overview(groups: dict[str, list[Run]], protocol: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    (balance, density, loss), (distance, lsh, knn) = figure.subplots(2, 3)
    colors = {label: f"C{number}" for number, label in enumerate(groups)}
    for label, group in groups.items():
        if group[0]["history"]:
            _lines(balance, group, "balance", colors[label])
            _lines(density, group, "discriminator_density", colors[label])
            _lines(loss, group, "discriminator_loss", colors[label])
        _points(lsh, group, "lsh", colors[label], label)
        _points(knn, group, "lsh_knn", colors[label], label)
        values = [run["scores"][SCORES["FD"]] for run in group]
        distance.plot(values, [label] * len(values), "o", color=colors[label], alpha=0.6)
        distance.plot(fmean(values), label, "|", color=colors[label], markersize=22)
    balance.axhspan(protocol["low"], protocol["high"], color="grey", alpha=0.2)
    balance.set(ylabel="balance ratio", ylim=(0, 1.5), title="band of the controller in grey")
    density.set(ylabel="density of the discriminator", ylim=(0, 1.05))
    loss.set(ylabel="discriminator loss", ylim=(0, 2.5))
    for axes in (balance, density, loss):
        axes.set_xlabel("step")
    distance.set(xlabel="FD", xscale="log")
    distance.xaxis.set_minor_formatter("{x:.0f}")
    distance.tick_params(axis="x", which="both", labelsize="x-small")
    distance.invert_yaxis()
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    handles, names = lsh.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    seeds = len(next(iter(groups.values())))
    figure.suptitle(
        f"{protocol['data']}, density {protocol['density']}, seeds: {seeds}; lines and points each, mean bold"
    )
    return figure


def _lines(axes: Axes, group: list[Run], key: str, color: str) -> None:
    steps = [point["iteration"] for point in group[0]["history"]]
    curves = np.array([[point[key] for point in run["history"]] for run in group], dtype=float)
    axes.plot(steps, curves.T, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, curves.mean(axis=0), color=color)


def _points(axes: Axes, group: list[Run], metric: str, color: str, label: str) -> None:
    names = (f"{metric}_recall", f"{metric}_precision")
    recall, precision = ([run["scores"][name] for run in group] for name in names)
    axes.plot(recall, precision, "o", color=color, alpha=0.35)
    axes.plot(fmean(recall), fmean(precision), "s", color=color, label=label)
    axes.update_datalim([(0, 0), (0.1, 0.1)])  # so that values that are all 0 are seen as such
    axes.autoscale_view()
    axes.set(xlabel=f"{metric} recall (diversity)", ylabel=f"{metric} precision (quality)")


def _samples(groups: dict[str, list[Run]], folder: Path) -> Figure:
    figure = Figure(figsize=(9, 0.7 * len(groups)), layout="constrained")
    for axes, (label, group) in zip(figure.subplots(len(groups), 1), groups.items(), strict=True):
        axes.imshow(imread(folder / f"{label}-{group[0]['seed']}.png"))
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100)
