"""A narrower student learns from its teacher, is quantized, and is compared with the teacher on real images.

    python examples/student_digits.py --output output/student

The teacher is the generator of digits that ships with the examples. The student has its architecture with half of the
channels and fresh weights; it learns from drawn latents, and gets 8 bits. Both make images of the same latents, and
the intervals are those of the difference, which are narrower than those of the numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from compression_study import SHIPPED
from data import load_images
from gans import load_generator
from torch import nn

from compressors import Distiller, Pipeline, Quantizer, make_student
from compressors.common.files import write_json
from compressors.common.generation import to_images
from compressors.common.text import versions
from compressors.distil.costs import Costs, cost_table
from compressors.study import StudySettings, extract_features
from torch_fidelity_lsh import compare

SETTINGS = StudySettings(output_range=(-1, 1), feature_extractor="efficientnet-lite0")


@torch.no_grad()
def features(model: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Return the features of the images that a model makes of latents."""
    images = torch.cat([to_images(model(batch), SETTINGS.output_range) for batch in latents.split(64)])
    return extract_features(images, SETTINGS)


def main() -> None:
    """Make the student, train, quantize and compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/student"), help="folder for the results")
    parser.add_argument("--steps", type=int, default=2000, help="of distillation; default 2000")
    parser.add_argument("--seed", type=int, default=1, help="of latents, weights and training; default 1")
    parser.add_argument("--quick", action="store_true", help="20 steps, 300 images")
    arguments = parser.parse_args()
    steps, count = (20, 300) if arguments.quick else (arguments.steps, 1797)

    teacher, gan, data = load_generator(SHIPPED)
    (latents,) = gan.draw(count, torch.Generator().manual_seed(arguments.seed))
    example = (latents[:8],)
    student = make_student(teacher, example, ratio=0.5, seed=arguments.seed)
    way = Pipeline(Distiller(gan.draw, steps, seed=arguments.seed), Quantizer(8))
    small = way.compress(student, example, teacher=teacher)
    arguments.output.mkdir(parents=True, exist_ok=True)
    small.save(arguments.output / "student.safetensors")

    real = extract_features(load_images(data, Path())[:count], SETTINGS)
    sides = features(small.model, latents), features(teacher, latents)
    found = compare(*sides, real, paired=True)
    costs = Costs.of(teacher, example), Costs.of(small.model, example)
    print(f"{cost_table(*costs)}\n\n{found.verdict}, where A is the student")
    content = {"steps": steps, "images": count, "seed": arguments.seed, "versions": versions()}
    write_json(arguments.output / "results.json", {**content, **found.to_dict()})


if __name__ == "__main__":
    main()
