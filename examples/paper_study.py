"""The study of the documentation: which of quality and diversity goes first when a GAN is compressed?

    python examples/paper_study.py output/gan/*/ --data-root datasets --output docs/study

After Mordido, Yang, Meinel 2021 (arXiv 2103.11912): each generator, trained by train_gan.py, at 8 ... 2 bits, weights
clipped by mse, by the largest weight or by percentile, weights alone and with activations, without fine-tuning. Rows
that exist already are not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data import load_images
from gans import load_generator

from compressors import Quantizer
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


def compressors(stages: int) -> dict[str, Quantizer]:
    """Return the compressors of the first stages by label, such as "mse W4A4"."""
    return {
        f"{clip} W{bits}" + (f"A{bits}" if activations else ""): Quantizer(
            bits, bits if activations else None, clip=clip
        )
        for clip, activations in STAGES[:stages]
        for bits in BITS
    }


def study(folder: Path, stages: int, data_root: Path, samples: int, output: Path) -> None:
    """Measure the first stages on the generator in `folder`; results go to a folder of the same name in `output`."""
    generator, gan, data = load_generator(folder / "generator.safetensors")
    images = load_images(data, data_root)[:samples]

    settings = StudySettings(
        samples=len(images),
        metrics=("fid", "lsh", "lsh_knn", "prc"),
        references=("real", "teacher"),
        output_range=(-1, 1),
        feature_extractor="efficientnet-lite0",
        keep_features=True,
    )
    run_study(generator, gan.draw, compressors(stages), images, output / folder.name, settings)


def main() -> None:
    """Take all generators through stage one, then through stage two, and so on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generators", type=Path, nargs="+", help="output folders of train_gan.py")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="folder of MNIST and emoji")
    parser.add_argument("--output", type=Path, default=Path("output/paper"), help="folder for the results")
    parser.add_argument("--samples", type=int, default=5000, help="images of each side; emoji are 3,786")
    parser.add_argument("--quick", action="store_true", help="stage one with 200 images, to see that it works")
    arguments = parser.parse_args()
    samples = 200 if arguments.quick else arguments.samples
    for stages in range(1, 2 if arguments.quick else len(STAGES) + 1):
        for folder in arguments.generators:
            study(folder, stages, arguments.data_root, samples, arguments.output)


if __name__ == "__main__":
    main()
