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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from data import load_images
from gans import GANSettings, discriminator, write_whole
from sparse_report import write_report
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from torchvision.utils import save_image
from tqdm import tqdm

from compressors.report import versions
from compressors.sampling import Extractor, generated, image_batches
from compressors.sparse import (
    BalanceConfig,
    Batches,
    DensityControl,
    DropGrow,
    ForwardCost,
    MaskSet,
    Schedule,
    SparseConfig,
    SparseTraining,
    TrainingCost,
    hand_over,
    prune_by_magnitude,
    sparse_size,
)
from torch_fidelity_lsh import calculate_metrics

EXTRACTOR = "efficientnet-lite0"
POST_HOC = "post-hoc"


@dataclass(frozen=True)
class Settings:
    """How all arms are trained and measured.

    Attributes:
        steps: steps of discriminator and generator, one each.
        density: of both networks at the start, and of the generator that is pruned after training.
        batch: images a step.
        rate: learning rate of the generator.
        critic_rate: learning rate of the discriminator.
        width: channels of the generator's layer before the image.
        critic: channels of the discriminator's first layer.
        latent: length of a latent vector.
        low: balance ratio below which the discriminator is too strong.
        high: balance ratio above which it is too weak.
        average: decay of the moving average of the generator.
        samples: images a side for the metrics.
    """

    steps: int = 1600
    density: float = 0.2
    batch: int = 32
    rate: float = 5e-4
    critic_rate: float = 2e-3
    width: int = 8
    critic: int = 16
    latent: int = 64
    low: float = 0.5
    high: float = 0.6
    average: float = 0.995
    samples: int = 2000


def arms(settings: Settings) -> dict[str, SparseConfig]:
    """Return the settings of each arm: those of the paper, intervals scaled to the number of steps."""
    interval = max(1, settings.steps // 40)
    common: dict[str, Any] = {
        "balance": BalanceConfig(every=1, window=interval),
        "average": settings.average,
    }
    topology = DropGrow(interval)
    control: dict[str, Any] = {"low": settings.low, "high": settings.high, "warm_up": settings.steps // 4}
    relaxed = DensityControl(interval=interval, **control)
    slow = DensityControl(interval=2 * interval, **control)
    strict = DensityControl(interval=2 * interval, cap=0.5, exchange=Schedule(), **control)
    given = settings.steps, settings.density
    return {
        "dense": SparseConfig.static(settings.steps, 1.0, **common),
        "static": SparseConfig.static(*given, **common),
        "static, dense D": SparseConfig.static(*given, discriminator_density=1.0, **common),
        "SDST": SparseConfig.sdst(*given, generator_topology=topology, **common),
        "DDA": SparseConfig.dda(*given, density_control=slow, **common),
        "ADAPT relaxed": SparseConfig.adapt_relaxed(
            *given, generator_topology=topology, density_control=relaxed, **common
        ),
        "ADAPT strict": SparseConfig.adapt_strict(
            *given, generator_topology=topology, density_control=strict, **common
        ),
    }


class Arm:
    """One training: networks, optimizers, and what keeps them sparse."""

    def __init__(self, config: SparseConfig, settings: Settings, images: Tensor, seed: int) -> None:
        torch.manual_seed(seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        gan = GANSettings("sngan", images.shape[1], settings.width, settings.latent)
        self.settings, self.images, self.device = settings, images, device
        self.generator = gan.generator().to(device, memory_format=torch.channels_last)
        self.critic = discriminator(gan.channels, settings.critic).to(device, memory_format=torch.channels_last)
        self.generator_optimizer = Adam(self.generator.parameters(), settings.rate, betas=(0.0, 0.9))
        self.critic_optimizer = Adam(self.critic.parameters(), settings.critic_rate, betas=(0.0, 0.9))
        self.random = torch.Generator().manual_seed(seed)
        self.sparse = SparseTraining(self.generator, self.critic, config)
        example = self.latents()[:1], self.real()[:1]
        networks = (ForwardCost(net, (item,)) for net, item in zip((self.generator, self.critic), example, strict=True))
        self.cost = TrainingCost(*networks, Batches(1, settings.batch, settings.batch))

    def train(self, label: str) -> list[dict[str, Any]]:
        """Train to the end; return the history, 80 points."""
        history = []
        for step in tqdm(range(self.settings.steps), desc=label, unit="step", mininterval=1, file=sys.stderr):
            record = self.step()
            if (step + 1) % max(1, self.settings.steps // 80) == 0:
                history.append(record)
        return history

    def step(self) -> dict[str, Any]:
        """Take a step of both networks; return the status and the losses."""
        self.cost.add(self.sparse.generator_masks, self.sparse.discriminator_masks)
        real = self.real()
        with torch.no_grad():
            fake = self.generator(self.latents())
        real_score, fake_score = self.critic(torch.cat((real, fake))).chunk(2)
        critic_loss = functional.relu(1 - real_score).mean() + functional.relu(1 + fake_score).mean()
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        self.sparse.step_discriminator(real)

        latents = self.latents()
        scores = self.critic(self.generator(latents))
        self.generator_optimizer.zero_grad()
        (-scores.mean()).backward()
        self.generator_optimizer.step()
        status = self.sparse.step_generator(latents, scores)
        return {
            **asdict(status),
            "discriminator_loss": critic_loss.item(),
            "generator_loss": -scores.mean().item(),
        }

    def latents(self) -> Tensor:
        """Draw a batch of latents."""
        return torch.randn(self.settings.batch, self.settings.latent, generator=self.random).to(self.device)

    def real(self) -> Tensor:
        """Draw a batch of real images, float, -1 to 1."""
        chosen = torch.randint(len(self.images), (self.settings.batch,), generator=self.random)
        return self.images[chosen].to(self.device) / 127.5 - 1


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


def run(label: str, config: SparseConfig, bench: Bench, images: Tensor, seed: int, folder: Path) -> None:
    """Train and measure one arm; a dense one also after pruning. Writes a file for each result."""
    arm, started = Arm(config, bench.settings, images, seed), time.monotonic()
    history = arm.train(f"{label}, seed {seed}")
    common = {"seed": seed, "seconds": time.monotonic() - started}
    _finish(label, arm, arm.sparse.generator_masks, bench, folder, {**common, "history": history})
    if label == "dense":
        assert arm.sparse.average is not None
        masks = MaskSet(arm.sparse.average.module)
        prune_by_magnitude(masks, bench.settings.density)
        _finish(POST_HOC, arm, masks, bench, folder, {**common, "history": []})


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
        for label, config in configs.items():
            last = POST_HOC if label == "dense" else label
            if not (folder / f"{last}-{seed}.json").is_file():
                run(label, config, bench, images, seed, folder)
    print(write_report(arguments.output, protocol, [*configs, POST_HOC]))


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
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each arm")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="steps of each network")
    parser.add_argument("--density", type=float, default=defaults.density, help="share of the weights that is on")
    parser.add_argument("--quick", action="store_true", help="one seed, 60 steps, 300 samples")
    return parser.parse_args()


if __name__ == "__main__":
    main()
