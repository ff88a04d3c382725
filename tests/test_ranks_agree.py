"""Ranks that do not do the same are told so, all of them, with the keyword; missing ones are not waited for long."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from test_distributed import CALL, on_ranks
from torch_fidelity.datasets import RandomlyGeneratedDataset

from torch_fidelity_lsh import LSHConfig, calculate_metrics, create_reference, lsh_precision_recall
from torch_fidelity_lsh.streaming import LSHPrecisionRecall

SMALL = {**CALL, "batch_size": 4, "cache": False}


def copied(source, target, change=lambda path, content: content):
    """Copy a folder of images with changed contents; `None` leaves an image out."""
    target.mkdir()
    for path in sorted(Path(source).iterdir()):
        content = change(path, path.read_bytes())
        if content is not None:
            (target / path.name).write_bytes(content)
    return str(target)


def other_pixels(path, content):
    """Another picture of the same name."""
    import io

    written = io.BytesIO()
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    Image.fromarray(pixels[::-1]).save(written, "PNG")
    return written.getvalue()


def fewer(path, content):
    return None if path.name == "05.png" else content


# What the second rank does otherwise than the first, and the keyword that the error names.
DIFFERENCES = {
    "seed": ({"rng_seed": 7}, "rng_seed"),
    "batch size": ({"batch_size": 5}, "batch_size"),
    "folder": ({"input2": "other"}, "input2"),
    "pictures of the same names": ({"input2": "pixels"}, "input2"),
    "one image fewer": ({"input1": "fewer"}, "input1"),
    "tables": ({"lsh_num_tables": 4}, "lsh_num_tables"),
    "components": ({"lsh_num_components": 64}, "lsh_num_components"),
    "metrics": ({"lsh_knn": True}, "lsh_knn"),
    "layer": ({"feature_layer_lsh": "small"}, "feature_layer_lsh"),
    "resize": ({"samples_resize_and_crop": 16}, "samples_resize_and_crop"),
    "cache": ({"cache": True}, "cache"),
    "ready features": ({"input2": torch.zeros(9, 24)}, "input2"),
    "data set": ({"input1": RandomlyGeneratedDataset(12, 3, 32, 32, seed=5)}, "input1"),
}


def differ(rank, folders):
    outcomes = {}
    call = {**SMALL, "input1": folders["generated"], "input2": folders["real"]}
    for name, (change, _) in DIFFERENCES.items():
        change = {key: folders.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
        try:
            outcomes[name] = calculate_metrics(**(call | change if rank == 1 else call))
        except Exception as error:
            outcomes[name] = f"{type(error).__name__}: {error}"
    for name, seed in (("create_reference", 7), ("another function", None)):
        keywords = {key: value for key, value in SMALL.items() if key != "lsh"}
        try:
            if seed is None and rank == 1:
                outcomes[name] = str(calculate_metrics(**call))
            else:
                create_reference(input=folders["real"], **keywords, rng_seed=2020 if rank == 0 or not seed else seed)
                outcomes[name] = "made"
        except Exception as error:
            outcomes[name] = f"{type(error).__name__}: {error}"
    return outcomes


def test_ranks_that_measure_different_things_get_an_error_that_names_it(image_folders, tmp_path):
    generated, real = image_folders
    folders = {
        "generated": generated,
        "real": real,
        "other": generated,
        "pixels": copied(real, tmp_path / "pixels", other_pixels),
        "fewer": copied(generated, tmp_path / "fewer", fewer),
    }
    outcomes = on_ranks(2, differ, tmp_path, folders)
    keywords = {name: keyword for name, (_, keyword) in DIFFERENCES.items()}
    keywords |= {"create_reference": "rng_seed", "another function": "function"}
    named = 0
    for name, keyword in keywords.items():
        texts = [outcome[name] for outcome in outcomes]
        assert texts[0] == texts[1], name
        assert texts[0].startswith(f"ValueError: {keyword} differs among the ranks: "), texts[0]
        assert "on rank 0" in texts[0]
        assert "on rank 1" in texts[0]
        named += 1
    print(f"{named} of {len(keywords)} differing calls named on all ranks")


def stream_shares(rank, sides):
    metric = LSHPrecisionRecall(None, ("lsh", "lsh_knn"))
    done = 0

    def counting(function, pieces):
        nonlocal done
        done += len(pieces)
        return [function(piece) for piece in pieces]

    with mock.patch("torch_fidelity_lsh.metric.parallel._in_threads", counting):
        for real, side in enumerate(sides):
            metric.update(side if dist.get_world_size() == 1 else side[rank::2], real=bool(real))
        return {key: float(value) for key, value in metric.compute().items()}, done


def test_ranks_share_the_assessment_and_return_the_numbers_of_one_process(tmp_path):
    sides = list(torch.randn(2, 5000, 40, generator=torch.Generator().manual_seed(0)))
    (expected, all_pieces), *_ = on_ranks(1, stream_shares, tmp_path, sides)
    for numbers, pieces in on_ranks(2, stream_shares, tmp_path, sides):
        assert numbers == expected
        assert pieces < 0.7 * all_pieces


def stream_differently(rank, sides):
    metric = LSHPrecisionRecall(None, config=LSHConfig(seed=rank))
    metric.update(sides[0], real=False)
    metric.update(sides[1], real=True)
    try:
        return str(metric.compute())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_streaming_metrics_of_different_settings_are_not_mixed(tmp_path):
    outcomes = on_ranks(2, stream_differently, tmp_path, [torch.randn(20, 200), torch.randn(20, 200)])
    assert outcomes[0].startswith("ValueError: config: seed of rank 1")
    assert outcomes[1].startswith("ValueError: config: seed of rank 0")


def miss(rank, generated, real):
    """The second rank never calls."""
    os.environ["FIDELITY_LSH_MEETING_SECONDS"] = "3"
    if rank == 1:
        time.sleep(8)
        return "never called"
    started = time.monotonic()
    try:
        calculate_metrics(input1=generated, input2=real, **SMALL)
    except Exception as error:
        return [f"{type(error).__name__}: {error}", time.monotonic() - started]
    return "called alone"


def test_a_rank_that_never_calls_is_not_waited_for(image_folders, tmp_path):
    (text, waited), _ = on_ranks(2, miss, tmp_path, *image_folders)
    assert text.startswith("RanksError: Not all ranks called calculate_metrics within 0:00:03")
    assert "distributed=False" in text
    assert waited < 8


def test_a_rank_that_dies_before_the_group_forms_ends_the_command(features, tmp_path):
    """The first rank of two, as ``torchrun`` starts it, without a second."""
    np.save(tmp_path / "x.npy", features[0])
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    environment |= {"MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "x", "FIDELITY_LSH_MEETING_SECONDS": "3"}
    command = ["-m", "torch_fidelity_lsh", "--input1", tmp_path / "x.npy", "--input2", tmp_path / "x.npy", "--lsh"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("fidelity-lsh: error: Not all ranks came within 0:00:03")


@pytest.mark.slow
def test_ranks_leave_without_an_abort(features, tmp_path):
    """Ranks end with code 0 each time, whichever is the last to leave."""
    for name, values in zip("12", features, strict=True):
        np.save(tmp_path / f"{name}.npy", values)
    options = ["--input1", tmp_path / "1.npy", "--input2", tmp_path / "2.npy", "--lsh", "--json", "--silent"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "torch_fidelity_lsh"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    expected = lsh_precision_recall(*features).precision
    for _ in range(10):
        done = subprocess.run([sys.executable, *torchrun, *options], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["lsh_precision"] == expected


def test_reduced_features_of_a_loaded_state_with_other_settings_are_refused():
    metric, other = (LSHPrecisionRecall(None, config=LSHConfig(seed=seed)) for seed in (0, 1))
    for each in (metric, other):
        each.persistent(True)
    for real in (True, False):
        metric.update(torch.randn(20, 200), real=real)
    other.load_state_dict(metric.state_dict())
    with pytest.raises(ValueError, match=r"config: seed of rank 0, or of the state that was loaded"):
        other.compute()
