"""A small GAN on 8 x 8 images and the user's loop around it, for the tests of sparse training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from compressors.sparse import SparseConfig, SparseTraining

LATENT = 4
NORMS = {"legacy": spectral_norm, "parametrized": parametrizations.spectral_norm, "none": lambda layer: layer}


def small_generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(LATENT, 8 * 16, bias=False),
        nn.Unflatten(1, (8, 4, 4)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 1, 3, padding=1),
        nn.Tanh(),
    )


def small_discriminator(norm: str = "parametrized") -> nn.Module:
    wrap = NORMS[norm]
    return nn.Sequential(
        wrap(nn.Conv2d(1, 6, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        wrap(nn.Conv2d(6, 12, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        wrap(nn.Linear(12 * 4, 1)),
    )


class Loop:
    """A hinge GAN; `sparse` joins it with the two calls of the documentation, or None leaves it ordinary."""

    def __init__(
        self,
        config: SparseConfig | None,
        norm: str = "parametrized",
        optimizer: Any = torch.optim.Adam,
        rate: float = 2e-3,
        seed: int = 0,
        reset: bool = False,
        wrap: Callable[[nn.Module], nn.Module] = lambda net: net,
    ) -> None:
        torch.manual_seed(seed)
        self.generator, self.discriminator = wrap(small_generator()), wrap(small_discriminator(norm))
        self.optimizers = tuple(optimizer(net.parameters(), lr=rate) for net in (self.generator, self.discriminator))
        given = self.optimizers if reset else ()
        self.sparse = SparseTraining(self.generator, self.discriminator, config, given) if config else None
        self.random = torch.Generator().manual_seed(seed)

    def real(self, count: int = 8) -> Tensor:
        return torch.randn(count, 1, 8, 8, generator=self.random).sign()

    def latents(self, count: int = 8) -> Tensor:
        return torch.randn(count, LATENT, generator=self.random)

    def step(self) -> Any:
        to_generator, to_discriminator = self.optimizers
        real, latents = self.real(), self.latents()
        with torch.no_grad():
            fake = self.generator(self.latents())
        for_real, for_fake = self.discriminator(torch.cat((real, fake))).chunk(2)
        loss = (1 - for_real).relu().mean() + (1 + for_fake).relu().mean()
        to_discriminator.zero_grad()
        loss.backward()
        to_discriminator.step()
        if self.sparse:
            self.sparse.step_discriminator(real)
        scores = self.discriminator(self.generator(latents))
        to_generator.zero_grad()
        (-scores.mean()).backward()
        to_generator.step()
        return self.sparse.step_generator(latents, scores) if self.sparse else None

    def state(self) -> dict[str, Any]:
        return {
            "networks": [net.state_dict() for net in (self.generator, self.discriminator)],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": self.random.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        for net, part in zip((self.generator, self.discriminator), state["networks"], strict=True):
            net.load_state_dict(part)
        for optimizer, part in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        self.random.set_state(state["random"])
