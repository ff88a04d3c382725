"""What each way to score channels leaves of a generator, without any training: PSNR to it, FID and recall against it.

    python benchmarks/importance.py --weights face-dcgan-64.safetensors --output output/importance

Prunes the DCGAN of faces (package gan_face_generate), or without --weights the generator of digits, by every
importance of `ChannelPruner`, in each layer alike ("local") and for "lamp" over all layers ("global"). Prints a table;
writes results.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from device import DEVICE
from repair_gan import SCORES, digits, faces

from compressors import ChannelPruner
from compressors.common.files import write_json
from compressors.common.generation import drawn, drawn_batches, generated
from compressors.common.text import versions
from compressors.study import StudySettings, extract_features, measure_generator

WAYS = (("l2", "local"), ("lamp", "local"), ("lamp", "global"), ("latent", "local"), ("fisher", "local"))


def main() -> None:
    """Prune, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="face-dcgan-64.safetensors; default: the generator of digits")
    parser.add_argument("--output", type=Path, default=Path("output/importance"), help="folder for the results")
    parser.add_argument("--ratio", type=float, default=0.3, help="share of the channels; default 0.3")
    parser.add_argument("--samples", type=int, default=1000, help="images of each row; default 1000")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--quick", action="store_true", help="one seed, 200 images")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.samples = 1, 200
    arguments.output.mkdir(parents=True, exist_ok=True)
    task = faces(arguments.weights) if arguments.weights else digits()
    rows = []
    for seed in range(1, arguments.seeds + 1):
        settings = StudySettings(
            samples=arguments.samples,
            metrics=("fid", "lsh", "lsh_knn"),
            output_range=(-1, 1),
            feature_extractor="efficientnet-lite0",
            seed=seed,
        )
        batches = drawn_batches(task.draw, arguments.samples, 100, 1000 + seed, DEVICE)
        teacher = extract_features(torch.cat(list(generated(task.generator, batches, (-1, 1), 0))), settings)
        inputs = drawn(task.draw, 8, torch.Generator().manual_seed(seed), DEVICE)
        for importance, scope in WAYS:
            pruner = ChannelPruner(arguments.ratio, importance=importance, scope=scope, draw=task.draw)
            small = pruner.compress(task.generator, inputs)
            scores = measure_generator(small, task.draw, teacher, settings)
            row = {"importance": importance, "scope": scope, "seed": seed, "dB": small.report.sqnr_db}
            rows.append({**row, **{title: scores[key] for title, key in SCORES.items()}})
            print(rows[-1], flush=True)
    print("\n| importance | dB | " + " | ".join(SCORES) + " |")
    for importance, scope in WAYS:
        found = [row for row in rows if (row["importance"], row["scope"]) == (importance, scope)]
        means = {title: statistics.mean(row[title] for row in found) for title in ("dB", *SCORES)}
        print(f"| {importance}, {scope} | " + " | ".join(f"{value:.3g}" for value in means.values()) + " |")
    protocol = {"ratio": arguments.ratio, "samples": arguments.samples, "versions": versions()}
    write_json(arguments.output / "results.json", {**protocol, "rows": rows})


if __name__ == "__main__":
    main()
