"""What each of two processes runs: audit a model, shard it, audit it again, and compare.

python -m tests.support.audit_run
"""

import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import torch_kinit as kinit

RULES = {"out": "orthogonal"}


class Net(nn.Module):
    """Layers with packed, padded and orthogonal weights."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(37, 16, padding_idx=30)
        self.dense = nn.Linear(64, 129)
        self.lstm = nn.LSTM(16, 16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.out = nn.Linear(33, 35)


def damage(model):
    """Plant four mistakes."""
    with torch.no_grad():
        nn.init.xavier_uniform_(model.attention.in_proj_weight)
        model.words.weight[30, 0] = 1
        model.lstm.bias_ih_l0.zero_()
        model.dense.weight.mul_(0.5)


def shard(model, mesh):
    """Distribute each parameter: one along its second axis, one whole to each process, the others along their first."""
    placements = {"dense.weight": Shard(1), "dense.bias": Replicate()}
    for name, parameter in list(model.named_parameters()):
        path, _, last = name.rpartition(".")
        placed = distribute_tensor(parameter.detach(), mesh, [placements.get(name, Shard(0))])
        setattr(model.get_submodule(path), last, nn.Parameter(placed))


def run(rank, world, store):
    """Print, by the first process, how many findings are off and how many are those of the whole."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    for damaged in (False, True):
        torch.manual_seed(0)
        model = Net()
        kinit.apply(model, RULES, seed=3)
        if damaged:
            damage(model)
        whole = kinit.audit(model, RULES)
        shard(model, mesh)
        parts = kinit.audit(model, RULES)
        equal = 0
        for one, other in zip(whole, parts, strict=True):
            measured = dict(one.measured) | {"law": 0}, dict(other.measured) | {"law": 0}  # of another sample
            same = (one.verdict, one.cause) == (other.verdict, other.cause)
            equal += same and measured[0] == pytest.approx(measured[1], abs=1e-6)
        if rank == 0:
            print(f"off: {sum(not each.ok for each in parts)}, equal: {equal}", flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads abort now and then a process that takes its groups down


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (2, f"{folder}/store"), nprocs=2)
