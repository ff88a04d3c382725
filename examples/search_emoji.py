"""Search a small network for image translation under a budget, distil it, store it in 8 bits, and compare by metrics.

    python examples/search_emoji.py --output output/search-maps
    python examples/search_emoji.py --data datasets/emoji/emoji64.npz --output output/search-emoji

The tasks and the teacher are those of distill_emoji.py: drawn label maps into textures, or Google's emoji into
Twitter's. For each seed: the searched network (AGD's space for CycleGAN, as wide as the teacher); the same in 8 bits;
and the teacher's own mobile form, the narrowest that costs no fewer multiply-accumulates, trained on the same inputs by
the same optimizer for as many steps. Both architectures learn from the teacher's outputs, and once more with the
relations of their slices (CRD) as well.
Held-out error, FID, precision and recall with intervals for each, against the true images and against the teacher's;
and what `torch_fidelity_lsh.compare` says of the searched network against each other student, and of both architectures
with CRD, on the same inputs, with the teacher's images as real ones.

Teacher, rows and seeds that were finished are kept: the same command again goes on, with more `--seeds` too.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch
from device import DEVICE
from distill_emoji import Images, Settings, generate, measure, summary, task, train_teacher
from kept import Table
from torch import Tensor, nn
from torchvision.utils import save_image

from compressors import CompressedModel, Distiller, Quantizer
from compressors.distil import Columns, Patches, RelationLoss, Rows
from compressors.distil.costs import Costs
from compressors.search import ArchitectureSearch, cyclegan, save_report
from compressors.study.features import Extractor
from torch_fidelity_lsh import compare

_NO_SETTINGS = ("data", "output", "seed", "seeds", "quick")


def narrower(settings: Settings, macs: int, example: tuple[Tensor]) -> Settings:
    """Return settings whose student is the narrowest of at least `macs`."""
    widths = (replace(settings, student_width=width) for width in range(1, 65))
    return next(each for each in widths if Costs.of(each.student(0).to(DEVICE), example).macs >= macs)


def main() -> None:
    """Train the teacher, search, train the other students, measure and compare all; write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="emoji64.npz with the arrays google and twitter; default: label maps")
    parser.add_argument("--output", type=Path, default=Path("output/search-maps"), help="folder for the results")
    parser.add_argument("--budget", type=float, default=0.3, help="share of the teacher's cost; default 0.3")
    parser.add_argument("--seed", type=int, default=1, help="the first one; default 1")
    parser.add_argument("--seeds", type=int, default=2, help="students of each kind; default 2")
    parser.add_argument("--steps", type=int, help="of each student; default 600, for emoji 2000")
    parser.add_argument("--strategy", default="evolution", help='such as "trials"; default evolution')
    parser.add_argument("--search-steps", type=int, help="of the supernet; default as many as of a student")
    parser.add_argument("--trials", type=int, default=6, help="networks that are trained for 3/8 of it; default 6")
    parser.add_argument("--teacher-steps", type=int, help="default 1200, for emoji 6000")
    parser.add_argument("--quick", action="store_true", help="one seed, 10 steps of each, 200 held-out maps")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(seeds=1, steps=10, teacher_steps=10, trials=2)
    maps = (512, 200) if arguments.quick else (4096, 1024)
    output = arguments.output
    train, test, settings = task(arguments.data, maps, 2000, arguments.steps, arguments.teacher_steps)
    described = {key: value for key, value in vars(arguments).items() if key not in _NO_SETTINGS}
    table = Table(output, {**asdict(settings), "emoji": arguments.data is not None, **described})
    verdicts = table.content.setdefault("comparisons", [])
    teacher = train_teacher(settings, train, 0, output / "teacher.safetensors")
    example = (test.inputs[:1].to(DEVICE),)
    extractor = Extractor("efficientnet-lite0", None, DEVICE)
    pictures = {"input": test.inputs, "true": test.targets, "teacher": generate(teacher, test.inputs)}
    imitated = extractor(Images(pictures["teacher"]).images.split(64))

    def add(label: str, seed: int, model: nn.Module, stored: CompressedModel | None = None) -> None:
        costs = Costs.of(model, example)
        pictures[label] = generate(model, test.inputs)
        row = measure(pictures[label], test, pictures["teacher"]) | {
            "macs": costs.macs,
            "flops": 2 * costs.macs,
            "parameters": costs.parameters,
            "seconds": costs.seconds,
        }
        table.add(label, seed, **row, bytes=4 * costs.parameters if stored is None else stored.report.after.bytes)
        if stored is not None:
            stored.save(output / f"{label.replace(' ', '_').replace(',', '')}-{seed}.safetensors")

    def draw(n: int, random: torch.Generator) -> tuple[Tensor]:
        return (train.batch(n, random)[0],)

    def students(seed: int) -> None:
        folder = output / f"search-{seed}"
        folder.mkdir(exist_ok=True)
        relations = ((0.1, RelationLoss((Rows(), Columns(), Patches(settings.patch)))),)
        search = ArchitectureSearch(
            cyclegan(2 * settings.blocks, settings.teacher_width),
            arguments.budget,
            train.inputs,
            settings.steps,
            seed,
            arguments.strategy,
            search_steps=arguments.search_steps or settings.steps,
            trials=arguments.trials,
            batch_size=settings.batch,
            rate=settings.rate,
            loss="mse",
            folder=folder,
        )
        found = search.compress(teacher, example)
        save_report(found, teacher, example, folder)
        add("searched", seed, found.model, found)
        small = Quantizer(8, act_bits=8).compress(found, example, calibration=[(train.inputs[:128].to(DEVICE),)])
        add("searched, 8 bits", seed, small.model, small)
        genotype = tuple((operator, int(width)) for operator, width in found.recipe.steps[-1]["genotype"])
        again = replace(search, genotype=genotype, terms=relations, folder=None).compress(teacher, example)
        add("searched, CRD", seed, again.model, again)
        scaled = narrower(settings, found.report.after.macs, example)
        for label, terms in {"narrower": (), "narrower, CRD": relations}.items():
            distiller = Distiller(
                draw, settings.steps, seed, settings.batch, settings.rate, "mse", terms, train_norms=True, clip_norm=5
            )
            student = scaled.student(seed).to(DEVICE)
            result = distiller.compress(student, example, teacher=teacher)
            add(label, seed, result.model, result)

    if not table.has("teacher", 0):
        add("teacher", 0, teacher)
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        if any(verdict["seed"] == seed for verdict in verdicts):
            continue
        table.rows[:] = [row for row in table.rows if row["seed"] != seed]
        students(seed)
        labels = [row["row"] for row in table.rows if row["seed"] == seed]
        features = {label: extractor(Images(pictures[label]).images.split(64)) for label in labels}
        pairs = [("searched", label) for label in labels[1:]] + [("searched, CRD", "narrower, CRD")]
        for a, b in pairs:
            difference = compare(features[a], features[b], imitated, paired=True)
            verdicts.append({"seed": seed, "a": a, "b": b, **difference.to_dict()})
        table.write()
        shown = torch.stack([images[:12] for images in pictures.values()]).flatten(0, 1)
        save_image((shown + 1) / 2, output / f"samples-{seed}.png", nrow=12)
        print(f"samples-{seed}.png, from above: {', '.join(pictures)}")
    for verdict in verdicts:
        print(f"\nA: {verdict['a']}, B: {verdict['b']}, seed {verdict['seed']}")
        print(f"{verdict['metric']}: {verdict['verdict']}")
    print(summary(table.rows))


if __name__ == "__main__":
    main()
