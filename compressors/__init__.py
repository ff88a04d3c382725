"""Compressors of generators: post-training quantization (brevitas), channel pruning (torch-pruning), pipelines.

>>> import torch
>>> from compressors import ChannelPruner
>>> generator = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
>>> small = ChannelPruner(0.5).compress(generator, (torch.randn(1, 8),))
>>> small.report.before.parameters, small.report.after.parameters
(771, 387)

`compressors.study` measures what this costs in quality and diversity, in one table; `compressors.sparse` trains
sparse GANs, `compressors.search` finds smaller architectures. A compressor of one's own derives from
`compressors.core.stage.Stage`, or has what `Compressor` asks for.

Both backends see weights in standard layers only. A generator that computes its weights in `forward`, as StyleGAN2's
modulated convolution does, is refused with the list of what is not covered. The way through is a twin of the layer that
computes the same with an `nn.Conv2d`: scale its input instead of its weight, then demodulate its output::

    class ModulatedConv(nn.Module):
        def __init__(self, width_in, width_out, style, kernel=3):
            super().__init__()
            self.conv = nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, bias=False)
            self.affine = nn.Linear(style, width_in)

        def forward(self, x, w):
            style = 1 + self.affine(w)
            out = self.conv(x * style[:, :, None, None])
            with torch.no_grad():  # a function of weights, which the trace of torch-pruning must not see
                energy = style.square() @ self.conv.weight.square().sum((2, 3)).T
            return out * (energy + 1e-8).rsqrt()[:, :, None, None]

Its state dict differs in names alone. A learned constant input is pruned along with
``ChannelPruner(..., param_dims={"const": 1})``.
"""

# Files of searched students name an architecture that it registers.
import compressors.search.space
from compressors.core.architecture import Architecture, register_architecture
from compressors.core.clip import Clip
from compressors.core.model import CompressedModel, Compressor
from compressors.core.recipe import Recipe
from compressors.core.report import LayerRow, Report, Size
from compressors.distil.distiller import Distiller
from compressors.errors import (
    CompressionError,
    ContractBroken,
    NothingCompressed,
    TrainingDiverged,
    UnsupportedModule,
)
from compressors.export import export_onnx
from compressors.layerwise import sensitivity
from compressors.pipeline import Pipeline
from compressors.prune.pruner import ChannelPruner
from compressors.prune.student import make_student
from compressors.quantize.clipper import Clipper
from compressors.quantize.quantizer import Quantizer

__all__ = [
    "Architecture",
    "ChannelPruner",
    "Clip",
    "Clipper",
    "CompressedModel",
    "CompressionError",
    "Compressor",
    "ContractBroken",
    "Distiller",
    "LayerRow",
    "NothingCompressed",
    "Pipeline",
    "Quantizer",
    "Recipe",
    "Report",
    "Size",
    "TrainingDiverged",
    "UnsupportedModule",
    "export_onnx",
    "make_student",
    "register_architecture",
    "sensitivity",
]
