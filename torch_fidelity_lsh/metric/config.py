"""Settings of the two metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torch_fidelity_lsh.metric.messages import did_you_mean

COORDINATES = ("polar", "radial", "euclidean")

# Where a field is None each metric takes its own value: hashing alone starts from fine buckets and needs many tables,
# neighbour search wants buckets that hold enough candidates.
METRIC_DEFAULTS: dict[str, dict[str, Any]] = {
    "lsh": {"num_hashes": 12, "occupancy": 0.1, "coordinates": "polar"},
    "lsh_knn": {"num_tables": 16, "num_hashes": 8, "occupancy": 0.9, "coordinates": "radial"},
}


# Hash tables of lsh for up to so many samples of the smaller set: the fewer, the more it takes to see them steadily.
LSH_TABLES = {2_500: 128, 5_000: 64, math.inf: 32}


def _setting(default: Any, parse: type, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"parse": parse, "help": text, "choices": choices})


@dataclass(frozen=True)
class LSHConfig:
    """Settings of ``lsh`` and ``lsh_knn``; the keywords and flags of fidelity calls are these names after ``lsh_``.

    Attributes:
        neighborhood: Number of nearest neighbours k that ``lsh_knn`` looks at. At least 2. Default: `None`, that is 15,
            or an eighth of the samples of the smaller set if that is less, and at least 2.
        num_tables: Number L of hash tables. Default: `None`, that is 16 in ``lsh_knn``, and in ``lsh`` 128 for up to
            2,500 samples in the smaller set, 64 for up to 5,000, and 32 for more.
        num_hashes: Number K of hash values that make a key. Default: 12 in ``lsh``, 8 in ``lsh_knn``.
        bucket_width: Width w of a hash cell, the finest in ``lsh``, in units of the coordinates. Default: `None`, found
            from ``occupancy``.
        occupancy: Share in (0, 1) of (real sample, table) pairs whose bucket holds a further real sample, which the
            automatic width reaches. Default: 0.1 in ``lsh``, 0.9 in ``lsh_knn``.
        num_components: Dimensions kept by a random projection of the features; features with no more are taken as they
            are. Default: 128.
        coordinates: What is hashed of the features about their centre: ``"polar"``, their direction and norm;
            ``"radial"``, the features and their norm; ``"euclidean"``, the features. Default: ``"polar"`` in ``lsh``,
            ``"radial"`` in ``lsh_knn``.
        batch_size: Rows processed at a time; bounds memory and changes no result. Default: 1024.
        seed: Seed of all random choices; fidelity calls take it from ``rng_seed``. Default: 2020.

    Raises:
        ValueError: A setting is out of range; the message names it, what was given and what is accepted.

    Example:
        >>> LSHConfig(occupancy=0.2).resolve("lsh", 10_000).num_tables
        32
        >>> LSHConfig(num_tables=0)
        Traceback (most recent call last):
        ValueError: num_tables must be an integer of at least 1, or None; got 0
    """

    neighborhood: int | None = _setting(
        None, int, "nearest neighbours looked at (lsh_knn); 15 if not given, fewer where there are under 120 samples"
    )
    num_tables: int | None = _setting(
        None, int, "hash tables; if not given 16 in lsh_knn, in lsh 128, 64 over 2500 samples, 32 over 5000"
    )
    num_hashes: int | None = _setting(None, int, "hash values in a key; 12 in lsh, 8 in lsh_knn if not given")
    bucket_width: float | None = _setting(None, float, "width of a hash cell; found from the occupancy if not given")
    occupancy: float | None = _setting(
        None, float, "share of real samples that share a bucket, to find the width; .1 in lsh, .9 in lsh_knn"
    )
    num_components: int = _setting(128, int, "dimensions kept by random projection")
    coordinates: str | None = _setting(
        None, str, "what is hashed of the features; polar in lsh, radial in lsh_knn if not given", COORDINATES
    )
    batch_size: int = _setting(1024, int, "rows processed at a time; changes no result")
    seed: int = 2020

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):  # Settings computed with numpy count as the numbers they are.
            value = getattr(self, setting.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, setting.name, value.item())
        self._check("neighborhood", _is_int, lambda value: value >= 2, "an integer of at least 2")
        for name in ("num_tables", "num_hashes", "num_components", "batch_size"):
            self._check(name, _is_int, lambda value: value >= 1, "an integer of at least 1")
        self._check("seed", _is_int, lambda value: value >= 0, "an integer of at least 0")
        self._check("bucket_width", _is_real, lambda value: 0 < value < math.inf, "a positive number")
        self._check("occupancy", _is_real, lambda value: 0 < value < 1, "a number between 0 and 1, both excluded")
        if self.coordinates not in (None, *COORDINATES):
            hint = did_you_mean(str(self.coordinates), COORDINATES)
            raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}; got {self.coordinates!r}{hint}")

    def _check(self, name: str, is_type: Any, is_in_range: Any, accepted: str) -> None:
        value = getattr(self, name)
        optional = name in METRIC_DEFAULTS["lsh_knn"] or name in ("bucket_width", "neighborhood")
        if value is None and optional:
            return
        if not (is_type(value) and is_in_range(value)):
            raise ValueError(f"{name} must be {accepted}{', or None' if optional else ''}; got {value!r}")

    def resolve(self, metric: str, num_samples: int) -> ResolvedConfig:
        """Fill the fields that were left to the metric, ``"lsh"`` or ``"lsh_knn"``, for the smaller set's samples."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        lsh_tables = next(tables for most, tables in LSH_TABLES.items() if num_samples <= most)
        return ResolvedConfig(**{"num_tables": lsh_tables, **METRIC_DEFAULTS[metric], **given})

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
        return cls(**settings)


@dataclass(frozen=True)
class ResolvedConfig(LSHConfig):
    """An :class:`LSHConfig` that leaves nothing to the metric, and only the bucket width to the data."""

    num_tables: int = LSH_TABLES[math.inf]
    num_hashes: int = METRIC_DEFAULTS["lsh"]["num_hashes"]
    occupancy: float = METRIC_DEFAULTS["lsh"]["occupancy"]
    coordinates: str = METRIC_DEFAULTS["lsh"]["coordinates"]


def option_fields() -> dict[str, dataclasses.Field[Any]]:
    """Return the fields that are keywords of fidelity calls, by name."""
    return {f.name: f for f in dataclasses.fields(LSHConfig) if f.metadata}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
