"""Which eye colours does a conditional GAN lose when its weights are quantized? A table by class, and a report.

    python examples/classes_of_gan.py --weights eye-cdcgan-128.safetensors --output output/classes

The generator is a conditional DCGAN of eyes that others trained (package omniart_eye_generator). Samples of the
uncompressed generator are the reference; the latents of both sides differ. No data are needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from models import eye_dcgan, load_dcgan
from torch import nn

from compressors import Quantizer
from compressors.common.files import write_json
from torch_fidelity_lsh import ByClass, calculate_by_class
from torch_fidelity_lsh.report.metrics import write_report

COLOURS, LATENT, BATCH = 8, 100, 50
CALL = {"feature_extractor": "efficientnet-lite0", "cuda": False, "save_cpu_ram": True}


def main() -> None:
    """Sample, measure by class, write results.json, the files of samples and report.html."""
    arguments = _arguments()
    folder, count = arguments.output, 50 if arguments.quick else arguments.samples
    folder.mkdir(parents=True, exist_ok=True)
    generator = load_dcgan(arguments.weights, eye_dcgan())
    example = (torch.randn(4, LATENT, generator=torch.Generator().manual_seed(0)), torch.eye(COLOURS)[:4])
    quantized = Quantizer(arguments.bits).compress(generator, example).model
    paths = {}
    for name, model, seed in (("float", generator, 1), ("held out", generator, 2), ("quantized", quantized, 3)):
        paths[name] = str(folder / f"{name}.npz")
        images, labels = _samples(model, count, seed)
        np.savez(paths[name], images, labels)
    results: dict[str, ByClass] = {}
    for name in ("held out", "quantized"):
        results[name] = calculate_by_class(input1=paths[name], input2=paths["float"], **CALL)
        print(f"{name}: {results[name]}\n")
    sides = {"input1": paths["quantized"], "input2": paths["float"]}
    write_report(folder / "report.html", **sides, lsh_knn=True, fid=True, by_class=True, **CALL)
    protocol = {"samples of a class": count, "bits": arguments.bits, **CALL}
    found = {name: result.to_dict() for name, result in results.items()}
    write_json(folder / "results.json", {"protocol": protocol, **found})


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
    parser.add_argument("--output", type=Path, default=Path("output/classes"), help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="50 samples of a class, in two minutes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
