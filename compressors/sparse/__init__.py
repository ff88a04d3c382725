"""Sparse training of GANs: dynamic masks, and a discriminator whose density follows the balance ratio.

`SparseTraining` goes into an existing training loop; `SparseConfig` says what it does there. The rest are its parts,
each of which serves alone.

Source: Wang et al. 2023, "Balanced Training for Sparse GANs" (NeurIPS 2023, arXiv 2302.14670).
"""

from .balance import BalanceConfig, BalanceMeter, Scores, balance_ratio, measured_scores
from .config import SparseConfig
from .cost import Batches, ForwardCost, TrainingCost, iteration_macs
from .density import Decision, DensityControl
from .handover import SparseSize, hand_over, load_sparse, save_sparse, sparse_size
from .masks import MaskSet
from .schedule import Schedule
from .topology import DropGrow, prune_by_magnitude
from .training import SparseTraining, Status

__all__ = [
    "BalanceConfig",
    "BalanceMeter",
    "Batches",
    "Decision",
    "DensityControl",
    "DropGrow",
    "ForwardCost",
    "MaskSet",
    "Schedule",
    "Scores",
    "SparseConfig",
    "SparseSize",
    "SparseTraining",
    "Status",
    "TrainingCost",
    "balance_ratio",
    "hand_over",
    "iteration_macs",
    "load_sparse",
    "measured_scores",
    "prune_by_magnitude",
    "save_sparse",
    "sparse_size",
]
