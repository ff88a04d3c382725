"""How a study measures its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compressors.common.checks import check_count
from compressors.common.generation import OUTPUT_RANGES, SEED, OutputRange
from compressors.errors import CompressionError
from compressors.study.pairs import PAIRED
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY

REFERENCES = ("real", "teacher")

STRIP = 8
"""Samples in a line of the picture of a row, which has no gaps; the picture of all rows shows the first of each."""


@dataclass(frozen=True)
class StudySettings:
    """How the rows of a study are measured.

    Attributes:
        samples: images each model generates, and those of the teacher; at least 2. Default 5000.
        metrics: flags of a fidelity call on features: "fid", "kid", "prc", and registered metrics such as "lsh".
        references: what the images are compared with: "real" (default), the reference images, and "teacher", samples
            of the uncompressed model from latents of their own.
        output_range: the values of black and white if the generator returns floats, (-1, 1) or (0, 1); None (default)
            if it returns uint8.
        feature_extractor: an extractor registered with torch-fidelity; it serves all metrics.
        feature_layer: its layer; None (default) is the one of FID.
        batch_size: images at a time, default 64; part of the protocol, since it rounds differently.
        calibration: samples shown to compressors that need calibration, default 256, from latents of their own.
        seed: of latents and metrics.
        options: further keywords of the fidelity call, such as ``{"lsh_num_tables": 32}``.
        paired: "psnr", "ssim", "lpips" (torchmetrics) of the first 256 images of each row and those of the uncompressed
            model from the same latents. Default ().
        keep_features: keep the features of each row, 4 bytes x D per sample, in the folder of the study, as those of
            the references and of the uncompressed model always are: other metrics or options then cost no generating
            and no extracting. Default False.

    Raises:
        CompressionError: a value is not one of these.
    """

    samples: int = 5000
    metrics: Sequence[str] = ("fid", "kid", "lsh", "lsh_knn", "prc")
    references: Sequence[str] = ("real",)
    output_range: OutputRange | None = None
    feature_extractor: str = "inception-v3-compat"
    feature_layer: str | None = None
    batch_size: int = 64
    calibration: int = 256
    seed: int = SEED
    options: Mapping[str, Any] = field(default_factory=dict)
    paired: Sequence[str] = ()
    keep_features: bool = False

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("batch_size", 1), ("calibration", 1), ("seed", 0)):
            check_count(name, getattr(self, name), least)
        _check_names("metrics", self.metrics, ("fid", "kid", "prc", *METRICS_REGISTRY))
        _check_names("references", self.references, REFERENCES)
        if self.paired:
            _check_names("paired", self.paired, tuple(PAIRED))
        if self.output_range not in (None, *OUTPUT_RANGES):
            raise CompressionError(f"output_range must be (-1, 1), (0, 1) or None; got {self.output_range!r}")


def _check_names(argument: str, names: Any, known: Sequence[str]) -> None:
    if isinstance(names, str) or not names or not set(names) <= set(known):
        raise CompressionError(f"{argument} must be a tuple of one or more of {', '.join(known)}; got {names!r}")
