"""Compress a network for x4 super-resolution, repair it by distillation on low-resolution crops, measure both.

    pip install "torch-fidelity-lsh[super-resolution]"
    python examples/repair_sr.py --weights realesr-animevideov3-x4.safetensors --data datasets/sr --output output/sr

Reads weights of Real-ESRGAN as spandrel does (the network of 6 blocks is realesrgan-x4plus-anime, that of 23 blocks
realesrgan-x4plus). The folder of data holds train_lr/*.png to train on; set5 and set14 hold pairs N_HR.png, N_LR.png.

PSNR to the teacher is over RGB, the mean over crops of images that training has not seen. Y-PSNR is to the true images,
on luma, without a border of 4 pixels: networks trained with a discriminator invent texture, which it punishes, so that
a blurred repair can beat its teacher. Judge repairs by the former.

Rows that were finished are kept: the same command again goes on, with more `--rows` and `--seeds` too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import torch
from device import DEVICE
from kept import Table, averaged
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.io import ImageReadMode, read_image

from compressors import ChannelPruner, CompressedModel, Compressor, Distiller, Quantizer
from compressors.common.generation import drawn

SCALE = 4
HELD_OUT = 20
"""Images of train_lr, the last ones, that are for measuring."""


def load_network(path: Path) -> nn.Module:
    """Return the network of a file of weights, in single precision and eval mode, on `DEVICE`: images 0 to 1."""
    from spandrel import ModelLoader

    state = {key: value.float() for key, value in load_file(path).items()}
    return ModelLoader().load_from_state_dict(state).model.eval().to(DEVICE)


def image(path: Path) -> Tensor:
    """Read an image as 3 x H x W, 0 to 1."""
    return read_image(str(path), ImageReadMode.RGB) / 255


class Crops:
    """Draws square crops of low-resolution images, flipped and turned.

    Args:
        images: 3 x H x W each, at least as large as a crop.
        size: of a crop, in pixels.
    """

    def __init__(self, images: list[Tensor], size: int) -> None:
        self.images, self.size = images, size

    def __call__(self, n: int, random: torch.Generator) -> tuple[Tensor]:
        """Return n crops, n x 3 x size x size, as forward arguments."""
        return (torch.stack([self._crop(random) for _ in range(n)]),)

    def _crop(self, random: torch.Generator) -> Tensor:
        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=random))

        source = self.images[below(len(self.images))]
        top, left = (below(side - self.size + 1) for side in source.shape[1:])
        crop = source[:, top : top + self.size, left : left + self.size].rot90(below(4), (1, 2))
        return crop.flip(2) if below(2) else crop


def psnr(first: Tensor, second: Tensor) -> float:
    """Return the peak signal to noise ratio of images 0 to 1, in dB, the mean over a batch."""
    return float(-10 * (first - second).square().flatten(1).mean(1).log10().mean())


def luma(images: Tensor) -> Tensor:
    """Return Y of YCbCr (ITU-R BT.601) of images B x 3 x H x W, 0 to 1, without a border of 4 pixels."""
    weights = torch.tensor([65.481, 128.553, 24.966]).view(3, 1, 1) / 255
    return ((images * weights).sum(1) + 16 / 255)[:, SCALE:-SCALE, SCALE:-SCALE]


@torch.no_grad()
def upscaled(model: nn.Module, low: Tensor) -> Tensor:
    """Return what a network makes of images, as it would be saved: rounded to 256 levels, 0 to 1."""
    return (model(low).clamp(0, 1) * 255).round() / 255


def y_psnr(model: nn.Module, folder: Path) -> float:
    """Return the mean Y-PSNR over the pairs of images in a folder, for a model on `DEVICE`."""
    values = []
    for path in sorted(folder.glob("*_LR.png")):
        made = upscaled(model, image(path)[None].to(DEVICE)).cpu()
        values.append(psnr(luma(made), luma(image(path.with_name(path.name.replace("_LR", "_HR")))[None])))
    return statistics.mean(values)


class Bicubic(nn.Module):
    """Upscaling without a network."""

    def forward(self, low: Tensor) -> Tensor:
        """Map B x 3 x h x w to B x 3 x 4h x 4w."""
        return functional.interpolate(low, scale_factor=SCALE, mode="bicubic")


@dataclass(frozen=True)
class Bench:
    """The uncompressed network, what it makes of held-out crops, and the folders of images with true ones."""

    teacher: nn.Module
    held_out: Tensor
    sets: list[Path]

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return PSNR to the teacher, and Y-PSNR to the true images."""
        with torch.no_grad():
            made, target = (network(self.held_out).clamp(0, 1) for network in (model, self.teacher))
        to_teacher = {} if model is self.teacher else {"PSNR to teacher": psnr(made, target)}
        return {**to_teacher, **{f"Y-PSNR {folder.name}": y_psnr(model, folder) for folder in self.sets}}


def save(model: CompressedModel, path: Path) -> dict[str, float]:
    """Save a model, and return the size of the file."""
    model.save(path)
    return {"kB": path.stat().st_size / 1000}


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table: the mean over seeds and, behind ±, the standard deviation."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("row", "seed")))
    lines = ["| row | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label in dict.fromkeys(row["row"] for row in rows):
        found = [row for row in rows if row["row"] == label]
        cells = [averaged([row[column] for row in found if column in row]) for column in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Compress, repair, measure, write a table as JSON and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file that spandrel recognises")
    parser.add_argument("--data", type=Path, default=Path("datasets/sr"), help="folder of train_lr, set5 and set14")
    parser.add_argument("--output", type=Path, default=Path("output/sr"), help="folder for the results")
    parser.add_argument("--rows", nargs="*", default=["*"], metavar="PATTERN", help='such as "W4*"; default all')
    parser.add_argument("--steps", type=int, default=500, help="of repair, for each row; default 500")
    parser.add_argument("--batch", type=int, default=4, help="crops of 24 x 24 in a batch; default 4")
    parser.add_argument("--sets", nargs="*", default=["set5", "set14"], help="sets with true images; default both")
    parser.add_argument("--seed", type=int, default=1, help="the first one; default 1")
    parser.add_argument("--seeds", type=int, default=3, help="how many; default 3")
    parser.add_argument("--quick", action="store_true", help="one seed, 10 steps, no true images")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.sets = 1, 10, []

    images = [image(path) for path in sorted((arguments.data / "train_lr").glob("*.png"))]
    if len(images) <= HELD_OUT:
        parser.error(f"--data: {arguments.data / 'train_lr'} must hold more than {HELD_OUT} PNG; got {len(images)}")
    draw = Crops(images[:-HELD_OUT], 24)
    (held_out,) = drawn(Crops(images[-HELD_OUT:], 40), 16, torch.Generator().manual_seed(0), DEVICE)
    bench = Bench(load_network(arguments.weights), held_out, [arguments.data / name for name in arguments.sets])
    protocol = {"weights": arguments.weights.name, "steps": arguments.steps, "batch": arguments.batch}
    table = Table(arguments.output, {**protocol, "sets": arguments.sets})
    for label, network in {"bicubic": Bicubic(), "teacher": bench.teacher}.items():
        if not table.has(label, 0):
            table.add(label, 0, **bench.measure(network))
    ways: dict[str, Compressor] = {
        "channels -10%": ChannelPruner(0.1, draw=draw),
        "channels -30%": ChannelPruner(0.3, draw=draw),
        "W4": Quantizer(4, equalize=True),
    }
    chosen = [label for label in ways if any(fnmatchcase(label, pattern) for pattern in arguments.rows)]
    for label, seed in product(chosen, range(arguments.seed, arguments.seed + arguments.seeds)):
        if table.has(f"{label}, repaired", seed):
            continue
        table.rows[:] = [row for row in table.rows if (row["row"], row["seed"]) != (label, seed)]
        inputs = drawn(draw, 2, torch.Generator().manual_seed(seed), DEVICE)
        path = arguments.output / f"{label.replace(' ', '_')}-{seed}.safetensors"
        broken = ways[label].compress(bench.teacher, inputs)
        table.add(label, seed, **bench.measure(broken.model), **save(broken, path))
        start = time.process_time()
        repair = Distiller(draw, arguments.steps, seed=seed, batch_size=arguments.batch, held_out=16)
        repaired = repair.compress(broken, inputs, teacher=bench.teacher)
        seconds = time.process_time() - start
        sizes = save(repaired, path.with_stem(f"{path.stem}-repaired"))
        table.add(f"{label}, repaired", seed, **bench.measure(repaired.model), **sizes, **{"CPU s": seconds})
    print(summary(table.rows))


if __name__ == "__main__":
    main()
