"""Adapters that compress generators and tell what it costs: brevitas quantizes, torch-pruning prunes.

>>> import torch
>>> from compressors import ChannelPruner
>>> generator = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
>>> small = ChannelPruner(0.5).compress(generator, (torch.randn(1, 8),))
>>> small.report.before.parameters, small.report.after.parameters
(771, 387)
"""

from .base import CompressedModel, Compressor
from .clip import Clip
from .clipper import Clipper
from .errors import CompressionError, ContractBroken, NothingCompressed, UnsupportedModule
from .export import export_onnx
from .pipeline import Pipeline
from .pruner import ChannelPruner
from .quantizer import Quantizer
from .recipe import Recipe
from .report import LayerRow, Report, Size

__all__ = [
    "ChannelPruner",
    "Clip",
    "Clipper",
    "CompressedModel",
    "CompressionError",
    "Compressor",
    "ContractBroken",
    "LayerRow",
    "NothingCompressed",
    "Pipeline",
    "Quantizer",
    "Recipe",
    "Report",
    "Size",
    "UnsupportedModule",
    "export_onnx",
]
