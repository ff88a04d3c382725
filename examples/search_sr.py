"""Search a small network for x4 super-resolution under a budget, distil it from Real-ESRGAN, store it in 8 bits.

    pip install spandrel
    python examples/search_sr.py --teacher realesrgan-x4plus-anime.safetensors --data datasets/sr

Reads weights of Real-ESRGAN as spandrel does: the network of 6 blocks is realesrgan-x4plus-anime, that of 23 blocks,
the architecture of ESRGAN, realesrgan-x4plus. The folder of data holds train_lr/*.png to train on; set5 and set14 hold
pairs N_HR.png, N_LR.png. The teacher runs once on the crops to train on. Its outputs are kept in the folder of
results, as is all else that a killed run goes on from: the same command again, with more `--seeds` too, adds what is
missing.

Rows of the table: bicubic; the teacher; for each seed the searched network, the same in 8 bits, the network with one
width and "residual" everywhere that costs no less, and a random one in the band of the budget, all trained alike; and
with --small the network that Real-ESRGAN ships as its small one. PSNR to the teacher is over RGB, on crops of images
that training has not seen; Y-PSNR is to the true images.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from device import DEVICE
from kept import Table
from repair_sr import HELD_OUT, Bicubic, Crops, image, load_network, psnr, summary, y_psnr
from torch import nn

from compressors import CompressedModel, Quantizer
from compressors.distil.costs import Costs
from compressors.search import ArchitectureSearch, esrgan, save_report
from compressors.search.space import Genotype

CROP, LARGE = 24, 256
_NO_SETTINGS = ("data", "output", "seed", "seeds", "quick")


def main() -> None:
    """Search, train the baselines, quantize, measure; write a table as JSON and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="safetensors file that spandrel recognises")
    parser.add_argument("--small", type=Path, help="weights of a network to stand beside, such as realesr-animevideov3")
    parser.add_argument("--data", type=Path, default=Path("datasets/sr"), help="folder of train_lr, set5 and set14")
    parser.add_argument("--output", type=Path, default=Path("output/search-sr"), help="folder for the results")
    parser.add_argument("--width", type=int, default=16, help="largest width of the space; 64 is AGD's; default 16")
    parser.add_argument("--cells", type=int, default=2, help="cells of four layers; AGD has 5 of 5; default 2")
    parser.add_argument("--budget", type=float, default=7, help="10^9 multiply-accumulates at 256 x 256; default 7")
    parser.add_argument("--crops", type=int, default=256, help="crops of 24 x 24 to train on; default 256")
    parser.add_argument("--steps", type=int, default=300, help="of every network that is measured; default 300")
    parser.add_argument("--strategy", default="evolution", help='such as "trials"; default evolution')
    parser.add_argument("--search-steps", type=int, help="of the supernet; default as many as --steps")
    parser.add_argument("--trials", type=int, default=4, help="networks that are trained for 3/8 of --steps; default 4")
    parser.add_argument("--batch", type=int, default=8, help="crops in a batch; default 8")
    parser.add_argument("--seed", type=int, default=1, help="the first one; default 1")
    parser.add_argument("--seeds", type=int, default=2, help="searches; default 2")
    parser.add_argument("--sets", nargs="*", default=["set5", "set14"], help="sets with true images; default both")
    parser.add_argument("--quick", action="store_true", help="one seed, 48 crops, 20 steps, set5 alone")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(crops=48, steps=20, seeds=1, sets=["set5"])
    output = arguments.output

    teacher = load_network(arguments.teacher)
    images = [image(path) for path in sorted((arguments.data / "train_lr").glob("*.png"))]
    (crops,) = Crops(images[:-HELD_OUT], CROP)(arguments.crops, torch.Generator().manual_seed(0))
    held_out = Crops(images[-HELD_OUT:], CROP)(32, torch.Generator().manual_seed(1))[0].to(DEVICE)
    with torch.no_grad():
        target = teacher(held_out)
    space = esrgan(arguments.cells, 4, arguments.width, input_skip=True)
    # Convolutions at one size each: the cost goes with the area.
    budget = int(arguments.budget * 1e9 * CROP**2 / LARGE**2)
    # On a GPU small crops would measure how fast layers are launched.
    side = LARGE if DEVICE.type == "cuda" else CROP
    example = (torch.rand(1, 3, side, side, device=DEVICE),)
    settings = {key: value for key, value in vars(arguments).items() if key not in _NO_SETTINGS}
    settings |= {"teacher": arguments.teacher.name, "small": arguments.small and arguments.small.name}
    table = Table(output, settings)

    def measure(label: str, seed: int, model: nn.Module, stored: CompressedModel | None = None, **spent: float) -> None:
        costs = Costs.of(model, example) if label != "bicubic" else Costs(0, 0, 0, 0.0)
        size = 4 * costs.parameters
        if stored is not None:
            stored.save(output / f"{label.replace(' ', '_').replace(',', '')}-{seed}.safetensors")
            size = stored.report.after.bytes
        row: dict[str, Any] = {"parameters": costs.parameters, "MB": size / 1e6}
        row |= {"GMACs at 256 x 256": costs.macs * LARGE**2 / side**2 / 1e9}
        row |= {f"ms at {side} x {side}": 1000 * costs.seconds}
        if label != "teacher":
            with torch.no_grad():
                row["PSNR to teacher"] = psnr(model(held_out).clamp(0, 1), target.clamp(0, 1))
        row |= {f"Y-PSNR {name}": y_psnr(model, arguments.data / name) for name in arguments.sets}
        table.add(label, seed, **row, **spent)

    def train(seed: int, genotype: Genotype | None, folder: Path) -> tuple[CompressedModel, dict[str, float]]:
        folder.mkdir(exist_ok=True)
        known, shared = folder / "teacher.safetensors", output / "teacher.safetensors"
        if shared.exists() and not known.exists():
            known.hardlink_to(shared)
        start = time.process_time(), time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ArchitectureSearch(
                space,
                budget,
                crops,
                arguments.steps,
                seed,
                arguments.strategy,
                search_steps=arguments.search_steps or arguments.steps,
                trials=arguments.trials,
                population=12,
                generations=6,
                batch_size=arguments.batch,
                held_out=16,
                rate=1e-3,
                genotype=genotype,
                folder=folder,
            ).compress(teacher, (crops[:1].to(DEVICE),))
        if not shared.exists():
            shared.hardlink_to(known)
        return found, {"CPU s": time.process_time() - start[0], "s": time.perf_counter() - start[1]}

    fixed: dict[str, Any] = {"bicubic": Bicubic, "teacher": lambda: teacher}
    if arguments.small is not None:
        fixed["small Real-ESRGAN"] = lambda: load_network(arguments.small)
    for label, network in fixed.items():
        if not table.has(label, 0):
            measure(label, 0, network())
    size = (CROP, CROP)
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        if table.has("searched, 8 bits", seed):
            continue
        ways: dict[str, Genotype | None] = {
            "uniform": space.uniform_at(budget, "residual", size),
            "random": space.sample(random.Random(seed), size, (0.92 * budget, budget)),
            "searched": None,
        }
        trained = dict[str, CompressedModel]()
        for label, genotype in ways.items():
            trained[label], spent = train(seed, genotype, output / f"{label}-{seed}")
            if not table.has(label, seed):
                measure(label, seed, trained[label].model, trained[label], **spent)
        found = trained.pop("searched")
        save_report(found, teacher, example, output / f"searched-{seed}", trained)
        calibration = [(crops[:32].to(DEVICE),)]
        small = Quantizer(8, act_bits=8).compress(found, (crops[:1].to(DEVICE),), calibration=calibration)
        measure("searched, 8 bits", seed, small.model, small)
    print(summary(table.rows))


if __name__ == "__main__":
    main()
