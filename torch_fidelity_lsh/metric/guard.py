"""Public functions compute alike whatever modes the caller has set, and leave the caller's random state as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

_ACCELERATORS = ("cuda", "xpu", "mps")


@contextmanager
def default_modes() -> Iterator[None]:
    """Work in torch's default modes and with the caller's random state kept, in a ``with`` block or as a decorator.

    Inside there is no autocast, no inference mode, no default device other than the CPU, no default type other than
    float32 and no reduced precision of float32 products. Afterwards all of these, and the random states of torch,
    numpy and Python, are those from before.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), default_modes():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    with ExitStack() as stack:
        stack.enter_context(_random_state_kept())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", *_ACCELERATORS):
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_default_dtype(torch.float32))
        stack.enter_context(_full_precision())
        yield


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    # A device that is not in use yet is not woken up for this.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply float32 matrices in float32."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # The caller has set it by the newer names, which torch does not let one read by the old.
        backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        kept = [backend.fp32_precision for backend in backends]
        _set_precisions(backends, ["ieee", "ieee"])
        try:
            yield
        finally:
            _set_precisions(backends, kept)
        return
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def _set_precisions(backends: object, values: list[str]) -> None:
    for backend, value in zip(backends, values, strict=True):  # type: ignore[call-overload]
        backend.fp32_precision = value
