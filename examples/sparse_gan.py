"""Train GANs sparse from the start, and compare them with one that is pruned after training, at the same density.

    python examples/sparse_gan.py --data mnist --data-root datasets --output output/sparse

trains an SNGAN with each arm and seed, and writes `results.json`, `table.md`, `sparse_gan.png` (balance ratio,
densities, losses, distance, precision and recall) and `samples.png`. Finished trainings are kept in `runs`, with their
generators, what these generate in `samples`, as features and as a picture, and measurements in `scores`: the same
command goes on where it was interrupted, and measures again what is deleted from `scores`. `--quick` shows in a minute
or two that it works.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from data import DATA, load_images
from device import DEVICE
from sparse_arms import DENSE, Arm, Settings, arms
from sparse_report import write_report
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

from compressors import CompressedModel, CompressionError
from compressors.common.files import whole_file, write_json
from compressors.common.generation import drawn_batches, generated
from compressors.common.text import versions
from compressors.sparse import MaskSet, hand_over, prune_by_magnitude
from compressors.study import StudySettings, extract_features
from compressors.study.cache import read_features, write_features
from torch_fidelity_lsh import Comparison, calculate_metrics, compare

EXTRACTOR = "efficientnet-lite0"
METRICS = ("lsh", "lsh_knn")
POST_HOC = "pruned at the end"
BASELINES = (DENSE, "static", POST_HOC)
SAME_TRAINING = {DENSE, POST_HOC}  # of which the samples correspond


class Bench:
    """Measures generators against the same real images, from the same latents."""

    def __init__(self, settings: Settings, images: Tensor, folder: Path, baselines: Sequence[str]) -> None:
        self.gan, self.folder, self.baselines = settings.gan(images.shape[1]), folder, baselines
        self.settings = StudySettings(
            samples=settings.samples, output_range=(-1, 1), feature_extractor=EXTRACTOR, batch_size=100
        )
        self.reference = extract_features(images[: settings.samples], self.settings, DEVICE)

    def measure(self, label: str, seed: int) -> None:
        """Write distance, precision and recall of a kept generator, and how it differs from the baselines."""
        path = self.folder / "scores" / f"{label}-{seed}.json"
        if path.is_file():
            return
        features = self.features(label, seed)
        scores = calculate_metrics(
            input1=features, input2=self.reference, fid=True, **dict.fromkeys(METRICS, True), verbose=False
        )
        differences = {}
        for name in self.baselines:
            if name != label:
                sets, paired = (features, self.features(name, seed), self.reference), {label, name} == SAME_TRAINING
                differences[name] = _numbers(compare(*sets, metric=metric, paired=paired) for metric in METRICS)
        write_json(path, {**scores, "differences": differences})

    def features(self, label: str, seed: int) -> Tensor:
        """Return the features of a kept generator's samples; at first these are extracted, and a picture is written."""
        path = self.folder / "samples" / f"{label}-{seed}.safetensors"
        kept = read_features(path)
        if kept is not None:
            return kept
        generator = self.folder / "runs" / path.name
        model = CompressedModel.load(generator, self.gan.generator).model.to(DEVICE)
        latents = drawn_batches(self.gan.draw, self.settings.samples, 100, self.settings.seed, DEVICE)
        images = torch.cat([*generated(model, latents, self.settings.output_range, self.settings.seed)])
        with whole_file(path.with_suffix(".png")) as temporary:
            save_image(images[:16].float().cpu() / 255, temporary, nrow=16, padding=1)
        return write_features(path, extract_features(images, self.settings, DEVICE))


def _numbers(comparisons: Iterable[Comparison]) -> dict[str, Any]:
    """Return differences by score, such as "lsh_precision"."""
    return {
        f"{comparison.metric}_{name}": {"value": found.value, "interval": found.interval, "word": found.word}
        for comparison in comparisons
        for name, found in (("precision", comparison.precision), ("recall", comparison.recall))
    }


def train(label: str, settings: Settings, images: Tensor, seed: int, folder: Path) -> None:
    """Train one arm and keep its generator, that of the dense arm also pruned at the end."""
    arm, started = Arm(label, settings, images, seed), time.monotonic()
    outcome: dict[str, Any] = {"seed": seed, "history": arm.train(f"{label}, seed {seed}")}
    outcome["seconds"] = time.monotonic() - started
    _keep(label, arm, arm.sparse.generator_masks, folder, outcome)
    if label == DENSE:
        assert arm.sparse.average is not None
        masks = MaskSet(arm.sparse.average.module)
        prune_by_magnitude(masks, settings.density)
        _keep(POST_HOC, arm, masks, folder, {**outcome, "history": []})


def _keep(label: str, arm: Arm, masks: MaskSet, folder: Path, outcome: dict[str, Any]) -> None:
    latents = [arm.latents() for _ in range(100)]
    small = hand_over(arm.sparse.finished_generator(latents), (latents[0][:1],), masks)
    result = {
        "arm": label,
        **outcome,
        "generator_density": masks.density,
        "size": {"dense_bytes": small.report.before.bytes, "sparse_bytes": small.report.after.bytes},
        "cost": {accounting: arm.cost.share_of_dense(accounting) for accounting in arm.cost.macs},
    }
    name = f"{label}-{outcome['seed']}"
    small.save(folder / f"{name}.safetensors")
    write_json(folder / f"{name}.json", result)


def main() -> None:
    """Run what is missing and write the report."""
    arguments = _arguments()
    images = load_images(arguments.data, arguments.data_root)
    quick = {"steps": 60, "samples": 300} if arguments.quick else {}
    width = {"width": arguments.width, "critic": 2 * arguments.width}
    settings = Settings(**{"steps": arguments.steps, "density": arguments.density, **width, **quick})
    runs, *others = (arguments.output / name for name in ("runs", "samples", "scores"))
    for folder in (runs, *others):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        configs = {label: arm for label, arm in arms(settings).items() if label in (arguments.arms or [label])}
    except CompressionError as error:
        sys.exit(f"--density {settings.density}: {error}")
    labels = [*configs, *([POST_HOC] if DENSE in configs else [])]
    protocol = {
        "data": arguments.data,
        "training_images": len(images),
        **asdict(settings),
        "feature_extractor": EXTRACTOR,
        "arms": {label: asdict(config) for label, config in configs.items()},
        "versions": versions(),
    }
    _check_protocol(runs / "protocol.json", protocol)
    seeds, baselines = range(1 if arguments.quick else arguments.seeds), [name for name in BASELINES if name in labels]
    for seed, label in product(seeds, configs):
        last = POST_HOC if label == DENSE else label
        if not (runs / f"{last}-{seed}.json").is_file():
            train(label, settings, images, seed, runs)
    bench = Bench(settings, images, arguments.output, baselines)
    for seed, label in tqdm([*product(seeds, labels)], desc="measuring", unit="generator", file=sys.stderr):
        bench.measure(label, seed)
    print(write_report(arguments.output, protocol, labels, baselines))
    print(f"\npicture: {arguments.output / 'sparse_gan.png'}")


def _check_protocol(path: Path, protocol: dict[str, Any]) -> None:
    if path.is_file() and json.loads(path.read_text()) != json.loads(json.dumps(protocol)):
        sys.exit(f"{path.parent} holds runs of other settings or versions: choose another --output, or delete it")
    write_json(path, protocol)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Settings()
    parser.add_argument("--output", type=Path, default=Path("output/sparse"), help="folder for the results")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="folder of MNIST and emoji")
    parser.add_argument("--arms", nargs="+", choices=tuple(arms(defaults)), help="those to train; default: all")
    parser.add_argument("--seeds", type=_count, default=3, help="trainings of each arm")
    parser.add_argument("--steps", type=_count, default=defaults.steps, help="steps of each network")
    parser.add_argument("--density", type=float, default=defaults.density, help="share of the weights that is on")
    parser.add_argument(
        "--width",
        type=_count,
        default=defaults.width,
        help="channels before the image; the discriminator begins with twice",
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 60 steps, 300 samples")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {text}")
    return int(text)


if __name__ == "__main__":
    main()
