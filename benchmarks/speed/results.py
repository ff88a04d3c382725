"""The measurements as numbers for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import Bench
from sections import GROWTH, Section
from targets import all_targets


def to_json(bench: Bench, sections: Sequence[Section]) -> dict[str, Any]:
    """Return all measurements, what was extrapolated and why, exponents, and targets with their verdicts."""
    results = []
    for section in sections:
        for size in bench.sizes(section):
            for name in bench.names(section):
                rows = bench.rows(section, size, name)
                seconds, peak = (bench.estimate(section, size, name, field) for field in ("seconds", "peak_bytes"))
                results.append(
                    {
                        "section": section.name,
                        **size._asdict(),
                        "contestant": name,
                        "seconds": seconds and seconds.value,
                        # Elsewhere the process is shared, and memory left by others may be used again.
                        "peak_bytes": peak.value if peak and section.fresh else None,
                        "extrapolated": not rows,
                        "reason": "" if rows else bench.obstacle(section, size, name),
                        "rounds": [row["seconds"] for row in rows],
                        "precision": rows[0]["precision"] if rows else None,
                        "recall": rows[0]["recall"] if rows else None,
                    }
                )
    judged = [] if bench.quick else all_targets()
    return {
        "results": results,
        "exponents": {name: e and e.value for name in bench.names(GROWTH) for e in [bench.exponent(name)]},
        "targets": [
            {
                "target": target.text,
                "limit": target.limit,
                "at_least": target.at_least,
                "value": value and value.value,
                "extrapolated": value is not None and value.extrapolated,
                "met": target.met(bench),
            }
            for target in judged
            for value in [target.value(bench)]
        ],
    }
