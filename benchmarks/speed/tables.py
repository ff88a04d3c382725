"""The measurements as markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench import Bench, Estimate
from contestants import CONTESTANTS, ONE_THREAD, OURS, Size
from neighbours import KINDS
from rivals import HNSW_DESCRIPTION, IVF_DESCRIPTION
from sections import BUSY, FLOOR_SECTION, GPU, GROWTH, MEMORY, PEERS, Section
from targets import MEGABYTE, all_targets

MISSING = "-"
VALUES_LEGEND = (
    f"Precision, recall; the larger difference from the exact values. faiss HNSW is {HNSW_DESCRIPTION}. simet, IVF is "
    f"{IVF_DESCRIPTION}."
)
LEGEND = "~: not measured; from the next smaller size, by the law of time, or by that of the arrays held at once."


def report(bench: Bench, sections: Sequence[Section]) -> str:
    """Return all tables of some sections."""
    parts: dict[str, str] = {}
    for section in sections:
        parts |= TABLES[section.name](bench)
    parts["Targets"] = "Not judged: a quick run has other sizes." if bench.quick else _targets(bench)
    if lines := _left_out(bench, sections):
        parts["Not measured"] = f"{LEGEND}\n\n{lines}"
    threads = f"{bench.threads} thread{'s' * (bench.threads > 1)}, waiting {bench.wait_policy}"
    where = f"{bench.machine}; {threads}; features on {bench.device}."
    return "\n\n".join([where, *(f"## {title}\n\n{body}" for title, body in parts.items())])


def _peers(bench: Bench) -> dict[str, str]:
    ours = [each.name for each in OURS]
    columns = [
        (section, size) for section in (PEERS, *BUSY) for size in bench.sizes(section) if _is_measured(bench, section)
    ]
    titles = [f"{size}{_beside(bench, section)}" for section, size in columns]
    times, ratios = [], []
    for name in bench.names(PEERS):
        times.append([CONTESTANTS[name].title, *(_cell(bench.estimate(*column, name)) for column in columns)])
        if not name.startswith(tuple(ours)):
            cells = (_cell(bench.ratio(*column, name, each)) for column in columns for each in ours)
            ratios.append([CONTESTANTS[name].title, *cells])
    threads = [[name, *(_cell(bench.ratio(*column, name, f"{name}_one")) for column in columns)] for name in ours]
    return {
        "Time, in seconds": table(["", *titles], times),
        "Times slower than ours": table(["", *(f"{title}: {each}" for title in titles for each in ours)], ratios),
        f"{bench.threads} threads over one": table(["", *titles], threads),
        "Values": f"{VALUES_LEGEND}\n\n{_values(bench)}",
    }


def _is_measured(bench: Bench, section: Section) -> bool:
    return any(bench.rows(section, size, name) for size in bench.sizes(section) for name in bench.names(section))


def _beside(bench: Bench, section: Section) -> str:
    return f", beside {bench.busy} {KINDS[section.beside][0]}" if section.beside else ""


def _values(bench: Bench) -> str:
    rows = []
    for name in bench.names(PEERS):
        cells = []
        for size in bench.sizes(PEERS):
            values = _precision_recall(bench, size, name)
            exact = next(
                (v for n in bench.names(PEERS) if CONTESTANTS[n].exact and (v := _precision_recall(bench, size, n))),
                None,
            )
            text = f"{values[0]:.4f}, {values[1]:.4f}" if values else MISSING
            # Ours are other numbers, on purpose.
            if values and exact and CONTESTANTS[name] not in (*OURS, *ONE_THREAD):
                text += f"; {max(abs(a - b) for a, b in zip(values, exact, strict=True)):.4f}"
            cells.append(text)
        rows.append([CONTESTANTS[name].title, *cells])
    return table(["", *map(str, bench.sizes(PEERS))], rows)


def _precision_recall(bench: Bench, size: Size, name: str) -> tuple[float, float] | None:
    rows = bench.rows(PEERS, size, name)
    return (rows[0]["precision"], rows[0]["recall"]) if rows else None


def _memory(bench: Bench) -> dict[str, str]:
    def megabytes(size: Size, name: str) -> Estimate | None:
        peak = bench.estimate(MEMORY, size, name, "peak_bytes")
        return peak and peak / Estimate(MEGABYTE)

    return {"Peak memory beyond the features, in MB": _by_size(bench, MEMORY, megabytes)}


def _growth(bench: Bench) -> dict[str, str]:
    names = bench.names(GROWTH)
    rows = [
        [f"{size.real:,}", *(_cell(_microseconds(bench, size, name)) for name in names)] for size in bench.sizes(GROWTH)
    ]
    exponents = [f"{e.value:.3f}" if (e := bench.exponent(name)) else MISSING for name in names]
    text = table(["references", *names], [*rows, ["**exponent**", *exponents]])
    size = bench.sizes(GROWTH)[0]
    return {f"Cost per assessed sample, in µs ({size.generated:,} generated, {size.dimension} dimensions)": text}


def _microseconds(bench: Bench, size: Size, name: str) -> Estimate | None:
    cost = bench.costs(name).get(size.real)
    return None if cost is None else Estimate(1e6 * cost)


def _floor(bench: Bench) -> dict[str, str]:
    names = bench.names(FLOOR_SECTION)
    rows = []
    for name in names:
        cells = []
        for size in bench.sizes(FLOOR_SECTION):
            seconds, ratio = bench.estimate(FLOOR_SECTION, size, name), bench.ratio(FLOOR_SECTION, size, name, names[0])
            cells.append(f"{_cell(seconds)} ({_cell(ratio)} x)" if seconds else MISSING)
        rows.append([CONTESTANTS[name].title, *cells])
    return {"Time and ratio to the floor, in seconds": table(["", *map(str, bench.sizes(FLOOR_SECTION))], rows)}


def _gpu(bench: Bench) -> dict[str, str]:
    return {"Time on a GPU, in seconds": _by_size(bench, GPU, lambda size, name: bench.estimate(GPU, size, name))}


TABLES: dict[str, Callable[[Bench], dict[str, str]]] = {
    **{section.name: _peers for section in (PEERS, *BUSY)},
    MEMORY.name: _memory,
    GROWTH.name: _growth,
    FLOOR_SECTION.name: _floor,
    GPU.name: _gpu,
}


def _targets(bench: Bench) -> str:
    verdicts = {True: "met", False: "**missed**", None: MISSING}
    rows = [
        [t.text, f"{'≥' if t.at_least else '≤'} {t.limit:g}", _cell(t.value(bench)), verdicts[t.met(bench)]]
        for t in all_targets()
    ]
    return table(["", "wanted", "measured", ""], rows)


def _left_out(bench: Bench, sections: Sequence[Section]) -> str:
    lines = [
        f"- {CONTESTANTS[name].title}, {section.name}, {size}: {reason}"
        for section in sections
        for size in bench.sizes(section)
        for name in bench.names(section)
        if not bench.rows(section, size, name) and (reason := bench.obstacle(section, size, name))
    ]
    return "\n".join(lines)


def _by_size(bench: Bench, section: Section, value: Callable[[Size, str], Estimate | None]) -> str:
    sizes = bench.sizes(section)
    rows = [[CONTESTANTS[n].title, *(_cell(value(size, n)) for size in sizes)] for n in bench.names(section)]
    return table(["", *map(str, sizes)], rows)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    value = estimate.value
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3 if abs(value) < 1 else 2
    return f"{'~' if estimate.extrapolated else ''}{value:,.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table that reads well as text, too."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
