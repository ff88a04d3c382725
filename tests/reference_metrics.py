"""Both metrics from docs/metrics.md alone, by brute force; imports nothing of what it checks."""

import numpy as np

LAMBDA = 0.65


def coordinates(fitted, *sets):
    dist = lambda x, c: np.sqrt(((x - c) ** 2).sum(1))  # noqa: E731
    quantile = lambda v, q: np.sort(v)[round(q * (len(v) - 1))]  # noqa: E731
    centre = fitted.mean(0)
    for _ in range(2):
        d = dist(fitted, centre)
        centre = fitted[d <= 3 * quantile(d, 0.5)].mean(0)
    d = dist(fitted, centre)
    n, spread = quantile(d, 0.5), (quantile(d, 0.84) - quantile(d, 0.16)) / 2
    spread = max(spread, n / 100)
    maps = [np.c_[(x - centre) / n, 0.1 * (dist(x, centre)[:, None] - n) / spread] for x in sets]
    return [np.rint(np.clip(x, -64, 64) * 2**18) for x in maps]


def logarithm(distance):
    return np.rint(np.log(np.maximum(distance, 1)) * 2**16) / 2**16


def distances(x, y, same=False):
    d = np.sqrt(((x[:, None] - y[None]) ** 2).sum(2))
    if same:
        np.fill_diagonal(d, np.inf)
    return d


def draw_tables(support, psi, tables, rng):
    psi = min(psi, max(2, len(support) // 4))
    return [rng.choice(len(support), psi, replace=False) for _ in range(tables)]


def nearest(points, support, rows, same=False):
    d = distances(points, support, same)[:, rows]
    return d.argmin(1), logarithm(d.min(1))


def positions(points):
    return points if points.shape[1] <= 17 else np.rint(points / 2**8)


def lsh_folds(assessed, members, groups, seed):
    for fold in range(2):
        out = groups % 2 == fold
        fitted = coordinates(members[~out], members[~out], assessed, members[out])
        support, a, c = (positions(points) for points in fitted)
        drawn, scores = draw_tables(support, 64, 16, np.random.default_rng([seed, 2, fold])), [0, 0]
        few = max(2, len(drawn[0]) // 4)
        fine = [np.concatenate(drawn[i : i + 4]) for i in (0, 4, 8, 12)]
        for tables in ([rows[:few] for rows in drawn], drawn, fine):
            for i, points in enumerate((a, c)):
                for rows in tables:
                    cell, log_d = nearest(points, support, rows)
                    between = distances(support[rows], support[rows])
                    log_r = logarithm(np.where(rows[:, None] == rows, np.inf, between).min(1))
                    scores[i] = scores[i] - (log_d - log_r[cell]) / len(tables)
        cells = [np.array([nearest(points, support, rows)[0] for rows in drawn]) for points in (a, c)]
        yield out, *scores, *cells


def whole_distances(x, y):
    unit = 1 if x.shape[1] <= 17 else 2**8
    return np.rint(unit * distances(positions(x), positions(y)))


def found(points, s, heads, capacity, k, same=False):
    """Distances and rows of the 3k nearest members on the lists of the eight nearest heads."""
    own = distances(positions(s), positions(s[heads])).argmin(1)
    lists = [np.flatnonzero(own == head)[:capacity] for head in range(len(heads))]
    probed = distances(positions(points), positions(s[heads])).argsort(1, kind="stable")[:, :8]
    for i, d in enumerate(whole_distances(points, s)):
        rows = np.sort(np.concatenate([lists[head] for head in probed[i]]))
        rows = rows[rows != i] if same else rows
        rows = rows[d[rows].argsort(kind="stable")][: 3 * k]
        yield d[rows], rows


def lsh_knn_folds(assessed, members, groups, seed):
    s, a = coordinates(members, members, assessed)
    k = max(2, min(10, len(s) // 8))
    drawn = draw_tables(s, 64, 16, np.random.default_rng([seed, 2]))
    heads = np.concatenate(drawn)[: max(1, min(1024, len(s) // 16))]
    capacity = max(4 * int(np.ceil(np.log2(len(s)))), 3 * k)
    found_a, found_s = (list(found(x, s, heads, capacity, k, same)) for x, same in ((a, False), (s, True)))
    cells = [
        np.array([nearest(positions(x), positions(s), rows, same)[0] for rows in drawn])
        for x, same in ((a, False), (s, True))
    ]
    for fold in range(4):
        out = groups % 4 == fold
        if len(heads) > 8:
            out[heads] = False
        near = lambda d, rows: (d[~out[rows]][:k], rows[~out[rows]][:k])  # noqa: B023, E731
        radius = np.array([d[k - 1] if len(d) == k else np.inf for d, _ in (near(*each) for each in found_s)])
        scores = []
        for each in (found_a, [found_s[i] for i in np.flatnonzero(out)]):
            q = np.full((len(each), k), 2.0)
            for i, (d, rows) in enumerate(near(*x) for x in each):
                q[i, : len(d)] = np.minimum(2, d / radius[rows])
                q[i, : len(d)][np.isinf(radius[rows])] = 2
            q = np.rint(q * 2**20) / 2**20
            mean = (q.sum(1) - q.min(1)) / (k - 1)
            scores.append(np.where(mean >= 2, -np.inf, -mean))
        yield out, *scores, cells[0], cells[1][:, out]


def p_in_cells(scores, cells, calibration, calibration_cells, itself):
    p = np.zeros(len(scores))
    for cell, calibration_cell in zip(cells, calibration_cells, strict=True):
        same = cell[:, None] == calibration_cell[None]
        lower = (same & (calibration[None] < scores[:, None])).sum(1)
        equal = (same & (calibration[None] == scores[:, None])).sum(1) - itself
        count = same.sum(1) - itself
        no_closer = lower + equal / 2
        p += np.where(no_closer > 1, no_closer / np.maximum(count, 1), 0) / len(cells)
    return np.where(scores == -np.inf, 0, np.rint(p * 2**20) / 2**20)


def mean_in_cells(values, cells):
    return np.mean([[values[row == cell].mean() for cell in row] for row in cells], 0)


def spacing(points, psi, seed):
    points = positions(points)
    rng, psi = np.random.default_rng([seed, 3]), min(psi, max(2, len(points) // 4))
    fine = [nearest(points, points, rows, True) for rows in draw_tables(points, psi, 8, rng)]
    cells, fine = np.array([cell for cell, _ in fine]), np.mean([log for _, log in fine], 0)
    growth = np.full(len(points), np.log(4))
    if psi >= 8:
        coarse = [nearest(points, points, rows, True)[1] for rows in draw_tables(points, psi // 4, 8, rng)]
        growth = np.mean(coarse, 0) - fine
    shrinkage = mean_in_cells(growth, cells) / np.log(4) * np.log(len(points) / psi / 0.001)
    reach = mean_in_cells(fine, cells) - np.maximum(shrinkage, np.log(4))
    groups, pairs = np.arange(len(points)), []
    for table in (0, 2, 4, 6):
        key = cells[table] + psi * cells[table + 1]
        order = np.lexsort((np.arange(len(points)), fine, key))
        pairs += [
            (order[i], order[i + j])
            for j in (1, 2)
            for i in range(len(points) - j)
            if key[order[i]] == key[order[i + j]]
        ]
    near = [
        (i, j) for i, j in pairs if logarithm(np.sqrt(((points[i] - points[j]) ** 2).sum())) <= min(reach[i], reach[j])
    ]
    for _ in points:
        for i, j in near:
            groups[i] = groups[j] = min(groups[i], groups[j])
    return fine, np.log(4) / max(growth.mean(), np.log(4) / 1000), np.unique(groups, return_inverse=True)[1]


def value(metric, assessed, members, log_spacing, dimension, log_spacing_of_members, groups, seed):
    values = []
    folds = (lsh_folds if metric == "lsh" else lsh_knn_folds)(assessed, members, groups, seed)
    for held_out, a, c, cells, calibration_cells in folds:
        p, p_c = (
            p_in_cells(a, cells, c, calibration_cells, 0),
            p_in_cells(c, calibration_cells, c, calibration_cells, 1),
        )
        low, high = ((p_c[None] < p[:, None]).sum(1), (p_c[None] <= p[:, None]).sum(1) + 1)
        low, high = low / (len(c) + 1), high / (len(c) + 1)
        together = np.mean([[(row == cell).sum() for cell in row] for row in cells], 0)
        closeness = np.zeros(len(assessed))
        for row, calibration_row in zip(cells, calibration_cells, strict=True):
            for i, cell in enumerate(row):
                theirs = log_spacing_of_members[held_out][calibration_row == cell]
                if len(theirs):
                    closeness[i] += (theirs.mean() - log_spacing[row == cell].mean()) / len(cells)
        effect = np.minimum(np.exp(np.clip((closeness - np.log(2)) * dimension, 0, 100)), together)
        least = max(0.05, min(0.95, ((p_c == 0).sum() + 1) / (len(c) + 1)))
        lam = np.maximum(least, LAMBDA / effect)
        values.append(np.mean(np.clip((high - lam) / (high - low), 0, 1) / (1 - lam)))
    return np.mean(values)


def precision_recall(metric, generated, real, generated_members, real_members, seed):
    """The unclipped values; members are the distinct rows in their shuffled order, assessed rows must be distinct."""
    positions = coordinates(real, generated_members, real_members)
    psi = min(64, *(len(points) // 4 for points in positions))
    (g, d_g, groups_g), (r, d_r, groups_r) = (spacing(points, psi, seed) for points in positions)
    place_g, place_r = (
        [np.flatnonzero((members == x).all(1))[0] for x in rows]
        for rows, members in ((generated, generated_members), (real, real_members))
    )
    return (
        value(metric, generated, real_members, g[place_g], d_g, r, groups_r, seed),
        value(metric, real, generated_members, r[place_r], d_r, g, groups_g, seed),
    )
