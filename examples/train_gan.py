"""Train a generator of the compression study, on a GPU or a CPU.

    python examples/train_gan.py --arch dcgan --data mnist --data-root datasets --output output/mnist_dcgan

writes `generator.safetensors` (the moving average of the generator), `samples.png` and `results.json`, and every now
and then `checkpoint.safetensors`, from which the same command goes on to the same result.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from data import DATA, load_images
from device import DEVICE
from gans import ARCHITECTURES, GANSettings, discriminator, save_generator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torchvision.utils import save_image
from tqdm import tqdm

from compressors.common.files import read_file, whole_file, write_file, write_json

_KIND = "training of train_gan.py"


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to train.

    Attributes:
        steps: steps of discriminator and generator, one each.
        batch: images a step.
        rate: learning rate of the generator; that of the discriminator is twice as high.
        critic: channels of the discriminator's first layer; varied images need more.
        average: decay of the moving average of the generator's weights.
        decay: let both rates fall to 0 over the second half of the steps: finer images, of small data above all.
        shift: largest random translation in pixels, of real and generated images alike; for small data sets.
        seed: seed of weights, latents and the order of images.
        checkpoint: steps between checkpoints.
        bf16: compute in bfloat16 where that is safe, which halves the time on processors made for it.
    """

    steps: int = 4000
    batch: int = 64
    rate: float = 2e-4
    critic: int = 32
    average: float = 0.998
    decay: bool = False
    shift: int = 0
    seed: int = 0
    checkpoint: int = 500
    bf16: bool = False


class Training:
    """Two networks, their optimizers and one random stream: all that a checkpoint holds."""

    def __init__(self, gan: GANSettings, settings: TrainSettings, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.gan, self.settings, self.device = gan, settings, device
        self.generator = gan.generator().to(device, memory_format=torch.channels_last)
        self.discriminator = discriminator(gan.channels, settings.critic).to(device, memory_format=torch.channels_last)
        self.average = AveragedModel(self.generator, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
        self.generator_optimizer = Adam(self.generator.parameters(), settings.rate, betas=(0.5, 0.99))
        self.discriminator_optimizer = Adam(self.discriminator.parameters(), 2 * settings.rate, betas=(0.5, 0.99))
        self.random = torch.Generator().manual_seed(settings.seed)
        self.step = 0

    def advance(self, images: Tensor) -> tuple[float, float]:
        """Take one step on `images`, uint8 N x C x 32 x 32; return the losses of discriminator and generator."""
        self._set_rates()
        chosen = images[torch.randint(len(images), (self.settings.batch,), generator=self.random)]
        real = self._augmented(chosen.to(self.device) / 127.5 - 1)
        with torch.no_grad():
            fake = self._augmented(self.generator(self.latents()))
        real_score, fake_score = self.discriminator(torch.cat((real, fake))).chunk(2)
        discriminator_loss = functional.relu(1 - real_score).mean() + functional.relu(1 + fake_score).mean()
        _descend(self.discriminator_optimizer, discriminator_loss)

        generator_loss = -self.discriminator(self._augmented(self.generator(self.latents()))).mean()
        _descend(self.generator_optimizer, generator_loss)
        self.average.update_parameters(self.generator)
        self.step += 1
        return discriminator_loss.item(), generator_loss.item()

    def _set_rates(self) -> None:
        left = 1 - self.step / self.settings.steps
        factor = min(1.0, 2 * left) if self.settings.decay else 1.0
        for optimizer, rate in ((self.generator_optimizer, 1), (self.discriminator_optimizer, 2)):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate * self.settings.rate

    def latents(self) -> Tensor:
        """Draw a batch of latents, float B x latent."""
        return torch.randn(self.settings.batch, self.gan.latent, generator=self.random).to(self.device)

    def finished_generator(self) -> nn.Module:
        """Return the averaged generator in eval mode, its batch statistics measured afresh: averages lag behind."""
        update_bn([self.latents() for _ in range(100)], self.average)
        return self.average.module.eval()

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        tensors = {f"{name}.{key}": value for name, state in self._states().items() for key, value in state.items()}
        tensors["random"] = self.random.get_state()
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_file(path, _KIND, contiguous, {"step": self.step, "settings": self._identity()})

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same settings; raises `ValueError` for a damaged one, or one of others."""
        tensors, content = read_file(path, _KIND)
        if content["settings"] != self._identity():
            raise ValueError(f"{path} belongs to other settings: choose another --output, or delete it")
        self.random.set_state(tensors.pop("random"))
        self.step = content["step"]
        for name in ("generator", "discriminator", "average"):
            getattr(self, name).load_state_dict(_under(tensors, name))
        for name in ("generator_optimizer", "discriminator_optimizer"):
            _load_optimizer(getattr(self, name), _under(tensors, name))

    def _states(self) -> dict[str, dict[str, Tensor]]:
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "generator_optimizer": _optimizer_state(self.generator_optimizer),
            "discriminator_optimizer": _optimizer_state(self.discriminator_optimizer),
        }

    def _identity(self) -> dict[str, Any]:
        steps = self.settings.steps if self.settings.decay else None  # otherwise training may go on for longer
        return {**asdict(self.gan), **asdict(self.settings), "steps": steps, "checkpoint": None}

    def _augmented(self, images: Tensor) -> Tensor:
        """Translate each image at random, repeating its border."""
        shift, size = self.settings.shift, images.shape[-1]
        if not shift:
            return images
        padded = functional.pad(images, (shift,) * 4, mode="replicate")
        offsets = torch.randint(2 * shift + 1, (2, len(images), 1), generator=self.random).to(images.device)
        rows, columns = offsets + torch.arange(size, device=images.device)
        sample = torch.arange(len(images), device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def train(training: Training, images: Tensor, checkpoint: Path) -> dict[str, float]:
    """Train to the end, writing checkpoints; return the last losses and the seconds this run took."""
    started, losses = time.monotonic(), (float("nan"), float("nan"))
    settings = training.settings
    with tqdm(total=settings.steps, initial=training.step, unit="step", mininterval=1, file=sys.stderr) as bar:
        while training.step < settings.steps:
            with torch.autocast(training.device.type, torch.bfloat16, enabled=settings.bf16):
                losses = training.advance(images)
            bar.update()
            bar.set_postfix(discriminator=f"{losses[0]:.2f}", generator=f"{losses[1]:.2f}", refresh=False)
            if training.step % settings.checkpoint == 0:
                training.save(checkpoint)
    names = ("discriminator_loss", "generator_loss", "seconds")
    return dict(zip(names, (*losses, time.monotonic() - started), strict=True))


def main() -> None:
    """Train and write the results."""
    arguments = _arguments()
    images = load_images(arguments.data, arguments.data_root)
    gan = GANSettings(arguments.arch, images.shape[1], arguments.width, arguments.latent)
    steps = 20 if arguments.quick else arguments.steps
    settings = TrainSettings(
        steps,
        arguments.batch,
        critic=arguments.critic,
        average=arguments.average,
        decay=arguments.decay,
        shift=arguments.shift,
        seed=arguments.seed,
        bf16=arguments.bf16,
    )
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)

    training = Training(gan, settings, DEVICE)
    checkpoint = output / "checkpoint.safetensors"
    if checkpoint.is_file():
        try:
            training.load(checkpoint)
        except ValueError as error:
            sys.exit(str(error))
    outcome = train(training, images, checkpoint)
    generator = training.finished_generator()
    save_generator(output / "generator.safetensors", generator, gan, arguments.data)
    with torch.no_grad(), whole_file(output / "samples.png") as temporary:
        save_image(generator(training.latents())[:64], temporary, normalize=True, value_range=(-1, 1))
    parameters = sum(p.numel() for p in generator.parameters())
    results = {"data": arguments.data, "images": len(images), **asdict(gan), **asdict(settings), **outcome}
    write_json(output / "results.json", {**results, "parameters": parameters})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults, gan = TrainSettings(), GANSettings()
    parser.add_argument("--arch", choices=ARCHITECTURES, default=gan.arch)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="folder of MNIST and emoji")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--width", type=int, default=gan.width, help="channels of the last hidden layer")
    parser.add_argument("--latent", type=int, default=gan.latent, help="length of the latent vector")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument(
        "--critic", type=int, default=defaults.critic, help="channels of the discriminator's first layer"
    )
    parser.add_argument("--average", type=float, default=defaults.average, help="decay of the average of the weights")
    parser.add_argument(
        "--decay", action="store_true", help="let the rates fall to 0 over the second half of the steps"
    )
    parser.add_argument("--shift", type=int, default=defaults.shift, help="largest random translation, in pixels")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--bf16", action="store_true", help="mixed precision: quicker on recent processors")
    parser.add_argument("--quick", action="store_true", help="20 steps, to see that it works")
    return parser.parse_args()


def _descend(optimizer: Adam, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _optimizer_state(optimizer: Adam) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def _load_optimizer(optimizer: Adam, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


if __name__ == "__main__":
    main()
