"""Clipped Density and Coverage on distances corrected for hubs, after GICDM (Salvy, Talbot and Thirion, 2026).

From the paper's description (arXiv 2602.16449): the density of the real samples is made uniform by the iterative
contextual dissimilarity measure (Jégou, Harzallah and Schmid, 2007); each generated sample then gets one scale, from
real samples alone, so that generated ones do not change each other; a filter at two neighbourhood sizes, by the .95
quantile among real samples, keeps samples off the manifold from being scaled back onto it; the metrics look at 5
neighbours.

The description leaves open what follows, and is this project's: how the iteration ends; scales from 50 neighbours (from
5, which real samples fit to each other, two sets of one Gaussian score .83 to .94 instead of .93 to 1); the filter, at
50 and at 5, which looks at the scale of a sample relative to those of its neighbours, and limits it where others may
drop the sample; and that Clipped Density and Coverage are the metrics that follow.
"""

from __future__ import annotations

import torch
from peers import clipped_coverage, clipped_density, clipped_radii, distance_blocks
from torch import Tensor

NEIGHBOURS = 5
NEIGHBOURS_OF_SCALE = 50
QUANTILE = 0.95
ITERATIONS = 50
UNIFORM = 0.01
TINY = 1e-12


def gicdm(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Return Clipped Density and Coverage of the corrected distances; both sides need more than 5 samples."""
    between_real = torch.cat(list(distance_blocks(real, real))).fill_diagonal_(float("inf"))
    scales = uniform_scales(between_real)
    between_real /= scales[:, None] * scales
    to_real = torch.cat(list(distance_blocks(generated, real)))
    to_real /= generated_scales(to_real, between_real, scales)[:, None] * scales

    radii = between_real.kthvalue(NEIGHBOURS, dim=1).values
    smaller = clipped_radii(radii)
    counts, ideal_counts = ((distances <= smaller).double().sum(1) for distances in (to_real, between_real))
    covered = float((to_real.topk(NEIGHBOURS, dim=0, largest=False).values < radii).double().mean())
    return (
        clipped_density(counts, ideal_counts, NEIGHBOURS),
        clipped_coverage(covered, len(real), len(generated), NEIGHBOURS),
    )


def uniform_scales(distances: Tensor) -> Tensor:
    """Return scales s of N samples such that d(i, j) / (s_i s_j) has the same mean around each sample.

    Args:
        distances: N x N, infinite on the diagonal.
    """
    scales = torch.ones_like(distances[0])
    for _ in range(ITERATIONS):
        means = local_means(distances / scales, NEIGHBOURS_OF_SCALE)[0] / scales
        deviation = means.log() - means.log().mean()
        # Half the way: the neighbours go the other half.
        scales *= (deviation / 2).exp()
        if float(deviation.abs().mean()) < UNIFORM:
            break
    return scales


def generated_scales(to_real: Tensor, corrected: Tensor, scales: Tensor) -> Tensor:
    """Return the scales of M generated samples.

    Args:
        to_real: M x N distances.
        corrected: N x N corrected distances between real samples, infinite on the diagonal.
        scales: Those of the N real samples.
    """
    half_corrected = to_real / scales
    typical = local_means(corrected, NEIGHBOURS_OF_SCALE)[0].log().mean().exp()
    own = local_means(half_corrected, NEIGHBOURS_OF_SCALE)[0] / typical
    for neighbours in (NEIGHBOURS_OF_SCALE, NEIGHBOURS):
        among_real = relative_scales(corrected * scales[:, None], scales, neighbours)
        relative = relative_scales(half_corrected, scales, neighbours)
        own = own * (among_real.quantile(QUANTILE) / relative).clamp(max=1)
    return own


def relative_scales(half_corrected: Tensor, scales: Tensor, neighbours: int) -> Tensor:
    """Return the mean distance of each row to its nearest real samples, in units of their scales."""
    means, nearest = local_means(half_corrected, neighbours)
    return means / scales[nearest].log().mean(1).exp()


def local_means(distances: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return the mean distance of each row to its nearest columns, at least a tiny one, and which these are."""
    near = distances.topk(min(neighbours, distances.shape[1] - 1), largest=False)
    return near.values.mean(1).clamp(min=TINY), near.indices
