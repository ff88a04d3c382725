"""Both metrics from docs/metrics.md alone, by brute force; imports nothing of what it checks."""

import numpy as np

LAMBDA = {"lsh": 0.6, "lsh_knn": 0.65}


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
    return d.argmin(1), np.log(np.maximum(d.min(1), 1))


def lsh_folds(assessed, members, seed):
    half = (len(members) + 1) // 2
    for fold, (low, high) in enumerate(
        [(slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))]
    ):
        support, a, c = coordinates(members[low], members[low], assessed, members[high])
        rng, scores = np.random.default_rng([seed, 2, fold]), [0, 0]
        for psi, tables in ((16, 16), (64, 16), (256, 4)):
            drawn = draw_tables(support, psi, tables, rng)
            for i, points in enumerate((a, c)):
                for rows in drawn:
                    cell, log_d = nearest(points, support, rows)
                    log_r = np.log(np.maximum(distances(support[rows], support[rows], True).min(1), 1))
                    scores[i] = scores[i] - (log_d - log_r[cell]) / tables
            if psi == 64:
                cells = [np.array([nearest(points, support, rows)[0] for rows in drawn]) for points in (a, c)]
        yield *scores, *cells


def lsh_knn_folds(assessed, members, seed):
    s, a = coordinates(members, members, assessed)
    k = max(2, min(10, len(s) // 8))
    drawn = draw_tables(s, 48, 12, np.random.default_rng([seed, 2]))
    cells = [np.array([nearest(x, s, rows, same)[0] for rows in drawn]) for x, same in ((a, False), (s, True))]
    for fold in range(4):
        out = np.arange(len(s)) % 4 == fold
        radius = np.sort(distances(s[~out], s[~out], True), 1)[:, k - 1]
        scores = []
        for points in (a, s[out]):
            d = distances(points, s[~out])
            order = d.argsort(1, kind="stable")[:, :k]
            q = np.minimum(2, np.take_along_axis(d, order, 1) / radius[order])
            mean = (q.sum(1) - q.min(1)) / (k - 1)
            scores.append(np.where(mean >= 2, -np.inf, -mean))
        yield *scores, cells[0], cells[1][:, out]


def p_in_cells(scores, cells, calibration, calibration_cells, itself):
    p = np.zeros(len(scores))
    for cell, calibration_cell in zip(cells, calibration_cells, strict=True):
        same = cell[:, None] == calibration_cell[None]
        lower = (same & (calibration[None] < scores[:, None])).sum(1)
        equal = (same & (calibration[None] == scores[:, None])).sum(1) - itself
        count = same.sum(1) - itself
        p += np.where(count > 0, (lower + equal / 2) / np.maximum(count, 1), 0) / len(cells)
    return np.where(scores == -np.inf, 0, np.rint(p * 2**20) / 2**20)


def value(metric, assessed, members, log_rho, seed):
    values = []
    for a, c, cells, calibration_cells in (lsh_folds if metric == "lsh" else lsh_knn_folds)(assessed, members, seed):
        p, p_c = (
            p_in_cells(a, cells, c, calibration_cells, 0),
            p_in_cells(c, calibration_cells, c, calibration_cells, 1),
        )
        low, high = ((p_c[None] < p[:, None]).sum(1), (p_c[None] <= p[:, None]).sum(1) + 1)
        low, high = low / (len(c) + 1), high / (len(c) + 1)
        smooth = np.mean([[log_rho[row == cell].mean() for cell in row] for row in cells], 0)
        lam = np.maximum(0.05, LAMBDA[metric] * np.minimum(1, 2 * np.exp(smooth)) ** 2)
        values.append(np.mean(np.clip((high - lam) / (high - low), 0, 1) / (1 - lam)))
    return np.mean(values)


def precision_recall(metric, generated, real, generated_members, real_members, seed):
    """The unclipped values; members are the distinct rows in their shuffled order, assessed rows must be distinct."""
    g, r, gm, rm = coordinates(real, generated, real, generated_members, real_members)
    own, other = {}, {}
    for name, points, set_points in (("g", g, gm), ("r", r, rm)):
        drawn = draw_tables(set_points, 64, 8, np.random.default_rng([seed, 3]))
        place = [np.flatnonzero((set_points == x).all(1))[0] for x in points]
        own[name] = np.mean([nearest(set_points, set_points, rows, True)[1][place] for rows in drawn], 0)
        other[name] = np.mean([nearest(r if name == "g" else g, set_points, rows)[1] for rows in drawn], 0)
    return (
        value(metric, generated, real_members, own["g"] - other["r"], seed),
        value(metric, real, generated_members, own["r"] - other["g"], seed),
    )
