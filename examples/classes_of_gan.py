"""Which eye colours does a conditional GAN lose when its weights are quantized? A table by class, and a report.

    python examples/classes_of_gan.py --weights eye-cdcgan-128.safetensors --output output/classes

The generator is a conditional DCGAN of eyes that others trained (package omniart_eye_generator). Samples of the
uncompressed generator are the reference; the latents of both sides differ. No data are needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from models import eye_dcgan, load_dcgan
from torch import nn

from compressors import Quantizer
from compressors.common.files import whole_file, write_json
from torch_fidelity_lsh import ByClass, calculate_by_class
from torch_fidelity_lsh.report.metrics import write_report

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS, LATENT, BATCH = 8, 100, 50
CALL = {"feature_extractor": "efficientnet-lite0", "cuda": False, "save_cpu_ram": True}


def main() -> None:
    """Sample, measure by class, write results.json, the files of samples, report.html and classes.png."""
    arguments = _arguments()
    folder, count = arguments.output, 50 if arguments.quick else arguments.samples
    folder.mkdir(parents=True, exist_ok=True)
    generator = load_dcgan(arguments.weights, eye_dcgan())
    example = (torch.randn(4, LATENT, generator=torch.Generator().manual_seed(0)), torch.eye(COLOURS)[:4])
    quantized = Quantizer(arguments.bits).compress(generator, example).model
    paths = {}
    for name, model, seed in (("float", generator, 1), ("held out", generator, 2), ("quantized", quantized, 3)):
        paths[name] = str(folder / f"{name}.npz")
        images, labels = _samples(model, count, arguments.seed + seed)
        np.savez(paths[name], images, labels)
    results: dict[str, ByClass] = {}
    for name in ("held out", "quantized"):
        results[name] = calculate_by_class(input1=paths[name], input2=paths["float"], **CALL)
        print(f"{name}: {results[name]}\n")
    sides = {"input1": paths["quantized"], "input2": paths["float"]}
    write_report(folder / "report.html", **sides, lsh_knn=True, fid=True, by_class=True, **CALL)
    protocol = {"samples of a class": count, "bits": arguments.bits, "seed": arguments.seed, **CALL}
    found = {name: result.to_dict() for name, result in results.items()}
    write_json(folder / "results.json", {"protocol": protocol, **found})
    draw(folder, found, arguments.bits)
    print(f"Picture: {folder / 'classes.png'}")


def draw(folder: Path, found: dict[str, dict[str, Any]], bits: int) -> None:
    """Draw samples of each class, and the intervals of its precision and recall."""
    names = {"float": "uncompressed", "quantized": f"{bits} bits"}
    figure = plt.figure(figsize=(12, 6.5), layout="constrained")
    *strips, numbers = figure.subfigures(1, 3, width_ratios=[1, 1, 1.3])
    for strip, (name, title) in zip(strips, names.items(), strict=True):
        with np.load(folder / f"{name}.npz") as file:
            images, labels = file["arr_0"], file["arr_1"]
        strip.suptitle(title)
        for label, row in enumerate(strip.subplots(COLOURS, 4)):
            for cell, image in zip(row, images[labels == label], strict=False):
                cell.imshow(image)
                cell.set(xticks=[], yticks=[])
            row[0].set_ylabel(label, rotation=0, va="center", labelpad=10)
    precision, recall = numbers.subplots(1, 2, sharey=True)
    for axes, number in ((precision, "precision"), (recall, "recall")):
        key = f"lsh_knn_{number}"
        for name, title, shift in (("held out", "other latents", -0.12), ("quantized", names["quantized"], 0.12)):
            rows = found[name]["classes"]
            values = np.array([[row[key], row[f"{key}_ci_low"], min(1.0, row[f"{key}_ci_high"])] for row in rows]).T
            bars = values[0] - values[1], values[2] - values[0]
            axes.errorbar(values[0], np.arange(len(rows)) + shift, xerr=bars, fmt="o", capsize=2, label=title)
        axes.set(xlim=(0, 1.05), title=number, xlabel="95 % intervals", yticks=range(COLOURS))
        axes.grid(alpha=0.3)
    precision.invert_yaxis()
    numbers.legend(*precision.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    with whole_file(folder / "classes.png") as temporary:
        figure.savefig(temporary, dpi=90)


@torch.no_grad()
def _samples(model: nn.Module, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 N x 128 x 128 x 3, and their classes, `count` of each."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.arange(COLOURS).repeat_interleave(count)
    parts = []
    for labels in classes.split(BATCH):
        z = torch.randn(len(labels), LATENT, generator=random)
        images = model(z, torch.eye(COLOURS)[labels])
        parts.append(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(parts).numpy(), classes.numpy()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="eye-cdcgan-128.safetensors")
    parser.add_argument("--bits", type=int, default=3, help="bits of a weight (default: 3)")
    parser.add_argument("--samples", type=int, default=300, help="samples of a class (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the latents (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("output/classes"), help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="50 samples of a class, in two minutes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
