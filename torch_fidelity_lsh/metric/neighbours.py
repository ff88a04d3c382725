"""Nearest neighbours among the members of a few cells: exact distances to a number of candidates that hardly grows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from torch_fidelity_lsh.metric.anchors import NUMBER_BITS, AnchorTables, exact_type, squared_norms
from torch_fidelity_lsh.metric.coordinates import ROWS_AT_ONCE, Coordinates
from torch_fidelity_lsh.metric.parallel import mapped, shared

NUM_LISTS = 1024
MEMBERS_IN_LIST = 16  # on average, in sets of up to 16,384 members
PROBES = 8
CAPACITY = 4  # members that a list offers, at most, times log2 of all

# A pair is a distance, in whole units, and below it the row of a member.
MEMBER_BITS = 32
LIST_BITS = 10
NOTHING = 2**63 - 1
NOBODY = 2**62  # more than a pair
ASKED_AT_ONCE = 4096
RANKED_AT_ONCE = 512


@dataclass(frozen=True)
class Located:
    """Where M points are among the anchors of T tables.

    Attributes:
        reduced: M x P reduced features.
        cells: T x M numbers of the nearest anchors in their tables.
        probes: M x 8 numbers of the lists whose anchors are nearest, ascending; fewer where there are fewer lists.
    """

    reduced: torch.Tensor
    cells: torch.Tensor
    probes: torch.Tensor

    @classmethod
    def of(cls, tables: AnchorTables, reduced: torch.Tensor, num_lists: int, are_support: bool = False) -> Located:
        """Locate M x P reduced features; members of the support pass over themselves for cells, not for lists."""

        def block(start: int) -> tuple[torch.Tensor, torch.Tensor]:
            cells, probes = [], []
            for first, squared in tables.squared_distances(tables.coordinates(reduced[start : start + ROWS_AT_ONCE])):
                pairs = squared.flatten(1)[:, :num_lists].long() << LIST_BITS
                pairs += torch.arange(num_lists, device=pairs.device)
                nearest = pairs.topk(min(PROBES, num_lists), largest=False).values
                probes.append((nearest % 2**LIST_BITS).int())
                lowest = tables.keys(squared, start + first if are_support else None).amin(2)
                cells.append((lowest % 2**NUMBER_BITS).T.int())
            return torch.cat(cells, 1), torch.cat(probes)

        cells, probes = zip(*shared(block, range(0, len(reduced), ROWS_AT_ONCE)), strict=True)
        return cls(reduced, torch.cat(cells, 1), torch.cat(probes))


@dataclass(frozen=True)
class Lists:
    """N members, listed by the nearest of A anchors.

    Rows must be in pseudo-random order, since a long list offers the first of its members.

    Attributes:
        coordinates: Between whose positions distances are taken.
        positions: Those of the members on offer, list by list.
        norms: Their squared norms.
        rows: A x S rows of these, ``NOBODY`` beyond the end of a list.
    """

    coordinates: Coordinates
    positions: torch.Tensor
    norms: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, coordinates: Coordinates, members: Located, num_lists: int, capacity: int) -> Lists:
        """List N located members; a list offers ``capacity`` of them at most."""
        lists, order = members.probes[:, 0].sort(stable=True)
        sizes = lists.bincount(minlength=num_lists)
        places = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[lists]
        on_offer = places < capacity
        lists, order, places = lists[on_offer], order[on_offer], places[on_offer]
        rows = order.new_full((num_lists, int(places.max()) + 1), NOBODY)
        rows[lists, places] = order
        positions = torch.empty(len(order), members.reduced.shape[1] + 1, device=order.device)
        norms = torch.empty(len(order), dtype=torch.float64, device=order.device)

        def fill(start: int) -> None:
            part = slice(start, start + ROWS_AT_ONCE)
            positions[part] = coordinates(members.reduced[order[part]])
            norms[part] = squared_norms(positions[part])

        mapped(fill, range(0, len(order), ROWS_AT_ONCE))
        return cls(coordinates, positions, norms, rows)

    def nearest(self, asking: Located, count: int, are_members: bool = False) -> torch.Tensor:
        """Find the nearest of the members that the probed lists of M points offer.

        Args:
            asking: The points.
            count: How many to find.
            are_members: Whether the points are the members; each then passes over itself.

        Returns:
            M x ``count`` ascending pairs, ``NOTHING`` where there are fewer.
        """
        starts = range(0, len(asking.probes), ASKED_AT_ONCE)
        return torch.cat(shared(lambda start: self._nearest(asking, start, count, are_members), starts))

    def _nearest(self, asking: Located, start: int, count: int, are_members: bool) -> torch.Tensor:
        """Return the ``count`` smallest pairs of some of the points."""
        part = slice(start, start + ASKED_AT_ONCE)
        points, probes = self.coordinates(asking.reduced[part]), asking.probes[part]
        norms, unit = squared_norms(points), self.coordinates.unit
        lists, places = probes.flatten().sort(stable=True)
        squared = self._distances_by_list(points, norms, lists, places // probes.shape[1])
        where = torch.empty_like(places).scatter_(0, places, torch.arange(len(places), device=places.device))
        best = []
        for first in range(0, len(points), RANKED_AT_ONCE):
            some = slice(first, first + RANKED_AT_ONCE)
            rows, found = self.rows[probes[some]].flatten(1), squared[where.view_as(probes)[some]].flatten(1)
            distances = found.double().add_(norms[some, None]).sqrt_().mul_(unit).round_()
            pairs = distances.mul_(2**MEMBER_BITS).long().add_(rows)
            if are_members:
                own = torch.arange(start + first, start + first + len(rows), device=rows.device)
                pairs.masked_fill_(rows == own[:, None], NOTHING)
            best.append(pairs.topk(min(count, pairs.shape[1]), largest=False).values)
        found = torch.cat(best)
        found.masked_fill_(found >= NOBODY, NOTHING)
        return torch.nn.functional.pad(found, (0, count - found.shape[1]), value=NOTHING)

    def _distances_by_list(
        self, points: torch.Tensor, norms: torch.Tensor, lists: torch.Tensor, asking: torch.Tensor
    ) -> torch.Tensor:
        """Return K x S squared distances, less the norms of the points, from asking points to the members of lists."""
        dtype = exact_type(norms.max(), self.norms.max())
        asking, members, norms = points.to(dtype)[asking], self.positions.to(dtype), self.norms.to(dtype)
        squared = asking.new_zeros(len(asking), self.rows.shape[1])
        sizes = lists.bincount(minlength=len(self.rows)), (self.rows < NOBODY).sum(1)
        num_asking, num_members = (each.tolist() for each in sizes)
        of_asking = zip(*(torch.split(each, num_asking) for each in (squared, asking)), strict=True)
        of_members = zip(torch.split(norms, num_members), torch.split(members.T, num_members, 1), strict=True)
        for (out, some), (own_norms, own) in zip(of_asking, of_members, strict=True):
            if len(some) and len(own_norms):
                torch.addmm(own_norms, some, own, alpha=-2, out=out[:, : len(own_norms)])
        return squared


def distances_and_rows(pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what pairs hold: distances, float64, and rows; `inf` and 0 for ``NOTHING``."""
    is_none = pairs == NOTHING
    distances, rows = pairs >> MEMBER_BITS, pairs & (2**MEMBER_BITS - 1)
    return distances.double().masked_fill_(is_none, math.inf), rows.masked_fill_(is_none, 0)
