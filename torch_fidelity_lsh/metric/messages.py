"""Wording shared by the error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, empty if it has none."""
    return (str(error).strip().splitlines() or [""])[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests the known name nearest to a mistyped one.

    Args:
        name: What the user wrote.
        known: The names that would have been accepted.

    Returns:
        ``'; did you mean "nearest"?'``, or an empty string when nothing is close.

    Example:
        >>> did_you_mean("lsh_num_table", ["lsh", "lsh_num_tables"])
        '; did you mean "lsh_num_tables"?'
    """
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{nearest[0]}"?' if nearest else ""
