"""The arms of sparse_gan.py: an SNGAN trained dense, sparse in several ways, or pruned by magnitude."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from device import DEVICE
from gans import GANSettings, discriminator
from torch import Tensor
from torch.nn import functional
from torch.optim import Adam
from tqdm import tqdm

from compressors.sparse import (
    BalanceConfig,
    Batches,
    DensityControl,
    DropGrow,
    ForwardCost,
    Schedule,
    SparseConfig,
    SparseTraining,
    TrainingCost,
    prune_by_magnitude,
)

DENSE = "dense"
HALF_WAY = "pruned half-way"


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

    steps: int = 1000
    density: float = 0.2
    batch: int = 32
    rate: float = 5e-4
    critic_rate: float = 2e-3
    width: int = 8
    critic: int = 16
    latent: int = 64
    low: float = 0.4
    high: float = 0.45
    average: float = 0.995
    samples: int = 2000

    def gan(self, channels: int) -> GANSettings:
        """Return the settings of the generator for images of so many channels."""
        return GANSettings("sngan", channels, self.width, self.latent)


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
        DENSE: SparseConfig.static(settings.steps, 1.0, **common),
        HALF_WAY: SparseConfig.static(settings.steps, 1.0, **common),
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

    def __init__(self, label: str, settings: Settings, images: Tensor, seed: int) -> None:
        torch.manual_seed(seed)
        gan = settings.gan(images.shape[1])
        self.label, self.settings, self.images = label, settings, images
        self.generator = gan.generator().to(DEVICE, memory_format=torch.channels_last)
        self.critic = discriminator(gan.channels, settings.critic).to(DEVICE, memory_format=torch.channels_last)
        self.generator_optimizer = Adam(self.generator.parameters(), settings.rate, betas=(0.0, 0.9))
        self.critic_optimizer = Adam(self.critic.parameters(), settings.critic_rate, betas=(0.0, 0.9))
        self.random = torch.Generator().manual_seed(seed)
        self.sparse = SparseTraining(self.generator, self.critic, arms(settings)[label])
        example = self.latents()[:1], self.real()[:1]
        networks = (ForwardCost(net, (item,)) for net, item in zip((self.generator, self.critic), example, strict=True))
        self.cost = TrainingCost(*networks, Batches(1, settings.batch, settings.batch))

    def train(self, description: str) -> list[dict[str, Any]]:
        """Train to the end; return the history, some 80 points."""
        history = []
        for step in tqdm(range(self.settings.steps), desc=description, unit="step", mininterval=1, file=sys.stderr):
            if self.label == HALF_WAY and step == self.settings.steps // 2:
                self.prune()
            record = self.step()
            if (step + 1) % max(1, self.settings.steps // 80) == 0:
                history.append(record)
        return history

    def prune(self) -> None:
        """Prune the generator by magnitude, and its average likewise."""
        assert self.sparse.average is not None
        prune_by_magnitude(self.sparse.generator_masks, self.settings.density)
        self.sparse.generator_masks.apply(self.sparse.average.module)

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
            "balance": status.balance if isfinite(status.balance) else None,
            "discriminator_loss": critic_loss.item(),
            "generator_loss": -scores.mean().item(),
        }

    def latents(self) -> Tensor:
        """Draw a batch of latents."""
        return torch.randn(self.settings.batch, self.settings.latent, generator=self.random).to(DEVICE)

    def real(self) -> Tensor:
        """Draw a batch of real images, float, -1 to 1."""
        chosen = torch.randint(len(self.images), (self.settings.batch,), generator=self.random)
        return self.images[chosen].to(DEVICE) / 127.5 - 1
