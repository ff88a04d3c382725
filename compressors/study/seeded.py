"""Generators that are no modules: any callable from a seed and a count to images, and pipelines of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressors.common.generation import Draw
from compressors.common.measure import Inputs
from compressors.core.model import CompressedModel
from compressors.errors import CompressionError

_SEEDS = 2**31


class SeededGenerator(nn.Module):
    """A callable from a seed and a count to images, as a module that studies take.

    Its sizes are not known, and nothing can be compressed in it: models that were compressed elsewhere are rows.

    Args:
        sample: called as ``sample(seed, count)``, returns that many images, the same for the same seed: a tensor B x 1
            or 3 x H x W or an array B x H x W x 1 or 3, uint8 or floats in [0, 1]; a list of pictures of PIL; or an
            object with such in its attribute ``images``. It gets the first seed of each batch.
    """

    def __init__(self, sample: Callable[[int, int], Any]) -> None:
        super().__init__()
        self.sample = sample

    def __deepcopy__(self, memo: dict[int, Any]) -> SeededGenerator:
        return type(self)(self.sample)  # A callable may hold what cannot be copied, and has no weights to be changed.

    def forward(self, seeds: Tensor) -> Tensor:
        """Return the images of a batch of seeds, int64 B."""
        return as_images(self.sample(int(seeds[0]), len(seeds)), len(seeds))

    def draw(self, n: int, random: torch.Generator) -> Inputs:
        """Draw n seeds; what `run_study` and `measure_generator` draw with unless they are told otherwise."""
        return (torch.randint(_SEEDS, (n,), generator=random),)


class PipelineGenerator(nn.Module):
    """A pipeline of diffusers as a module that studies take and compress.

    Each image has a seed and a prompt of its own, those of the same latents in all rows. Weights are those of all
    modules of the pipeline; multiply-accumulates those of all its steps.

    Args:
        pipeline: a `DiffusionPipeline`, or what is called as one and has ``components``. It is left as it is.
        prompts: taken in turn, from one that is drawn for each batch; None (default) for a pipeline without prompts.
        **call: further keywords of its call, such as ``num_inference_steps=20``.

    Raises:
        CompressionError: an argument is unusable.

    Example:
        >>> from compressors.study import PipelineGenerator, StudySettings, run_study
        >>> generator = PipelineGenerator(pipeline, prompts, num_inference_steps=20)  # doctest: +SKIP
        >>> ways = {"int8": quantized_pipeline}  # doctest: +SKIP
        >>> settings = StudySettings(references=("teacher",), paired=("psnr", "ssim"))
        >>> run_study(generator, None, ways, None, "study", settings)  # doctest: +SKIP
    """

    def __init__(self, pipeline: Any, prompts: Sequence[str] | None = None, **call: Any) -> None:
        super().__init__()
        if not is_pipeline(pipeline):
            raise CompressionError(f"pipeline must be a pipeline of diffusers; got {type(pipeline).__name__}")
        if prompts is not None and (isinstance(prompts, str) or not all(isinstance(each, str) for each in prompts)):
            raise CompressionError(f"prompts must be a list of texts, or None; got {prompts!r}")
        if prompts is not None and not prompts:
            raise CompressionError("prompts must hold at least one text")
        self.pipeline, self.prompts, self.call = pipeline, None if prompts is None else tuple(prompts), call
        modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.parts = nn.ModuleDict(modules)

    def of(self, pipeline: Any) -> PipelineGenerator:
        """Return another pipeline with the prompts and keywords of this one."""
        return PipelineGenerator(pipeline, self.prompts, **self.call)

    def forward(self, seeds: Tensor, numbers: Tensor) -> Tensor:
        """Return the images, uint8 B x C x H x W, of seeds and numbers of prompts, int64 B each."""
        for name, part in self.parts.items():
            setattr(self.pipeline, name, part)  # A compressor may have replaced it.
        self.pipeline.set_progress_bar_config(disable=True)
        random = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        what: dict[str, Any] = {"batch_size": len(seeds)}
        if self.prompts is not None:
            what = {"prompt": [self.prompts[int(number)] for number in numbers]}
        return as_images(self.pipeline(**what, generator=random, output_type="np", **self.call), len(seeds))

    def draw(self, n: int, random: torch.Generator) -> Inputs:
        """Draw n seeds and numbers of prompts; what studies draw with unless they are told otherwise."""
        count = 1 if self.prompts is None else len(self.prompts)
        first = torch.randint(count, (), generator=random)
        return torch.randint(_SEEDS, (n,), generator=random), (first + torch.arange(n)) % count


def is_pipeline(value: Any) -> bool:
    """Tell whether something looks like a pipeline of diffusers."""
    return callable(value) and not isinstance(value, type) and isinstance(getattr(value, "components", None), Mapping)


def as_generator(generator: Any, draw: Draw | None) -> tuple[Any, Any]:
    """Return a generator as a module, or as it was, and what draws its arguments.

    Raises `CompressionError` where nothing says how to draw them.
    """
    if draw is not None:
        return generator, draw
    if is_pipeline(generator):
        generator = PipelineGenerator(generator)
    elif callable(generator) and not isinstance(generator, nn.Module | CompressedModel | type):
        generator = SeededGenerator(generator)
    if not isinstance(generator, SeededGenerator | PipelineGenerator):
        raise CompressionError(
            "draw is None, which is for a generator that is a function of a seed and a count, or a pipeline of "
            f"diffusers; got {type(generator).__name__}, which needs a function that draws its forward arguments"
        )
    return generator, generator.draw


def as_way(way: Any, generator: Any) -> Any:
    """Return what stands beside such a generator as a module, other ways as they are."""
    if isinstance(generator, PipelineGenerator) and is_pipeline(way):
        return generator.of(way)
    is_other = isinstance(way, nn.Module | CompressedModel | type) or hasattr(way, "compress")
    return SeededGenerator(way) if isinstance(generator, SeededGenerator) and callable(way) and not is_other else way


def as_images(found: Any, count: int) -> Tensor:
    """Return what a callable returned as uint8 images B x C x H x W.

    Raises `CompressionError` where that is no batch of so many images.
    """
    images = getattr(found, "images", found)
    if isinstance(images, list) and images and not any(isinstance(each, Tensor) for each in images):
        shapes = {np.asarray(each).shape for each in images}
        images = np.stack([np.asarray(each) for each in images]) if len(shapes) == 1 else images
    if isinstance(images, np.ndarray):
        images = images[..., None] if images.ndim == 3 else images
        images = torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1) if images.ndim == 4 else images
    kind = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != count:
        raise CompressionError(f"the generator was asked for {count} images of 1 or 3 channels, and returned {kind}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point() or not (float(images.min()) >= 0 and float(images.max()) <= 1):  # So for NaN.
        raise CompressionError(f"the generator must return images in uint8, or floats in [0, 1]; got {kind}")
    return (images * 255).round().to(torch.uint8)
