"""A set as evidence: repeated rows count once, and the order is pseudo-random but depends on the rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.coordinates import by_blocks


@dataclass(frozen=True)
class Members:
    """The distinct rows of a set.

    Attributes:
        values: K x P reduced features, no row twice.
        of_row: N numbers of distinct rows, in the order of the set.
    """

    values: torch.Tensor
    of_row: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, order: torch.Tensor, at_least: int, seed: int) -> Members:
        """Find the distinct rows of N x P finite values.

        Args:
            values: Reduced features.
            order: N int64 numbers, equal for equal rows, that order the rows before they are shuffled. Sets of paired
                rows with the numbers of one are ordered, and held out, alike.
            at_least: With fewer distinct rows than this, nothing can be held out, and all N rows are kept.
            seed: Of the order.
        """
        hashes = content_hash(values)
        kinds, of_row = torch.unique(hashes, return_inverse=True)
        if len(kinds) < at_least:
            kinds, of_row = hashes, hashes.argsort(stable=True).argsort()
        kinds = torch.full_like(kinds, 2**63 - 1).scatter_reduce(0, of_row, order, "amin")
        of_row = kinds.argsort(stable=True).argsort()[of_row]
        shuffled = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(len(kinds))).to(values.device)
        of_row = shuffled.argsort()[of_row]
        rows = torch.arange(len(of_row), device=values.device)
        first = torch.full_like(kinds, len(of_row)).scatter_reduce(0, of_row, rows, "amin")
        return cls(values[first], of_row)

    @property
    def share_of_repeats(self) -> float:
        """Share of the rows that repeat another row, in [0, 1)."""
        return 1 - len(self.values) / len(self.of_row)


def content_hash(values: torch.Tensor, exponent: torch.Tensor | None = None) -> torch.Tensor:
    """Return N int64 numbers, pseudo-random but the same for equal rows of N x P float32 or float64 values.

    Values count times 2 to the power of an exponent, if there is one.
    """
    rng = np.random.default_rng(values.shape[1])
    multipliers = torch.from_numpy(rng.integers(-(2**63), 2**63, values.shape[1], dtype=np.int64) | 1)
    multipliers = multipliers.to(values.device)

    def of_block(rows: torch.Tensor) -> torch.Tensor:
        scaled = rows if exponent is None else torch.ldexp(rows, exponent)
        words = (scaled.double() + 0.0).view(torch.int64)  # -0 becomes 0, and equal numbers of both types are equal
        words = words ^ (words >> 29)  # so that the high bits of a float reach the low ones of the product
        return (words * multipliers).sum(1)

    return by_blocks(of_block, values)
