"""Compress a generator until it breaks, repair it by distillation, and measure both: one table, pictures, samples.

    python examples/repair_gan.py --output output/repair
    python examples/repair_gan.py --weights face-dcgan-64.safetensors --output output/repair-faces

The first takes the generator of digits that ships with the examples, the second a DCGAN of faces that others trained
(package gan_face_generate). Everything is compared with samples of the uncompressed generator; repairing draws
latents. No data are needed.

Each seed draws its own latents, to repair with and to measure with. Repaired models are saved before anything is
measured, and what is measured is read from the file; a file that is there is not made again. `--features pixels`
measures the same models by their pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from compression_study import SHIPPED
from device import DEVICE
from gans import load_generator
from kept import averaged, claim
from models import face_dcgan, load_dcgan
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from compressors import ChannelPruner, CompressedModel, Compressor, Distiller, Quantizer
from compressors.common.files import digest, write_json
from compressors.common.generation import Draw, drawn
from compressors.distil import RelationLoss
from compressors.study import StudySettings, Table, run_study

SCORES = {
    "FID": "frechet_inception_distance",
    "lsh P": "lsh_precision",
    "lsh R": "lsh_recall",
    "lsh_knn P": "lsh_knn_precision",
    "lsh_knn R": "lsh_knn_recall",
}


@dataclass(frozen=True)
class Steps:
    """How long to repair: after pruning, after quantizing, and after quantizing the output layer too."""

    pruned: int
    quantized: int
    everywhere: int


@dataclass(frozen=True)
class Task:
    """A generator, how to draw its latents, and how long to repair it.

    Attributes:
        generator: in eval mode, on `DEVICE`; images -1 to 1.
        draw: latents of n samples.
        ratio: share of channels that the rows prune.
        steps: of repair.
        batch_size: of repair.
        rates: of repair after pruning and after quantizing; None has `Distiller` choose.
    """

    generator: nn.Module
    draw: Draw
    ratio: float
    steps: Steps
    batch_size: int
    rates: tuple[float | None, float | None]


def digits() -> Task:
    """Return the task of the generator that ships with the examples."""
    generator, gan, _ = load_generator(SHIPPED)
    return Task(
        generator.to(DEVICE), gan.draw, ratio=0.5, steps=Steps(4000, 300, 300), batch_size=32, rates=(None, None)
    )


def faces(weights: Path) -> Task:
    """Return the task of the DCGAN of faces."""

    def draw(n: int, random: torch.Generator) -> tuple[torch.Tensor]:
        return (torch.randn(n, 100, generator=random),)

    generator = load_dcgan(weights, face_dcgan()).to(DEVICE)
    return Task(generator, draw, ratio=0.3, steps=Steps(1500, 300, 600), batch_size=16, rates=(5e-4, 1e-4))


Ways = dict[str, tuple[str | None, Compressor]]
"""By label: the row to start from, None for the generator, and what is done to it."""


def ways(task: Task, seed: int, share: float) -> Ways:
    """Return the rows: broken and repaired, by bits, by channels, and by both."""

    def repair(steps: int, rate: float | None) -> Distiller:
        terms = ((0.5, RelationLoss(angle_weight=0)),)  # keeps diversity
        count = max(1, round(share * steps))
        return Distiller(task.draw, count, seed=seed, batch_size=task.batch_size, rate=rate, terms=terms)

    (pruned, quantized), steps, less = task.rates, task.steps, f"channels -{task.ratio:.0%}"
    widths = {
        "W4": ({"bits": 4}, steps.quantized),
        "W4 everywhere": ({"bits": 4, "output_bits": None}, steps.everywhere),
        "W3": ({"bits": 3}, steps.quantized),
    }
    rows: Ways = {"W8": (None, Quantizer(8))}
    for label, (options, count) in widths.items():
        rows |= {
            label: (None, Quantizer(**options)),
            f"{label}, equalized": (None, Quantizer(**options, equalize=True)),
            f"{label}, repaired": (f"{label}, equalized", repair(count, quantized)),
        }
    return rows | {
        less: (None, ChannelPruner(task.ratio, draw=task.draw)),
        f"{less}, repaired": (less, repair(steps.pruned, pruned)),
        f"{less} + W4": (f"{less}, repaired", Quantizer(4, equalize=True)),
        f"{less} + W4, repaired": (f"{less} + W4", repair(steps.quantized, quantized)),
    }


def made(label: str, rows: Ways, task: Task, folder: Path, known: dict[str, CompressedModel]) -> CompressedModel:
    """Return a row's model; a repaired one from its file, which is written where it is missing.

    What is made is added to `known`, and what is there is not made again.
    """
    if label in known:
        return known[label]
    start, way = rows[label]
    repairs = isinstance(way, Distiller)
    path = folder / f"{label.replace(' ', '_').replace(',', '').replace('%', '')}.safetensors"
    if not (repairs and path.is_file()):
        inputs = drawn(task.draw, 8, torch.Generator().manual_seed(0), DEVICE)
        before = task.generator if start is None else made(start, rows, task, folder, known)
        known[label] = way.compress(before, inputs, teacher=task.generator)
        if repairs:
            known[label].save(path)
    if repairs:
        known[label] = CompressedModel.load(path, lambda: task.generator)
    return known[label]


class Pixels(FeatureExtractorBase):
    """Images at 16 x 16 pixels as features: no network, and nothing that a loss of features would have seen."""

    def __init__(self, name: str, features_list: list[str], **unused: Any) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the one layer."""
        return ("16",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the layer, the same for all metrics."""
        return "16"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 B x 3 x H x W to B x 768, 0 to 1."""
        return (functional.adaptive_avg_pool2d(images.float() / 255, 16).flatten(1),)


def summary(tables: Mapping[int, Table]) -> str:
    """Return a table of means over seeds; behind ±, the standard deviation over them. FID: lower is better."""
    lines = ["| row | kB | " + " | ".join(SCORES) + " |", "|---" * (len(SCORES) + 2) + "|"]
    for rows in zip(*(table.rows for table in tables.values()), strict=True):
        cells = [rows[0].compressor, "" if rows[0].bytes is None else f"{rows[0].bytes / 1000:,.0f}"]
        for title, key in SCORES.items():
            cells.append(averaged([row.scores["teacher"][key] for row in rows], ".0f" if title == "FID" else ".2f"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the study once for each seed, print the table of all, and name the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/repair"), help="folder for the results")
    parser.add_argument("--weights", type=Path, help="face-dcgan-64.safetensors; default: the generator of digits")
    parser.add_argument("--rows", nargs="*", metavar="PATTERN", help='such as "W4*"; default all')
    parser.add_argument("--features", choices=("efficientnet-lite0", "pixels"), default="efficientnet-lite0")
    parser.add_argument("--samples", type=int, help="images per row; default 2000")
    parser.add_argument("--seed", type=int, default=1, help="the first one; default 1")
    parser.add_argument("--seeds", type=int, default=3, help="how many; default 3")
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps of repair; default 1")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, a twentieth of the steps, 300 images, fewer rows"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.share = 1, 0.05
    patterns = arguments.rows or (["W4", "W4,*", "channels*"] if arguments.quick else ["*"])

    if "pixels" not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor("pixels", Pixels)
    task = faces(arguments.weights) if arguments.weights else digits()
    weights = digest(task.generator.state_dict().values())
    repair = {"generator": weights, "share": arguments.share, "steps": asdict(task.steps), "rates": list(task.rates)}
    claim(arguments.output, repair)
    tables = {}
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        models, rows = arguments.output / f"models-{seed}", ways(task, seed, arguments.share)
        models.mkdir(exist_ok=True)
        chosen = [label for label in rows if any(fnmatchcase(label, pattern) for pattern in patterns)]
        settings = StudySettings(
            samples=arguments.samples or (300 if arguments.quick else 2000),
            metrics=("fid", "lsh", "lsh_knn"),
            references=("teacher",),
            output_range=(-1, 1),
            feature_extractor=arguments.features,
            seed=seed,
        )
        folder = arguments.output / f"{arguments.features}-{seed}"
        known: dict[str, CompressedModel] = {}
        compressed = {label: made(label, rows, task, models, known) for label in chosen}
        tables[seed] = run_study(task.generator, task.draw, compressed, None, folder, settings)
        print(tables[seed], flush=True)
    content = {**repair, "seeds": {seed: table.to_dict() for seed, table in tables.items()}}
    write_json(arguments.output / f"results-{arguments.features}.json", content)
    print(f"\n{summary(tables)}\n\npictures: {folder / 'teacher.png'}, {folder / 'samples.png'}")


if __name__ == "__main__":
    main()
