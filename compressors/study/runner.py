"""Runs a study: compresses a generator in every way given, measures each result, keeps finished rows."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from compressors.common.files import digest, whole_file, write_json
from compressors.common.generation import (
    OUTPUT_RANGES,
    Draw,
    OutputRange,
    check_range,
    drawn_batches,
    generated,
    image_batches,
)
from compressors.common.measure import Inputs
from compressors.common.text import versions
from compressors.core.model import CompressedModel, Compressor, begin
from compressors.core.recipe import Recipe
from compressors.core.recipe import settings as settings_of
from compressors.core.report import Report
from compressors.errors import CompressionError
from compressors.study.features import Extractor
from compressors.study.plots import save_pictures, save_samples
from compressors.study.table import Row, Table
from torch_fidelity_lsh.fidelity.calculate import calculate_metrics
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY

REFERENCES = ("real", "teacher")
UNCOMPRESSED = "float"

_EXAMPLES = 8
_LATENCY_BATCHES = 5
_SHOWN = 64


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
        keep_features: keep the features of each row, 4 bytes x D per sample, in the folder of the study: other metrics
            or options then cost no generating and no extracting. Default False.
    """

    samples: int = 5000
    metrics: Sequence[str] = ("fid", "kid", "lsh", "lsh_knn", "prc")
    references: Sequence[str] = ("real",)
    output_range: OutputRange | None = None
    feature_extractor: str = "inception-v3-compat"
    feature_layer: str | None = None
    batch_size: int = 64
    calibration: int = 256
    seed: int = 2020
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_features: bool = False

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("batch_size", 1), ("calibration", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise CompressionError(f"{name} must be an integer of at least {least}; got {value!r}")
        _check_names("metrics", self.metrics, ("fid", "kid", "prc", *METRICS_REGISTRY))
        _check_names("references", self.references, REFERENCES)
        if self.output_range not in (None, *OUTPUT_RANGES):
            raise CompressionError(f"output_range must be (-1, 1), (0, 1) or None; got {self.output_range!r}")


def run_study(
    generator: nn.Module,
    draw: Draw,
    compressors: Sequence[Compressor] | Mapping[str, Compressor],
    reference: Tensor | np.ndarray[Any, Any] | Dataset[Tensor] | None,
    folder: str | Path,
    settings: StudySettings | None = None,
) -> Table:
    """Compress `generator` in every way given and measure each result, the uncompressed model first.

    All models get the same latents. Each finished row is kept in `folder`/rows.json, under a hash of everything it
    depends on: a study that was interrupted, or that got other compressors or settings, measures only what is missing.
    A row that fails, by NaN or for want of memory say, is kept with its reason while the study goes on; rows that ran
    out of memory are tried again in the next run.

    Args:
        generator: any module that returns images B x 1 or 3 x H x W; it is not changed, and runs on its own device.
        draw: called as ``draw(n, random)``, returns the forward arguments for n samples as a tuple, such as ``(z,)`` or
            ``(z, labels)``, drawn with the `torch.Generator` it is given.
        compressors: a list, or a mapping if labels other than the compressors' names are wanted.
        reference: real images, a uint8 tensor N x C x H x W or a data set of uint8 tensors C x H x W; or their
            features, float N x D; None if only the teacher is a reference.
        folder: where rows.json, results.json, results.csv, the pictures and samples/ are written.
        settings: see `StudySettings`.

    Returns:
        The table, rows in the order of `compressors`.

    Raises:
        CompressionError: an argument is unusable; the message names it, what was given and what is accepted.
    """
    settings = settings or StudySettings()
    labelled = _labelled(compressors)
    folder = Path(folder)
    bench = _Bench(generator, draw, reference, folder, settings)
    for name in ("samples", "features"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    kept = _KeptRows(folder / "rows.json")
    keys = {label: bench.key(compressor) for label, compressor in labelled.items()}
    missing = [label for label in labelled if not kept.finished(keys[label])]
    with tqdm(total=len(missing) * settings.samples, unit="image", file=sys.stderr) as bar:
        for label in missing:
            bar.set_description(label)
            goal = bar.n + settings.samples
            row = bench.row(label, labelled[label], bar)
            if label == UNCOMPRESSED and row.status != "measured":
                raise CompressionError(f"the uncompressed model cannot be measured: {row.status}: {row.note}")
            kept.add(keys[label], row)
            bar.update(goal - bar.n)
    rows = tuple(replace(kept.rows[keys[label]], compressor=label) for label in labelled)
    table = Table(rows, {**bench.protocol, "timed_on": bench.machine})
    table.save_json(folder / "results.json")
    table.save_csv(folder / "results.csv")
    save_pictures(table, folder)
    return table


class _Bench:
    """What all rows share: the uncompressed model, the latents and the references."""

    def __init__(self, generator: nn.Module, draw: Draw, reference: Any, folder: Path, settings: StudySettings) -> None:
        self.draw, self.folder, self.settings = draw, folder, settings
        self.device = next((tensor.device for tensor in generator.state_dict().values()), torch.device("cpu"))
        (self.examples,) = drawn_batches(draw, _EXAMPLES, _EXAMPLES, settings.seed, self.device)
        work = begin(generator, self.examples)
        self.uncompressed = CompressedModel(work.model, work.report, work.recipe)
        (images,) = self._images(work.model, [self.examples])
        if len(images) != _EXAMPLES:
            raise CompressionError(f"draw({_EXAMPLES}, random) led to {len(images)} images")
        check_range(work.outputs[0], settings.output_range)
        if "real" in settings.references and reference is None:
            raise CompressionError('references asks for "real": reference must be images or their features; got None')
        self.reference = _as_reference(reference) if "real" in settings.references else None

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Everything that every row depends on, as JSON."""
        settings = json.loads(json.dumps(asdict(self.settings)))
        del settings["keep_features"]  # which changes no number
        model = self.uncompressed.model
        return {
            **settings,
            "versions": versions(),
            "generator": digest(model.state_dict().values()),
            "structure": _hash(str(model)),
            "inputs": digest(item for item in self.examples if isinstance(item, Tensor)),
            "reference": None if self.reference is None else digest(self._reference_batches()),
        }

    @property
    def machine(self) -> dict[str, Any]:
        """What latencies depend on; scores do not."""
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else platform.machine()
        return {"device": self.device.type, "machine": name, "threads": torch.get_num_threads()}

    def key(self, compressor: Compressor | None) -> str:
        """Return a hash of all that the compressor's row depends on."""
        return _hash([self.protocol, _step(compressor)])

    def features_path(self, *what: Any) -> Path:
        """Return the file of features that depend on the protocol, but for how they are scored, and on `what`."""
        scoring = ("metrics", "references", "options")
        protocol = {key: value for key, value in self.protocol.items() if key not in scoring}
        return self.folder / "features" / f"{_hash([protocol, *what])}.safetensors"

    def row(self, label: str, compressor: Compressor | None, bar: tqdm) -> Row:
        """Compress and measure; a failure that belongs to this row becomes its note."""
        references, row = self.references, Row(label)
        try:
            result = self._compressed(compressor)
            row = _sized(label, result.report, result.recipe)
            row = replace(row, latency_ms=self._latency_ms(result.model))
            samples = f"samples/{self.features_path(_step(compressor)).stem}.png"
            features = self._features(compressor, result.model, self.folder / samples, bar)
            scores = {name: self._scores(features, other) for name, other in references.items()}
            return replace(row, scores=scores, samples=samples)
        except Exception as error:
            if _out_of_memory(error):
                return replace(row, status="out of memory", note=str(error).partition("\n")[0])
            if not isinstance(error, CompressionError):
                raise
            return replace(row, status="failed", note=f"{type(error).__name__}: {error}")

    @cached_property
    def extractor(self) -> Extractor:
        """The feature extractor of all metrics."""
        return Extractor(self.settings.feature_extractor, self.settings.feature_layer, self.device)

    @cached_property
    def references(self) -> dict[str, Tensor]:
        """The features of the references, by name."""
        sources = {"real": self._real, "teacher": self._teacher}
        return {name: sources[name]() for name in self.settings.references}

    def _compressed(self, compressor: Compressor | None) -> CompressedModel:
        if compressor is None:
            return self.uncompressed
        calibration = list(self._inputs(self.settings.calibration, self.settings.seed + 2))
        return compressor.compress(self.uncompressed.model, self.examples, calibration)

    def _reference_batches(self) -> Iterator[Tensor]:
        """Yield the reference as it was given: its features, or its images in batches."""
        assert self.reference is not None
        if _is_features(self.reference):
            return iter([self.reference])
        return image_batches(self.reference, self.settings.batch_size)

    def _real(self) -> Tensor:
        batches = self._reference_batches()
        return next(batches) if _is_features(self.reference) else self._extracted_once("real", batches)

    def _teacher(self) -> Tensor:
        # Its latents are not those of the rows: near-copies of the samples would make any model look perfect.
        inputs = self._inputs(self.settings.samples, self.settings.seed + 1)
        return self._extracted_once("teacher", self._images(self.uncompressed.model, inputs))

    def _extracted_once(self, name: str, images: Iterable[Tensor]) -> Tensor:
        """Return the features of a reference, from a file if they were extracted before."""
        path = self.features_path(name)
        if path.is_file():
            return load_file(path)["features"]
        return _written(path, self.extractor(images))

    def _features(self, compressor: Compressor | None, model: nn.Module, picture: Path, bar: tqdm) -> Tensor:
        path = self.features_path(_step(compressor))
        if path.is_file() and picture.is_file():
            return load_file(path)["features"]
        shown: list[Tensor] = []

        def watched() -> Iterator[Tensor]:
            for batch in self._images(model, self._inputs(self.settings.samples, self.settings.seed)):
                if sum(map(len, shown)) < _SHOWN:
                    shown.append(batch.cpu())
                yield batch
                bar.update(len(batch))

        features = self.extractor(watched())
        save_samples(torch.cat(shown)[:_SHOWN], picture)
        return _written(path, features) if self.settings.keep_features else features

    def _scores(self, features: Tensor, reference: Tensor) -> dict[str, float]:
        options = {"kid_subset_size": min(1000, len(features), len(reference)), **self.settings.options}
        return calculate_metrics(
            input1=features,
            input2=reference,
            **dict.fromkeys(self.settings.metrics, True),
            **options,
            rng_seed=self.settings.seed,
            cuda=self.device.type == "cuda",
            verbose=False,
        )

    def _inputs(self, count: int, seed: int) -> Iterator[Inputs]:
        return drawn_batches(self.draw, count, self.settings.batch_size, seed, self.device)

    def _images(self, model: nn.Module, inputs: Iterable[Inputs]) -> Iterator[Tensor]:
        return generated(model, inputs, self.settings.output_range, self.settings.seed)

    def _latency_ms(self, model: nn.Module) -> float:
        size = min(self.settings.batch_size, self.settings.samples)
        (inputs,) = self._inputs(size, self.settings.seed)
        return 1000 * statistics.median(self._seconds(model, inputs) for _ in range(_LATENCY_BATCHES)) / size

    @torch.no_grad()
    def _seconds(self, model: nn.Module, inputs: Inputs) -> float:
        self._wait()
        started = time.perf_counter()
        model(*inputs)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _KeptRows:
    """The finished rows of a folder, by key, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, dict[str, Row]()
        if path.is_file():
            try:
                self.rows = {key: Row(**row) for key, row in json.loads(path.read_text()).items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise CompressionError(f"{path} is damaged ({error}): delete it to measure all rows again") from None

    def finished(self, key: str) -> bool:
        return key in self.rows and self.rows[key].status != "out of memory"

    def add(self, key: str, row: Row) -> None:
        self.rows[key] = row
        write_json(self.path, {key: asdict(row) for key, row in self.rows.items()})


def _labelled(compressors: Sequence[Compressor] | Mapping[str, Compressor]) -> dict[str, Compressor | None]:
    """Return the compressors by label, the uncompressed model first; labels must differ."""
    pairs = list(compressors.items()) if isinstance(compressors, Mapping) else [(c.name, c) for c in compressors]
    labelled: dict[str, Compressor | None] = {UNCOMPRESSED: None}
    for label, compressor in pairs:
        if label in labelled:
            raise CompressionError(f"compressors: two are called {label!r}; pass a mapping of labels to compressors")
        if not callable(getattr(compressor, "compress", None)):
            raise CompressionError(f"compressors: {label!r} has no method compress: {compressor!r}")
        labelled[label] = compressor
    return labelled


def _as_reference(reference: Any) -> Tensor | Dataset[Tensor]:
    """Return features as float32 N x D, images as they are; raise `CompressionError` for anything else."""
    source = torch.from_numpy(reference) if isinstance(reference, np.ndarray) else reference
    features = _is_features(source)
    images = isinstance(source, Tensor) and source.dim() == 4 and source.dtype == torch.uint8
    if not (features or images or isinstance(source, Dataset)):
        got = f"{source.dtype} {tuple(source.shape)}" if isinstance(source, Tensor) else type(source).__name__
        raise CompressionError(
            "reference must be images, a uint8 tensor N x C x H x W or a torch data set of uint8 tensors C x H x W, or "
            f"features, a float tensor or array N x D; got {got}"
        )
    if len(source) < 2:
        raise CompressionError(f"reference must hold at least 2 samples; got {len(source)}")
    return source.detach().cpu().float() if features else source


def _is_features(source: object) -> TypeGuard[Tensor]:
    return isinstance(source, Tensor) and source.dim() == 2 and source.is_floating_point()


def _sized(label: str, report: Report, recipe: Recipe) -> Row:
    layers = recipe.quantized.values()
    weights = [(math.prod(layer.shape), layer.bits) for layer in layers]
    return Row(
        label,
        bits=sum(n * bits for n, bits in weights) / sum(n for n, _ in weights) if weights else None,
        act_bits=next((layer.act_bits for layer in layers if layer.act_bits), None),
        ratio=next((step["ratio"] for step in recipe.steps if "ratio" in step), None),
        parameters=report.after.parameters,
        macs=report.after.macs // _EXAMPLES,
        bytes=report.after.bytes,
        sqnr_db=report.sqnr_db,
    )


def _out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory ran out; compressors wrap the error of their backend."""
    while error is not None:
        if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False


def _check_names(argument: str, names: Any, known: Sequence[str]) -> None:
    if isinstance(names, str) or not names or not set(names) <= set(known):
        raise CompressionError(f"{argument} must be a tuple of one or more of {', '.join(known)}; got {names!r}")


def _step(compressor: Compressor | None) -> Any:
    """Return what identifies a compressor: its name and, where they are known, its settings."""
    return compressor and [compressor.name, settings_of(compressor) if is_dataclass(compressor) else None]


def _written(path: Path, features: Tensor) -> Tensor:
    with whole_file(path) as temporary:
        temporary.write_bytes(to_safetensors({"features": features}))
    return features


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
