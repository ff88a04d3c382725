"""Search a small network for image translation under a budget, distil it, store it in 8 bits, and compare by metrics.

    python examples/search_emoji.py --output output/search-maps
    python examples/search_emoji.py --data datasets/emoji/emoji64.npz --output output/search-emoji

The tasks and the teacher are those of distill_emoji.py: drawn label maps into textures, or Google's emoji into
Twitter's. The teacher is kept. For each seed: the searched network (AGD's space for CycleGAN, as wide as the teacher);
the same in 8 bits; the teacher's own mobile form, narrower, at no fewer multiply-accumulates, distilled by its outputs,
and with the relations of their slices (CRD). Held-out error, FID, precision and recall with intervals for each; and
what `torch_fidelity_lsh.compare` says of the searched network against each other student, on the same inputs.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from distill_emoji import Images, Settings, generate, measure, summary, task, train_student, train_teacher
from kept import claim
from torch import Tensor, nn
from torchvision.utils import save_image

from compressors import CompressedModel, Quantizer
from compressors.common.files import write_json
from compressors.common.text import versions
from compressors.distil.costs import Costs
from compressors.search import ArchitectureSearch, cyclegan, save_report
from compressors.study.features import Extractor
from torch_fidelity_lsh import compare

STUDENTS = {"narrower": "output MSE", "narrower, CRD": "MSE + CRD"}


def narrower(settings: Settings, macs: int, example: tuple[Tensor]) -> Settings:
    """Return settings whose student is the narrowest of at least `macs`."""
    widths = (replace(settings, student_width=width) for width in range(1, 65))
    return next(each for each in widths if Costs.of(each.student(0), example).macs >= macs)


def features(images: Tensor) -> Tensor:
    """Return what metrics look at."""
    extractor = Extractor("efficientnet-lite0", None, torch.device("cpu"))
    return extractor(Images(images).images.split(64))


def main() -> None:
    """Train the teacher, search, train the other students, measure and compare all; write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="emoji64.npz with the arrays google and twitter; default: label maps")
    parser.add_argument("--output", type=Path, default=Path("output/search-maps"), help="folder for the results")
    parser.add_argument("--budget", type=float, default=0.3, help="share of the teacher's cost; default 0.3")
    parser.add_argument("--seeds", type=int, default=2, help="students of each kind; default 2")
    parser.add_argument("--steps", type=int, help="of each student; default 600, for emoji 2000")
    parser.add_argument("--teacher-steps", type=int, help="default 1200, for emoji 6000")
    parser.add_argument("--quick", action="store_true", help="one seed, 10 steps of each, 200 held-out maps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.teacher_steps = 1, 10, 10
    maps = (512, 200) if arguments.quick else (4096, 1024)
    train, test, settings = task(arguments.data, maps, 2000, arguments.steps, arguments.teacher_steps)
    claim(arguments.output, {**asdict(settings), "emoji": arguments.data is not None, "budget": arguments.budget})
    teacher = train_teacher(settings, train, 0, arguments.output / "teacher.safetensors")
    example = (test.inputs[:1],)
    space = cyclegan(2 * settings.blocks, settings.teacher_width)
    rows: list[dict[str, Any]] = []
    pictures = {"input": test.inputs, "true": test.targets}

    def add(label: str, seed: int, model: nn.Module, stored: CompressedModel | None = None) -> None:
        costs = Costs.of(model, example)
        pictures[label] = generate(model, test.inputs)
        row = {"arm": label, "seed": seed, **measure(pictures[label], test), "macs": costs.macs}
        size = 4 * costs.parameters if stored is None else stored.report.after.bytes
        rows.append({**row, "flops": 2 * costs.macs, "parameters": costs.parameters, "bytes": size})
        rows[-1] |= {"seconds": costs.seconds, "to teacher": _mse(pictures[label], pictures["teacher"])}
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()})

    pictures["teacher"] = generate(teacher, test.inputs)
    add("teacher", 0, teacher)
    verdicts: list[dict[str, Any]] = []
    real = features(test.targets)
    for seed in range(1, arguments.seeds + 1):
        folder = arguments.output / f"search-{seed}"
        folder.mkdir(exist_ok=True)
        found = ArchitectureSearch(
            space,
            arguments.budget,
            train.inputs,
            settings.steps,
            seed,
            batch_size=settings.batch,
            loss="mse",
            folder=folder,
        ).compress(teacher, example)
        save_report(found, teacher, example, folder)
        found.save(folder / "float.safetensors")
        add("searched", seed, found.model)
        small = Quantizer(8, act_bits=8).compress(found, example, calibration=[(train.inputs[:128],)])
        small.save(folder / "8bits.safetensors")
        add("searched, 8 bits", seed, small.model, small)
        scaled = narrower(settings, found.report.after.macs, example)
        for label, arm in STUDENTS.items():
            add(label, seed, train_student(arm, scaled, teacher, train, seed))
        ours = features(pictures["searched"])
        for label in ("searched, 8 bits", *STUDENTS):
            found_difference = compare(ours, features(pictures[label]), real, paired=True)
            verdicts.append({"seed": seed, "against": label, "comparison": str(found_difference)})
            print(f"\nA: searched, B: {label}, seed {seed}\n{found_difference}")
    shown = torch.stack([images[:12] for images in pictures.values()]).flatten(0, 1)
    save_image((shown + 1) / 2, arguments.output / "samples.png", nrow=12)
    content = {"settings": asdict(settings), "budget": arguments.budget, "rows": rows, "comparisons": verdicts}
    write_json(arguments.output / "results.json", {**content, "versions": versions()})
    print(summary(rows))
    print(f"\npicture, from above {', '.join(pictures)}: {arguments.output / 'samples.png'}")


def _mse(first: Tensor, second: Tensor) -> float:
    return float((first - second).square().mean())


if __name__ == "__main__":
    main()
