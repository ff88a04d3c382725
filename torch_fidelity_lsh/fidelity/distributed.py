"""Ranks of one job: they share the work, fail together, and return the same numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; 0 and 1 outside of ``torch.distributed``."""
    if not _alone.get() and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work as if there were no other ranks, for a ``with`` block."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def ranks_of_torchrun() -> Iterator[None]:
    """Join the ranks that ``torchrun`` has started, if it has, for a ``with`` block; each takes a GPU of its own."""
    if not dist.is_available() or not dist.is_torchelastic_launched() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def together(work: Callable[[], Result]) -> Result:
    """Do each rank's share of some work; if it fails on one rank, raise on all.

    Args:
        work: Must not communicate with other ranks.

    Raises:
        ValueError: On another rank the work raised `ValueError` or `OSError`; the message names the rank.
        RuntimeError: On another rank it raised something else.
    """
    size = rank_and_size()[1]
    if size == 1:
        return work()
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    text = None if failure is None else (f"{type(failure).__name__}: {failure}", isinstance(failure, _USER_ERRORS))
    outcomes: list[Any] = [None] * size
    dist.all_gather_object(outcomes, text, group=_cpu_group())
    if failure is not None:
        raise failure
    _raise_first(outcomes)
    return result  # type: ignore[return-value]


def on_first(work: Callable[[], Result]) -> Result:
    """Do work on the first rank, and return its result, or raise its error, on all.

    Raises:
        ValueError: As :func:`together`.
        RuntimeError: As :func:`together`.
    """
    rank, _ = rank_and_size()
    result = together(lambda: work() if rank == 0 else None)
    return share_first(result)  # type: ignore[return-value]


def share_first(value: Result) -> Result:
    """Return the first rank's value on all ranks."""
    if rank_and_size()[1] == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, group=_cpu_group())
    return holder[0]


def gather_rows(rows: torch.Tensor | None) -> torch.Tensor | None:
    """Put the rows of all ranks together on the first one, in order of the ranks.

    Args:
        rows: N x D on the CPU, or `None` on a rank that has none.

    Returns:
        The rows of all ranks on the first, `None` on others, and where no rank has any.
    """
    rank, size = rank_and_size()
    if size == 1:
        return rows
    shapes: list[Any] = [None] * size
    dist.all_gather_object(shapes, None if rows is None else (rows.shape, rows.dtype), group=_cpu_group())
    if rank != 0:
        if rows is not None:
            dist.send(rows.contiguous(), 0, group=_cpu_group())
        return None
    parts = [] if rows is None else [rows]
    for sender, shape in enumerate(shapes):
        if sender != 0 and shape is not None:
            part = torch.empty(shape[0], dtype=shape[1])
            dist.recv(part, sender, group=_cpu_group())
            parts.append(part)
    return torch.cat(parts) if parts else None


_USER_ERRORS = (ValueError, OSError)


def _raise_first(outcomes: list[tuple[str, bool] | None]) -> None:
    for rank, outcome in enumerate(outcomes):
        if outcome is not None:
            text, is_user_error = outcome
            raise (ValueError if is_user_error else RuntimeError)(f"Failed on rank {rank}: {text}")


def _cpu_group() -> Any:
    """Return a group that takes tensors and objects on the CPU, whatever the default group takes."""
    return _gloo_group(dist.group.WORLD)


@lru_cache(maxsize=1)
def _gloo_group(world: Any) -> Any:
    return dist.new_group(backend="gloo")
