"""Parallel at the outside: pieces of work go to a few threads, and within each torch's operations take one.

Ranks may share the pieces, too, where all of them do the same work on the same numbers.

Threads within an operation meet at its end, thousands of times in a measurement, and each time wait for the one whose
core another process holds. Those of pieces meet a few times.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class _Here(threading.local):
    """What holds in one thread: the threads to share work with, how many they are, whether it is one of them; ranks."""

    pool: ThreadPoolExecutor | None = None
    size = 1
    is_of_pool = False
    ranks: Any = None


FEW_ROWS = 4096  # of all features together, that one thread is done with before others are of use

_here = _Here()
_setting = threading.Lock()


@contextmanager
def outer_threads(*features: object) -> Iterator[None]:
    """Let :func:`mapped` use as many threads as torch's operations would, and these one each, for a ``with`` block.

    The number of threads that the caller has set for torch holds again afterwards, and for all other threads always.

    Args:
        features: What is worked on. Where some are on an accelerator, all stays as it is; few rows take one thread.
    """
    size = torch.get_num_threads()
    # Inside another such block it is 1.
    if size == 1 or not all(str(getattr(each, "device", "cpu")).startswith("cpu") for each in features):
        yield
        return
    _set_threads_here(1)
    try:
        if 0 < sum((*getattr(each, "shape", ()), 0)[0] for each in features) < FEW_ROWS:
            yield
            return
        holder: list[Any] = []
        with ThreadPoolExecutor(size, "torch_fidelity_lsh", _join, (holder,)) as pool:
            holder += [pool, size]
            _here.pool, _here.size = pool, size
            yield
    finally:
        _here.pool = None
        _set_threads_here(size)


@contextmanager
def among_ranks(group: Any) -> Iterator[None]:
    """Let :func:`shared` share work with the other ranks of a group of ``torch.distributed``, for a ``with`` block.

    All ranks must do the same work on the same features, which are on the CPU.
    """
    _here.ranks = group
    try:
        yield
    finally:
        _here.ranks = None


def shared(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """Do as :func:`mapped`; ranks that work together do a part of the pieces each, if there are many.

    The function must not call it in turn. What is mapped, and calls it, each rank does in the one order.
    """
    pieces = list(pieces)
    if _here.ranks is None:
        return mapped(function, pieces)
    rank, size = dist.get_rank(_here.ranks), dist.get_world_size(_here.ranks)
    if len(pieces) < 2 * size:
        return _in_threads(function, pieces)
    own = pieces[rank * len(pieces) // size : (rank + 1) * len(pieces) // size]
    of_ranks: list[Any] = [None] * size
    dist.all_gather_object(of_ranks, _in_threads(function, own), group=_here.ranks)
    return [result for results in of_ranks for result in results]


def mapped(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """Return a function's results for pieces, in their order; pieces may be mapped in turn.

    Raises:
        Exception: What the function raises first; pieces that nobody has begun are left.
    """
    pieces = list(pieces)
    return [function(piece) for piece in pieces] if _here.ranks is not None else _in_threads(function, pieces)


def _in_threads(function: Callable[[Piece], Result], pieces: list[Piece]) -> list[Result]:
    if _here.pool is None or len(pieces) < 2:
        return [function(piece) for piece in pieces]
    job = _Job(function, pieces)
    # One of the pool works itself, and never waits for what nobody has begun: so all goes on where all are busy.
    tasks = [_here.pool.submit(job.work) for _ in range(min(_here.size, len(pieces)) - _here.is_of_pool)]
    try:
        job.work() if _here.is_of_pool else wait(tasks)
    finally:
        job.left.clear()
        begun = [task for task in tasks if not task.cancel()]
        wait(begun)
        results = job.results
        # Tasks that were not begun wait in a queue, and must not hold what they would have worked on.
        job.function, job.pieces, job.results = None, [], {}
    for task in begun:
        task.result()
    return [results[number] for number in range(len(pieces))]


class _Job:
    """Pieces of work that several threads take from one list.

    Attributes:
        function: What is done with each.
        pieces: All of them.
        left: Numbers of those that nobody has begun.
        results: Results by number.
    """

    def __init__(self, function: Callable[[Any], Any], pieces: list[Any]) -> None:
        self.function: Callable[[Any], Any] | None = function
        self.pieces = pieces
        self.left = deque(range(len(pieces)))
        self.results: dict[int, Any] = {}

    def work(self) -> None:
        """Work until nothing is left, or a piece fails."""
        try:
            while True:
                try:
                    number = self.left.popleft()
                except IndexError:
                    return
                self.results[number] = self.function(self.pieces[number])  # type: ignore[misc]
        except BaseException:
            self.left.clear()
            raise


def _join(holder: list[Any]) -> None:
    """Begin as a thread of the pool."""
    _here.pool, _here.size = holder
    _here.is_of_pool = True
    _set_threads_here(1)


def _set_threads_here(number: int) -> None:
    """Set the number of threads of torch's operations in this thread alone.

    Setting it also sets with how many new threads begin: what that was, one of them knows, and another one restores it.
    """
    torch.get_num_threads()  # A thread begins when it first asks.
    with _setting:
        before = _in_new_thread(torch.get_num_threads)
        torch.set_num_threads(number)
        _in_new_thread(lambda: torch.set_num_threads(before))


def _in_new_thread(function: Callable[[], Result]) -> Result:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()
