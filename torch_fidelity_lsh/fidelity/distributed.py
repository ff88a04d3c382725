"""Ranks of one job: they share the work, fail together, and return the same numbers."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from functools import lru_cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from torch_fidelity_lsh.metric.messages import first_line

Params = ParamSpec("Params")
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


def may_work_alone(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Let a function take the keyword ``distributed``, whose `False` has it work as if there were no other ranks."""

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        with nullcontext() if kwargs.pop("distributed", True) else alone():
            return function(*args, **kwargs)

    return wrapper


@contextmanager
def ranks_of_torchrun(cuda: bool = True) -> Iterator[None]:
    """Join the ranks that ``torchrun`` has started, if it has, for a ``with`` block.

    Args:
        cuda: Whether each takes a GPU of its own, where there are any. Default: `True`.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or dist.is_initialized():
        yield
        return
    if cuda and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group("gloo", timeout=_meeting_time())
    except Exception as error:
        raise RanksError(f"Not all ranks came within {_meeting_time()} (rank {os.environ.get('RANK')})") from error
    try:
        yield
        # A rank that leaves while others still talk to it would end them.
        dist.barrier(group=_groups(dist.group.WORLD).work)
    finally:
        _groups.cache_clear()
        dist.destroy_process_group()


class RanksError(RuntimeError):
    """Ranks that are missing; how long was waited for them is said."""


def meet(function: str) -> None:
    """Wait until all ranks have made a call.

    Args:
        function: What they call, for the error message.

    Raises:
        RanksError: Some rank has not come in time: 300 s, or what ``FIDELITY_LSH_MEETING_SECONDS`` says.
    """
    if rank_and_size()[1] == 1:
        return
    try:
        dist.monitored_barrier(_groups(dist.group.WORLD).meeting, _meeting_time(), wait_all_ranks=True)
    except Exception as error:
        _groups.cache_clear()
        raise RanksError(
            f"Not all ranks called {function} within {_meeting_time()} ({first_line(error)}); a rank "
            f"that works alone passes distributed=False, and {_MEETING_SECONDS} changes the time"
        ) from error


def refuse_differences(facts: Mapping[str, str]) -> None:
    """Refuse to work together on what is not the same on all ranks.

    Args:
        facts: What this rank works on, by keyword.

    Raises:
        ValueError: On all ranks; names the keyword, two values and their ranks.
    """
    all_facts: list[Any] = [None] * rank_and_size()[1]
    dist.all_gather_object(all_facts, dict(facts), group=_cpu_group())
    for rank, others in enumerate(all_facts):
        for name in sorted({*all_facts[0], *others}):
            first, other = all_facts[0].get(name), others.get(name)
            if first != other:
                raise ValueError(
                    f"{name} differs among the ranks: {first} on rank 0, {other} on rank {rank}; all must make the "
                    "same call with the same inputs"
                )


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
    return _groups(dist.group.WORLD).work


class _Groups(NamedTuple):
    meeting: Any
    work: Any


@lru_cache(maxsize=1)
def _groups(world: Any) -> _Groups:
    # At the start of a call a missing rank is soon noticed; later one may work for hours while others wait.
    meeting = dist.new_group(backend="gloo", timeout=_meeting_time())
    return _Groups(meeting, dist.new_group(backend="gloo", timeout=timedelta(days=7)))


# Groups must not outlive torch's own shutdown, which aborts the process then.
atexit.register(_groups.cache_clear)

_MEETING_SECONDS = "FIDELITY_LSH_MEETING_SECONDS"


def _meeting_time() -> timedelta:
    return timedelta(seconds=float(os.environ.get(_MEETING_SECONDS, "300")))
