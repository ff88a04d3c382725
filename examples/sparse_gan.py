"""Train GANs sparse from the start, and compare them with one that is pruned after training, at the same density.

    python examples/sparse_gan.py --data mnist --data-root datasets --output output/sparse

trains an SNGAN with each arm and seed, and writes `results.json`, `table.md` and `sparse_gan.png` (balance ratio,
densities, losses, distance, precision and recall) and `samples.png`. Finished arms are kept in `runs`: the same command
goes on where it was interrupted. `--quick` shows in a minute or two that it works.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from data import load_images
from gans import write_whole
from sparse_arms import DENSE, Arm, Settings, arms
from sparse_report import write_report
from torch import Tensor, nn
from torchvision.utils import save_image

from compressors.report import versions
from compressors.sampling import Extractor, generated, image_batches
from compressors.sparse import MaskSet, hand_over, prune_by_magnitude, sparse_size
from torch_fidelity_lsh import calculate_metrics

EXTRACTOR = "efficientnet-lite0"
POST_HOC = "pruned at the end"


class Bench:
    """Measures generators against the same real images, from the same latents."""

    def __init__(self, settings: Settings, images: Tensor, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.extractor = Extractor(EXTRACTOR, None, device)
        self.reference = self.extractor(image_batches(images[: settings.samples], 100))

    def scores(self, generator: nn.Module, picture: Path) -> dict[str, float]:
        """Return distance, precision and recall, and write some samples."""
        images = list(generated(generator, self._latents(), (-1, 1), seed=0))
        save_image(images[0][:16].float().cpu() / 255, picture, nrow=16, padding=1)
        flags = {"fid": True, "lsh": True, "lsh_knn": True}
        cuda = self.device.type == "cuda"
        return calculate_metrics(
            input1=self.extractor(images), input2=self.reference, cuda=cuda, verbose=False, **flags
        )

    def _latents(self) -> Iterator[tuple[Tensor]]:
        random = torch.Generator().manual_seed(2020)
        for start in range(0, self.settings.samples, 100):
            count = min(100, self.settings.samples - start)
            yield (torch.randn(count, self.settings.latent, generator=random).to(self.device),)


def run(label: str, bench: Bench, images: Tensor, seed: int, folder: Path) -> None:
    """Train and measure one arm, the dense one also pruned at the end; writes a file for each result."""
    arm, started = Arm(label, bench.settings, images, seed), time.monotonic()
    outcome: dict[str, Any] = {"seed": seed, "history": arm.train(f"{label}, seed {seed}")}
    outcome["seconds"] = time.monotonic() - started
    _finish(label, arm, arm.sparse.generator_masks, bench, folder, outcome)
    if label == DENSE:
        assert arm.sparse.average is not None
        masks = MaskSet(arm.sparse.average.module)
        prune_by_magnitude(masks, bench.settings.density)
        _finish(POST_HOC, arm, masks, bench, folder, {**outcome, "history": []})


def _finish(label: str, arm: Arm, masks: MaskSet, bench: Bench, folder: Path, outcome: dict[str, Any]) -> None:
    generator = arm.sparse.finished_generator([arm.latents() for _ in range(100)])
    small = hand_over(generator, masks)
    result = {
        "arm": label,
        **outcome,
        "generator_density": masks.density,
        "size": asdict(sparse_size(small)),
        "cost": {accounting: arm.cost.share_of_dense(accounting) for accounting in arm.cost.macs},
        "scores": bench.scores(small, folder / f"{label}-{outcome['seed']}.png"),
    }
    write_whole(folder / f"{label}-{outcome['seed']}.json", json.dumps(result).encode())


def main() -> None:
    """Run what is missing and write the report."""
    arguments = _arguments()
    images = load_images(arguments.data, arguments.data_root)
    quick = {"steps": 60, "samples": 300} if arguments.quick else {}
    settings = Settings(**{"steps": arguments.steps, "density": arguments.density, **quick})
    folder: Path = arguments.output / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    configs = arms(settings)
    protocol = {
        "data": arguments.data,
        "training_images": len(images),
        **asdict(settings),
        "feature_extractor": EXTRACTOR,
        "arms": {label: asdict(config) for label, config in configs.items()},
        "versions": versions(),
    }
    _check_protocol(folder / "protocol.json", protocol)
    bench = Bench(settings, images, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for seed in range(1 if arguments.quick else arguments.seeds):
        for label in configs:
            last = POST_HOC if label == DENSE else label
            if not (folder / f"{last}-{seed}.json").is_file():
                run(label, bench, images, seed, folder)
    print(write_report(arguments.output, protocol, [*configs, POST_HOC], (POST_HOC, "static")))
    print(f"\npicture: {arguments.output / 'sparse_gan.png'}")


def _check_protocol(path: Path, protocol: dict[str, Any]) -> None:
    text = json.dumps(protocol, indent=1)
    if path.is_file() and path.read_text() != text:
        sys.exit(f"{path.parent} holds runs of other settings or versions: choose another --output, or delete it")
    write_whole(path, text.encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Settings()
    parser.add_argument("--output", type=Path, default=Path("output/sparse"), help="folder for the results")
    parser.add_argument("--data", choices=("mnist", "digits"), default="digits")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="folder of MNIST")
    parser.add_argument("--seeds", type=_count, default=3, help="trainings of each arm")
    parser.add_argument("--steps", type=_count, default=defaults.steps, help="steps of each network")
    parser.add_argument("--density", type=float, default=defaults.density, help="share of the weights that is on")
    parser.add_argument("--quick", action="store_true", help="one seed, 60 steps, 300 samples")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {text}")
    return int(text)


if __name__ == "__main__":
    main()
