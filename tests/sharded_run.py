"""What each process of a gloo group runs: shard a model, initialize it by name, and digest the gathered weights.

python -m tests.sharded_run WORLD CASE
"""

import hashlib
import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import torch_kinit as kinit


class Net(nn.Module):
    """A layer of each kind that stores its weights in its own way, with sizes that no world divides."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(37, 8, padding_idx=3)
        self.conv = nn.Conv2d(3, 10, 3)
        self.transposed = nn.ConvTranspose2d(10, 6, 2)
        self.lstm = nn.LSTM(8, 5)
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.batch = nn.BatchNorm2d(10)
        self.up = nn.Linear(8, 13)
        self.down = nn.Linear(13, 8)

    def forward(self, tokens):
        return self.down(self.up(self.norm(self.embedding(tokens))))


RULES = {"*up": "orthogonal", "*down": {"kernel": "he_normal", "bias": "random_uniform"}, "*conv": {"bias": 0.25}}


def digest(state):
    """A hash of names and bytes."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].contiguous().view(torch.uint8 if state[name].dim() else torch.int64).numpy().tobytes())
    return found.hexdigest()


def single():
    """The digest of one process."""
    model = Net()
    kinit.apply(model, RULES, seed=7)
    return digest(model.state_dict())


def shard(model, world, case):
    """Distribute the model as the case says."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    tensor_parallel = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    if case.startswith("FSDP2 "):
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
        model(torch.arange(4))  # after which the root keeps whole copies
    elif case == "FSDP2":
        mesh = init_device_mesh("cpu", (world,))
        for part in (model.up, model.down):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif case == "TP":
        parallelize_module(model, init_device_mesh("cpu", (world,)), tensor_parallel)
    elif case == "FSDP2+TP":
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], tensor_parallel)
        fully_shard(model, mesh=mesh["data"])
    elif case == "HSDP":
        fully_shard(model, mesh=init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replica", "shard")))
    elif case == "DDP":
        model = nn.parallel.DistributedDataParallel(model)
    return model


def run(rank, world, case, path):
    """One process."""
    from torch.distributed.tensor.debug import CommDebugMode

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    torch.manual_seed(rank)  # what must not matter
    model = shard(Net(), world, case)
    with CommDebugMode() as communication:
        kinit.apply(model, RULES, seed=7)
    state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}
    state = {name.removeprefix("module."): value for name, value in state.items()}
    os.write(1, f"{digest(state)} {communication.get_total_counts()}\n".encode())  # whole lines from each process
    refused = ""
    if case == "FSDP2":
        for call in (lambda: kinit.he_normal_(model.up.weight), lambda: kinit.apply(model)):
            try:
                call()
            except ValueError as error:
                refused = str(error)
            assert "DTensor" in refused, refused
    dist.destroy_process_group()


if __name__ == "__main__":
    world, case = int(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, args=(world, case, os.path.join(folder, "rendezvous")), nprocs=world)
