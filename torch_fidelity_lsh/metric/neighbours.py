"""Nearest neighbours among the members of a few cells: exact distances to a number of candidates that hardly grows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from torch_fidelity_lsh.metric.anchors import AnchorTables, SquaredDistances, positions, unit_of

NUM_LISTS = 1024
MEMBERS_IN_LIST = 16  # on average, in sets of up to 16,384 members
PROBES = 8
CAPACITY = 4  # members that a list offers, at most, times log2 of all

# A pair is a distance, in whole units, and below it the row of a member.
MEMBER_BITS = 32
LIST_BITS = 10
NOTHING = 2**63 - 1
PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Located:
    """Where M points are among the anchors of T tables.

    Attributes:
        positions: M x P whole numbers.
        cells: T x M numbers of the nearest anchors in their tables.
        probes: M x 8 numbers of the lists whose anchors are nearest, ascending; fewer where there are fewer lists.
    """

    positions: torch.Tensor
    cells: torch.Tensor
    probes: torch.Tensor

    @classmethod
    def of(cls, tables: AnchorTables, points: torch.Tensor, num_lists: int, are_support: bool = False) -> Located:
        """Locate M x P coordinates; members of the support pass over themselves for cells, not for lists."""
        cells, probes = [], []
        for start, squared in tables.squared_distances(points):
            pairs = squared.flatten(1)[:, :num_lists].long() << LIST_BITS
            pairs += torch.arange(num_lists, device=pairs.device)
            nearest = pairs.topk(min(PROBES, num_lists), largest=False).values
            probes.append(nearest % 2**LIST_BITS)
            if are_support:
                tables.pass_over_themselves(squared, start)
            cells.append(squared.argmin(2))
        return cls(positions(points), torch.cat(cells).T.contiguous(), torch.cat(probes))


@dataclass(frozen=True)
class Lists:
    """N members, listed by the nearest of A anchors.

    Rows must be in pseudo-random order, since a long list offers the first of its members.

    Attributes:
        positions: N x P whole numbers.
        order: N rows of the members, list by list.
        starts: A places at which lists start.
        sizes: A numbers of members that lists offer.
    """

    positions: torch.Tensor
    order: torch.Tensor
    starts: list[int]
    sizes: list[int]

    @classmethod
    def of(cls, members: Located, num_lists: int, capacity: int) -> Lists:
        """List N located members; a list offers ``capacity`` of them at most."""
        own = members.probes[:, 0]
        sizes = own.bincount(minlength=num_lists)
        starts = sizes.cumsum(0) - sizes
        order = own.argsort(stable=True)
        return cls(members.positions, order, starts.tolist(), sizes.clamp(max=capacity).tolist())

    def nearest(self, asking: Located, count: int, are_members: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest of the members that the probed lists of M points offer.

        Args:
            asking: The points.
            count: How many to find.
            are_members: Whether the points are the members; each then passes over itself.

        Returns:
            M x ``count`` ascending distances, whole numbers in float64, `inf` where there are fewer, and the rows of
            the members, -1 there.
        """
        rows = torch.arange(len(asking.positions), device=self.order.device)
        at_once = max(1, PAIRS_AT_ONCE // (asking.probes.shape[1] * max(self.sizes)))
        best = torch.cat([self._nearest(asking, part, count, are_members) for part in torch.split(rows, at_once)])
        distances = (best >> MEMBER_BITS).double().masked_fill_(best == NOTHING, math.inf)
        return distances, (best % 2**MEMBER_BITS).masked_fill_(best == NOTHING, -1)

    def _nearest(self, asking: Located, rows: torch.Tensor, count: int, are_members: bool) -> torch.Tensor:
        """Return the ``count`` smallest pairs of some of the points, list by list."""
        probed = asking.probes[rows]
        squared = SquaredDistances(asking.positions[rows], self.positions)
        pairs = torch.full((probed.numel(), max(self.sizes)), NOTHING, device=rows.device)
        places = torch.split(probed.flatten().argsort(), probed.flatten().bincount(minlength=len(self.sizes)).tolist())
        for asked, start, size in zip(places, self.starts, self.sizes, strict=True):
            members, own = self.order[start : start + size], asked // probed.shape[1]
            if len(asked) and size:
                distances = squared(own, members).double().sqrt_().mul_(unit_of(self.positions)).round_()
                found = distances.mul_(2**MEMBER_BITS).long().add_(members)
                pairs[asked, :size] = found.masked_fill_(rows[own, None] == members, NOTHING) if are_members else found
        pairs = pairs.view(len(rows), -1)
        best = pairs.topk(min(count, pairs.shape[1]), largest=False).values
        return torch.nn.functional.pad(best, (0, count - best.shape[1]), value=NOTHING)
