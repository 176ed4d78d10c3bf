"""Work in several processes that exchange tensors, as a training run on several devices does."""

import os
import pickle
import socket
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
    """What `work(ranks, *arguments)` gives in each of `size` processes; it must be a function of a
    module."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_process, (size, str(folder), work, arguments), nprocs=size)
    return [pickle.loads((folder / f"answer_{rank}").read_bytes()) for rank in range(size)]


def _torchrun_process(variables, folder, work, arguments):
    os.environ.update(variables)
    torch.set_num_threads(1)
    answer = work(*arguments)
    (Path(folder) / f"answer_{variables['RANK']}").write_bytes(pickle.dumps(answer))
    os._exit(0)


def as_torchrun_does(size, folder, work, *arguments):
    """What `work(*arguments)` gives in each of `size` processes that find what torchrun tells them
    in their environment."""
    folder.mkdir(parents=True, exist_ok=True)
    context = torch.multiprocessing.get_context("spawn")
    started = [
        context.Process(target=_torchrun_process, args=(variables, str(folder), work, arguments))
        for variables in torchrun_variables(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    return [pickle.loads((folder / f"answer_{rank}").read_bytes()) for rank in range(size)]


def torchrun_variables(size):
    """What torchrun tells each of `size` processes on one machine."""
    job = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "1",
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}  # fmt: skip
    return [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
