"""Compress a network for x4 super-resolution, repair it by distillation on low-resolution crops, measure both.

    pip install spandrel
    python examples/repair_sr.py --weights realesr-animevideov3-x4.safetensors --data datasets/sr --output output/sr

Reads weights of Real-ESRGAN as spandrel does (the network of 6 blocks is realesrgan-x4plus-anime, that of 23 blocks
realesrgan-x4plus). The folder of data holds train_lr/*.png to train on; set5 and set14 hold pairs N_HR.png, N_LR.png.

PSNR to the teacher is over RGB, the mean over crops of images that training has not seen. Y-PSNR is to the true images,
on luma, without a border of 4 pixels: networks trained with a discriminator invent texture, which it punishes, so that
a blurred repair can beat its teacher. Judge repairs by the former.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.io import ImageReadMode, read_image

from compressors import ChannelPruner, CompressedModel, Compressor, Distiller, Quantizer

SCALE = 4
HELD_OUT = 20
"""Images of train_lr, the last ones, that are for measuring."""


def load_network(path: Path) -> nn.Module:
    """Return the network of a file of weights, in single precision and eval mode: images 0 to 1."""
    from spandrel import ModelLoader

    state = {key: value.float() for key, value in load_file(path).items()}
    return ModelLoader().load_from_state_dict(state).model.eval()


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
    """Return the mean Y-PSNR over the pairs of images in a folder."""
    pairs = [(path, path.with_name(path.name.replace("_LR", "_HR"))) for path in sorted(folder.glob("*_LR.png"))]
    values = [psnr(luma(upscaled(model, image(low)[None])), luma(image(high)[None])) for low, high in pairs]
    return sum(values) / len(values)


class Bicubic(nn.Module):
    """Upscaling without a network."""

    def forward(self, low: Tensor) -> Tensor:
        """Map B x 3 x h x w to B x 3 x 4h x 4w."""
        return functional.interpolate(low, scale_factor=SCALE, mode="bicubic")


def main() -> None:
    """Compress, repair, measure, write a table as JSON and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file that spandrel recognises")
    parser.add_argument("--data", type=Path, default=Path("datasets/sr"), help="folder of train_lr, set5 and set14")
    parser.add_argument("--output", type=Path, default=Path("output/sr"), help="folder for the results")
    parser.add_argument("--steps", type=int, default=200, help="of repair, for each row; default 200")
    parser.add_argument("--batch", type=int, default=4, help="crops of 24 x 24 in a batch; default 4")
    parser.add_argument("--sets", nargs="*", default=["set5", "set14"], help="sets with true images; default both")
    parser.add_argument("--seed", type=int, default=2020)
    arguments = parser.parse_args()

    teacher = load_network(arguments.weights)
    images = [image(path) for path in sorted((arguments.data / "train_lr").glob("*.png"))]
    draw = Crops(images[:-HELD_OUT], 24)
    inputs = draw(2, torch.Generator().manual_seed(arguments.seed))
    (held_out,) = Crops(images[-HELD_OUT:], 40)(16, torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = teacher(held_out)
    repair = Distiller(draw, arguments.steps, seed=arguments.seed, batch_size=arguments.batch, held_out=16)
    rows: list[dict[str, Any]] = []
    arguments.output.mkdir(parents=True, exist_ok=True)

    def measure(label: str, model: nn.Module, seconds: float, compressed: CompressedModel | None) -> None:
        row = {"row": label, "seconds": round(seconds)}
        if label not in ("bicubic", "teacher"):
            with torch.no_grad():
                row["PSNR to teacher"] = round(psnr(model(held_out).clamp(0, 1), target.clamp(0, 1)), 2)
        row |= {f"Y-PSNR {name}": round(y_psnr(model, arguments.data / name), 2) for name in arguments.sets}
        if compressed is not None:
            path = arguments.output / f"{label.replace(' ', '_').replace(',', '')}.safetensors"
            compressed.save(path)
            row["kB"] = path.stat().st_size // 1000
        rows.append(row)
        print(row, flush=True)

    measure("bicubic", Bicubic(), 0, None)
    measure("teacher", teacher, 0, None)
    ways: dict[str, Compressor] = {
        "channels -10%": ChannelPruner(0.1, draw=draw),
        "channels -30%": ChannelPruner(0.3, draw=draw),
        "W4": Quantizer(4),
    }
    for label, way in ways.items():
        start = time.perf_counter()
        broken = way.compress(teacher, inputs)
        measure(label, broken.model, time.perf_counter() - start, broken)
        start = time.perf_counter()
        repaired = repair.compress(broken, inputs, teacher=teacher)
        measure(f"{label}, repaired", repaired.model, time.perf_counter() - start, repaired)
    (arguments.output / "results.json").write_text(json.dumps({"steps": arguments.steps, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
