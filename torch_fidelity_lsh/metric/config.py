"""Settings of the two metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# How unusual a sample must be to count as a stranger: large values see those near the set, small ones are steadier and
# treat classes more evenly (benchmarks/validity/LOG.md).
STOREY_LAMBDA = 0.65


def _setting(default: Any, parse: type, text: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": text})


@dataclass(frozen=True)
class LSHConfig:
    """Settings of ``lsh`` and ``lsh_knn``; the keywords and flags of fidelity calls are these names after ``lsh_``.

    Attributes:
        num_tables: Tables of anchors. More are steadier and slower. Default: 16.
        neighborhood: Number of nearest neighbours k that ``lsh_knn`` looks at, or an eighth of the samples of the set
            if that is less. At least 2. Default: 10.
        storey_lambda: The conformal p-value, in (0, 1), above which samples count as members. Default: 0.65.
        num_components: Dimensions kept by a random projection of the features; features with no more are taken as they
            are. Default: 128.
        batch_size: Rows projected at a time; bounds memory and changes no result. Default: 1024.
        seed: Seed of all random choices; fidelity calls take it from ``rng_seed``. Default: 2020.

    Raises:
        ValueError: A setting is out of range; the message names it, what was given and what is accepted.

    Example:
        >>> LSHConfig(num_tables=0)
        Traceback (most recent call last):
        ValueError: num_tables must be an integer of at least 1; got 0
    """

    num_tables: int = _setting(16, int, "tables of anchors; more are steadier and slower")
    neighborhood: int = _setting(10, int, "nearest neighbours looked at (lsh_knn)")
    storey_lambda: float = _setting(STOREY_LAMBDA, float, "conformal p-value above which samples count as members")
    num_components: int = _setting(128, int, "dimensions kept by random projection")
    batch_size: int = _setting(1024, int, "rows projected at a time; changes no result")
    seed: int = 2020

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):  # Settings computed with numpy count as the numbers they are.
            value = getattr(self, setting.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, setting.name, value.item())
        for name, least in (
            ("num_tables", 1),
            ("neighborhood", 2),
            ("num_components", 1),
            ("batch_size", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
        share = self.storey_lambda
        if not (isinstance(share, (int, float)) and 0 < share < 1):
            raise ValueError(f"storey_lambda must be a number between 0 and 1, both excluded; got {share!r}")

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> LSHConfig:
        """Read the configuration from the keywords of a fidelity call: ``lsh_<field>``, and ``rng_seed``.

        Args:
            kwargs: Keywords; those of other metrics are passed over.

        Raises:
            ValueError: A setting is out of range.
        """
        settings = {name: kwargs[f"lsh_{name}"] for name in option_fields() if f"lsh_{name}" in kwargs}
        if "rng_seed" in kwargs:
            settings["seed"] = kwargs["rng_seed"]
        try:
            return cls(**settings)
        except ValueError as error:  # It begins with the name of the field.
            name, rest = str(error).split(" ", 1)
            raise ValueError(f"{'rng_seed' if name == 'seed' else f'lsh_{name}'} {rest}") from error


def option_fields() -> dict[str, dataclasses.Field[Any]]:
    """Return the fields that are keywords of fidelity calls, by name."""
    return {f.name: f for f in dataclasses.fields(LSHConfig) if f.metadata}
