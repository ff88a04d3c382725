"""`ArchitectureSearch`: a stage that replaces a generator by a searched student of a given cost."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from compressors.common.bake import baked_copy
from compressors.common.generation import SEED, Draw
from compressors.common.measure import reference_outputs
from compressors.core.model import CompressedModel
from compressors.core.recipe import Recipe
from compressors.core.stage import Stage, Work
from compressors.errors import CompressionError
from compressors.search.data import example
from compressors.search.procedure import Found, Search
from compressors.search.settings import SearchSettings, label_of, resolved
from compressors.search.space import SearchSpace, Size


@dataclass(frozen=True)
class ArchitectureSearch(SearchSettings, Stage):
    """Replace a generator by a student of another architecture, searched under a budget and distilled from it.

    A supernet with shared weights learns to imitate the generator, a strategy chooses networks by it, the best of them
    are trained from scratch for a short time, and the best of those for `steps`. No discriminator, no labels. Followed
    by a `Quantizer` in a `Pipeline` this is AGD's chain. `recipe.steps` of the result hold what was found, as JSON;
    `save_report` writes it with a picture.

    Interrupted by Ctrl-C, the best network so far is the result, with the weights it has by then, and a warning.

    Args:
        space: where to search, such as `cyclegan()` or `esrgan()` of `compressors.search`, or one of your own.
        budget: the most that a network may cost for one input of the size of the example inputs: multiply-accumulates
            as an integer (one of them is two FLOPs), or a share of the generator's as a float above 0, at most 1.
        draw: called as ``draw(n, random)``, returns n inputs as a tuple of one tensor B x C x H x W, drawn with the
            `torch.Generator` it is given; or a data set of such inputs, for which the teacher runs once.
        steps: batches to train the result on.
        seed: of everything that is drawn; the same one gives the same network and weights (on the CPU).
        strategy: "evolution" (default) on the supernet's loss; "gradient", AGD's own; "both"; or "trials", without a
            supernet: random networks are trained for a short time, then mutations of the best.
        loss: "l1" (default), "mse", or a function from student's and teacher's images to a scalar, such as
            `DistillDistance` of `compressors.distil`.
        terms: more losses with their weights, as in `Distiller`.
        search_steps: batches to train the supernet on; default 2 `steps`. Each trains four networks.
        trials: how many networks are trained for a short time, half of them random; default 12. With "trials" at most
            so many: a mutation may be a network that is known.
        trial_steps: batches of each of these; default 3/8 of `steps`.
        population: networks in a generation of evolution; default 30.
        generations: their number; default 12.
        batch_size: default 16.
        rate: highest learning rate; default 2e-3.
        band: share of the budget to use at least; default 0.92.
        gate: see `Supernet`; for gradients alone.
        held_out: inputs that states are compared on while training; default 64.
        folder: for files to resume from: a killed search then ends with the same network. None (default) writes none.
        genotype: train this network and search nothing; for comparisons at equal training.
        progress: show bars on stderr; default True.

    Source: Fu et al. 2020, arXiv 2006.08198 (AGD); evolution and short trainings are ours.

    Raises:
        CompressionError: a setting is unusable. `compress` raises it also where the budget is below the smallest
            network at this input size, where the space makes outputs of another shape than the generator, or where
            `draw` fails.
    """

    @property
    def name(self) -> str:
        """A short label, such as "search 0.25" or "search 110.9G"."""
        return f"search {label_of(self.budget)}" if self.genotype is None else "train from scratch"

    def _apply(self, work: Work) -> Work:
        teacher = work.model
        if work.teacher is not None:
            given = work.teacher.model if isinstance(work.teacher, CompressedModel) else work.teacher
            teacher = baked_copy(given)
        teacher.requires_grad_(False)
        if len(work.inputs) != 1 or not isinstance(work.inputs[0], Tensor) or work.inputs[0].dim() != 4:
            raise CompressionError(
                "example_inputs: search spaces map one tensor of images B x C x H x W; for other generators there is "
                "search_widths"
            )
        images = work.inputs[0][:1]
        size: Size = (images.shape[-2], images.shape[-1])
        self._check_outputs(teacher, images)
        if self.genotype is None:
            budget = resolved(self.budget, teacher, images)
            budget = self._in_range(budget, size)
        else:
            budget = self.space.macs(self.genotype, size)
        found = Search(self, teacher, images, size, budget).run()
        if found.interrupted:
            warnings.warn(f"{self.name}: {found.interrupted}; the best network so far is kept", stacklevel=4)
        return self._result(work, found, budget, size)

    def _result(self, work: Work, found: Found, budget: int, size: Size) -> Work:
        macs = self.space.macs(found.genotype, size)
        parameters = sum(parameter.numel() for parameter in found.model.parameters())
        note = f"{self.name}: {macs:,} of {budget:,} multiply-accumulates, {parameters:,} parameters"
        outcome = {
            "genotype": [list(pair) for pair in found.genotype],
            "size": list(size),
            "budget": budget,
            "macs": macs,
            "interrupted": found.interrupted,
            "candidates": found.candidates,
            "supernet": found.supernet,
            "training": found.training,
        }
        recipe: Recipe = replace(
            work.recipe, architecture=self.space.architecture(found.genotype), sizes={}, quantized={}, sparse=False
        )
        return replace(
            work.changed({}, 1.0, model=found.model, recipe=recipe, outcome=outcome),
            report=replace(work.report, coverage=1.0, notes=(*work.report.notes, note)),
            float_weights={},
        )

    def _check_outputs(self, teacher: nn.Module, images: Tensor) -> None:
        outputs = reference_outputs(teacher, (images,))
        got = [tuple(output.shape) for output in outputs]
        rows, columns = (round(side * self.space.enlargement) for side in images.shape[-2:])
        makes = (1, self.space.layers[-1].width, rows, columns)
        if images.shape[1] != self.space.in_channels or got != [makes]:
            raise CompressionError(
                f"space: it maps 1 x {self.space.in_channels} x {' x '.join(map(str, images.shape[-2:]))} to "
                f"{' x '.join(map(str, makes))}; the model maps {tuple(images.shape)} to {', '.join(map(str, got))}"
            )
        self.space.chain.check_size(images)

    def _in_range(self, budget: int, size: Size) -> int:
        smallest, largest = self.space.min_macs(size), self.space.max_macs(size)
        if budget < smallest:
            raise CompressionError(
                f"budget: {budget:,} multiply-accumulates are less than the smallest network of this space needs for "
                f"one input of {size[0]} x {size[1]}, {smallest:,} (the largest: {largest:,}); what is never searched, "
                f"such as a head, alone costs {self.space.fixed_macs(size):,}"
            )
        if budget > largest:
            warnings.warn(
                f"budget: {budget:,} multiply-accumulates are more than the largest network of this space has for one "
                f"input of {size[0]} x {size[1]}, {largest:,}; that is searched for",
                stacklevel=6,
            )
        return min(budget, largest)


def search_student(
    teacher: nn.Module | CompressedModel,
    space: SearchSpace,
    budget: int | float,
    draw: Draw | Dataset[Any] | Tensor,
    *,
    steps: int,
    seed: int = SEED,
    **settings: Any,
) -> CompressedModel:
    """Return a student of `teacher` that was searched under a budget and trained; `teacher` is left as it was.

    The same as `ArchitectureSearch(...).compress(teacher, example)` with one drawn input as the example, so the
    budget is for an input of the size that `draw` gives.

    Args:
        teacher: maps images to images.
        space: see `ArchitectureSearch`, as for all arguments below.
        budget: multiply-accumulates of one sample as an integer, or a share of the teacher's as a float.
        draw: a function ``draw(n, random)``, or a data set of inputs.
        steps: batches to train the result on.
        seed: default 2020.
        settings: further settings of `ArchitectureSearch`.

    Raises:
        CompressionError: see `ArchitectureSearch`.
    """
    stage = ArchitectureSearch(space, budget, draw, steps, seed, **settings)
    return stage.compress(teacher, example(draw, teacher, seed))
