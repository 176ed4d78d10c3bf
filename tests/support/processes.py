"""Work in several processes that exchange tensors, as a training run on several devices does."""

import pickle
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from sjepa.core.ranks import Ranks


def _process(rank, size, folder, work, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    answer = work(Ranks(rank, size), *arguments)
    (Path(folder) / f"answer_{rank}").write_bytes(pickle.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()


def in_processes(size, folder, work, *arguments):
    """What `work(ranks, *arguments)` gives in each of `size` processes; it must be a function of a module."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_process, (size, str(folder), work, arguments), nprocs=size)
    return [pickle.loads((folder / f"answer_{rank}").read_bytes()) for rank in range(size)]
