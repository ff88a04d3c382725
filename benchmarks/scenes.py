"""A small task of image to image for searches: noisy scenes of blobs, to clean ones of other colours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 32


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, count x 3 x 32 x 32 each, -1 to 1.

    A gradient as background, one to three discs with faint stripes, noise of deviation 0.06. In the targets there is no
    noise, the colours of the background are exchanged in turn, and those of discs, which have stronger stripes and an
    outline, are inverted.
    """
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=random) * 2 - 1

    slope, level = uniform(3, 2, 1, 1) * 0.4, uniform(3, 1, 1) * 0.5
    background = level + slope[:, :, 0] * x + slope[:, :, 1] * y
    inputs, targets = background.clone(), background.roll(1, 1)
    for number in range(3):
        present = torch.rand(count, 1, 1, generator=random) < (1, 0.6, 0.3)[number]
        centre, radius = uniform(2, 1, 1) * 0.7, 0.2 + 0.15 * uniform(1, 1).abs()
        distance = ((x - centre[:, 0]).square() + (y - centre[:, 1]).square()).sqrt()
        inside, outline = (
            (present & (distance < radius))[:, None],
            (present & ((distance - radius).abs() < 0.05))[:, None],
        )
        colour = uniform(3, 1, 1) * 0.8
        stripes = torch.where((torch.arange(SIZE) // 2) % 2 == 0, 1.0, -1.0)
        inputs = torch.where(inside, colour + 0.08 * stripes, inputs)
        targets = torch.where(inside, -colour + 0.3 * stripes, targets)
        targets = torch.where(outline, -torch.ones(()), targets)
    inputs = inputs + 0.06 * torch.randn(inputs.shape, generator=random)
    return inputs.clamp(-1, 1), targets.clamp(-1, 1)


def trained_teacher(network: nn.Module, steps: int, seed: int = 0) -> nn.Module:
    """Return `network` in eval mode, trained on 1,024 scenes with the L1 loss."""
    inputs, targets = scenes(1024, seed)
    random = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (32,), generator=random)
        loss = functional.l1_loss(network.train()(inputs[chosen]), targets[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return network.eval()


def psnr(first: Tensor, second: Tensor) -> float:
    """Return the peak signal to noise ratio of images -1 to 1, in dB."""
    return float(-10 * ((first - second).square().mean() / 4).log10())
