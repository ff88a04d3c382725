"""Distil an image translation GAN into a student a hundredth of its size, in four ways, with seeds and a picture.

    python examples/distill_emoji.py --output output/distil
    python examples/distill_emoji.py --data datasets/emoji/emoji64.npz --output output/distil-emoji
    python examples/distill_emoji.py --quick

The first one translates drawn label maps into textures at 24 x 24 pixels, and needs no data; the second Google's emoji
into Twitter's at 64 x 64. The teacher, a ResNet as in CycleGAN, learns from pairs with a discriminator, and is kept.
Its students are narrow and separable, all of one architecture and, for each seed, of one initialisation:

    plain              its own discriminator and L1 to the true images
    output MSE         the teacher's images
    MSE + CRD          and the relations of their rows, columns and patches
    MSE + CRD + D      the same, beside a teacher in training whose discriminator judges the student too

A student is saved before anything is measured, and what is measured is read from the file.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from device import DEVICE
from kept import Table, averaged
from models import patchgan, resnet_generator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision.utils import save_image
from tqdm import tqdm

from compressors.distil import Columns, CRDDistiller, Patches, RelationLoss, Rows, Weights
from compressors.distil.costs import Costs, cost_table
from torch_fidelity_lsh import calculate_metrics

ARMS = ("plain", "output MSE", "MSE + CRD", "MSE + CRD + D")
METRICS = ("lsh_precision", "lsh_recall", "lsh_knn_precision", "lsh_knn_recall")
COLUMNS = ("MSE", "FID", *METRICS, "to teacher MSE", *(f"to teacher {metric}" for metric in METRICS))


@dataclass(frozen=True)
class Pairs:
    """Inputs and true outputs, B x 3 x H x W each, -1 to 1."""

    inputs: Tensor
    targets: Tensor

    def batch(self, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a batch."""
        chosen = torch.randint(len(self.inputs), (size,), generator=random)
        return self.inputs[chosen].to(DEVICE), self.targets[chosen].to(DEVICE)


def label_maps(count: int, seed: int, size: int = 24) -> Pairs:
    """Draw label maps of two squares or discs on a background, and the textures that belong to the labels.

    Background: a smooth gradient. Squares: stripes of period 4. Discs: a checkerboard of period 6.
    """
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(count, size, size, dtype=torch.long)
    for _ in range(2):
        centre = torch.randint(5, size - 5, (count, 2), generator=random)
        radius = torch.randint(3, 7, (count, 1, 1), generator=random)
        down, across = ((grid[None] - centre[:, axis, None, None]).abs() for axis, grid in enumerate((y, x)))
        disc = torch.rand(count, 1, 1, generator=random) < 0.5
        inside = torch.where(disc, down**2 + across**2 < radius**2, torch.maximum(down, across) < radius)
        labels = torch.where(inside, torch.where(disc, 2, 1), labels)
    smooth = torch.stack([x / size - 0.5, y / size - 0.5, torch.zeros(size, size)])
    stripes = torch.where(x % 4 < 2, 0.8, -0.8) * torch.tensor([1.0, 0.2, -0.6]).view(3, 1, 1)
    checks = torch.where((x // 3 + y // 3) % 2 == 0, 0.8, -0.8) * torch.tensor([-0.4, 1.0, 0.5]).view(3, 1, 1)
    textures = torch.stack([smooth, stripes, checks])
    one_hot = functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    return Pairs(2 * one_hot - 1, torch.einsum("nkhw,kchw->nchw", one_hot, textures))


def emoji(path: Path) -> tuple[Pairs, Pairs]:
    """Return pairs to train on and held-out ones, every eighth."""
    with np.load(path) as file:
        google, twitter = (torch.from_numpy(file[key]).float() / 127.5 - 1 for key in ("google", "twitter"))
    test = torch.arange(len(google)) % 8 == 0
    return Pairs(google[~test], twitter[~test]), Pairs(google[test], twitter[test])


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths.

    Attributes:
        teacher_width: channels of the teacher's first layer.
        student_width: of the student's.
        blocks: residual blocks of both.
        teacher_steps: of the teacher's training.
        steps: of the student's.
        batch: pairs in a batch.
        patch: side of the patches whose relations count.
        rate: of Adam, constant for half of the steps, then falling to 0.
    """

    teacher_width: int = 16
    student_width: int = 2
    blocks: int = 2
    teacher_steps: int = 1200
    steps: int = 600
    batch: int = 8
    patch: int = 6
    rate: float = 2e-3

    def teacher(self) -> nn.Module:
        """Build the teacher."""
        return resnet_generator(self.teacher_width, self.blocks)

    def student(self, seed: int) -> nn.Module:
        """Build a student; all arms of a seed start from the same one."""
        torch.manual_seed(seed)
        return resnet_generator(self.student_width, self.blocks, mobile=True)


class GAN:
    """A generator in training beside a discriminator of pairs: hinge loss, and 10 L1 to the true images."""

    def __init__(self, generator: nn.Module, steps: int, rate: float) -> None:
        self.generator, self.discriminator = generator, patchgan(6, 16, layers=2).to(DEVICE)
        self.optimizers = [Decaying(network, steps, rate) for network in (generator, self.discriminator)]

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """Train both on a batch."""
        fakes = self.generator(inputs)
        real, fake = (self.discriminator(torch.cat([inputs, images], 1)) for images in (targets, fakes.detach()))
        self.optimizers[1].step(0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()))
        verdict = self.discriminator(torch.cat([inputs, fakes], 1))
        self.optimizers[0].step(10 * functional.l1_loss(fakes, targets) - verdict.mean())


class Decaying:
    """Adam with a rate that is constant for half of the steps and then falls to 0."""

    def __init__(self, network: nn.Module, steps: int, rate: float) -> None:
        self.adam = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.999))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, lambda step: min(1.0, 2 - 2 * step / steps))

    def step(self, loss: Tensor) -> None:
        """Take a step down the gradient of `loss`."""
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.schedule.step()


def train_teacher(settings: Settings, pairs: Pairs, seed: int, path: Path) -> nn.Module:
    """Return the teacher in eval mode, on `DEVICE`, from its file where there is one."""
    torch.manual_seed(seed)
    teacher = settings.teacher().to(DEVICE)
    if not path.is_file():
        gan, random = GAN(teacher, settings.teacher_steps, settings.rate), torch.Generator().manual_seed(seed)
        for _ in tqdm(range(settings.teacher_steps), desc="teacher", unit="step"):
            gan.step(*pairs.batch(settings.batch, random))
        save_file(teacher.state_dict(), path)
    teacher.load_state_dict(load_file(path))
    return teacher.eval()


def train_student(arm: str, settings: Settings, teacher: nn.Module, pairs: Pairs, seed: int) -> nn.Module:
    """Return a student that was trained in one of `ARMS`, on `DEVICE`."""
    student, random = settings.student(seed).to(DEVICE), torch.Generator().manual_seed(seed)
    bar = tqdm(range(settings.steps), desc=f"{arm}, seed {seed}", unit="step")
    if arm == "plain":
        gan = GAN(student, settings.steps, settings.rate)
        for _ in bar:
            gan.step(*pairs.batch(settings.batch, random))
        return student.eval()
    weights = Weights(pixel=10, relation=1 if "CRD" in arm else 0, gan=0.05 if arm == ARMS[3] else 0)
    optimizer = Decaying(student, settings.steps, settings.rate)
    online = GAN(settings.teacher().to(DEVICE), settings.steps, settings.rate) if weights.gan else None
    distiller = CRDDistiller(
        teacher if online is None else online.generator,
        student,
        None if online is None else online.discriminator,
        weights=weights,
        relation=RelationLoss((Rows(), Columns(), Patches(settings.patch))),
        gan="hinge",
        judge=lambda network, images, inputs: network(torch.cat([inputs[0], images], 1)),
    )
    for _ in bar:
        inputs, targets = pairs.batch(settings.batch, random)
        before = distiller.target(inputs)
        if online is not None:
            online.step(inputs, targets)
        loss, _ = distiller.student_loss(inputs, target=before)
        optimizer.step(loss)
    return student.eval()


class Images(Dataset[Tensor]):
    """Images -1 to 1 as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = ((images.cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@torch.no_grad()
def generate(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a model on `DEVICE` makes of all inputs; on the CPU."""
    return torch.cat([model(batch.to(DEVICE)).cpu() for batch in inputs.split(64)])


def measure(images: Tensor, test: Pairs, teacher: Tensor) -> dict[str, float]:
    """Return held-out error, FID and the metrics with the half-widths of their intervals, against the true images.

    Those whose names begin with "to teacher" are against its images, which the students are trained to make.
    """
    row = {"MSE": float((images - test.targets).square().mean()), **scores(images, test.targets)}
    row["to teacher MSE"] = float((images - teacher).square().mean())
    return row | {f"to teacher {name}": value for name, value in scores(images, teacher).items()}


def scores(images: Tensor, reference: Tensor) -> dict[str, float]:
    """Return FID and the metrics with the half-widths of their intervals."""
    found = calculate_metrics(
        input1=Images(images),
        input2=Images(reference),
        feature_extractor="efficientnet-lite0",
        cuda=DEVICE.type == "cuda",
        fid=True,
        lsh=True,
        lsh_knn=True,
        verbose=False,
    )
    row = {"FID": found["frechet_inception_distance"]}
    for metric in METRICS:
        row[metric] = found[metric]
        row[f"{metric} ±"] = (found[f"{metric}_ci_high"] - found[f"{metric}_ci_low"]) / 2
    return row


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table of arms: the mean over seeds and, behind ±, the standard deviation."""
    lines = ["| arm | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for arm in dict.fromkeys(row["row"] for row in rows):
        found = [row for row in rows if row["row"] == arm]
        cells = [averaged([row[column] for row in found], ".3g", ".2g") for column in COLUMNS]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def task(
    data: Path | None,
    maps: tuple[int, int],
    emoji_steps: int,
    steps: int | None,
    teacher_steps: int | None,
) -> tuple[Pairs, Pairs, Settings]:
    """Return pairs to train on, held-out pairs, and settings.

    Args:
        data: file of emoji; None for drawn label maps.
        maps: how many label maps to draw of both kinds.
        emoji_steps: default steps of a student of emoji.
        steps: of a student, in place of the default.
        teacher_steps: of the teacher, likewise.
    """
    if data is None:
        settings = Settings(teacher_steps=teacher_steps or 1200, steps=steps or 600)
        train, test = label_maps(maps[0], 0), label_maps(maps[1], 1)
    else:
        steps, teacher_steps = steps or emoji_steps, teacher_steps or 6000
        settings = Settings(32, 6, 3, patch=8, teacher_steps=teacher_steps, steps=steps, rate=5e-4)
        train, test = emoji(data)
    return train, test, settings


def main() -> None:
    """Train the teacher and all students, measure, write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="emoji64.npz with the arrays google and twitter; default: label maps")
    parser.add_argument("--output", type=Path, default=Path("output/distil"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=1, help="the first one; default 1")
    parser.add_argument("--seeds", type=int, default=3, help="students of each arm; default 3")
    parser.add_argument("--steps", type=int, help="of a student; default 600, for emoji 3000")
    parser.add_argument("--teacher-steps", type=int, help="default 1200, for emoji 6000")
    parser.add_argument("--quick", action="store_true", help="one seed, 10 steps of each, 100 held-out maps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.teacher_steps = 1, 10, 10

    maps = (4096, 100 if arguments.quick else 1024)
    train, test, settings = task(arguments.data, maps, 3000, arguments.steps, arguments.teacher_steps)
    table = Table(arguments.output, {**asdict(settings), "emoji": arguments.data is not None, "maps": list(maps)})
    teacher = train_teacher(settings, train, 0, arguments.output / "teacher.safetensors")
    example = (test.inputs[:1].to(DEVICE),)
    costs = Costs.of(teacher, example), Costs.of(settings.student(0).to(DEVICE), example)
    print(cost_table(*costs))
    table.content["costs"] = [vars(cost) for cost in costs]

    pictures = {"input": test.inputs, "true": test.targets, "teacher": generate(teacher, test.inputs)}
    if not table.has("teacher", 0):
        table.add("teacher", 0, **measure(pictures["teacher"], test, pictures["teacher"]))
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for arm in ARMS:
            path = arguments.output / f"{arm.replace(' ', '')}-{seed}.safetensors"
            if not path.is_file():
                save_file(train_student(arm, settings, teacher, train, seed).state_dict(), path)
            student = settings.student(seed).to(DEVICE).eval()
            student.load_state_dict(load_file(path))
            pictures[arm] = generate(student, test.inputs)
            if not table.has(arm, seed):
                table.add(arm, seed, **measure(pictures[arm], test, pictures["teacher"]))
    shown = torch.stack([images[:12] for images in pictures.values()]).flatten(0, 1)
    save_image((shown + 1) / 2, arguments.output / "samples.png", nrow=12)
    print(summary(table.rows))
    print(f"\npicture, from above {', '.join(pictures)}: {arguments.output / 'samples.png'}")


if __name__ == "__main__":
    main()
