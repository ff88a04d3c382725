"""Other processes that keep the cores busy, as on a machine that is shared."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import torch
from measure import keep_to

ROWS = 512


def _spin(ready: Connection, threads: int) -> None:
    keep_to(threads)
    ready.send(None)
    while True:
        pass


def _multiply(ready: Connection, threads: int) -> None:
    keep_to(threads)
    matrix = torch.randn(ROWS, ROWS)
    ready.send(None)
    while True:
        matrix = torch.relu(matrix @ matrix).div_(ROWS)


KINDS: dict[str, tuple[str, Callable[[Connection, int], None]]] = {
    "spinning": ("spinning processes", _spin),
    "jobs": ("jobs of torch", _multiply),
}


@contextlib.contextmanager
def neighbours(kind: str, number: int, threads: int) -> Iterator[None]:
    """Let so many processes of a kind, none for ``""``, run beside a block, each on as many cores and threads."""
    if not kind:
        yield
        return
    context = multiprocessing.get_context("spawn")
    processes = []
    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=KINDS[kind][1], args=(theirs, threads), daemon=True))
            processes[-1].start()
            theirs.close()
            ours.recv()
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()
