"""Settings of a sparse training, and the presets of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compressors.common.checks import check_choice, check_count, check_density, check_number
from compressors.common.generation import SEED
from compressors.errors import CompressionError
from compressors.sparse.allocation import ALLOCATIONS
from compressors.sparse.balance import BalanceConfig
from compressors.sparse.density import DensityControl
from compressors.sparse.drop_grow import DropGrow
from compressors.sparse.schedule import Schedule

OPTIMIZER_STATES = ("keep", "reset")


@dataclass(frozen=True)
class SparseConfig:
    """Densities of both networks and how they change.

    `static`, `sdst`, `dda`, `adapt_relaxed` and `adapt_strict` give the settings of the paper for CIFAR-10, whose
    intervals suit 100,000 iterations; further keywords replace single settings.

    Attributes:
        iterations: steps of the generator that training takes; schedules end there, and masks stay after.
        generator_density: share of the generator's weights that is on, above 0, at most 1.
        discriminator_density: likewise, at the start.
        generator_topology: how the generator's weights are dropped and grown; None (default): they are not.
        density_control: how the discriminator's density follows the balance ratio; None (default): it does not.
        balance: how the balance ratio is measured; None: it is not.
        allocation: of weights to layers, "erk" (default) or "uniform".
        generator_exclude: glob patterns of layers of the generator that stay dense.
        discriminator_exclude: likewise.
        optimizer_state: the optimizers' moments of a weight that was dropped or grown: "keep" (default, as the
            authors) or "reset" to zero.
        average: decay of the moving average of the generator, above 0, below 1; None: no average. Default 0.999.
        seed: of positions and tie-breaks. Default 2020.

    Raises:
        CompressionError: a setting is out of range, or the discriminator starts outside of its bounds.

    Source: Wang et al. 2023, "Balanced Training for Sparse GANs" (NeurIPS 2023).
    """

    iterations: int
    generator_density: float
    discriminator_density: float
    generator_topology: DropGrow | None = None
    density_control: DensityControl | None = None
    balance: BalanceConfig | None = field(default_factory=BalanceConfig)
    allocation: str = "erk"
    generator_exclude: tuple[str, ...] = ()
    discriminator_exclude: tuple[str, ...] = ()
    optimizer_state: str = "keep"
    average: float | None = 0.999
    seed: int = SEED

    def __post_init__(self) -> None:
        self._check_types()
        check_count("iterations", self.iterations)
        check_count("seed", self.seed, 0)
        for name in ("generator_density", "discriminator_density"):
            check_density(name, getattr(self, name))
        check_choice("allocation", self.allocation, ALLOCATIONS)
        check_choice("optimizer_state", self.optimizer_state, OPTIMIZER_STATES)
        if self.average is not None:
            check_number("average", self.average)
            if not 0 < self.average < 1:
                raise CompressionError(f"average must be above 0 and below 1, or None; got {self.average!r}")
        if self.density_control is not None:
            self._check_control(self.density_control)

    def _check_types(self) -> None:
        kinds = {"generator_topology": DropGrow, "density_control": DensityControl, "balance": BalanceConfig}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise CompressionError(f"{name} must be a {kind.__name__} or None; got {value!r}")

    def _check_control(self, control: DensityControl) -> None:
        if self.balance is None:
            raise CompressionError("density_control needs the balance ratio: balance must be a BalanceConfig; got None")
        if (filled := self.balance.every * self.balance.window) >= self.iterations:
            raise CompressionError(
                f"balance must fill its window, every * window = {filled} iterations, within the {self.iterations} of "
                f"the training, or density_control never decides; got {self.balance!r}"
            )
        if not control.floor <= self.discriminator_density <= control.cap:
            raise CompressionError(
                f"discriminator_density must be from floor={control.floor!r} to cap={control.cap!r} of "
                f"density_control; got {self.discriminator_density!r}"
            )

    @classmethod
    def static(cls, iterations: int, density: float, **changes: Any) -> SparseConfig:
        """Both networks keep the weights they were given at the start."""
        return cls(**{**_both(iterations, density), **changes})

    @classmethod
    def sdst(cls, iterations: int, density: float, **changes: Any) -> SparseConfig:
        """The generator's weights are dropped and grown (single dynamic sparse training, SDST)."""
        return cls(**{**_both(iterations, density), "generator_topology": DropGrow(), **changes})

    @classmethod
    def dda(cls, iterations: int, density: float, **changes: Any) -> SparseConfig:
        """The discriminator's density follows the balance ratio (dynamic density adjustment)."""
        control = DensityControl(0.5, 0.65, interval=2000)
        return cls(**{**_both(iterations, density), "density_control": control, **changes})

    @classmethod
    def adapt_relaxed(cls, iterations: int, density: float, **changes: Any) -> SparseConfig:
        """SDST and DDA together; the discriminator may become dense."""
        settings = {"generator_topology": DropGrow(), "density_control": DensityControl()}
        return cls(**{**_both(iterations, density), **settings, **changes})

    @classmethod
    def adapt_strict(cls, iterations: int, density: float, **changes: Any) -> SparseConfig:
        """SDST and DDA together; at its highest density, 0.5, the discriminator's weights are dropped and grown."""
        control = DensityControl(interval=2000, cap=0.5, exchange=Schedule())
        settings = {"generator_topology": DropGrow(), "density_control": control}
        return cls(**{**_both(iterations, density), **settings, **changes})


def _both(iterations: int, density: float) -> dict[str, Any]:
    return {"iterations": iterations, "generator_density": density, "discriminator_density": density}
