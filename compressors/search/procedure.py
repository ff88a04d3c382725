"""The steps of a search, each resumed from its own file: supernet, candidates, trials, training from scratch."""

from __future__ import annotations

import copy
import json
import math
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from compressors.common.files import digest
from compressors.common.generation import drawn
from compressors.common.measure import seeded
from compressors.common.text import versions
from compressors.core.model import CompressedModel
from compressors.core.recipe import settings as settings_of
from compressors.distil.training import move_losses, weighted
from compressors.errors import TrainingDiverged
from compressors.search.cost import Indices, derive, macs_of
from compressors.search.data import DataDraw, known_outputs, split
from compressors.search.settings import SearchSettings
from compressors.search.space import Genotype, Size
from compressors.search.strategies import STRATEGIES, Task
from compressors.search.supernet import Supernet, logs
from compressors.search.training import GradientSearch, SupernetTraining

# Batches of inputs that batch norms of exported weights measure.
_NORM_BATCHES = 20
_CHUNK = 32


@dataclass
class Found:
    """What a search has found so far.

    Attributes:
        genotype: the network.
        model: it, trained.
        candidates: networks that were trained for a short time, with what found them and their losses.
        supernet: the course of the supernet's training.
        training: the course of the model's.
        interrupted: why the search ended early; "" where it did not.
    """

    genotype: Genotype = ()
    model: nn.Module = field(default_factory=nn.Identity)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    supernet: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    interrupted: str = ""


class _Interrupted(Exception):
    """Ctrl-C."""


class Search:
    """A search: `run` does all of it.

    Args:
        settings: what to do.
        teacher: frozen, in eval mode.
        images: one input, 1 x C x H x W.
        size: its rows and columns.
        budget: multiply-accumulates for it.
    """

    def __init__(self, settings: SearchSettings, teacher: nn.Module, images: Tensor, size: Size, budget: int) -> None:
        self.settings, self.images, self.size, self.budget = settings, images, size, budget
        self.space, self.device = settings.space, images.device
        self.tables = self.space.tables(size)
        self.band = (math.ceil(settings.band * budget), budget)
        self.draw, choosing = split(settings.draw)
        self.teacher = teacher
        if isinstance(self.draw, DataDraw):
            path = settings.file("teacher.safetensors")
            self.teacher = known_outputs(teacher, self.draw, self.device, path, settings.progress)
        inputs = drawn(choosing, 2 * settings.held_out, torch.Generator().manual_seed(settings.seed + 1), self.device)
        self.choosing: Tensor = inputs[0]
        described = {**settings_of(settings), "versions": versions(), "budget": budget, "size": size}
        del described["folder"], described["progress"]
        state = teacher.state_dict().values()
        self.identity = digest([json.dumps(described, sort_keys=True), self.choosing, *state])
        self.scores: dict[Indices, float] = {}
        self.losses = settings.distiller(self.draw, 1).losses
        move_losses(self.losses, self.device)
        self.best = math.inf
        self.supernet: Supernet | None = None
        self.found = Found()

    def run(self) -> Found:
        """Return what was found; after Ctrl-C the best so far."""
        settings, found = self.settings, self.found
        try:
            found.genotype = settings.genotype or self._chosen()
            result = self._trained(found.genotype, settings.steps, "student.safetensors")
        except (_Interrupted, KeyboardInterrupt) as reason:
            found.interrupted = str(reason) or "interrupted while choosing networks"
            if not found.training:
                if self.supernet is None:
                    raise KeyboardInterrupt from reason  # there is nothing to keep
                self._export(self.supernet)
            return found
        course = _course(result)
        found.interrupted = course["note"]
        # Interrupted early, it may be worse than the same network after its short training.
        if not course["note"] or course["best_loss"] <= found.training.get("best_loss", math.inf):
            found.model, found.training = result.model, course
        return found

    def _chosen(self) -> Genotype:
        """Return the network to train, the best of the trials."""
        settings, found = self.settings, self.found
        task = Task(
            self.tables,
            self.band,
            self._score,
            self._learnt_logits,
            self._trial,
            random.Random(settings.seed),
            settings.population,
            settings.generations,
            settings.progress,
        )
        candidates = STRATEGIES[settings.strategy](task, settings.trials)
        if len(candidates) == 1:
            return self.space.genotype(candidates[0][1])
        for origin, indices in candidates:
            self._trial(origin, indices)
        return found.genotype

    def _trial(self, origin: str, indices: Indices) -> float:
        """Train a network for a short time, keep it if it is the best, and return its loss."""
        settings, found, genotype = self.settings, self.found, self.space.genotype(indices)
        steps = settings.trial_steps or max(1, 3 * settings.steps // 8)
        result = self._trained(genotype, steps, f"trial-{len(found.candidates)}.safetensors")
        loss = self._loss(result.model)
        row: dict[str, Any] = {"origin": origin, "genotype": [list(pair) for pair in genotype]}
        row |= {"macs": macs_of(self.tables, indices), "loss": loss, "shared loss": self.scores.get(indices)}
        found.candidates.append(row)
        if loss < self.best:
            self.best, found.genotype, found.model, found.training = loss, genotype, result.model, _course(result)
        if _course(result)["note"].startswith("interrupted"):
            raise _Interrupted(f"interrupted in trial {len(found.candidates)}")
        return loss

    def _learnt_supernet(self) -> Supernet:
        """Return the supernet, trained when it is first needed."""
        settings = self.settings
        if self.supernet is not None:
            return self.supernet
        with seeded(settings.seed, self.device):
            self.supernet = Supernet(self.space, settings.gate).to(self.device)
        steps = settings.search_steps or 2 * settings.steps
        plan = settings.distiller(self.draw, steps, "supernet.safetensors").plan(False)
        weights = dict(self.supernet.weights.named_parameters())
        training = SupernetTraining(self.supernet, self.teacher, weights, plan, self.identity)
        course = training.prepare(self.size, self.band).run()
        self.found.supernet = asdict(course)
        if course.note:
            raise _Interrupted(f"supernet {course.note}")
        return self.supernet

    def _learnt_logits(self) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        settings = self.settings
        supernet = copy.deepcopy(self._learnt_supernet())
        steps = max(1, (settings.search_steps or 2 * settings.steps) * 3 // 7)
        plan = settings.distiller(self.draw, steps, "logits.safetensors").plan(False)
        training = GradientSearch(supernet, self.teacher, dict(supernet.named_parameters()), plan, self.identity)
        course = training.prepare(self.size, self.band).run()
        if course.note:
            raise _Interrupted(f"search for logits {course.note}")
        return logs(supernet.operator_probabilities(1.0)), logs(supernet.width_probabilities(1.0))

    def _score(self, indices: Indices) -> float:
        """Return the loss of a network with the shared weights."""
        supernet = self._learnt_supernet()
        self.scores[indices] = self._loss(lambda images: supernet(images, indices))
        return self.scores[indices]

    @torch.no_grad()
    def _loss(self, network: Any) -> float:
        chunks = [self.choosing[start : start + _CHUNK] for start in range(0, len(self.choosing), _CHUNK)]
        pairs = [(network(images), self.teacher(images)) for images in chunks]
        losses = [float(weighted(self.losses, *pair)) * len(pair[0]) for pair in pairs]
        return sum(losses) / len(self.choosing)

    def _trained(self, genotype: Genotype, steps: int, name: str) -> CompressedModel:
        """Return a network trained from scratch; where that diverges, in its best state before."""
        with seeded(self.settings.seed, self.device):
            student = self.space.build(genotype).to(self.device)
        distiller = self.settings.distiller(self.draw, steps, name)
        try:
            return distiller.compress(student, (self.images,), teacher=self.teacher)
        except TrainingDiverged as error:
            result: CompressedModel = error.result
            return result

    def _export(self, supernet: Supernet) -> None:
        """Take the best network known, with its part of the shared weights."""
        if self.scores:
            best = min(self.scores, key=lambda indices: (self.scores[indices], indices))
        else:
            even = [[np.zeros(table.shape[axis]) for table in self.tables] for axis in (0, 2)]
            best = derive(self.tables, even[0], even[1], self.budget, self.settings.band)
        self.found.genotype = self.space.genotype(best)
        self.found.model = supernet.exported(self.found.genotype).to(self.device)
        random = torch.Generator().manual_seed(self.settings.seed)
        batches = (drawn(self.draw, self.settings.batch_size, random, self.device)[0] for _ in range(_NORM_BATCHES))
        update_bn(batches, self.found.model)
        self.found.model.eval()


def _course(result: CompressedModel) -> dict[str, Any]:
    course: dict[str, Any] = result.recipe.steps[-1]["training"]
    return course
