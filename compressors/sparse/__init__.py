"""Sparse training of GANs: dynamic masks, and a discriminator whose density follows the balance ratio.

`SparseTraining` goes into an existing training loop; `SparseConfig` says what it does there. The rest are its parts,
each of which serves alone.

Source: Wang et al. 2023, "Balanced Training for Sparse GANs" (NeurIPS 2023, arXiv 2302.14670).
"""

from compressors.sparse.balance import BalanceConfig, BalanceMeter, Scores, balance_ratio, measured_scores
from compressors.sparse.config import SparseConfig
from compressors.sparse.cost import Batches, ForwardCost, TrainingCost, iteration_macs
from compressors.sparse.density import Decision, DensityControl
from compressors.sparse.drop_grow import DropGrow, prune_by_magnitude
from compressors.sparse.masks import MaskSet
from compressors.sparse.schedule import Schedule
from compressors.sparse.storage import hand_over
from compressors.sparse.training import SparseTraining, Status

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
    "SparseTraining",
    "Status",
    "TrainingCost",
    "balance_ratio",
    "hand_over",
    "iteration_macs",
    "measured_scores",
    "prune_by_magnitude",
]
