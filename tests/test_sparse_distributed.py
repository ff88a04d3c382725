"""Two processes train one GAN: one balance ratio, one decision, one set of masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from sparse_loop import Loop
from test_distributed import start_ranks
from test_sparse_training import CONFIGS
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from compressors.sparse import SparseConfig
from compressors.sparse.distributed import mean_over_ranks


def worker(rank: int, folder: str, config: SparseConfig) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    assert mean_over_ranks([float(rank), 3.0], torch.device("cpu")) == [0.5, 3.0]
    # Positions and tie-breaks would differ, and the weights with them, if each rank followed its own seed.
    loop = Loop(replace(config, seed=rank), wrap=DistributedDataParallel)
    loop.random.manual_seed(100 + rank)
    actions = [loop.step().action for _ in range(14)]
    assert {"grow", "exchange"} & set(actions)
    weights = {f"weights.{name}": value for name, value in loop.generator.module.named_parameters()}
    torch.save({**loop.sparse.state_dict(), **weights}, Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def test_ranks_agree_on_masks_and_densities(tmp_path):
    config = replace(CONFIGS["strict"], discriminator_density=0.45)
    start_ranks(worker, (str(tmp_path), config), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys()
    buffers = [key for key in first if "running" in key]
    for key in first.keys() - set(buffers):
        assert torch.equal(first[key], second[key]), key
