"""What does compression cost? One table and one picture for a generator that ships with the examples.

    python examples/compression_study.py --output output/compression

quantizes, prunes, and does both, to a generator of digits, and compares 1,797 samples of each result with the images
it was trained on. Any generator of train_gan.py takes its place: --generator FILE --data-root FOLDER.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data import load_images
from gans import load_generator

from compressors import ChannelPruner, Compressor, Pipeline, Quantizer
from compressors.study import StudySettings, run_study

# From: train_gan.py --data digits --shift 1 --steps 4500 --bf16
SHIPPED = Path(__file__).parent / "assets" / "digits_dcgan.safetensors"


def compressors(quick: bool) -> list[Compressor]:
    """Clip and quantize the weights to 8 ... 2 bits, prune channels, and one pipeline of both."""
    bits = (8, 4, 2) if quick else (8, 6, 5, 4, 3, 2)
    ratios = (0.3,) if quick else (0.1, 0.3, 0.5, 0.7)
    return [
        *(Quantizer(width, clip="mse") for width in bits),
        *(ChannelPruner(ratio) for ratio in ratios),
        Pipeline(ChannelPruner(0.1), Quantizer(6, clip="mse")),
    ]


def main() -> None:
    """Run the study, print its table, and name its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/compression"), help="folder for the results")
    parser.add_argument("--generator", type=Path, default=SHIPPED, help="generator.safetensors of train_gan.py")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="folder of MNIST and emoji")
    parser.add_argument("--samples", type=int, help="images per row; default: as many as real ones, 5,000 at most")
    parser.add_argument("--quick", action="store_true", help="fewer rows of 500 images")
    arguments = parser.parse_args()

    generator, gan, data = load_generator(arguments.generator)
    images = load_images(data, arguments.data_root)[:5000]

    settings = StudySettings(
        samples=arguments.samples or (500 if arguments.quick else len(images)),
        metrics=("fid", "lsh", "lsh_knn", "prc"),
        output_range=(-1, 1),
        feature_extractor="efficientnet-lite0",
    )
    table = run_study(generator, gan.draw, compressors(arguments.quick), images, arguments.output, settings)
    print(table)
    print(f"\npicture: {arguments.output / 'real.png'}")


if __name__ == "__main__":
    main()
