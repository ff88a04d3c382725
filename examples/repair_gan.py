"""Compress a generator until it breaks, repair it by distillation, and measure both: one table, pictures, samples.

    python examples/repair_gan.py --output output/repair
    python examples/repair_gan.py --weights face-dcgan-64.safetensors --output output/repair-faces

The first takes the generator of digits that ships with the examples, the second a DCGAN of faces that others trained
(package gan_face_generate). Everything is compared with samples of the uncompressed generator; repairing draws
latents. No data are needed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from compression_study import SHIPPED
from gans import load_generator
from models import face_dcgan, load_dcgan
from torch import nn

from compressors import ChannelPruner, Compressor, Distiller, Pipeline, Quantizer
from compressors.common.generation import Draw
from compressors.distil import RelationLoss
from compressors.study import StudySettings, run_study


@dataclass(frozen=True)
class Task:
    """A generator, how to draw its latents, and how long to repair it.

    Attributes:
        generator: in eval mode; images -1 to 1.
        draw: latents of n samples.
        ratio: share of channels that the rows prune.
        pruned: steps of repair after pruning.
        quantized: steps of repair after quantizing.
        batch_size: of repair.
    """

    generator: nn.Module
    draw: Draw
    ratio: float
    pruned: int
    quantized: int
    batch_size: int


def digits() -> Task:
    """Return the task of the generator that ships with the examples."""
    generator, gan, _ = load_generator(SHIPPED)
    return Task(generator, gan.draw, ratio=0.5, pruned=1000, quantized=300, batch_size=32)


def faces(weights: Path) -> Task:
    """Return the task of the DCGAN of faces."""

    def draw(n: int, random: torch.Generator) -> tuple[torch.Tensor]:
        return (torch.randn(n, 100, generator=random),)

    return Task(load_dcgan(weights, face_dcgan()), draw, ratio=0.3, pruned=1500, quantized=300, batch_size=16)


def ways(task: Task, seed: int, share: float) -> dict[str, Compressor]:
    """Return the rows: broken and repaired, by bits, by channels, and by both."""

    def repair(steps: int) -> Distiller:
        terms = ((0.5, RelationLoss(angle_weight=0)),)  # keeps diversity
        return Distiller(task.draw, max(1, round(share * steps)), seed=seed, batch_size=task.batch_size, terms=terms)

    prune, quick = ChannelPruner(task.ratio), repair(task.quantized)
    broken = {
        "W4": Quantizer(4),
        "W4 everywhere": Quantizer(4, output_bits=None),
        "W3": Quantizer(3),
    }
    rows: dict[str, Compressor] = {"W8": Quantizer(8)}
    for label, compressor in broken.items():
        rows |= {label: compressor, f"{label}, repaired": Pipeline(compressor, quick)}
    return rows | {
        f"channels -{task.ratio:.0%}": prune,
        f"channels -{task.ratio:.0%}, repaired": Pipeline(prune, repair(task.pruned)),
        f"channels -{task.ratio:.0%} + W4": Pipeline(prune, Quantizer(4)),
        f"channels -{task.ratio:.0%} + W4, repaired": Pipeline(prune, repair(task.pruned), Quantizer(4), quick),
    }


def main() -> None:
    """Run the study, print its table, and name its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/repair"), help="folder for the results")
    parser.add_argument("--weights", type=Path, help="face-dcgan-64.safetensors; default: the generator of digits")
    parser.add_argument("--samples", type=int, default=2000, help="images per row; default 2000")
    parser.add_argument("--seed", type=int, default=2020, help="of latents, training and metrics; default 2020")
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps of repair; default 1")
    arguments = parser.parse_args()

    task = faces(arguments.weights) if arguments.weights else digits()
    settings = StudySettings(
        samples=arguments.samples,
        metrics=("fid", "lsh", "lsh_knn"),
        references=("teacher",),
        output_range=(-1, 1),
        feature_extractor="efficientnet-lite0",
        seed=arguments.seed,
    )
    rows = ways(task, arguments.seed, arguments.share)
    table = run_study(task.generator, task.draw, rows, None, arguments.output, settings)
    print(table)
    print(f"\npictures: {arguments.output / 'teacher.png'}, {arguments.output / 'samples.png'}")


if __name__ == "__main__":
    main()
