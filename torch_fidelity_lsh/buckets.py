"""Exact distances between samples that share a bucket, computed bucket by bucket in dense blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from torch_fidelity_lsh.coordinates import content_hash
from torch_fidelity_lsh.hashing import Buckets, HashFamily

BLOCK_ELEMENTS = 2**21  # of coordinates gathered and distances computed at a time
QUERIES_IN_BLOCK = 64
ROWS_MERGED = 8192


@dataclass(frozen=True)
class Block:
    """Distances from the queries to the members of some buckets of like size, padded to B x Q and B x S.

    Attributes:
        table: B numbers of the hash tables.
        queries: B x Q rows of the queries.
        is_query: B x Q, `False` where padded.
        members: B x S rows of the index.
        squared_distances: B x Q x S, `inf` where padded and between a sample and itself.
    """

    table: torch.Tensor
    queries: torch.Tensor
    is_query: torch.Tensor
    members: torch.Tensor
    squared_distances: torch.Tensor


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
        return cls(family, width, coordinates, Buckets.of(family.keys(coordinates, width)[0]), capacity)

    def nearest(self, queries: torch.Tensor, buckets: Buckets, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest of the samples that share a bucket with each of M x P queries in any table.

        Args:
            queries: M x P.
            buckets: Those of the queries.
            count: How many to find.

        Returns:
            M x ``count`` ascending distances, `inf` where there are fewer, and the rows of the samples, -1 there.
        """
        return _smallest(count, self._blocks(queries, buckets, others=False), queries, self.family.num_tables)

    def nearest_others(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the same for the indexed samples themselves among the others."""
        blocks = self._blocks(self.coordinates, self.buckets, others=True)
        return _smallest(count, blocks, self.coordinates, self.family.num_tables)

    def _blocks(self, queries: torch.Tensor, asking: Buckets, others: bool) -> Iterator[Block]:
        # A bucket's own samples leave themselves out; one more member makes up for it.
        offered = self.capacity + 1 if others else self.capacity
        tasks = self._tasks(asking, offered)
        query_norms, member_norms = (queries**2).sum(1), (self.coordinates**2).sum(1)
        for part, num_queries, num_members in _of_like_size(tasks, offered, queries.shape[1]):
            table, query_start, query_count, member_start, member_count = part.T
            rows, is_query = _gather(asking.order, table, query_start, query_count, num_queries)
            members, is_member = _gather(self.buckets.order, table, member_start, member_count, num_members)
            distances = torch.baddbmm(
                query_norms[rows][:, :, None] + member_norms[members][:, None, :],
                queries[rows],
                self.coordinates[members].transpose(1, 2),
                alpha=-2,
            )
            distances.masked_fill_(~(is_query[:, :, None] & is_member[:, None, :]), math.inf)
            if others:
                is_self = rows[:, :, None] == members[:, None, :]
                is_self[:, :, self.capacity :] |= ~is_self.any(-1, keepdim=True)
                distances.masked_fill_(is_self, math.inf)
            yield Block(table, rows, is_query, members, distances)

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


def _smallest(
    count: int, blocks: Iterable[Block], queries: torch.Tensor, num_tables: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``count`` smallest distances of each query in all blocks, and whose they are, each member once."""
    shape = (len(queries), num_tables, count)
    values = queries.new_full(shape, math.inf)
    members = torch.full(shape, -1, device=queries.device)
    for block in blocks:
        smallest = block.squared_distances.topk(min(count, block.squared_distances.shape[-1]), dim=-1, largest=False)
        ids = block.members[:, None, :].expand_as(block.squared_distances).gather(-1, smallest.indices)
        rows = block.queries[block.is_query]
        tables = block.table[:, None].expand_as(block.queries)[block.is_query]
        values[rows, tables, : ids.shape[-1]] = smallest.values[block.is_query]
        members[rows, tables, : ids.shape[-1]] = ids[block.is_query]
    parts = zip(torch.split(values, ROWS_MERGED), torch.split(members, ROWS_MERGED), strict=True)
    merged = [_merge_tables(v.flatten(1), m.flatten(1), count) for v, m in parts]
    distances, found = torch.cat([v for v, _ in merged]).sqrt(), torch.cat([m for _, m in merged])
    return distances, found.masked_fill(distances.isinf(), -1)


def _merge_tables(values: torch.Tensor, members: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest values of each row and their members, each member once."""
    members, order = members.sort(dim=1, stable=True)
    values = values.gather(1, order)
    values[:, 1:].masked_fill_(members[:, 1:] == members[:, :-1], math.inf)
    values, order = values.sort(dim=1, stable=True)
    return values[:, :count], members.gather(1, order[:, :count])


def _of_like_size(tasks: torch.Tensor, offered: int, dimension: int) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Split tasks into parts that fit in memory once all their runs are padded to the same two lengths."""
    query_sizes = tasks.new_tensor([1, 4, 16, QUERIES_IN_BLOCK])
    member_sizes = tasks.new_tensor([2**e for e in range(offered.bit_length()) if 2**e < offered] + [offered])
    classes = torch.stack(
        [
            torch.bucketize(tasks[:, column].contiguous(), sizes)
            for column, sizes in ((2, query_sizes), (4, member_sizes))
        ],
        dim=1,
    )
    for query_class, member_class in torch.unique(classes, dim=0).tolist():
        part = tasks[(classes == classes.new_tensor([query_class, member_class])).all(1)]
        q, s = int(query_sizes[query_class]), int(member_sizes[member_class])
        for piece in torch.split(part, max(1, BLOCK_ELEMENTS // ((q + s) * dimension + q * s))):
            yield piece, q, s


def _gather(
    order: torch.Tensor, table: torch.Tensor, start: torch.Tensor, count: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read B runs of the L x N sorted rows, repeating the last to fill B x ``size``; say which are real."""
    steps = torch.arange(size, device=order.device)
    is_real = steps < count[:, None]
    positions = start[:, None] + torch.minimum(steps, count[:, None] - 1)
    return order[table[:, None], positions], is_real
