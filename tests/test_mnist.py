"""What the metrics say of MNIST, where the truth is known: rows of the board that need more than scikit-learn has.

Their draws are others than the board's. Set MNIST to torchvision's root, the folder of MNIST/raw; features of 24,000
images take eight minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import Streams
from criteria import Curve
from detection import LEVEL, draw_digits
from mixtures import KNOWN_DIGITS, SHARES, Split, load_features, mixture_error
from real_features import load_images, network_features, save_features

from torch_fidelity_lsh import LSHConfig, PrecisionRecall, lsh_knn_precision_recall, lsh_precision_recall

ROOT = Path(os.environ.get("MNIST", Path(__file__).parents[2] / "shared" / "datasets"))
IMAGES = 24_000
DRAWS = 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "MNIST" / "raw").is_dir(), reason="no MNIST; set MNIST to torchvision's root"),
    pytest.mark.parametrize("metric", [lsh_precision_recall, lsh_knn_precision_recall], ids=["lsh", "lsh_knn"]),
]

Metric = Callable[..., PrecisionRecall]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("mnist") / "features.npz"
    images, digits = load_images(ROOT, IMAGES)
    save_features(path, {"features": network_features(images), "digits": digits.numpy()})
    yield path
    load_features.cache_clear()


def measured(metric: Metric, generated: np.ndarray, real: np.ndarray, draw: int) -> PrecisionRecall:
    return metric(torch.from_numpy(generated), torch.from_numpy(real), LSHConfig(seed=draw))


def splits(features: Path) -> list[Split]:
    return [Split(features, Streams("test of MNIST", draw)) for draw in range(DRAWS)]


def test_one_class_alone_is_precise(metric: Metric, features: Path) -> None:
    values = [
        [
            measured(metric, split.digit(digit), split.reference, draw).precision_unclipped
            for digit in range(KNOWN_DIGITS)
        ]
        for draw, split in enumerate(splits(features))
    ]
    means = np.mean(values, 0)
    assert means.min() >= 0.83, "the worst class: measured .93 and .94 on twelve other draws"
    assert means.mean() == pytest.approx(1, abs=0.06)


def test_mixtures_with_new_digits_read_as_their_share(metric: Metric, features: Path) -> None:
    values = [
        [measured(metric, split.mixed(share), split.reference, draw).precision for share in SHARES]
        for draw, split in enumerate(splits(features))
    ]
    curve = Curve((), "all", np.array(SHARES), np.array(values))
    # On twelve other draws .098 (lsh) and .071 (lsh_knn); recall is the precision of the sides exchanged.
    assert mixture_error(curve) <= (0.12 if metric is lsh_precision_recall else 0.09)


def test_small_shares_of_new_digits_are_seen(metric: Metric, features: Path) -> None:
    shares = (0.02, 0.05, 0.1)
    falls = []
    for draw, split in enumerate(splits(features)):
        whole, *values = (
            measured(metric, split.mixed(share), split.reference, draw).precision_unclipped for share in (0, *shares)
        )
        falls.append([(whole - value) / share for value, share in zip(values, shares, strict=True)])
    slopes = np.mean(falls, 0)
    assert slopes[0] >= 0.5, "at .02: a fiftieth of 2,000 samples, measured .69 and .76"
    assert slopes[1:].min() >= 0.7


def test_one_in_twenty_new_digits_is_found_and_none_are_not(metric: Metric, features: Path) -> None:
    found = {0: 0, 250: 0}
    for strangers in found:
        for draw in range(DRAWS):
            pair = draw_digits(features, 5000, strangers, Streams("test of MNIST", draw))
            assert pair is not None
            found[strangers] += measured(metric, *pair, draw).precision_pvalue <= LEVEL
    assert found[250] >= 3, "measured .8 and 1.0 of draws"
    assert found[0] <= 1
