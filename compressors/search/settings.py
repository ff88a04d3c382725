"""The settings of a search, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.data import Dataset

from compressors.common.checks import check_choice, check_count, check_share
from compressors.common.generation import SEED, Draw
from compressors.common.measure import count_macs
from compressors.distil.distiller import Distiller
from compressors.distil.training import Loss
from compressors.errors import CompressionError
from compressors.search.data import split
from compressors.search.space import Genotype, SearchSpace
from compressors.search.strategies import STRATEGIES
from compressors.search.supernet import Gate


@dataclass(frozen=True)
class SearchSettings:
    """What a search does; see `ArchitectureSearch` for the meaning."""

    space: SearchSpace
    budget: int | float
    draw: Draw | Dataset[Any] | Tensor
    steps: int
    seed: int = SEED
    strategy: str = "evolution"
    loss: Literal["l1", "mse"] | Loss = "l1"
    terms: Sequence[tuple[float, Loss]] = ()
    search_steps: int | None = None
    trials: int = 12
    trial_steps: int | None = None
    population: int = 30
    generations: int = 12
    batch_size: int = 16
    rate: float = 2e-3
    band: float = 0.92
    gate: Gate = "mask"
    held_out: int = 64
    folder: str | Path | None = None
    genotype: Genotype | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.space, SearchSpace):
            raise CompressionError(
                f"space must be a SearchSpace, such as cyclegan(); got {type(self.space).__name__}. For a generator "
                "that no space fits, search_widths needs none"
            )
        check_common(self)
        if self.search_steps is not None:
            check_count("search_steps", self.search_steps)
        check_choice("strategy", self.strategy, tuple(STRATEGIES))
        check_choice("gate", self.gate, ("mask", "scalar"))
        check_share("band", self.band, end=False)
        self.distiller(split(self.draw)[0], self.steps)  # It checks what is its own.

    def distiller(self, draw: Draw, steps: int, name: str | None = None) -> Distiller:
        """Return what trains a network from scratch for `steps` batches, resumed from the file `name` if given."""
        return Distiller(
            draw,
            steps,
            self.seed,
            self.batch_size,
            self.rate,
            self.loss,
            self.terms,
            train_norms=True,
            clip_norm=5,
            held_out=self.held_out,
            checkpoint=self.file(name),
            progress=self.progress,
        )

    def file(self, name: str | None) -> Path | None:
        """Return the path of a file to resume from, if there is a folder."""
        return file_in(self.folder, name)


def check_common(settings: Any) -> None:
    """Raise `CompressionError` unless what every search has is usable: budget, counts, folder."""
    check_budget(settings.budget)
    for name in ("steps", "trials", "population", "generations", "batch_size", "held_out"):
        check_count(name, getattr(settings, name))
    if settings.trial_steps is not None:
        check_count("trial_steps", settings.trial_steps)
    if settings.folder is not None and not Path(settings.folder).is_dir():
        raise CompressionError(f"folder: {settings.folder} does not exist")


def file_in(folder: str | Path | None, name: str | None) -> Path | None:
    """Return the path of a file to resume from, if there is a folder."""
    return None if folder is None or name is None else Path(folder) / name


def label_of(budget: int | float) -> str:
    """Return a budget in short: "0.25", or "110.9G"."""
    return f"{budget:g}" if isinstance(budget, float) else f"{budget / 1e9:.4g}G"


def check_budget(budget: Any) -> None:
    """Raise `CompressionError` unless `budget` is an integer above 0, or a float above 0, at most 1."""
    whole = isinstance(budget, int) and not isinstance(budget, bool) and budget > 0
    if not whole and not (isinstance(budget, float) and 0 < budget <= 1):
        raise CompressionError(
            "budget must be multiply-accumulates of one sample as an integer, or a share of the teacher's as a float "
            f"above 0, at most 1; got {budget!r}"
        )


def resolved(budget: int | float, teacher: nn.Module, *inputs: Any) -> int:
    """Return a budget in multiply-accumulates; `inputs` are those of one sample."""
    return budget if isinstance(budget, int) else int(budget * count_macs(teacher, inputs)[""])
