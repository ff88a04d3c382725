"""Real images against degraded real images: noise and blur move precision, dropped classes move recall.

Writes each set as a folder of PNG files and compares it with the reference through the command line, as a user would:

    fidelity-lsh --input1 SET --input2 reference --fid --lsh --lsh-knn --feature-extractor efficientnet-lite0

Prints one table; writes ``results.json`` and ``degraded_images.png`` to the output folder. Runs on scikit-learn's
digits, or on MNIST or emoji images where ``--data-root`` has them.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits
from torchvision.datasets import MNIST
from tqdm import tqdm

from compressors.common.files import whole_file, write_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEED = 0
SIZE = 32
METRICS = {"lsh": "tab:blue", "lsh_knn": "tab:orange"}
COLUMNS = {
    "FID": "frechet_inception_distance",
    "lsh precision": "lsh_precision",
    "lsh recall": "lsh_recall",
    "lsh_knn precision": "lsh_knn_precision",
    "lsh_knn recall": "lsh_knn_recall",
}


def main() -> None:
    """Run the example."""
    args = parse_arguments()
    images, classes = load_images(args.data, args.data_root)
    order = np.random.default_rng(SEED).permutation(len(images))[: 600 if args.quick else args.limit]
    reference, held_out = np.array_split(order, 2)
    sets = degraded_sets(images[held_out], classes[held_out])
    folder = args.output / "images"
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder / "reference", images[reference])
    results = {}
    for name, degraded in tqdm(sets.items(), desc="Comparing with the reference", unit="set"):
        write_folder(folder / name, degraded)
        results[name] = compare(folder / name, folder / "reference")
    print_table(results)
    write_results(args, results, {"reference": len(reference), **{name: len(s) for name, s in sets.items()}})
    draw(args.output / "degraded_images.png", results, sets)
    print(f"Picture: {args.output / 'degraded_images.png'}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/degraded_images"), help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="600 images")
    parser.add_argument("--limit", type=int, default=4000, help="images used at most, half of them as reference")
    parser.add_argument("--data", choices=("digits", "mnist", "emoji"), default="digits")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST/raw, or with emoji/emoji64.npz")
    args = parser.parse_args()
    if args.data != "digits" and args.data_root is None:
        parser.error(f"--data {args.data} needs --data-root")
    return args


def load_images(data: str, root: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return N x H x W x 3 uint8 images and N class numbers."""
    if data == "emoji":
        with np.load(root / "emoji" / "emoji64.npz") as file:
            images, codepoints = file["google"].transpose(0, 2, 3, 1), file["codepoints"]
        # Neighbours in the order of code points show like things: faces, people, animals, ...
        return images, np.argsort(np.argsort(codepoints)) * 10 // len(images)
    if data == "mnist":
        mnist = MNIST(root, train=False)
        grey, classes = mnist.data.numpy(), mnist.targets.numpy()
    else:
        values, classes = load_digits(return_X_y=True)
        small = (values.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        grey = np.stack([np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.BICUBIC)) for image in small])
    return np.repeat(grey[..., None], 3, axis=-1), classes


def degraded_sets(images: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the held-out images as they are, and degraded in three ways."""
    noise = np.random.default_rng(SEED).normal(0, 60, images.shape)
    blur = ImageFilter.GaussianBlur(images.shape[1] / 12)
    noisy = (images + noise).clip(0, 255).astype(np.uint8)
    blurred = np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in images])
    every_second = (np.arange(len(images)) % 2 == 0)[:, None, None, None]
    return {
        "held out": images,
        "half of them noisy": np.where(every_second, noisy, images),
        "half of them blurred": np.where(every_second, blurred, images),
        "half of the classes": images[classes < 5],
    }


def write_folder(folder: Path, images: np.ndarray) -> None:
    """Write images as PNG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:05d}.png")


def compare(generated: Path, real: Path) -> dict[str, float]:
    """Run the command line on two folders; features of the second are extracted once and cached."""
    command = [str(Path(sys.executable).with_name("fidelity-lsh")), "--input1", str(generated), "--input2", str(real)]
    command += ["--fid", "--lsh", "--lsh-knn", "--feature-extractor", "efficientnet-lite0", "--json", "--silent"]
    command += ["--input2-cache-name", "reference", "--cache-root", str(real.parent / "cache")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def print_table(results: dict[str, dict[str, float]]) -> None:
    """Print one row per set; what is said after ± is the standard error."""
    print(f"{'input1':<22}" + "".join(f"{title:>20}" for title in COLUMNS))
    for name, values in results.items():
        cells = []
        for key in COLUMNS.values():
            error = values.get(f"{key}_stderr")
            cells.append(f"{values[key]:.3f}" + (f" ± {error:.3f}" if error is not None else ""))
        print(f"{name:<22}" + "".join(f"{cell:>20}" for cell in cells))


def write_results(args: argparse.Namespace, results: dict[str, dict[str, float]], sizes: dict[str, int]) -> None:
    """Write the numbers with all that is needed to get them again."""
    packages = ("torch-fidelity-lsh", "torch-fidelity", "torch", "numpy", "scikit-learn")
    protocol = {
        "data": args.data,
        "seed": SEED,
        "sizes": sizes,
        "feature_extractor": "efficientnet-lite0",
        "direction": "input1: the named set, taken as generated; input2: the reference",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }
    write_json(args.output / "results.json", {"protocol": protocol, "results": results})


def draw(path: Path, results: dict[str, dict[str, float]], sets: dict[str, np.ndarray]) -> None:
    """Draw precision against recall, and a few images of each set."""
    figure = plt.figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    axes = left.subplots()
    axes.set(xlabel="recall (diversity)", ylabel="precision (quality)", xlim=(-0.05, 1.1), ylim=(-0.05, 1.1))
    markers = dict(zip(results, "os^D", strict=True))
    for metric, color in METRICS.items():
        for name, values in results.items():
            x, y = values[f"{metric}_recall"], values[f"{metric}_precision"]
            errors = {"xerr": 2 * values[f"{metric}_recall_stderr"], "yerr": 2 * values[f"{metric}_precision_stderr"]}
            axes.errorbar(x, y, fmt=markers[name], color=color, markersize=8, capsize=2, **errors)
    for name, marker in markers.items():
        axes.plot([], [], marker, color="grey", label=name)
    for metric, color in METRICS.items():
        axes.plot([], [], "-", linewidth=6, color=color, label=metric)
    axes.plot([], [], "+", color="grey", markersize=12, label="± 2 standard errors")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    axes.set_title("Against a reference of real images")
    rows = right.subplots(len(sets), 6)
    for row, (name, images) in zip(rows, sets.items(), strict=True):
        for cell, image in zip(row, images, strict=False):
            cell.imshow(image)
            cell.set(xticks=[], yticks=[])
        row[0].set_title(name, loc="left", fontsize=10)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    main()
