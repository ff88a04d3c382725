"""The networks of SNGAN for 32 x 32 images (Miyato et al. 2018, table 4), for numbers that are known of them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class UpBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.interpolate(self.bn1(x).relu(), scale_factor=2))
        return self.conv2(self.bn2(h).relu()) + self.shortcut(functional.interpolate(x, scale_factor=2))


class SNGAN32Generator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 16 * width)
        self.blocks = nn.Sequential(*(UpBlock(width) for _ in range(3)))
        self.bn, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(self.bn(self.blocks(self.linear(z).view(len(z), -1, 4, 4))).relu()).tanh()


class DownBlock(nn.Module):
    def __init__(self, width_in: int, width: int, shortcut: bool, down: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width_in, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width_in, width, 1) if shortcut else nn.Identity()
        self.down = nn.AvgPool2d(2) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.conv2(self.conv1(x.relu()).relu())) + self.down(self.shortcut(x))


class SNGAN32Discriminator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        plan = ((3, True, True), (width, True, True), (width, False, False), (width, False, False))
        self.blocks = nn.Sequential(*(DownBlock(width_in, width, *rest) for width_in, *rest in plan))
        self.linear = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(x).relu().sum((2, 3)))
