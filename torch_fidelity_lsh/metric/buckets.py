"""Exact distances between samples that share a bucket, computed bucket by bucket in dense blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from torch_fidelity_lsh.metric.coordinates import by_blocks, content_hash
from torch_fidelity_lsh.metric.hashing import HashFamily

BLOCK_ELEMENTS = 2**20  # of coordinates gathered and distances computed at a time
QUERIES_IN_BLOCK = 64
TABLES_AT_ONCE = 4

# A pair is a distance, in whole units, and below it the row of a member.
MEMBER_BITS = 32
NOTHING = 2**63 - 1


@dataclass(frozen=True)
class Buckets:
    """The buckets of N samples in L tables.

    Places are positions in sorted order; a bucket lies from its start up to its end.

    Attributes:
        keys: L x N, sorted in each row.
        order: L x N rows of the samples in that order.
        starts: L x N places where the bucket of the sample in each place starts.
        ends: L x N places where it ends.
    """

    keys: torch.Tensor
    order: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(cls, keys: torch.Tensor) -> Buckets:
        """Sort L x N keys."""
        keys, order = keys.sort(dim=1, stable=True)
        size = keys.shape[1]
        places = torch.arange(size, device=keys.device).expand_as(keys)
        is_edge = torch.nn.functional.pad(keys[:, 1:] != keys[:, :-1], (1, 1), value=True)
        starts = places.masked_fill(~is_edge[:, :-1], 0).cummax(1).values
        ends = (places + 1).masked_fill(~is_edge[:, 1:], size).flip(1).cummin(1).values.flip(1)
        return cls(keys, order, starts, ends)

    def find(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the L x M starts and ends of the buckets that belong to L x M keys.

        Example:
            >>> start, end = Buckets.of(torch.tensor([[3, 5, 5]])).find(torch.tensor([[5, 4, 3]]))
            >>> end - start
            tensor([[2, 0, 1]])
        """
        start = torch.searchsorted(self.keys, keys)
        place = start.clamp(max=self.keys.shape[1] - 1)
        end = torch.where(self.keys.gather(1, place) == keys, self.ends.gather(1, place), start)
        return start, end

    @property
    def collisions(self) -> float:
        """Probability in [0, 1] that two of the samples share a bucket."""
        tables, size = self.keys.shape
        return int((self.ends - self.starts - 1).sum()) / (tables * size * max(1, size - 1))


@dataclass(frozen=True)
class BucketIndex:
    """N x P coordinates in L hash tables, of which each bucket offers its first ``capacity`` members.

    Rows are in a pseudo-random order that depends on the coordinates alone, so that which members a full bucket offers
    does not depend on the order the samples came in.

    Attributes:
        family: The hash functions.
        width: Bucket width.
        coordinates: N x P.
        buckets: Those of the samples.
        capacity: Members searched in a bucket, at most.
    """

    family: HashFamily
    width: float
    coordinates: torch.Tensor
    buckets: Buckets
    capacity: int

    @classmethod
    def build(
        cls, family: HashFamily, width: float, coordinates: torch.Tensor, num_samples: int, capacity: int
    ) -> BucketIndex:
        """Index ``num_samples`` of the N x P coordinates, chosen pseudo-randomly where there are more."""
        coordinates = coordinates[content_hash(coordinates).argsort(stable=True)[:num_samples]]
        return cls(family, width, coordinates, Buckets.of(family.keys(coordinates, width)), capacity)

    def nearest(self, queries: torch.Tensor, buckets: Buckets, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest of the samples that share a bucket with each of M x P queries in any table.

        Args:
            queries: M x P.
            buckets: Those of the queries.
            count: How many to find.

        Returns:
            M x ``count`` ascending distances, whole numbers in float64, `inf` where there are fewer, and the rows of
            the samples, -1 there.
        """
        return self._search(queries, buckets, count, others=False)

    def nearest_others(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the same for the indexed samples themselves among the others."""
        return self._search(self.coordinates, self.buckets, count, others=True)

    def _search(
        self, queries: torch.Tensor, asking: Buckets, count: int, others: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tasks = self._tasks(asking, self._offered(others))
        norms = [by_blocks(_squared_norms, rows) for rows in (queries, self.coordinates)]
        best = torch.full((len(queries), count), NOTHING, device=queries.device)
        for first in range(0, self.family.num_tables, TABLES_AT_ONCE):
            found = best.new_full((len(queries), TABLES_AT_ONCE, count), NOTHING)
            part = tasks[(tasks[:, 0] >= first) & (tasks[:, 0] < first + TABLES_AT_ONCE)]
            for table, rows, pairs in self._pairs(queries, norms, asking, part, others):
                nearest = _sorted(pairs)[:, :, :count]
                found[rows, table[:, None] - first, : nearest.shape[-1]] = nearest
            best = by_blocks(lambda pairs: _smallest(pairs, count), torch.cat([best, found.flatten(1)], dim=1))
        distances = (best >> MEMBER_BITS).double().masked_fill_(best == NOTHING, math.inf)
        return distances, (best % 2**MEMBER_BITS).masked_fill_(best == NOTHING, -1)

    def _offered(self, others: bool) -> int:
        # A bucket's own samples leave themselves out; one more member makes up for it.
        return self.capacity + 1 if others else self.capacity

    def _pairs(
        self, queries: torch.Tensor, norms: list[torch.Tensor], asking: Buckets, tasks: torch.Tensor, others: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Compute distances in blocks of B tasks of like size, padded to Q queries and S members.

        ``norms`` are the squared norms of the queries and of the indexed samples.

        Yields:
            B tables, B x Q rows of the queries, and B x Q x S pairs: of each query with each member one number that
            sorts by distance and, where distances are equal, by member.
        """
        query_norms, member_norms = norms
        for part, num_queries, num_members in _of_like_size(tasks, self._offered(others), queries.shape[1]):
            table, query_start, query_count, member_start, member_count = part.T
            rows, _ = _gather(asking.order, table, query_start, query_count, num_queries)
            members, is_member = _gather(self.buckets.order, table, member_start, member_count, num_members)
            squared = torch.baddbmm(
                query_norms[rows][:, :, None] + member_norms[members][:, None, :],
                queries[rows].double(),
                self.coordinates[members].double().transpose(1, 2),
                alpha=-2,
            )
            pairs = squared.sqrt_().round_().mul_(2**MEMBER_BITS).long().add_(members[:, None, :])
            pairs.masked_fill_(~is_member[:, None, :], NOTHING)
            if others:
                is_self = rows[:, :, None] == members[:, None, :]
                is_self[:, :, self.capacity :] |= ~is_self.any(-1, keepdim=True)
                pairs.masked_fill_(is_self, NOTHING)
            yield table, rows, pairs

    def _tasks(self, asking: Buckets, offered: int) -> torch.Tensor:
        """Pair runs of at most 64 queries of one key with the members of their bucket.

        Returns:
            T x 5: table, first query and number of queries in sorted order, first member and number of members.
        """
        places = torch.arange(asking.keys.shape[1], device=asking.keys.device)
        # Long runs are cut at multiples of 64, wherever these fall.
        is_first = (asking.starts == places) | (places % QUERIES_IN_BLOCK == 0)
        table, first = is_first.nonzero(as_tuple=True)
        next_cut = (first // QUERIES_IN_BLOCK + 1) * QUERIES_IN_BLOCK
        count = torch.minimum(asking.ends[table, first], next_cut) - first
        start, end = (place[table, first] for place in self.buckets.find(asking.keys))
        tasks = torch.stack([table, first, count, start, (end - start).clamp(max=offered)], dim=1)
        return tasks[end > start]


def _squared_norms(rows: torch.Tensor) -> torch.Tensor:
    return rows.double().square_().sum(1)


def _smallest(pairs: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count`` smallest of M x S pairs in each row, equal ones only once."""
    pairs = _sorted(pairs)
    pairs[:, 1:].masked_fill_(pairs[:, 1:] == pairs[:, :-1], NOTHING)
    return _sorted(pairs)[:, :count]


def _sorted(pairs: torch.Tensor) -> torch.Tensor:
    """Sort along the last dimension; numpy sorts short rows thirty times as fast as torch."""
    if pairs.device.type == "cpu":
        return torch.from_numpy(np.sort(pairs.numpy(), axis=-1))
    return pairs.sort(dim=-1).values


def _of_like_size(tasks: torch.Tensor, offered: int, dimension: int) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Split tasks into parts that fit in memory once all their runs are padded to the same two lengths."""
    query_sizes, member_sizes = _powers_of_two(QUERIES_IN_BLOCK), _powers_of_two(offered)
    query_class, member_class = (
        torch.bucketize(tasks[:, column].contiguous(), tasks.new_tensor(sizes))
        for column, sizes in ((2, query_sizes), (4, member_sizes))
    )
    classes = query_class * len(member_sizes) + member_class
    order = torch.argsort(classes, stable=True)
    numbers, counts = torch.unique(classes, return_counts=True)
    for number, part in zip(numbers.tolist(), torch.split(tasks[order], counts.tolist()), strict=True):
        q, s = query_sizes[number // len(member_sizes)], member_sizes[number % len(member_sizes)]
        for piece in torch.split(part, max(1, BLOCK_ELEMENTS // ((q + s) * dimension + q * s))):
            yield piece, q, s


def _powers_of_two(largest: int) -> list[int]:
    """Return 1, 2, 4 and so on, and in the end ``largest``."""
    return [2**e for e in range((largest - 1).bit_length())] + [largest]


def _gather(
    order: torch.Tensor, table: torch.Tensor, start: torch.Tensor, count: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read B runs of the L x N sorted rows, repeating the last to fill B x ``size``; say which are real."""
    steps = torch.arange(size, device=order.device)
    is_real = steps < count[:, None]
    positions = start[:, None] + torch.minimum(steps, count[:, None] - 1)
    return order[table[:, None], positions], is_real
