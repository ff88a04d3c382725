"""Both metrics again, by loops over all pairs of samples, for a few dozen samples; the widths found are given."""

import math

import numpy as np
import torch

from torch_fidelity_lsh import LSHConfig
from torch_fidelity_lsh.metric.calibration import DECISIVE, LOOSE_QUORUM, NOTICED, QUORUM
from torch_fidelity_lsh.metric.coordinates import UNIT, Coordinates
from torch_fidelity_lsh.metric.hashing import DIRECTION_UNIT, PROBABILITY_UNIT, HashFamily
from torch_fidelity_lsh.metric.lsh import MEAN_UNIT, OUTLIER_OCCUPANCY
from torch_fidelity_lsh.metric.lsh_knn import BUCKET_CAPACITY, FAR
from torch_fidelity_lsh.metric.reduction import ReducedFeatures


def lsh(generated, real, config, widths):
    """Return precision, recall and the memberships behind them."""
    coordinates, family, matched = _prepare("lsh", generated, real, config)
    sides = [(coordinates[0], coordinates[1]), (coordinates[1], coordinates[0])]
    values, memberships = zip(*(_lsh_side(*side, family, widths, matched) for side in sides), strict=True)
    return *values, *memberships


def _lsh_side(assessed, support, family, widths, matched):
    n, tables = len(support), range(family.directions.shape[1])
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

    strict = [excess(keys_of(keys_a, i)) for i in range(len(assessed))]
    strict_left_out = [excess(keys_of(keys_s, i), i) for i in range(n)]
    loose = [coarsest(keys_of(keys_a, i)) for i in range(len(assessed))]
    loose_left_out = [coarsest(keys_of(keys_s, i), i) for i in range(n)]
    crowding = _collisions(keys_a[0], tables) - _collisions(keys_s[0], tables)
    ratios = _ratio(strict, strict_left_out, QUORUM), _ratio(loose, loose_left_out, LOOSE_QUORUM)
    repetition = 1 + (len(assessed) - 1) * max(0, crowding)
    return _value(*ratios, repetition, len(assessed), n), _memberships(strict, strict_left_out)


def _ratio(scores, left_out, quorum):
    threshold = sorted(left_out)[int(quorum * (len(left_out) - 1))] - 1e-9
    inside, inside_left_out = ([s >= threshold and s > -math.inf for s in each] for each in (scores, left_out))
    return np.mean(inside) / np.mean(inside_left_out) if any(inside_left_out) else 0.0


def _memberships(scores, left_out):
    ranks = [np.mean([other <= s + 1e-9 for other in left_out]) for s in scores]
    return [min(1, r / QUORUM) * (s > -math.inf) for r, s in zip(ranks, scores, strict=True)]


def _collisions(keys, tables):
    """Return the share of pairs that agree in a table."""
    pairs = [(i, j) for i in range(len(keys)) for j in range(len(keys)) if i != j]
    return np.mean([keys[i][t] == keys[j][t] for i, j in pairs for t in tables])


def _value(strict, loose, repetition, num_assessed, num_left_out):
    strict, loose = min(1, strict), min(1, loose)
    noise = math.sqrt(QUORUM / (1 - QUORUM) * (repetition / num_assessed + 1 / num_left_out))
    share = np.clip(((loose - strict) / noise - NOTICED) / (DECISIVE - NOTICED), 0, 1)
    return loose - share * max(0, loose - strict)


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

    def nearest(point, key, itself=None):
        near = sorted((distance(point, support[j]), j) for j in candidates(key, itself))
        return sorted((round(math.sqrt(d)), j) for d, j in near)

    near = [nearest(point, key, i) for i, (point, key) in enumerate(zip(support, keys_s, strict=True))]

    def radius(i, without=None):
        others = [d for d, j in near[i] if j != without]
        return others[k - 1] if len(others) >= k else math.inf

    def remoteness(found, itself=None):
        ratios = []
        for d, j in found[:k]:
            unit = radius(j, itself)
            ratios.append(FAR if unit == math.inf else 1.0 if d == unit else min(FAR, d / unit if unit else FAR))
        ratios += [FAR] * (k - len(ratios))
        mean = sum(sorted(_rounded(ratio, PROBABILITY_UNIT) for ratio in ratios)[1:]) / (k - 1)
        return math.inf if mean == FAR else mean

    found = [nearest(point, key) for point, key in zip(assessed, keys_a, strict=True)]
    scores = [-remoteness(each) for each in found]
    left_out = [-remoteness(each, i) for i, each in enumerate(near)]
    first = [[(each[0][1] if each else -1 - i,) for i, each in enumerate(all_)] for all_ in (found, near)]
    tables = range(len(keys_a[0]))
    crowding = [
        _collisions(keys_a, tables) - _collisions(keys_s, tables),
        _collisions(first[0], [0]) - _collisions(first[1], [0]),
    ]
    threshold = sorted(left_out)[int(QUORUM * (matched - 1))] - 1e-9
    passed = [score >= threshold and score > -math.inf for score in left_out]
    pairs = [(passed[i], passed[j]) for i in range(matched) for _, j in near[i][:k]]
    share = np.mean(passed)
    covariance = np.mean([a and b for a, b in pairs]) - np.mean([a for a, _ in pairs]) * np.mean([b for _, b in pairs])
    agreement = covariance / (share * (1 - share)) if 0 < share < 1 else 0
    repetition = 1 + k * max(0, agreement) + (len(assessed) - 1) * max(0, min(crowding))
    ratios = (_ratio(scores, left_out, quorum) for quorum in (QUORUM, LOOSE_QUORUM))
    return _value(*ratios, repetition, len(assessed), matched), _memberships(scores, left_out)


def _prepare(metric, generated, real, config: LSHConfig):
    config = config.resolve(metric, min(len(generated), len(real)))
    reduced = [
        ReducedFeatures.of(torch.as_tensor(features), config.num_components, config.seed).values
        for features in (generated, real)
    ]
    coordinates = [Coordinates.fit(reduced[1], config.coordinates)(side) for side in reduced]
    family = HashFamily.sample(coordinates[0].shape[1], config, torch.device("cpu"))
    as_ints = [[tuple(map(int, row)) for row in side] for side in coordinates]
    return as_ints, family, min(len(generated), len(real))


def _keys(family, points, width):
    """Return for each point a list with the tuple of K cells of each table."""
    directions = family.directions.long().numpy().astype(object)
    scale = UNIT * DIRECTION_UNIT / width
    keys = []
    for point in points:
        projected = (directions @ np.array(point, dtype=object)).T
        cells = np.vectorize(lambda p, b: math.floor(float(p) * scale + b))(projected, family.offsets[:, :, 0].T)
        keys.append([tuple(row) for row in cells.tolist()])
    return keys


def _rounded(value, unit):
    return round(value / unit) * unit


def _content_hash(point):
    rng = np.random.default_rng(len(point))
    multipliers = rng.integers(-(2**63), 2**63, len(point), dtype=np.int64) | 1
    total = sum(c * int(m) for c, m in zip(point, multipliers, strict=True)) % 2**64
    return total - 2**64 if total >= 2**63 else total
