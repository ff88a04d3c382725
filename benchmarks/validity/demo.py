"""Does precision fall with the bits of the demonstration's generator, which loses quality with each?"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from checks import Check, Streams
from criteria import Curve, Group, Rule, all_keep
from mixtures import load_features
from real_features import network_features, save_features

EXAMPLES = Path(__file__).parents[2] / "examples"
FLOAT = 32
BITS = (2, 3, 4, 5, 6, 8)
QUICK_BITS = (2, 4, 8)
QUICK_IMAGES = 500
# Two quantized generators are different networks: one may be this much better by luck.
LUCK = 0.01


def demo_file(features: Path, quick: bool) -> Path:
    """Return where the features are kept, beside those of real images."""
    return features.with_name(f"demo-{'quick' if quick else 'full'}.npz")


def extract_demo(path: Path, quick: bool) -> None:
    """Quantize the generator of `examples/compression_study.py` and extract features, unless the file is there."""
    if path.is_file():
        return
    sys.path.append(str(EXAMPLES))
    from compression_study import SHIPPED
    from data import load_images
    from gans import load_generator

    from compressors import Quantizer

    generator, gan, data = load_generator(SHIPPED)
    real = load_images(data, Path())
    real = real[: QUICK_IMAGES if quick else len(real)]
    latents = torch.randn(len(real), gan.latent, generator=torch.Generator().manual_seed(0))
    arrays = {"real": network_features(real)}
    with torch.inference_mode():
        for bits in (*(QUICK_BITS if quick else BITS), FLOAT):
            model = (
                generator if bits == FLOAT else Quantizer(bits, clip="mse").compress(generator, (latents[:2],)).model
            )
            images = ((model(latents) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            arrays[str(bits)] = network_features(images)
    save_features(path, arrays)


def rising_with_bits() -> Rule:
    """Never lower with more bits, luck aside."""

    def excess(curve: Curve) -> float:
        return float((np.maximum.accumulate(curve.y) - curve.y).max()) - LUCK

    return Rule("falls with the bits", excess)


def demo_check(path: Path) -> Check:
    """Return the check on the features in a file."""

    def draw(group: Group, x: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        arrays = load_features(path)
        return arrays[f"{x:g}"], arrays["real"]

    return Check(
        "demo",
        "bits of the demonstration's generator",
        lambda quick: {(): [*(QUICK_BITS if quick else BITS), FLOAT]},
        draw,
        {"falls with the bits": {"fidelity": all_keep(rising_with_bits())}},
        repeats=(3, 1),
        standardized=False,
        same_data=True,
        source_data=path.stem,
    )
