"""Nearest-neighbour precision and recall by others, all after one definition: that of torch-fidelity's ``prc``.

A sample is inside the other side if it is within the radius of any sample y of that side, the distance from y to its
third nearest neighbour there. Each function takes M x D generated and N x D real features and returns precision and
recall. Packages are imported where they are used: some are optional.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

Values = tuple[float, float]
Array = npt.NDArray[np.float32]

NEIGHBORHOOD = 3  # torch-fidelity's default
BLOCK_ROWS = 1024
HNSW_LINKS = 32
HNSW_EF_CONSTRUCTION = 40  # faiss's default
HNSW_EF_SEARCH = 64
HNSW_CANDIDATES = 64
HNSW_DESCRIPTION = (
    f"approximate: M {HNSW_LINKS}, efConstruction {HNSW_EF_CONSTRUCTION}, efSearch {HNSW_EF_SEARCH}, "
    f"membership in the balls of {HNSW_CANDIDATES} candidates"
)


IVF_LISTS = 1024  # simet's default
IVF_DESCRIPTION = (
    f"approximate: simet's algorithm by faiss-cpu, {IVF_LISTS} lists, of which one is searched; membership in the ball "
    "of the nearest found"
)


def prc_full(generated: Tensor, real: Tensor) -> Values:
    """Return what torch-fidelity's ``prc`` returns by default, with all distances in memory."""
    return _prc(generated, real, save_cpu_ram=False)


def prc_batched(generated: Tensor, real: Tensor) -> Values:
    """Return what it returns with ``save_cpu_ram``, in its batches of 10,000 rows."""
    return _prc(generated, real, save_cpu_ram=True)


def _prc(generated: Tensor, real: Tensor, save_cpu_ram: bool) -> Values:
    metric = prc_features_to_metric(
        generated, real, prc_neighborhood=NEIGHBORHOOD, save_cpu_ram=save_cpu_ram, verbose=False
    )
    return metric["precision"], metric["recall"]


def prdc(generated: Tensor, real: Tensor) -> Values:
    """Return precision and recall of ``prdc``, which computes density and coverage with them."""
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):  # It prints.
        result = compute_prdc(real.numpy(), generated.numpy(), nearest_k=NEIGHBORHOOD)
    return float(result["precision"]), float(result["recall"])


def faiss_exact(generated: Tensor, real: Tensor) -> Values:
    """Compute the exact values with faiss, in the fewest products: three of N x D by D x N.

    Radii: each side searched in itself (`IndexFlatL2`). Membership depends on all samples of the other side, not on the
    nearest ones, so that no search answers it: distances between the sides (`faiss.pairwise_distances`, by blocks of
    rows) are compared with the radii of both in one pass.
    """
    import faiss

    rows, columns = generated.numpy(), real.numpy()
    radii, radii_real = (_radii(_added(faiss.IndexFlatL2(side.shape[1]), side), side) for side in (rows, columns))
    inside = 0
    inside_real = np.zeros(len(columns), bool)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        distances = faiss.pairwise_distances(rows[block], columns)
        inside += int((distances <= radii_real).any(1).sum())
        inside_real |= (distances <= radii[block, None]).any(0)
    return inside / len(rows), float(inside_real.mean())


def faiss_hnsw(generated: Tensor, real: Tensor) -> Values:
    """Approximate the values with faiss's graph index: radii, then membership in the balls of the nearest found only.

    A ball far away that reaches the sample all the same is missed, as are neighbours that the search does not find.
    """
    rows, columns = generated.numpy(), real.numpy()
    return _hnsw_share(rows, columns), _hnsw_share(columns, rows)


def _hnsw_share(queries: Array, side: Array) -> float:
    import faiss

    index = faiss.IndexHNSWFlat(side.shape[1], HNSW_LINKS)
    index.hnsw.efConstruction, index.hnsw.efSearch = HNSW_EF_CONSTRUCTION, HNSW_EF_SEARCH
    radii = _radii(_added(index, side), side)
    distances, found = index.search(queries, min(HNSW_CANDIDATES, len(side)))
    return float(((distances <= radii[found]) & (found >= 0)).any(1).mean())


def simet_ivf(generated: Tensor, real: Tensor) -> Values:
    """Approximate the values as ``simet`` 1.0 does with ``index_type="ivf"``: by inverted lists, and one ball each.

    The index of a side is trained for the radii and once more for the search, as there.
    """
    rows, columns = generated.numpy(), real.numpy()
    return _ivf_share(rows, columns), _ivf_share(columns, rows)


def _ivf_share(queries: Array, side: Array) -> float:
    radii = _radii(_ivf(side), side)
    distances, found = _ivf(side).search(queries, 1)
    return float(((distances <= radii[found[:, 0], None]) & (found >= 0)).mean())


def _ivf(side: Array):
    import faiss

    dimension = side.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dimension), dimension, min(IVF_LISTS, len(side)), faiss.METRIC_L2)
    index.cp.min_points_per_centroid = 1  # It warns of few.
    index.train(side)
    return _added(index, side)


def _added(index, side: Array):
    index.add(side)
    return index


def _radii(index, side: Array) -> Array:
    """Return the squared distance from each sample to its k-th nearest other one; the nearest is itself."""
    return index.search(side, NEIGHBORHOOD + 1)[0][:, -1]
