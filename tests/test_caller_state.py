"""Whatever modes the caller has set, numbers are the same; and what the caller had set is as it was."""

import contextlib
import multiprocessing
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from compressors.study import StudySettings, run_study
from torch_fidelity_lsh import (
    LSHConfig,
    calculate_metrics,
    create_reference,
    lsh_features_to_metric,
    lsh_knn_precision_recall,
    lsh_precision_recall,
    reduce_features,
)
from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.streaming import LSHPrecisionRecall

SIDES = [torch.rand(120, 300, generator=torch.Generator().manual_seed(seed)) * 30 for seed in (1, 2)]


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def low_precision():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def low_precision_by_the_newer_names():
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        yield
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before


MODES = {
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default device": default_device,
    "default dtype": default_dtype,
    "low precision": low_precision,
    "low precision by the newer names": low_precision_by_the_newer_names,
}


def streamed(generated, real):
    metric = LSHPrecisionRecall(None, ("lsh", "lsh_knn"))
    for part in generated.split(50):
        metric.update(part, real=False)
    metric.update(real, real=True)
    return {key: float(value) for key, value in metric.compute().items()}


def by_call(generated, real):
    return calculate_metrics(input1=generated, input2=real, lsh=True, kid=True, kid_subset_size=50, verbose=False)


def by_reference(generated, real):
    reference = create_reference(input=real, verbose=False)
    return calculate_metrics(input1=generated, input2=reference, lsh=True, verbose=False)


DOORS = {
    "lsh": lambda generated, real: lsh_precision_recall(generated, real).to_dict(),
    "lsh_knn": lambda generated, real: lsh_knn_precision_recall(generated, real).to_dict(),
    "keywords": lsh_features_to_metric,
    "reduced": lambda generated, real: lsh_precision_recall(
        reduce_features(generated), reduce_features(real)
    ).to_dict(),
    "call": by_call,
    "reference": by_reference,
    "torchmetrics": streamed,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_caller_move_no_digit(door, mode):
    expected = DOORS[door](*SIDES)
    with MODES[mode]():
        assert DOORS[door](*SIDES) == expected


def test_opposite_sets_do_not_score_one_under_autocast():
    real = torch.rand(300, 4096, generator=torch.Generator().manual_seed(5)) * 30
    with torch.autocast("cpu", torch.float16):
        result = lsh_precision_recall(-real, real)
    assert (result.precision, result.recall) == (0, 0)


def test_generator_and_extractor_work_without_the_callers_autocast(images, counting_extractor):
    call = {"input1": images[0], "input2": images[1], "feature_extractor": "efficientnet-lite0", "cuda": False}
    call |= {"lsh": True, "verbose": False, "save_cpu_ram": True}
    expected = calculate_metrics(**call)
    with torch.autocast("cpu", torch.bfloat16):
        assert calculate_metrics(**call) == expected


@pytest.mark.parametrize("mode", ["autocast to bfloat16", "inference mode", "default dtype"])
def test_a_study_measures_the_same_in_any_mode(mode, counting_extractor, tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(8, 192), torch.nn.Unflatten(1, (3, 8, 8)), torch.nn.Tanh()).eval()
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    settings = StudySettings(feature_extractor="counting", samples=30, output_range=(-1, 1))

    def draw(n, random):
        return (torch.randn(n, 8, generator=random, dtype=torch.float32),)

    def scores(folder):
        return [row.scores for row in run_study(network, draw, [], images, tmp_path / folder, settings).rows]

    expected = scores("plain")
    with MODES[mode]():
        assert scores(mode) == expected


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def make_efficientnet(images):
    LSHPrecisionRecall("efficientnet-lite0")


def measure_images(images):
    call = {"input1": images[0], "input2": images[1], "feature_extractor": "efficientnet-lite0", "cuda": False}
    calculate_metrics(**call, lsh=True, fid=False, kid=True, kid_subset_size=5, verbose=False)


def measure_features(images):
    streamed(*SIDES)
    by_reference(*SIDES)


@pytest.mark.parametrize("work", [make_efficientnet, measure_images, measure_features])
def test_measuring_does_not_move_the_callers_random_state(work, images):
    before = random_states()
    work(images)
    assert random_states() == before


def test_random_state_is_kept_after_an_error_too():
    before = random_states()

    @default_modes()
    def draw_and_fail():
        raise KeyError(torch.rand(3), random.random(), np.random.rand())  # noqa: NPY002

    with pytest.raises(KeyError):
        draw_and_fail()
    assert random_states() == before


def test_metric_made_and_reset_in_inference_mode_takes_samples_outside():
    expected = streamed(*SIDES)
    with torch.inference_mode():
        metric = LSHPrecisionRecall(None, ("lsh", "lsh_knn"))
        metric.update(SIDES[0], real=False)
        metric.reset()
        made_inside = SIDES[0] + 0
    metric.update(made_inside, real=False)
    metric.update(SIDES[1], real=True)
    assert {key: float(value) for key, value in metric.compute().items()} == expected


def test_a_tensor_that_is_filled_again_does_not_change_what_was_added():
    sides = [side[:, :20].contiguous() for side in SIDES]
    expected = streamed(*sides)
    metric = LSHPrecisionRecall(None, ("lsh", "lsh_knn"))
    buffer = torch.empty_like(sides[0])
    for real, side in enumerate(sides):
        metric.update(buffer.copy_(side), real=bool(real))
    assert {key: float(value) for key, value in metric.compute().items()} == expected


def test_settings_computed_with_numpy_are_numbers():
    assert LSHConfig(num_tables=np.int64(8), occupancy=np.float32(0.5), seed=np.int32(3)) == LSHConfig(
        num_tables=8, occupancy=0.5, seed=3
    )
    call = {"input1": SIDES[0], "input2": SIDES[1], "lsh": True, "kid": True, "verbose": False}
    given = {"rng_seed": np.int64(3), "kid_subset_size": np.int64(50), "lsh_num_tables": np.int64(4)}
    assert calculate_metrics(**call, **given) == calculate_metrics(**call, **{k: int(v) for k, v in given.items()})


class Images(Dataset):
    """Images by a function, which a process that is not forked cannot be sent if it is a lambda."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.function(index)


def plain(index):
    return torch.full((3, 8, 8), index, dtype=torch.uint8)


CALL = {"feature_extractor": "efficientnet-lite0", "cuda": False, "verbose": False, "lsh": True}


def in_a_daemon(queue):
    try:
        queue.put(calculate_metrics(input1=Images(plain), input2=Images(plain), **CALL)["lsh_precision"])
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


def test_a_daemonic_process_may_measure():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=in_a_daemon, args=(queue,), daemon=True)
    torch.set_num_threads(1)
    process.start()
    assert (
        queue.get(timeout=60) == calculate_metrics(input1=Images(plain), input2=Images(plain), **CALL)["lsh_precision"]
    )
    process.join()


def test_a_data_set_that_cannot_be_sent_to_other_processes_says_what_helps(monkeypatch):
    monkeypatch.setattr(
        "torch_fidelity_lsh.fidelity.datasets.DataLoader",
        lambda *args, **kwargs: torch.utils.data.DataLoader(*args, **kwargs, multiprocessing_context="spawn"),
    )
    dataset = Images(lambda index: plain(index))
    with pytest.raises(ValueError, match=r"input1: the data set cannot be sent to .*; save_cpu_ram=True loads them"):
        calculate_metrics(input1=dataset, input2=Images(plain), **CALL)
    monkeypatch.undo()
    assert calculate_metrics(input1=dataset, input2=Images(plain), **CALL, save_cpu_ram=True)["lsh_precision"] == 1
