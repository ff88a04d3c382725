"""One measurement, in a process that holds the features and nothing else to do."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from contestants import CONTESTANTS, Contestant, Size
from storage import Row
from synthetic import draw_features
from torch import Tensor

WARM_UP_ROWS = 512
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """A process with the features of one size, started when it is first asked for a measurement."""

    def __init__(self, size: Size, threads: int, device: str, trim: bool) -> None:
        self._arguments = size, threads, device, trim
        self._process: multiprocessing.process.BaseProcess | None = None

    def measure(self, name: str) -> Row:
        """Run a contestant once, after a small warm-up if it is its first time here.

        Raises:
            RuntimeError: The process ended, most likely for want of memory.
        """
        if self._process is None:
            self._start()
        self._connection.send(name)
        try:
            row: Row = self._connection.recv()
        except EOFError:
            self._process.join()
            size, code = self._arguments[0], self._process.exitcode
            message = f"{name} at {size}: its process ended with {code}; if it ran out of memory, lower --memory-limit"
            raise RuntimeError(message) from None
        return row

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.terminate()
            self._process.join()

    def _start(self) -> None:
        size, threads, device, trim = self._arguments
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, size, threads, device, trim))
        self._process.start()
        theirs.close()


@contextlib.contextmanager
def worker(size: Size, threads: int, device: str, trim: bool) -> Iterator[Worker]:
    """Hold a worker that ends with the block, however it ends.

    Args:
        size: Of the features.
        threads: Of every library, and cores.
        device: Of the features.
        trim: Whether unused memory goes back to the system before each measurement, for the sake of its peak. It has
            to be fetched again, which takes time.
    """
    held = Worker(size, threads, device, trim)
    try:
        yield held
    finally:
        held.stop()


def _serve(connection: Connection, size: Size, threads: int, device: str, trim: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent stops its workers.
    keep_to(threads)
    features = [torch.from_numpy(side).to(device) for side in draw_features(*size)]
    warm = set()
    with contextlib.suppress(EOFError):  # Raised when the parent is gone.
        while True:
            name = connection.recv()
            if name not in warm:
                CONTESTANTS[name].run(*(side[:WARM_UP_ROWS] for side in features))
                warm.add(name)
            if trim:
                _return_memory()
            connection.send(run_once(CONTESTANTS[name], *features))


def keep_to(threads: int) -> None:
    """Let this process use so many cores, and torch so many threads."""
    # Cores, too: prdc starts eight jobs whatever it is told.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def _return_memory() -> None:
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def run_once(contestant: Contestant, generated: Tensor, real: Tensor) -> Row:
    """Measure seconds, and bytes in use at the peak beyond those in use before."""
    gc.collect()
    on_gpu = generated.is_cuda
    before = _start_peak(on_gpu)
    start = time.perf_counter()
    values = contestant.run(generated, real)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu else _resident("VmHWM")
    precision, recall = values or (None, None)
    return {"seconds": seconds, "peak_bytes": peak - before, "precision": precision, "recall": recall}


def _start_peak(on_gpu: bool) -> int:
    """Forget the peak so far; return the bytes in use."""
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # Sets VmHWM to VmRSS. Without it an earlier peak would count, which is too much, never too little.
    with Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")
    return _resident("VmRSS")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")
