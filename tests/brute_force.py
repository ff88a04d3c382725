"""Both metrics again, by loops over all pairs of samples, for a few dozen samples; the widths found are given."""

import math

import numpy as np
import torch

from torch_fidelity_lsh import LSHConfig
from torch_fidelity_lsh.coordinates import UNIT, Coordinates
from torch_fidelity_lsh.hashing import DIRECTION_UNIT, PROBABILITY_UNIT, HashFamily
from torch_fidelity_lsh.lsh import COARSE_QUORUM, MEAN_UNIT, OUTLIER_OCCUPANCY, QUORUM
from torch_fidelity_lsh.lsh_knn import BUCKET_CAPACITY


def lsh(generated, real, config, widths):
    """Return precision, recall and the memberships behind them."""
    coordinates, family, matched = _prepare("lsh", generated, real, config)
    sides = [(coordinates[0], coordinates[1]), (coordinates[1], coordinates[0])]
    values, memberships = zip(*(_lsh_side(*side, family, widths, matched) for side in sides), strict=True)
    return *values, *memberships


def _lsh_side(assessed, support, family, widths, matched):
    n, tables = len(support), range(len(family.offsets))
    keys_a = [_keys(family, assessed, width) for width in widths]
    keys_s = [_keys(family, support, width) for width in widths]

    def sharing(level, table, key, itself):
        return [i for i in range(n) if i != itself and keys_s[level][i][table] == key]

    def is_outlier(i):
        coarsest = [len(sharing(-1, t, keys_s[-1][i][t], i)) for t in tables]
        return np.mean([1 - (1 - (matched - 1) / (n - 1)) ** c for c in coarsest]) < OUTLIER_OCCUPANCY - 1e-6

    outliers = {i for i in range(n) if is_outlier(i)}

    def mates(level, table, key, itself):
        return [i for i in sharing(level, table, key, itself) if i not in outliers]

    def occupied(level, table, key, itself):
        share = matched / n if itself is None else (matched - 1) / (n - 1)
        return _rounded(1 - (1 - share) ** len(mates(level, table, key, itself)), PROBABILITY_UNIT)

    def closeness(keys, itself):
        return sum(occupied(level, t, keys[level][t], itself) for level in range(len(widths)) for t in tables)

    def keys_of(all_keys, i):
        return [level[i] for level in all_keys]

    closeness_s = [closeness(keys_of(keys_s, i), i) for i in range(n)]

    def excess(keys, itself=None):
        met, weight = 0.0, 0.0
        for t in tables:
            alone = 1.0
            for level in range(len(widths)):
                chance = _rounded(alone * occupied(level, t, keys[level][t], itself), PROBABILITY_UNIT)
                company = mates(level, t, keys[level][t], itself)
                if company:
                    met += chance * _rounded(np.mean([closeness_s[i] for i in company]), MEAN_UNIT)
                alone -= chance
                weight += chance
        return closeness(keys, itself) - met / weight if weight else -math.inf

    def coarsest(keys, itself=None):
        return sum(occupied(len(widths) - 1, t, keys[-1][t], itself) for t in tables) or -math.inf

    ratios = []
    for score, quorum in ((excess, QUORUM), (coarsest, COARSE_QUORUM)):
        inside = [score(keys_of(keys_a, i)) for i in range(len(assessed))]
        left_out = [score(keys_of(keys_s, i), i) for i in range(n)]
        threshold = sorted(left_out)[int(quorum * (n - 1))] - 1e-9
        share = np.mean([s >= threshold and s > -math.inf for s in left_out])
        ratios.append(np.mean([s >= threshold and s > -math.inf for s in inside]) / share if share else 0.0)
        if score is excess:
            ranks = [np.mean([other <= s + 1e-9 for other in left_out]) for s in inside]
            memberships = [min(1, r / QUORUM) * (s > -math.inf) for r, s in zip(ranks, inside, strict=True)]
    return min(1, *ratios), memberships


def lsh_knn(generated, real, config, width):
    """Return precision, recall and the memberships behind them."""
    coordinates, family, matched = _prepare("lsh_knn", generated, real, config)
    sides = [(coordinates[0], coordinates[1]), (coordinates[1], coordinates[0])]
    values, memberships = zip(
        *(_knn_side(*side, family, width, matched, config.neighborhood) for side in sides), strict=True
    )
    return *values, *memberships


def _knn_side(assessed, support, family, width, matched, k):
    order = sorted(range(len(support)), key=lambda i: _content_hash(support[i]))
    support = [support[i] for i in order[:matched]]
    capacity = max(BUCKET_CAPACITY * math.ceil(math.log2(matched)), 2 * k)
    keys_a, keys_s = _keys(family, assessed, width), _keys(family, support, width)

    def candidates(key, itself=None):
        found = set()
        for table in range(len(key)):
            bucket = [i for i in range(matched) if keys_s[i][table] == key[table] and i != itself]
            found.update(bucket[:capacity])
        return found

    def distance(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    near = [sorted((distance(support[i], support[j]), j) for j in candidates(keys_s[i], i)) for i in range(matched)]
    radii = {i: found[k - 1][0] for i, found in enumerate(near) if len(found) >= k}
    caps = {}
    for i in radii:
        around = [radii.get(j, math.inf) for _, j in near[i][k : 2 * k]]
        caps[i] = sorted(around + [radii[i]] * (k - len(around)))[(k - 1) // 2]

    def balls(point, key, itself=None):
        """Count the balls with the point inside, as they are and capped."""
        enough = k if itself is None else k + 1
        centres = [i for i in candidates(key, itself) if len(near[i]) >= enough]
        away = {i: distance(point, support[i]) for i in centres}
        return sum(away[i] <= radii[i] for i in centres), sum(away[i] <= min(radii[i], caps[i]) for i in centres)

    inside = [balls(p, key) for p, key in zip(assessed, keys_a, strict=True)]
    left_out = [balls(p, key, i) for i, (p, key) in enumerate(zip(support, keys_s, strict=True))]
    tests = (lambda count: count[0] > 0, lambda count: min(1, count[1] / k))
    shares = [(np.mean([t(c) for c in inside]), np.mean([t(c) for c in left_out])) for t in tests]
    value = min(1, *(a / b if b else 0.0 for a, b in shares))
    return value, [min(1, count[1] / k) for count in inside]


def _prepare(metric, generated, real, config: LSHConfig):
    config = config.resolve(metric)
    fitted, real_coordinates = Coordinates.fit(torch.as_tensor(real), config)
    generated_coordinates = fitted(torch.as_tensor(generated))
    family = HashFamily.sample(real_coordinates.shape[1], config, torch.device("cpu"))
    as_ints = [[tuple(map(int, row)) for row in c] for c in (generated_coordinates, real_coordinates)]
    return as_ints, family, min(len(generated), len(real))


def _keys(family, points, width):
    """Return for each point a list with the tuple of K cells of each table."""
    directions = family.directions.long().numpy().astype(object)
    scale = width / (UNIT * DIRECTION_UNIT)
    tables, hashes = family.offsets.shape
    offsets = family.offsets.flatten().tolist()
    keys = []
    for point in points:
        projected = np.array(point, dtype=object) @ directions
        cells = [math.floor(float(p) / scale + b) for p, b in zip(projected, offsets, strict=True)]
        keys.append([tuple(cells[t * hashes : (t + 1) * hashes]) for t in range(tables)])
    return keys


def _rounded(value, unit):
    return round(value / unit) * unit


def _content_hash(point):
    rng = np.random.default_rng(len(point))
    multipliers = rng.integers(-(2**63), 2**63, len(point), dtype=np.int64) | 1
    total = sum(c * int(m) for c, m in zip(point, multipliers, strict=True)) % 2**64
    return total - 2**64 if total >= 2**63 else total
