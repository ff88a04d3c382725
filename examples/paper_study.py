"""The study of the documentation: which of quality and diversity goes first when a GAN is compressed?

    python examples/paper_study.py output/gan/*/ --data-root datasets --output output/paper
    python examples/paper_study.py --faces face-dcgan-64.safetensors --output output/paper

After Mordido, Yang, Meinel 2021 (arXiv 2103.11912): each generator, trained by train_gan.py, at 8 ... 2 bits, weights
clipped by mse, by the largest weight or by percentile, weights alone and with activations, in all layers alike, those
of output layers too, without fine-tuning; and, which the paper does not, repaired by distillation. Rows that exist
already are not measured again. `--faces` takes the DCGAN of faces of the package gan_face_generate, which is compared
with its own samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from data import load_images
from gans import load_generator
from models import face_dcgan, load_dcgan
from torch import Tensor, nn

from compressors import Compressor, Distiller, Pipeline, Quantizer
from compressors.common.generation import Draw
from compressors.study import StudySettings, run_study

BITS = (8, 6, 5, 4, 3, 2)
# What is likely to matter most comes first, so that a study that is cut short says the most.
STAGES = (
    ("mse", False),
    ("mse", True),
    ("max", False),
    ("percentile", False),
    ("max", True),
    ("percentile", True),
)
STEPS = 300  # of repair


@dataclass(frozen=True)
class Subject:
    """A generator to study.

    Attributes:
        name: of the folder for its results.
        generator: in eval mode; images -1 to 1.
        draw: latents of n samples.
        images: real ones, uint8; None where there are none.
    """

    name: str
    generator: nn.Module
    draw: Draw
    images: Tensor | None


def trained(path: Path, data_root: Path) -> Subject:
    """Return a generator of train_gan.py, by its folder or its file, and its training images."""
    generator, gan, data = load_generator(path / "generator.safetensors" if path.is_dir() else path)
    return Subject(path.stem, generator, gan.draw, load_images(data, data_root))


def faces(weights: Path) -> Subject:
    """Return the DCGAN of faces."""

    def draw(n: int, random: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(n, 100, generator=random),)

    return Subject("face_dcgan", load_dcgan(weights, face_dcgan()), draw, None)


def compressors(stages: int, repaired: Sequence[int], draw: Draw) -> dict[str, Compressor]:
    """Return the compressors of the first stages by label, such as "mse W4A4"; `repaired`: bits of the first stage."""
    found: dict[str, Compressor] = {}
    for stage, (clip, activations) in enumerate(STAGES[:stages]):
        for bits in BITS:
            label = f"{clip} W{bits}" + (f"A{bits}" if activations else "")
            found[label] = Quantizer(bits, output_bits=None, act_bits=bits if activations else None, clip=clip)
            if not stage and bits in repaired:
                found[f"{label}, repaired"] = Pipeline(found[label], Distiller(draw, STEPS))
    return found


def study(subject: Subject, stages: int, repaired: Sequence[int], samples: int, output: Path) -> None:
    """Measure the first stages on a generator."""
    images = None if subject.images is None else subject.images[:samples]
    settings = StudySettings(
        samples=samples if images is None else len(images),
        metrics=("fid", "lsh", "lsh_knn", "prc"),
        references=("teacher",) if images is None else ("real", "teacher"),
        output_range=(-1, 1),
        feature_extractor="efficientnet-lite0",
        keep_features=True,
    )
    ways = compressors(stages, repaired, subject.draw)
    run_study(subject.generator, subject.draw, ways, images, output / subject.name, settings)


def main() -> None:
    """Take all generators through stage one, then through stage two, and so on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "generators", type=Path, nargs="*", help="output folders of train_gan.py, or files of generators"
    )
    parser.add_argument("--faces", type=Path, help="face-dcgan-64.safetensors")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="folder of MNIST and emoji")
    parser.add_argument("--output", type=Path, default=Path("output/paper"), help="folder for the results")
    parser.add_argument("--samples", type=int, default=5000, help="images of each side; emoji are 3,786")
    parser.add_argument("--stages", type=int, default=len(STAGES), help="ranges and kinds to go through; default: all")
    parser.add_argument("--repaired", type=int, nargs="*", default=(4, 3, 2), help="bits that are also repaired")
    parser.add_argument("--quick", action="store_true", help="stage one with 200 images, to see that it works")
    arguments = parser.parse_args()
    subjects = [trained(path, arguments.data_root) for path in arguments.generators]
    subjects += [faces(arguments.faces)] if arguments.faces else []
    stages, samples = (1, 200) if arguments.quick else (arguments.stages, arguments.samples)
    for stage in range(1, stages + 1):
        for subject in subjects:
            study(subject, stage, arguments.repaired, samples, arguments.output)


if __name__ == "__main__":
    main()
