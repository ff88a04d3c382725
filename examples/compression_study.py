"""What does compression cost, and what of it can be repaired? One table and one picture for a generator of digits.

    python examples/compression_study.py --output output/compression

quantizes and prunes a generator that ships with the examples until it breaks, and repairs it by distillation. 1,797
samples of each result are compared with the images that the generator learned from, and real images with other real
ones: the ceiling. Any generator of train_gan.py takes its place: --generator FILE --data-root FOLDER.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from data import load_images
from gans import load_generator
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor, nn

from compressors import ChannelPruner, CompressedModel, Distiller, Quantizer
from compressors.common.files import whole_file, write_json
from compressors.common.generation import Draw
from compressors.common.text import aligned
from compressors.study import Row, StudySettings, Table, extract_features, run_study
from torch_fidelity_lsh import calculate_metrics

# From: train_gan.py --data digits --shift 1 --steps 9000 --average 0.999 --decay --bf16
SHIPPED = Path(__file__).parent / "assets" / "digits_dcgan.safetensors"

SCORES = {
    "FID": "frechet_inception_distance",
    "lsh precision": "lsh_precision",
    "lsh recall": "lsh_recall",
    "lsh_knn precision": "lsh_knn_precision",
    "lsh_knn recall": "lsh_knn_recall",
}
HINT = "FID: lower is better. Precision and recall: higher is better, 1 is best; ± half a 95 % interval."
SHOWN = 8
"""Samples of each row in the picture."""


def broken_and_repaired(generator: nn.Module, draw: Draw, share: float) -> dict[str, CompressedModel]:
    """Return the rows: 8 bits, which cost nothing; 4 bits, half of the channels and both, before and after repair."""
    inputs = draw(SHOWN, torch.Generator().manual_seed(0))

    def repaired(model: CompressedModel, steps: int) -> CompressedModel:
        return Distiller(draw, max(1, round(share * steps))).compress(model, inputs, teacher=generator)

    four = Quantizer(4, output_bits=None)
    half = ChannelPruner(0.5, draw=draw).compress(generator, inputs)
    whole = repaired(half, 2000)
    return {
        "8 bits": Quantizer(8).compress(generator, inputs),
        "4 bits": four.compress(generator, inputs),
        "4 bits, repaired": repaired(replace(four, equalize=True).compress(generator, inputs), 300),
        "half the channels": half,
        "half the channels, repaired": whole,
        "both, repaired": repaired(Quantizer(4, equalize=True).compress(whole, inputs), 300),
    }


def ceiling(images: Tensor, settings: StudySettings) -> dict[str, float]:
    """Return the scores of every second real image against the others."""
    features = extract_features(images, settings)
    flags = {metric: True for metric in settings.metrics}
    return calculate_metrics(input1=features[::2], input2=features[1::2], cuda=False, verbose=False, **flags)


def cells(scores: Mapping[str, float]) -> list[str]:
    """Return the scores as text."""
    found = [f"{scores[SCORES['FID']]:.0f}"]
    for key in list(SCORES.values())[1:]:
        found.append(f"{scores[key]:.2f} ±{1.96 * scores[f'{key}_stderr']:.2f}")
    return found


def text(rows: Sequence[Row], best: Mapping[str, float]) -> str:
    """Return the table of the demonstration."""
    lines = [("", "kB", *SCORES), ("real against real (halves)", "", *cells(best))]
    lines += [(row.compressor, f"{(row.bytes or 0) / 1000:,.0f}", *cells(row.scores["real"])) for row in rows]
    return "\n".join([*aligned(lines), HINT])


def picture(rows: Sequence[Row], images: Tensor, best: Mapping[str, float], folder: Path) -> Figure:
    """Draw samples of each row beside its scores, real images first."""
    strips = {"real images": (torch.cat(list(images[:SHOWN]), 2)[0].numpy(), "", best)}
    for row in rows:
        whole = imread(folder / row.samples)
        strip = whole[: whole.shape[1] // SHOWN]
        strips[row.compressor] = (strip, f"{(row.bytes or 0) / 1000:,.0f} kB", row.scores["real"])
    figure = Figure(figsize=(9, 0.72 * len(strips) + 0.4), layout="constrained")
    for (label, (strip, size, scores)), axes in zip(strips.items(), figure.subplots(len(strips), 1), strict=True):
        axes.imshow(strip, cmap="gray")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(f"{label}\n{size}".strip(), rotation=0, ha="right", va="center", fontsize=9)
        precision, recall = (scores[SCORES[f"lsh_knn {side}"]] for side in ("precision", "recall"))
        values = f"FID {scores[SCORES['FID']]:.0f}\nprecision {precision:.2f}\nrecall {recall:.2f}"
        axes.text(1.02, 0.5, values, transform=axes.transAxes, va="center", fontsize=8)
    figure.suptitle("against real images: FID lower, lsh_knn precision and recall higher is better", fontsize=9)
    return figure


def main() -> None:
    """Compress, repair, measure; print the table and name the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/compression"), help="folder for the results")
    parser.add_argument("--generator", type=Path, default=SHIPPED, help="generator.safetensors of train_gan.py")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="folder of MNIST and emoji")
    parser.add_argument("--samples", type=int, help="images per row; default: as many as real ones, 5,000 at most")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the repair, 500 images")
    arguments = parser.parse_args()

    generator, gan, data = load_generator(arguments.generator)
    images = load_images(data, arguments.data_root)[: 500 if arguments.quick else 5000]
    settings = StudySettings(
        samples=arguments.samples or len(images),
        metrics=("fid", "lsh", "lsh_knn"),
        output_range=(-1, 1),
        feature_extractor="efficientnet-lite0",
    )
    models = broken_and_repaired(generator, gan.draw, 0.02 if arguments.quick else 1.0)
    table = run_study(generator, gan.draw, models, images, arguments.output, settings)
    best = ceiling(images, settings)
    write(table, images, best, arguments.output)
    print(text(table.rows, best))
    print(f"\npicture: {arguments.output / 'repaired.png'}")


def write(table: Table, images: Tensor, best: Mapping[str, float], folder: Path) -> None:
    """Write picture and ceiling; the study has written its table."""
    with whole_file(folder / "repaired.png") as temporary:
        picture(table.rows, images, best, folder).savefig(temporary, dpi=110)
    write_json(folder / "ceiling.json", {"real against real, every second image": dict(best)})


if __name__ == "__main__":
    main()
