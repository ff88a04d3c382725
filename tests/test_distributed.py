"""Ranks: the numbers of one process whatever the shares, and an error on one is an error on all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import CountingExtractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from torch_fidelity_lsh import calculate_by_class, calculate_metrics, create_reference, create_statistics
from torch_fidelity_lsh.streaming import LSHPrecisionRecall

CALL = {"feature_extractor": "counting", "cuda": False, "verbose": False, "save_cpu_ram": True, "lsh": True}
# Three batches of input1 and four of input2.
BATCHES = {**CALL, "batch_size": 4, "fid": True, "lsh_knn": True, "kid": True, "kid_subset_size": 5, "kid_subsets": 3}


def start_ranks(work, arguments, nprocs):
    """Run a function in processes that fork from one with torch imported, which takes each of them five seconds."""
    mp.set_forkserver_preload(["torchmetrics", "torch_fidelity_lsh.cli", "compressors"])
    mp.start_processes(work, arguments, nprocs, start_method="forkserver")


def on_ranks(size, work, folder, *arguments):
    """Run ``work(rank, *arguments)`` on ranks of gloo; return what each returns, errors as their text."""
    start_ranks(_rank, (size, work, str(folder), arguments), nprocs=size)
    return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


def _rank(rank, size, work, folder, arguments):
    torch.set_num_threads(1)  # Threads of several processes on few cores wait for each other.
    FEATURE_EXTRACTORS_REGISTRY["counting"] = CountingExtractor
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        result = work(rank, *arguments)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))


def measure_twice(rank, generated, real, cache):
    """Measure without and with cache, count the images each rank saw, and measure alone."""
    result = calculate_metrics(input1=generated, input2=real, **BATCHES, cache=False)
    seen = CountingExtractor.images
    cached = {"input2_cache_name": "real", "cache_root": cache}
    first = calculate_metrics(input1=generated, input2=real, **BATCHES, **cached)
    second = calculate_metrics(input1=generated, input2=real, **BATCHES, **cached)
    seen_cached = CountingExtractor.images
    reference = create_reference(input=real, **{**CALL, "lsh": False}, batch_size=4, cache=False)
    by_reference = calculate_metrics(input1=generated, input2=reference, **CALL, batch_size=4, cache=False)
    alone = None
    if rank == 1:
        alone = calculate_metrics(input1=generated, input2=real, **BATCHES, cache=False, distributed=False)
    return [result, seen, first, second, seen_cached, by_reference, alone]


def test_ranks_return_the_numbers_of_one_process(counting_extractor, image_folders, tmp_path):
    generated, real = image_folders
    expected = calculate_metrics(input1=generated, input2=real, **BATCHES, cache=False)
    outcomes = on_ranks(4, measure_twice, tmp_path, generated, real, str(tmp_path / "cache"))
    for result, _, first, second, _, by_reference, _ in outcomes:
        assert result == first == second == expected
        assert by_reference == {key: expected[key] for key in by_reference}
    assert outcomes[1][-1] == expected
    # Each image once; input1 has three batches for the four ranks.
    assert sorted(outcome[1] for outcome in outcomes) == [2, 8, 8, 8]
    # Cached features of the 14 real images are not extracted again.
    assert sum(outcome[4] for outcome in outcomes) == 26 + 26 + 12


def test_every_call_may_be_told_to_work_alone(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    generated, real = torch.randn(2, 40, 4)
    labels = [0] * 20 + [1] * 20
    for call, inputs in (
        (calculate_metrics, {"input1": generated, "input2": real, "lsh": True}),
        (create_reference, {"input": real}),
        (create_statistics, {"input": real}),
        (calculate_by_class, {"input1": generated, "input2": real, "labels1": labels, "labels2": labels}),
    ):
        assert call(**inputs, distributed=False, cuda=False, verbose=False) is not None


def fail(rank, generated, real, broken):
    """Give one rank a folder with a broken image, and another one a wrong keyword."""
    outcomes = []
    for call in ({"input1": broken if rank == 1 else generated}, {"input1": generated, "lsh_seed": 1}):
        keywords = {**call, "input2": real, **CALL, "batch_size": 4, "cache": False}
        if rank == 0:
            keywords.pop("lsh_seed", None)
        try:
            outcomes.append(calculate_metrics(**keywords))
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    return outcomes


def test_a_failing_rank_fails_all(image_folders, tmp_path):
    generated, real = image_folders
    broken = tmp_path / "broken"
    broken.mkdir()
    for i in range(12):
        (broken / f"{i:02}.png").write_bytes(b"no image")
    first, second = on_ranks(2, fail, tmp_path, generated, real, str(broken))
    assert second[0].startswith('ValueError: input1: cannot read image "')
    assert first[0].startswith("ValueError: Failed on rank 1: ")
    assert second[1].startswith('ValueError: Unknown keyword "lsh_seed"')
    assert first[1].startswith('ValueError: Failed on rank 1: ValueError: Unknown keyword "lsh_seed"')


def stream(rank, sides):
    """Give the first rank a third of the samples, the second the rest, and the third none."""
    metric = LSHPrecisionRecall(feature=None, metrics=("lsh", "lsh_knn"))
    for real, features in enumerate(sides):
        third = len(features) // 3
        for batch in {0: [features[:third]], 1: features[third:].split(20)}.get(rank, []):
            metric.update(batch, real=bool(real))
    results = [{key: float(value) for key, value in metric.compute().items()}]
    metric.reset()
    if rank == 0:
        metric.update(sides[0], real=False)
        metric.update(sides[1], real=True)
    results.append({key: float(value) for key, value in metric.compute().items()})
    return results


def test_the_metric_counts_the_samples_of_all_ranks(tmp_path):
    sides = [torch.randn(90, 200), torch.randn(120, 200)]
    alone = LSHPrecisionRecall(feature=None, metrics=("lsh", "lsh_knn"))
    alone.update(sides[0], real=False)
    alone.update(sides[1], real=True)
    expected = {key: float(value) for key, value in alone.compute().items()}
    for results in on_ranks(3, stream, tmp_path, sides):
        assert results == [expected, expected]


def test_command_line_under_torchrun(image_folders, tmp_path):
    generated, real = image_folders
    options = ["--input1", generated, "--input2", real, "--lsh", "--json", "--cpu", "--silent", "--no-cache"]
    options += ["--feature-extractor", "efficientnet-lite0", "--batch-size", "4", "--save-cpu-ram"]
    command = ["-m", "torch_fidelity_lsh"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outputs = [
        subprocess.run(
            [sys.executable, *start, *command, *options], capture_output=True, text=True, check=True, env=environment
        ).stdout
        for start in ([], torchrun)
    ]
    assert json.loads(outputs[0]) == json.loads(outputs[1])
