"""What one generator is worth: its images, their features, and what a fidelity call says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compressors.common.bake import baked_copy
from compressors.common.checks import check_module
from compressors.common.generation import Draw, check_range, drawn_batches, generated, to_images
from compressors.common.measure import Inputs, device_of, forward
from compressors.common.text import described
from compressors.core.model import CompressedModel
from compressors.errors import CompressionError
from compressors.study.features import Extractor, Reference, as_reference, is_features, reference_batches
from compressors.study.identity import identify
from compressors.study.seeded import as_generator
from compressors.study.settings import StudySettings
from torch_fidelity_lsh.fidelity.calculate import calculate_metrics
from torch_fidelity_lsh.metric.comparison import NUMBERS, Difference, compare
from torch_fidelity_lsh.metric.config import LSHConfig
from torch_fidelity_lsh.metric.functional import METRICS
from torch_fidelity_lsh.metric.guard import default_modes

EXAMPLES = 8
"""Samples on which models are tried and compared."""


def measure_generator(
    model: nn.Module | CompressedModel | Callable[[int, int], Any],
    draw: Draw | None,
    reference: Reference,
    settings: StudySettings | None = None,
) -> dict[str, float]:
    """Return the scores of a generator against a reference: those of its row in a study, to the last digit.

    The teacher, `references`, `calibration`, `paired` and `keep_features` of the settings belong to studies and count
    for nothing here. To measure many generators against the same images, pass `extract_features` of the images once.

    Args:
        model: any module that returns images B x 1 or 3 x H x W, in float of a declared range or uint8. A copy of it
            runs, in eval mode and on its device. With `draw` None, a function from a seed and a count to images (see
            `SeededGenerator`), or a pipeline of diffusers.
        draw: called as ``draw(n, random)``, returns the forward arguments for n samples as a tuple, such as ``(z,)``,
            drawn with the `torch.Generator` it is given.
        reference: real images, a uint8 tensor N x C x H x W or a data set of uint8 tensors C x H x W; or their
            features, float N x D.
        settings: see `StudySettings`.

    Returns:
        What the fidelity call returns, such as ``{"lsh_precision": ..., "lsh_recall": ...}``.

    Raises:
        CompressionError: an argument is unusable; the message names it, what was given and what is accepted.
        ContractBroken: the model returns NaN or infinite values.
    """
    settings = settings or StudySettings()
    model, draw = as_generator(model, draw)
    network = baked_copy(module_of("model", model))
    source, sampler = as_reference(reference), Sampler(draw, settings, device_of(network))
    with default_modes():
        sampler.check(network)
        extractor = Extractor(settings.feature_extractor, settings.feature_layer, sampler.device)
        real = source if is_features(source) else extractor(reference_batches(source, settings.batch_size))
        return scores(extractor(sampler.images(network)), real, settings, sampler.device)


def extract_features(images: Reference, settings: StudySettings, device: str | torch.device = "cpu") -> Tensor:
    """Return the features, float32 N x D on the CPU, that studies with these settings compare.

    Args:
        images: uint8 N x C x H x W, or a data set of uint8 C x H x W; features are returned as they are.
        settings: name extractor, layer and batch size.
        device: where the extractor runs, "cpu" by default; devices differ in the last digits.

    Raises:
        CompressionError: `images` or what `settings` name is unusable.
    """
    source, target = as_reference(images), torch.device(device)
    if is_features(source):
        return source
    with default_modes():
        extractor = Extractor(settings.feature_extractor, settings.feature_layer, target)
        return extractor(reference_batches(source, settings.batch_size))


class Sampler:
    """Draws the same forward arguments on every call, and runs models on them.

    Args:
        draw: see `measure_generator`.
        settings: see `StudySettings`.
        device: that of the models.

    Raises:
        CompressionError: `draw` fails, returns no tuple, or returns other values when it is called again.
    """

    def __init__(self, draw: Draw, settings: StudySettings, device: torch.device) -> None:
        if not callable(draw):
            raise CompressionError(
                f"draw must be a function of a number of samples and a torch.Generator; got {draw!r}"
            )
        self.draw, self.settings, self.device = draw, settings, device
        (self.examples,) = drawn_batches(draw, EXAMPLES, EXAMPLES, settings.seed, device)
        first, again = (next(self.inputs(settings.samples, settings.seed)) for _ in range(2))
        self.identity = identify(self.examples, first).digest
        """Of the forward arguments: examples, and the first batch of samples."""
        if identify(self.examples, again).digest != self.identity:
            raise CompressionError(
                "draw returns other values when it is called again with the same seed: it must take all its randomness "
                "from the torch.Generator that it is given, as in torch.randn(n, 64, generator=random)"
            )

    def inputs(self, count: int, seed: int) -> Iterator[Inputs]:
        """Yield the forward arguments of `count` samples in batches."""
        return drawn_batches(self.draw, count, self.settings.batch_size, seed, self.device)

    def images(self, model: nn.Module, seed: int | None = None) -> Iterator[Tensor]:
        """Yield the samples of a model in batches, uint8 B x 3 x H x W, from the latents of `seed` or the settings."""
        count, made = self.settings.samples, 0
        inputs = self.inputs(count, self.settings.seed if seed is None else seed)
        for batch in generated(model, inputs, self.settings.output_range, self.settings.seed):
            made += len(batch)
            yield batch
        if made != count:
            raise CompressionError(f"draw(n, random) was called for {count} samples and led to {made} images")

    def check(self, model: nn.Module) -> None:
        """Raise `CompressionError` unless a model returns images as declared, one for each sample drawn."""
        try:
            output = forward(model, self.examples, self.settings.seed)
        except Exception as error:
            raise CompressionError(
                f"model does not run on what draw({EXAMPLES}, random) returns: {described(error)}"
            ) from error
        images = to_images(output, self.settings.output_range)
        if len(images) != EXAMPLES:
            raise CompressionError(f"draw({EXAMPLES}, random) led to {len(images)} images")
        check_range(output, self.settings.output_range)


def scores(features: Tensor, reference: Tensor, settings: StudySettings, device: torch.device) -> dict[str, float]:
    """Return what a fidelity call says of features, float N x D, against those of a reference."""
    options = {"kid_subset_size": min(1000, len(features), len(reference)), **settings.options}
    found: dict[str, float] = calculate_metrics(
        input1=features,
        input2=reference,
        **dict.fromkeys(settings.metrics, True),
        **options,
        rng_seed=settings.seed,
        cuda=device.type == "cuda",
        verbose=False,
    )
    wrong = [f"{key} is {value}" for key, value in found.items() if not math.isfinite(value)]
    if wrong:
        raise CompressionError(f"the metrics give no finite numbers: {', '.join(wrong)}")
    return found


def changes(
    features: Tensor, start: Tensor, reference: Tensor, settings: StudySettings, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Return what `compare` says of features and those of the uncompressed model, by the metrics that it knows.

    Args:
        features: N x D, of a compressed model.
        start: N x D, of the uncompressed model from the same latents, row by row.
        reference: M x D.
        settings: name the metrics.
        device: where it runs.

    Returns:
        By score, such as "lsh_recall", the entries of `Row.changes`.
    """
    config = LSHConfig.from_kwargs({**settings.options, "rng_seed": settings.seed})
    one, other, real = (part.to(device) for part in (features, start, reference))
    found = {}
    for metric in (name for name in settings.metrics if name in METRICS):
        comparison = compare(one, other, real, config, metric, paired=True)
        for name in NUMBERS:
            change: Difference = getattr(comparison, name)
            low, high = change.interval
            entry = {"value": change.value, "ci_low": low, "ci_high": high, "word": change.word}
            found[f"{metric}_{name}"] = entry
    return found


def module_of(argument: str, model: Any) -> nn.Module:
    """Return the module of a model or `CompressedModel`; raise `CompressionError` for anything else."""
    return check_module(argument, model.model if isinstance(model, CompressedModel) else model)
