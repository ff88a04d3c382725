"""Generative models as inputs."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.datasets import FULLY
from torch_fidelity_lsh.fidelity.images import check_image
from torch_fidelity_lsh.metric.files import digest_of
from torch_fidelity_lsh.metric.messages import did_you_mean, first_line

_DEPENDS_ON_MODE = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)


class GeneratorSamples:
    """Samples of a generative model, which hang together by one random state: they are drawn in one process."""

    is_divisible = False

    def __init__(self, argument: str, model: Any, origin: str, call: Mapping[str, Any]) -> None:
        self.argument = argument
        self._model, self._origin, self._call = model, origin, call
        self._count = call[f"{argument}_model_num_samples"]
        self._only_rgb = False
        self._begun: Iterator[torch.Tensor] | None = None
        self._first: torch.Tensor | None = None
        _check_count(self._count, f"{argument}_model_num_samples", "number of samples to draw from the generator", 1)
        _check_count(model.z_size, f"z_size of {argument}", "dimension of the generator's noise", 1)
        _check_count(model.num_classes, f"num_classes of {argument}", "number of the generator's classes", 0)
        if model.z_type not in upstream.NOISE_SOURCE_REGISTRY:
            known = upstream.NOISE_SOURCE_REGISTRY
            hint = did_you_mean(str(model.z_type), known)
            raise ValueError(f"z_type of {argument} must be one of {', '.join(known)}; got {model.z_type!r}{hint}")
        if model.training and any(isinstance(module, _DEPENDS_ON_MODE) for module in model.modules()):
            warnings.warn(
                f"{argument}: the generator is in training mode, where batch normalization or dropout makes samples "
                "depend on their batch; call .eval() on it",
                stacklevel=2,
            )

    def count(self) -> int:
        """Return the number of samples to draw."""
        return int(self._count)

    def look(self, only_rgb: bool) -> None:
        """Draw the first batch."""
        # Kept, not drawn again: a model may have a state of its own.
        self._only_rgb = only_rgb
        drawn = self._drawn()
        self._first = next(drawn)
        self._begun = itertools.chain([self._first], drawn)

    def identity(self, items: int) -> str:
        """Return class and settings of the model, with a digest of weights and first batch where items are many."""
        settings = {name: getattr(self._model, name) for name in ("z_size", "z_type", "num_classes")}
        settings |= {"count": self._count, "seed": self._call["rng_seed"], "batch_size": self._call["batch_size"]}
        text = f"generative model {type(self._model).__qualname__}, {settings}"
        if items < FULLY:  # Only the first rank's is drawn from.
            return text
        weights = digest_of({name: value for name, value in self._model.state_dict().items() if torch.is_tensor(value)})
        drawn = digest_of({} if self._first is None else {"first": self._first})
        return f"{text}, {hashlib.sha256((self._origin + weights + drawn).encode()).hexdigest()[:16]}"

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[torch.Tensor]:
        """Yield all batches on the first rank, none on others."""
        if rank != 0:
            return iter(())
        begun, self._begun = self._begun or self._drawn(), None
        return begun

    def labels(self) -> torch.Tensor | None:
        """Return the classes that samples are asked for, in their order; `None` of a model without classes."""
        if self._model.num_classes == 0:
            return None
        return torch.cat([labels for _, labels in self._arguments()])

    def _arguments(self) -> Iterator[list[torch.Tensor]]:
        """Yield noise, and classes if the model has any, batch by batch, as torch-fidelity draws them."""
        model, rng = self._model, np.random.RandomState(self._call["rng_seed"])
        for start in range(0, self._count, self._call["batch_size"]):
            number = min(self._call["batch_size"], self._count - start)
            arguments = [upstream.NOISE_SOURCE_REGISTRY[model.z_type](rng, (number, model.z_size))]
            if model.num_classes > 0:
                labels = rng.randint(low=0, high=model.num_classes, size=(number,), dtype=np.int64)
                arguments.append(torch.from_numpy(labels))
            yield arguments

    def _drawn(self) -> Iterator[torch.Tensor]:
        cuda = self._call["cuda"]
        if cuda:
            self._model.cuda()
        for arguments in self._arguments():
            number = len(arguments[0])
            if cuda:
                arguments = [argument.cuda(non_blocking=True) for argument in arguments]
            yield self._sample(arguments, number)

    def _sample(self, arguments: list[torch.Tensor], number: int) -> torch.Tensor:
        try:
            with torch.no_grad():
                samples = self._model(*arguments)
        except Exception as error:
            given = " and ".join(str(tuple(argument.shape)) for argument in arguments)
            raise ValueError(
                f"{self.argument}: the generator failed on noise{' and labels' if len(arguments) > 1 else ''} of shape "
                f"{given}: {type(error).__name__}: {error}"
            ) from error
        what = f"{self.argument}: the generator must return a batch of images, uint8, N x 3 x H x W"
        if not isinstance(samples, torch.Tensor):
            raise ValueError(f"{what}; got {type(samples).__name__}")
        if samples.ndim < 2 or len(samples) != number:
            raise ValueError(f"{what}; got shape {tuple(samples.shape)} for {number} rows of noise")
        if self._only_rgb:
            check_image(samples[0], f"{what}; got")
        return samples


def read_model(argument: str, path: str, call: Mapping[str, Any]) -> Any:
    """Read a generative model from a file.

    Args:
        argument: Name of the keyword that gave the path.
        path: File that ends in ``.onnx`` or ``.pth``.
        call: Complete keywords of the call.

    Raises:
        ValueError: The file is damaged or of another kind, or the dimension of the noise is not given.
        ImportError: The package that reads the file is not installed.
    """
    size, classes = call[f"{argument}_model_z_size"], call[f"{argument}_model_num_classes"]
    _check_count(size, f"{argument}_model_z_size", "dimension of the generator's noise", 1)
    try:
        return upstream.read_model(path, size, call[f"{argument}_model_z_type"], classes)
    except ImportError as error:
        raise ImportError(f'{argument}: "{path}" needs onnxruntime ({error}): pip install onnxruntime') from error
    except Exception as error:  # The parsers raise what they like on damaged files.
        kind = "an ONNX model" if path.endswith(".onnx") else "a TorchScript model, as torch.jit.save writes it"
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f'{argument}: "{path}" cannot be read as a generator, {kind} ({reason})') from error


def _check_count(value: Any, name: str, what: str, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}, the {what}, must be an integer of at least {least}; got {value!r}")
