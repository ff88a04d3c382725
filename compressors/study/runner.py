"""Runs a study: compresses a generator in every way given, measures each result, keeps finished rows."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from compressors.common.bake import baked_copy, independent_copy
from compressors.common.files import digest
from compressors.common.foreign import has_foreign_tensors
from compressors.common.generation import Draw
from compressors.common.latency import batch_ms
from compressors.common.measure import copied, count_macs, device_of, run, sqnr_db
from compressors.common.text import described, versions
from compressors.core.model import CompressedModel, Compressor
from compressors.core.recipe import Recipe
from compressors.core.report import Report
from compressors.core.stage import begin
from compressors.errors import CompressionError, ContractBroken
from compressors.study.cache import KeptRows, read_features, write_features
from compressors.study.features import Extractor, Reference, as_reference, chosen_layer, is_features, reference_batches
from compressors.study.identity import Identity, identify
from compressors.study.measure import EXAMPLES, Sampler, changes, module_of, scores
from compressors.study.pairs import PAIRS, paired_scores
from compressors.study.plots import PICTURED, is_picture, save_pictures, save_samples
from compressors.study.seeded import SeededGenerator, as_generator, as_way
from compressors.study.settings import StudySettings
from compressors.study.table import Row, Table
from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY
from torch_fidelity_lsh.metric.guard import default_modes

UNCOMPRESSED = "float"

Way: TypeAlias = Compressor | CompressedModel | nn.Module
"""What leads to a row: a compressor, or a model that is compressed already."""


def run_study(
    generator: nn.Module | CompressedModel | Callable[[int, int], Any],
    draw: Draw | None,
    compressors: Sequence[Compressor | CompressedModel] | Mapping[str, Way | Callable[[int, int], Any]],
    reference: Reference | None,
    folder: str | Path,
    settings: StudySettings | None = None,
) -> Table:
    """Compress `generator` in every way given and measure each result, the uncompressed model first.

    All models get the same latents. Each finished row is kept in `folder`/rows.json, under a hash of everything it
    depends on: a study that was interrupted, or that got other compressors or settings, measures only what is missing.
    Rows and features whose checksum is wrong are measured again, with a warning; so is, in every run, what a compressor
    does that holds an object which cannot be identified, with a note in its row. Studies may share a folder, at the
    same time too; the table is that of the last one. A row that fails is noted with its reason while the study goes on;
    the next run tries it again, unless the reason was a `CompressionError`. Ctrl-C ends the study, also where it comes
    in the training of a compressor, which alone would go on with the best state so far.

    Args:
        generator: any module that returns images B x 1 or 3 x H x W; it is not changed, and runs on its own device.
            With `draw` None, a function from a seed and a count to images (see `SeededGenerator`), or a pipeline of
            diffusers (see `PipelineGenerator`); in a mapping, others of its kind stand beside compressors.
        draw: called as ``draw(n, random)``, returns the forward arguments for n samples as a tuple, such as ``(z,)`` or
            ``(z, labels)``, drawn with the `torch.Generator` it is given.
        compressors: a list, or a mapping if labels other than the compressors' names are wanted. Models that are
            compressed already, a `CompressedModel` or, in a mapping, any module, stand beside compressors.
        reference: real images, a uint8 tensor N x C x H x W or a data set of uint8 tensors C x H x W; or their
            features, float N x D; None if only the teacher is a reference.
        folder: where rows.json, results.json, results.csv, the pictures, samples/ and features/ are written.
        settings: see `StudySettings`.

    Returns:
        The table, rows in the order of `compressors`.

    Raises:
        CompressionError: an argument is unusable; the message names it, what was given and what is accepted.
    """
    generator, draw = as_generator(generator, draw)
    ways, folder = _labelled(compressors, generator), _made(Path(folder))
    with default_modes():
        study = _Study(module_of("generator", generator), draw, ways, reference, folder, settings or StudySettings())
        rows = study.rows()
        table = Table(rows, {**study.protocol, "timed_on": study.machine})
    table.save_json(folder / "results.json")
    table.save_csv(folder / "results.csv")
    save_pictures(table, folder)
    return table


class _Study:
    """The uncompressed model, the ways to compress it, and what all rows share."""

    def __init__(
        self,
        generator: nn.Module,
        draw: Draw,
        ways: Mapping[str, Way | None],
        reference: Any,
        folder: Path,
        settings: StudySettings,
    ) -> None:
        self.ways, self.folder, self.settings = ways, folder, settings
        self.device = device_of(generator)
        chosen_layer(settings.feature_extractor, settings.feature_layer)
        self.sampler = Sampler(draw, settings, self.device)
        work = begin(generator, self.sampler.examples)
        self.sampler.check(work.model)
        self.model, self.report, self.outputs = work.model, work.report, work.outputs
        if "real" in settings.references and reference is None:
            raise CompressionError('references asks for "real": reference must be images or their features; got None')
        self.reference = as_reference(reference) if "real" in settings.references else None

    def rows(self) -> tuple[Row, ...]:
        """Return the rows of all ways; those that are not kept are measured now."""
        kept, rows = KeptRows(self.folder / "rows.json"), list[Row]()
        ways = {label: self.identity(label) for label in self.ways}
        keys = {label: None if way.unknown else self.hash(way.digest) for label, way in ways.items()}
        missing = sum(kept.get(key) is None for key in keys.values())
        with tqdm(total=missing * self.settings.samples, unit="image", file=sys.stderr) as bar:
            for label, key in keys.items():
                row = kept.get(key)
                if row is None:
                    bar.set_description(label)
                    goal = bar.n + self.settings.samples
                    row, final = self.row(label, ways[label], bar)
                    if final and key:
                        kept.add(key, row)
                    bar.update(goal - bar.n)
                elif row.samples and not is_picture(self.folder / row.samples):
                    batches = self.sampler.images(self.compressed(label).model)
                    save_samples(
                        islice(batches, math.ceil(PICTURED / self.settings.batch_size)), self.folder / row.samples
                    )
                rows.append(replace(row, compressor=label))
        return tuple(rows)

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Everything that every row depends on, as JSON; code and objects as hashes."""
        settings = asdict(replace(self.settings, options={}))
        del settings["keep_features"]  # which changes no number
        if not self.settings.paired:  # Rows of before there were such stay good.
            del settings["paired"]
        options = {name: _as_json(value) for name, value in self.settings.options.items()}
        extractor = upstream.FEATURE_EXTRACTORS_REGISTRY[self.settings.feature_extractor]
        metrics = [METRICS_REGISTRY[name] for name in self.settings.metrics if name in METRICS_REGISTRY]
        images = self.reference
        return {
            **json.loads(json.dumps({**settings, "options": options})),
            "versions": versions(),
            "generator": identify(self.model).digest,
            "outputs": digest(self.outputs),
            "inputs": self.sampler.identity,
            "reference": None if images is None else digest(reference_batches(images, self.settings.batch_size)),
            "extracting": identify({name: item for name, item in vars(extractor).items() if callable(item)}).digest,
            "scoring": identify(metrics, dict(self.settings.options), changes).digest,
        }

    @property
    def machine(self) -> dict[str, Any]:
        """What latencies depend on; scores do not."""
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else platform.machine()
        return {"device": self.device.type, "machine": name, "threads": torch.get_num_threads()}

    def hash(self, what: str, scored: bool = True) -> str:
        """Return the name of what depends on the protocol, but for how features are scored unless `scored`."""
        unused = () if scored else ("metrics", "references", "options", "scoring")
        protocol = {key: value for key, value in self.protocol.items() if key not in unused}
        return digest([json.dumps(protocol, sort_keys=True), what])[:16]

    def identity(self, label: str) -> Identity:
        """Return what a way is; for a model that includes its outputs on the examples."""
        way = self.ways[label]
        if isinstance(way, CompressedModel | nn.Module):
            try:
                outputs: Any = run(self.compressed(label).model, self.sampler.examples)
            except Exception as error:
                outputs = described(error)  # The row will tell.
            return replace(identify(way, outputs), unknown=())
        found = identify(way)
        # Where it does not tell ways apart, the label keeps their files apart.
        return replace(found, digest=digest([label, found.digest])) if found.unknown else found

    def row(self, label: str, way: Identity, bar: tqdm) -> tuple[Row, bool]:
        """Measure a way, and tell whether its row is final; a failure becomes the note of the row."""
        path = self.features_path(way.digest)
        samples = f"samples/{path.stem}.png"
        kept = None if way.unknown or not is_picture(self.folder / samples) else read_features(path)
        # What fails in these fails for all rows.
        references, uncompressed = self.references, label == UNCOMPRESSED
        start = None if uncompressed else self.start
        if kept is None:
            self.extractor  # noqa: B018
        unknown = f"measured in every run: it holds what cannot be identified ({', '.join(way.unknown)})"
        row = Row(label, note=unknown if way.unknown else "")
        try:
            result = self.compressed(label)
            row = replace(row, **_sizes(result))
            features, shown = self._features(result.model, bar) if kept is None else (kept, [])
        except Exception as error:
            return self._failed(row, error)
        if shown:
            save_samples(shown, self.folder / samples)
            if self.settings.keep_features or uncompressed:  # which the others are compared with
                write_features(path, features)
        try:
            common = self.settings, self.device
            row = replace(row, paired={} if uncompressed else self._paired(result.model, shown))
            found = {name: scores(features, other, *common) for name, other in references.items()}
            if start is not None:
                changed = {name: changes(features, start, other, *common) for name, other in references.items()}
                row = replace(row, changes=changed)
            return replace(row, scores=found, latency_ms=self._latency_ms(result.model), samples=samples), True
        except Exception as error:
            return self._failed(row, error)

    def _failed(self, row: Row, error: Exception) -> tuple[Row, bool]:
        """Return a row that says what went wrong, and whether it would again."""
        if row.compressor == UNCOMPRESSED:
            raise CompressionError(f"the uncompressed model cannot be measured: {described(error)}") from error
        if _out_of_memory(error):
            return replace(row, status="out of memory", note=str(error).partition("\n")[0]), False
        return replace(row, status="failed", note=described(error)), isinstance(error, CompressionError)

    @cached_property
    def extractor(self) -> Extractor:
        """The feature extractor of all metrics."""
        return Extractor(self.settings.feature_extractor, self.settings.feature_layer, self.device)

    @cached_property
    def references(self) -> dict[str, Tensor]:
        """The features of the references, by name."""
        sources = {"real": self._real, "teacher": self._teacher}
        return {name: self._kept(name, sources[name]) for name in self.settings.references}

    @cached_property
    def start(self) -> Tensor:
        """The features of the uncompressed model, from the latents of all rows."""
        name = self.identity(UNCOMPRESSED).digest
        return self._kept(name, lambda: self.extractor(self.sampler.images(independent_copy(self.model))))

    def _real(self) -> Tensor:
        assert self.reference is not None
        return self.extractor(reference_batches(self.reference, self.settings.batch_size))

    def _teacher(self) -> Tensor:
        # Its latents are not those of the rows: near-copies of the samples would make any model look perfect.
        return self.extractor(self.sampler.images(independent_copy(self.model), self.settings.seed + 1))

    def _kept(self, name: str, extracted: Callable[[], Tensor]) -> Tensor:
        """Return features that all rows need, from a file if they were extracted before."""
        if name == "real" and is_features(self.reference):
            return self.reference
        path = self.features_path(name)
        kept = read_features(path)
        return write_features(path, extracted()) if kept is None else kept

    def features_path(self, what: str) -> Path:
        """Return the file of features."""
        return self.folder / "features" / f"{self.hash(what, scored=False)}.safetensors"

    def _features(self, model: nn.Module, bar: tqdm) -> tuple[Tensor, list[Tensor]]:
        """Return the features of a model's samples, and the first batches of them, to show and to compare in pairs."""
        shown: list[Tensor] = []
        wanted = max(PICTURED, PAIRS) if self.settings.paired else PICTURED

        def watched() -> Iterator[Tensor]:
            for batch in self.sampler.images(model):
                if sum(map(len, shown)) < wanted:
                    shown.append(batch.cpu())
                yield batch
                bar.update(len(batch))

        return self.extractor(watched()), shown

    def _paired(self, model: nn.Module, made: list[Tensor]) -> dict[str, float]:
        """Return the scores of pairs, by the first batches where they were made for the features."""
        if not self.settings.paired:
            return {}
        images = torch.cat(made)[:PAIRS] if made else self._first(model)
        return paired_scores(self.settings.paired, images, self.originals)

    @cached_property
    def originals(self) -> Tensor:
        """The first images of the uncompressed model, from the latents of all rows."""
        return self._first(independent_copy(self.model))

    def _first(self, model: nn.Module) -> Tensor:
        batches = islice(self.sampler.images(model), math.ceil(PAIRS / self.settings.batch_size))
        return torch.cat([batch.cpu() for batch in batches])[:PAIRS]

    def _latency_ms(self, model: nn.Module) -> float:
        """Return the milliseconds of an image."""
        size = min(self.settings.batch_size, self.settings.samples)
        (inputs,) = self.sampler.inputs(size, self.settings.seed)
        return batch_ms(model, inputs, self.device) / size

    def compressed(self, label: str) -> CompressedModel:
        """Return what a way makes of the uncompressed model, or a copy of the model that it is, with its report."""
        way, examples = self.ways[label], self.sampler.examples
        if way is None:
            return CompressedModel(independent_copy(self.model), self.report, Recipe())
        if not isinstance(way, CompressedModel | nn.Module):
            calibration = list(self.sampler.inputs(self.settings.calibration, self.settings.seed + 2))
            result = way.compress(independent_copy(self.model), copied(examples), calibration)
            if not isinstance(result, CompressedModel):
                raise CompressionError(
                    f"{label}: compress returned {type(result).__name__}; a CompressedModel is needed"
                )
            why = _interruption(result.recipe)
            if why:  # Trainings keep their best state then, which is not what the row would promise.
                raise KeyboardInterrupt(f"{label}: {why}")
            return result
        model = baked_copy(module_of(label, way)).to(self.device)
        outputs = run(model, examples)
        if [output.shape for output in outputs] != [output.shape for output in self.outputs]:
            raise ContractBroken(
                f"{label} returns other shapes than the uncompressed model: {_shapes(outputs)}; the uncompressed one "
                f"returns {_shapes(self.outputs)}"
            )
        report = way.report if isinstance(way, CompressedModel) else Report.of(model, examples)
        after = replace(report.after, macs=count_macs(model, examples)[""])
        report = replace(report, after=after, sqnr_db=sqnr_db(self.outputs, outputs))
        return CompressedModel(model, report, way.recipe if isinstance(way, CompressedModel) else Recipe())


def _made(folder: Path) -> Path:
    """Make the folders of a study."""
    try:
        for name in ("samples", "features"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompressionError(f"folder: {folder} cannot be made: {error}") from error
    return folder


def _labelled(ways: Any, generator: Any) -> dict[str, Way | None]:
    """Return the ways by label, the uncompressed model first; labels must differ."""
    if not isinstance(ways, Mapping | Iterable):
        raise CompressionError(
            f"compressors must be a list of compressors, or a mapping of labels to them; got {type(ways).__name__}"
        )
    labelled: dict[str, Way | None] = {UNCOMPRESSED: None}
    for label, given in ways.items() if isinstance(ways, Mapping) else ((_name(way), way) for way in ways):
        way = as_way(given, generator)
        if label in labelled:
            raise CompressionError(f"compressors: two are called {label!r}; pass a mapping of labels to compressors")
        known = isinstance(way, CompressedModel | nn.Module) or callable(getattr(way, "compress", None))
        if isinstance(way, type) or not known:
            raise CompressionError(
                f"compressors: {label!r} has no method compress and is no model: {way!r}; "
                "a compressor, such as Quantizer(8), a CompressedModel or a torch.nn.Module is needed"
            )
        labelled[label] = way
    return labelled


def _name(way: Any) -> str:
    name = way.report.name if isinstance(way, CompressedModel) else getattr(way, "name", None)
    if not isinstance(name, str) or not name:
        raise CompressionError(f"compressors: {way!r} has no name; pass a mapping of labels to compressors")
    return name


def _as_json(value: Any) -> Any:
    """Return an option as JSON; what JSON does not know becomes a name."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return getattr(value, "__qualname__", type(value).__qualname__)


def _sizes(result: CompressedModel) -> dict[str, Any]:
    """Return the columns of a row that do not depend on images."""
    layers, steps, report = result.recipe.quantized.values(), result.recipe.steps, result.report
    if isinstance(result.model, SeededGenerator):  # It does not show its weights.
        return {"sqnr_db": report.sqnr_db}
    weights = [(math.prod(layer.shape), layer.bits) for layer in layers]
    return {
        "bits": sum(n * bits for n, bits in weights) / sum(n for n, _ in weights) if weights else None,
        "act_bits": next((layer.act_bits for layer in layers if layer.act_bits), None),
        # Of a pruner by layer there is no one share.
        "ratio": next((step["ratio"] for step in steps if isinstance(step.get("ratio"), int | float)), None),
        "parameters": report.after.parameters,
        # Kernels of others' quantized tensors are not all counted.
        "macs": None if has_foreign_tensors(result.model) else report.after.macs // EXAMPLES,
        "bytes": report.after.bytes,
        "sqnr_db": report.sqnr_db,
    }


def _interruption(recipe: Recipe) -> str:
    """Return where Ctrl-C ended a step early; "" where none did."""
    for step in recipe.steps:
        training = step.get("training")
        note = training.get("note") if isinstance(training, Mapping) else ""
        why = str(step.get("interrupted") or note)
        if "interrupted" in why:
            return why
    return ""


def _shapes(outputs: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(output.shape)) for output in outputs)


def _out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory ran out; compressors wrap the error of their backend."""
    while error is not None:
        if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False
