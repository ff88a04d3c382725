"""Registered metrics in existing code: ``torch_fidelity.calculate_metrics(..., fid=True, lsh=True)``.

The hook sits below the function, not below its name: installing swaps the code of upstream's function object, so that
modules which imported the function by name long before are served too. Nothing is installed on import.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch_fidelity.metrics

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.calculate import calculate_metrics
from torch_fidelity_lsh.fidelity.registry import plugin_keywords


def install() -> None:
    """Make ``torch_fidelity.calculate_metrics`` accept the registered metrics.

    Calls with a keyword of a registered metric go to :func:`torch_fidelity_lsh.calculate_metrics`; all others run
    upstream's code as before. Installing again changes nothing.

    Raises:
        RuntimeError: torch-fidelity has a metric or keyword of the same name, or its function has a form that cannot be
            hooked.

    Example:
        >>> import torch_fidelity, torch_fidelity_lsh.fidelity.hook
        >>> torch_fidelity_lsh.fidelity.hook.install()
        >>> torch_fidelity_lsh.fidelity.hook.is_installed()
        True
        >>> torch_fidelity_lsh.fidelity.hook.uninstall()
    """
    if is_installed():
        return
    function = torch_fidelity.metrics.calculate_metrics
    _refuse_unhookable(function)
    function.__code__ = _trampoline.__code__
    function.__wrapped__ = upstream.calculate_metrics


def uninstall() -> None:
    """Give ``torch_fidelity.calculate_metrics`` its own code back; does nothing when not installed."""
    if is_installed():
        function = torch_fidelity.metrics.calculate_metrics
        function.__code__ = upstream.calculate_metrics.__code__
        del function.__wrapped__


def is_installed() -> bool:
    """Tell whether the hook is installed."""
    return getattr(torch_fidelity.metrics.calculate_metrics, "__code__", None) is _trampoline.__code__


@contextmanager
def installed() -> Iterator[None]:
    """Install the hook for a ``with`` block; on leaving, it is as it was before.

    Example:
        >>> from torch_fidelity_lsh.fidelity.hook import installed, is_installed
        >>> with installed():
        ...     is_installed()
        True
        >>> is_installed()
        False
    """
    before = is_installed()
    install()
    try:
        yield
    finally:
        if not before:
            uninstall()


def dispatch(kwargs: dict[str, Any]) -> dict[str, float]:
    """Answer a call of the hooked function."""
    if kwargs.keys() & plugin_keywords().keys():
        return calculate_metrics(**kwargs)
    return upstream.calculate_metrics(**kwargs)  # type: ignore[no-any-return]


def _trampoline(**kwargs: Any) -> dict[str, float]:
    # Runs with the globals of upstream's module, so it must import what it needs.
    from torch_fidelity_lsh.fidelity.hook import dispatch

    return dispatch(kwargs)


def _refuse_unhookable(function: Any) -> None:
    taken = upstream.DEFAULTS.keys() & plugin_keywords().keys()
    if taken:
        raise RuntimeError(f"torch-fidelity has keywords of these names itself: {', '.join(sorted(taken))}")
    if not isinstance(function, FunctionType) or function.__closure__ or not _takes_keywords_only(function):
        raise RuntimeError(
            "torch_fidelity.calculate_metrics is not a plain function of keyword arguments, so it cannot be hooked; "
            "call torch_fidelity_lsh.calculate_metrics instead"
        )


def _takes_keywords_only(function: FunctionType) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    return kinds == [inspect.Parameter.VAR_KEYWORD]
