"""Watch quality and diversity of a small GAN, epoch by epoch, while it trains.

    python examples/monitor_training.py --output DIR [--data digits|mnist|emoji] [--data-root ROOT] [--quick]

The metric keeps the real images between epochs, so that each epoch pays for its generated samples only, which are of
the same latents every time (`TrainingMonitor`). Writes
``results.json`` and ``curves.png``. Features are those of EfficientNet-Lite0, whose weights need no download.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib
import torch
from data import DATA, load_images
from device import DEVICE
from gans import GANSettings
from tqdm import tqdm
from train_gan import Training, TrainSettings

from compressors.common.files import whole_file, write_json
from compressors.common.generation import drawn, image_batches, to_images
from torch_fidelity_lsh.streaming import LSHPrecisionRecall
from torch_fidelity_lsh.training import TrainingMonitor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH = 64


def main() -> None:
    """Train, measuring after every epoch."""
    arguments = _arguments()
    epochs, steps = (2, 10) if arguments.quick else (arguments.epochs, arguments.steps)
    samples = 200 if arguments.quick else arguments.samples
    try:
        images = load_images(arguments.data, arguments.data_root)
    except FileNotFoundError as error:
        sys.exit(str(error))
    training = Training(GANSettings(channels=images.shape[1]), TrainSettings(epochs * steps, BATCH), DEVICE)

    metric = LSHPrecisionRecall("efficientnet-lite0", metrics=("lsh", "lsh_knn"), reset_real_features=False).to(DEVICE)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:samples]

    def sample(n: int, random: torch.Generator) -> torch.Tensor:
        return to_images(training.average.module(*drawn(training.gan.draw, n, random, DEVICE)), (-1, 1))

    real = image_batches(images[chosen], BATCH)
    monitor = TrainingMonitor(metric, real, sample, samples=samples, batch_size=BATCH, prefix="")
    history = []
    for epoch in tqdm(range(1, epochs + 1), desc="Epochs", unit="epoch", file=sys.stderr):
        for _ in range(steps):
            training.advance(images)
        training.finished_generator()  # measures the batch statistics of the average
        metric_values = monitor(training.step)
        history.append({"epoch": epoch, "step": training.step, **metric_values})
        tqdm.write(f"epoch {epoch}: " + ", ".join(f"{k} {v:.2f}" for k, v in metric_values.items()), file=sys.stderr)

    arguments.output.mkdir(parents=True, exist_ok=True)
    protocol = {
        "data": arguments.data,
        "samples": samples,
        "steps_per_epoch": steps,
        "batch": BATCH,
        "quick": arguments.quick,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch-fidelity-lsh", "torch", "torchmetrics")},
    }
    results = {"protocol": protocol, "results": history}
    write_json(arguments.output / "results.json", results)
    draw(history, arguments.output / "curves.png")


def draw(history: list[dict[str, float]], path: Path) -> None:
    """Draw precision and recall over the steps."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, metric in zip(panels, ("lsh", "lsh_knn"), strict=True):
        for side in ("precision", "recall"):
            panel.plot([row["step"] for row in history], [row[f"{metric}_{side}"] for row in history], label=side)
        panel.set(title=metric, xlabel="step", ylim=(-0.02, 1.02))
        panel.grid(alpha=0.3)
    panels[0].legend()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="folder of MNIST and emoji")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50, help="of an epoch")
    parser.add_argument("--samples", type=int, default=1000, help="real and generated ones that are compared")
    parser.add_argument("--quick", action="store_true", help="2 epochs of 10 steps, to see that it works")
    return parser.parse_args()


if __name__ == "__main__":
    main()
