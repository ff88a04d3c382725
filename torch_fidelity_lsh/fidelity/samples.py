"""Inputs that features are extracted from: what kind each is, found out before anything slow starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.datasets import DatasetSamples, GoneSamples, RegisteredSamples, open_folder
from torch_fidelity_lsh.fidelity.generators import GeneratorSamples, read_model
from torch_fidelity_lsh.fidelity.image_arrays import ImageArraySamples, images_in
from torch_fidelity_lsh.metric.files import digest_of_file


class Samples(Protocol):
    """An input that features are extracted from."""

    argument: str
    is_divisible: bool
    """Whether ranks can take a part each."""

    def count(self) -> int | None:
        """Return the number of samples, `None` if that is not known yet."""
        ...

    def look(self, only_rgb: bool) -> None:
        """Look at the first sample; of a generative model, draw the first batch.

        Args:
            only_rgb: Whether images must be uint8 with 3 channels, as torch-fidelity's own extractors demand.

        Raises:
            ValueError: It is of no use.
        """
        ...

    def identity(self, items: int) -> str:
        """Return what tells these samples from others, having read up to so many of them."""
        ...

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[torch.Tensor]:
        """Yield one of ``size`` shares of the batches, those that one process would make."""
        ...


def open_samples(side: int, call: Mapping[str, Any]) -> Samples:
    """Open ``input1`` or ``input2``, which is not ready features.

    Args:
        side: 1 or 2.
        call: Complete keywords of the call.

    Raises:
        ValueError: The path does not exist or is of no accepted kind, the folder or data set is empty, the model cannot
            be read, or the type is wrong.
    """
    argument = f"input{side}"
    source = call[argument]
    if isinstance(source, upstream.GenerativeModelBase):
        return GeneratorSamples(argument, source, f"object {type(source).__qualname__}", call)
    if isinstance(source, Dataset):
        return DatasetSamples(argument, source, call)
    if not isinstance(source, str):
        raise ValueError(f"{argument}: got {type(source).__name__}. {accepted()}")
    if source in upstream.DATASETS_REGISTRY:
        return RegisteredSamples(argument, source, call)
    if not Path(source).exists():
        if call[f"{argument}_cache_name"] is not None and call["cache"]:
            return GoneSamples(argument, source)  # Its features may have been kept.
        raise ValueError(f'{argument}: "{source}" does not exist. {accepted()}')
    if Path(source).is_dir():
        return open_folder(argument, source, call)
    found = images_in(source)
    if found is not None:
        return ImageArraySamples(argument, source, found, call)
    if source.endswith((".onnx", ".pth")):
        return GeneratorSamples(argument, read_model(argument, source, call), f"file {digest_of_file(source)}", call)
    raise ValueError(f'{argument}: "{source}" is not of a known kind. {accepted()}')


def accepted() -> str:
    """Say what an input can be."""
    return (
        "Accepted are: a folder of images; an .npz file of images (arr_0); ready features (.npy, .npz, .safetensors, "
        "or a float tensor or array N x D); for fid, an .npz file of their mu and sigma; a reference file; a "
        "generative model (.onnx, .pth, or a GenerativeModelBase); a "
        f"torch.utils.data.Dataset; a registered data set ({', '.join(upstream.DATASETS_REGISTRY)})"
    )
