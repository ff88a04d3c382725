"""Distillation: a compressed generator learns from the one it was made of.

`compressors.Distiller` is a stage of a pipeline with a training loop of its own. `CRDDistiller` gives somebody's own
loop the student's loss. `RelationLoss` and `DistillDistance` are losses for any loop.
"""

from compressors.distil.crd import BlockSchedule, CRDDistiller, JointSchedule, Weights, loaded
from compressors.distil.features import LayerFeatures, efficientnet_lite0, vgg16
from compressors.distil.freezing import frozen
from compressors.distil.losses import DistillDistance
from compressors.distil.relation import Columns, Patches, RelationLoss, Rows

__all__ = [
    "BlockSchedule",
    "CRDDistiller",
    "Columns",
    "DistillDistance",
    "JointSchedule",
    "LayerFeatures",
    "Patches",
    "RelationLoss",
    "Rows",
    "Weights",
    "efficientnet_lite0",
    "frozen",
    "loaded",
    "vgg16",
]
