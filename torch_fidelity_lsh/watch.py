"""Scores of samples as they appear in a folder, while a model trains: one JSON line each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from torch_fidelity_lsh.fidelity import inputs, upstream
from torch_fidelity_lsh.fidelity.calculate import calculate_metrics
from torch_fidelity_lsh.fidelity.distributed import on_first

Result = TypeVar("Result")

SUFFIXES = (*inputs.FEATURE_SUFFIXES, ".onnx", ".pth")
"""Endings of files that are scored; sub-folders are too."""


def watch(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    every: float = 30.0,
    settle: float = 10.0,
    once: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    **kwargs: Any,
) -> Iterator[dict[str, Any]]:
    """Score each sub-folder of samples, file of samples or features, and generative model in a folder, as it appears.

    An entry is scored once nothing in it has changed for ``settle`` seconds, so that what is still being written waits.
    Its line is appended to ``output`` and written through before the next one begins. A second run goes on where the
    first ended: entries that have a line are passed over, unless they have changed since. An entry that cannot be
    scored is named on stderr, and tried again when it changes. Under ``torch.distributed`` all ranks must call it: the
    first one looks, writes and prints, and all score together.

    Args:
        folder: The folder to watch. Names that begin with a dot are passed over.
        output: File of JSON lines to append to.
        every: Seconds between two looks. Default: 30.
        settle: Seconds without a change after which an entry counts as finished. Default: 10.
        once: Score what is finished, and end. Default: `False`, go on until interrupted.
        sleep: How to wait. Default: ``time.sleep``.
        **kwargs: Keywords of :func:`~torch_fidelity_lsh.calculate_metrics`; ``input1`` is each entry in turn.
            Features of ``input2`` are kept in the cache, so that they are extracted once.

    Yields:
        What each line holds: ``name``, ``time`` (UTC), ``state``, and the metrics.

    Raises:
        ValueError: The folder is not there, or not any more; ``every`` or ``settle`` is negative; or the keywords or
            ``input2`` are at fault, so that no entry can be scored.
        OSError: A line cannot be written.
    """
    if every < 0 or settle < 0:
        raise ValueError(f"every and settle must be seconds of at least 0; got {every} and {settle}")
    root, lines = Path(folder), Path(output)
    first = on_first if kwargs.get("distributed", True) else _alone
    done, failed = first(partial(_states, lines)), dict[str, str]()
    kwargs = _with_kept_reference(kwargs)
    while True:
        for name, state in first(partial(_finished, root, settle)):
            if state in (done.get(name), failed.get(name)):
                continue
            try:
                metrics = calculate_metrics(**kwargs, input1=str(root / name))
            except ValueError as error:
                if not _blames_entry(str(error)):
                    raise
                failed[name] = state
                first(partial(print, f"{name}: not scored: {error}", file=sys.stderr))
                continue
            line = {"name": name, "time": datetime.now(timezone.utc).isoformat(), "state": state, **metrics}
            first(partial(_append, lines, line))
            done[name] = state
            yield line
        if once:
            return
        sleep(every)


def _alone(work: Callable[[], Result]) -> Result:
    return work()


def _blames_entry(message: str) -> bool:
    plain = re.sub(r'"[^"]*"', "", message)  # without paths, and mistyped keywords
    return "input1" in plain or "generated" in plain


def _finished(root: Path, settle: float) -> list[tuple[str, str]]:
    """Return names and states of the entries that have not changed for so many seconds."""
    return [(name, state) for name, state, changed in _entries(root) if time.time() - changed >= settle]


def _entries(root: Path) -> list[tuple[str, str, float]]:
    """Return names of the entries, what tells their present state, and when they changed last; oldest first."""
    if not root.is_dir():
        raise ValueError(f'"{root}", the folder to watch, does not exist or is no folder (any more)')
    found = []
    for path in root.iterdir():
        if path.name.startswith(".") or not (path.is_dir() or path.suffix.lower() in SUFFIXES):
            continue
        try:
            files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
            status = [(each.relative_to(root).as_posix(), each.stat()) for each in files]
            # What copies and unpacks keeps the time of the content, not that of the change.
            changed = max((max(each.st_mtime, each.st_ctime) for _, each in status), default=path.stat().st_ctime)
        except FileNotFoundError:  # It goes while it is looked at; there is another look.
            continue
        digest = hashlib.sha256()
        for name, each in status:
            digest.update(f"{name} {each.st_size} {each.st_mtime_ns}\n".encode())
        if status:
            found.append((path.name, digest.hexdigest()[:16], changed))
    return sorted(found, key=lambda entry: (entry[2], entry[0]))


def _states(lines: Path) -> dict[str, str]:
    """Return the last state of each entry that has a line; a line that was cut off when a run was killed has none."""
    found: dict[str, str] = {}
    if lines.is_file():
        for text in lines.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                found[line["name"]] = line["state"]
            except (ValueError, TypeError, KeyError):
                continue
    return found


def as_line(line: dict[str, Any]) -> str:
    """Return a line as JSON; ``ppl`` has an array with ``ppl_reduction="none"``."""
    return json.dumps(line, default=np.ndarray.tolist, allow_nan=False)


def _append(lines: Path, line: dict[str, Any]) -> None:
    with lines.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # What a killed run has begun stays a line of its own.
                file.write(b"\n")
        file.write(as_line(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _with_kept_reference(kwargs: dict[str, Any]) -> dict[str, Any]:
    source = kwargs.get("input2")
    named = kwargs.get("input2_cache_name") is not None or not kwargs.get("cache", True)
    if named or not isinstance(source, (str, os.PathLike)) or inputs.is_ready(os.fspath(source)):
        return kwargs
    # One that is missing would be looked for in the cache after all of the first entry.
    if os.fspath(source) not in upstream.DATASETS_REGISTRY and not Path(source).exists():
        return kwargs
    place = hashlib.sha256(os.path.realpath(source).encode()).hexdigest()[:16]
    return {**kwargs, "input2_cache_name": f"watch-{place}"}
