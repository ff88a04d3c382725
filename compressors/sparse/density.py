"""Dynamic density adjustment: from the balance ratio to the discriminator's density, as a pure function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from compressors.common.checks import check_choice, check_count, check_density, check_number
from compressors.errors import CompressionError
from compressors.sparse.drop_grow import GROWTHS
from compressors.sparse.schedule import Schedule, due

Action: TypeAlias = Literal["grow", "drop", "exchange", "none"]

# Densities are compared as decimals: in binary 0.3 + 4 * 0.05 stays below 0.5, and the cap is met a step late.
_DIGITS = 9


@dataclass(frozen=True)
class Decision:
    """What happens to the discriminator: an action, and the density it has afterwards."""

    action: Action
    density: float

    def active(self, total: int) -> int:
        """Return how many of `total` weights are on afterwards."""
        return round(self.density * total)


@dataclass(frozen=True)
class DensityControl:
    """Dynamic density adjustment: a discriminator too weak for its generator grows, one too strong loses weights.

    Attributes:
        low: balance ratio at or below which the discriminator is too strong. Default 0.45.
        high: balance ratio at or above which it is too weak. Default 0.55. The band is not portable: it depends on
            learning rate, width and steps; see docs/sparse.
        interval: generator iterations between decisions. Default 1000.
        warm_up: iterations without decisions. Default 0. While the discriminator learns to tell noise from images the
            ratio is low, which would cost it weights.
        step: change of density, absolute. Default 0.05.
        floor: lowest density. Default 0.05.
        cap: highest density. Default 1.
        growth: where weights grow: "gradient" (default) or "random".
        exchange: schedule of the share of weights that is dropped and grown when the discriminator is too weak at its
            cap (strict); None (default): nothing happens there (relaxed).

    Raises:
        CompressionError: a setting is out of range, or the band or the bounds are reversed.

    Source: Wang et al. 2023, "Balanced Training for Sparse GANs" (NeurIPS 2023), algorithm ADAPT; the bounds are
    inclusive and the floor is above 0 as in the authors' code.

    Example:
        >>> DensityControl().decide(0.7, 0.3)
        Decision(action='grow', density=0.35)
    """

    low: float = 0.45
    high: float = 0.55
    interval: int = 1000
    warm_up: int = 0
    step: float = 0.05
    floor: float = 0.05
    cap: float = 1.0
    growth: str = "gradient"
    exchange: Schedule | None = None

    def __post_init__(self) -> None:
        check_count("interval", self.interval)
        check_count("warm_up", self.warm_up, 0)
        for name in ("low", "high"):
            check_number(name, getattr(self, name))
        for name in ("step", "floor", "cap"):
            check_density(name, getattr(self, name))
        check_choice("growth", self.growth, GROWTHS)
        for lower, upper in (("low", "high"), ("floor", "cap")):
            if getattr(self, lower) >= getattr(self, upper):
                raise CompressionError(
                    f"{lower} must be below {upper}; got {lower}={getattr(self, lower)!r}, "
                    f"{upper}={getattr(self, upper)!r}"
                )
        if self.exchange is not None and not isinstance(self.exchange, Schedule):
            raise CompressionError(f"exchange must be a Schedule or None; got {self.exchange!r}")

    def due(self, iteration: int, iterations: int) -> bool:
        """Tell whether there is a decision after `iteration` of `iterations`."""
        return iteration > self.warm_up and due(iteration, self.interval, iterations)

    def decide(self, ratio: float | None, density: float) -> Decision:
        """Return what to do at a balance ratio and a density.

        `None` and NaN, which say that the ratio is not known, change nothing; infinity, which says that the
        discriminator cannot tell real from generated, is above any band.
        """
        if ratio is not None and ratio >= self.high:
            if density < self.cap:
                return Decision("grow", min(self.cap, round(density + self.step, _DIGITS)))
            return Decision("exchange" if self.exchange else "none", density)
        if ratio is not None and ratio <= self.low and density > self.floor:
            return Decision("drop", max(self.floor, round(density - self.step, _DIGITS)))
        return Decision("none", density)
