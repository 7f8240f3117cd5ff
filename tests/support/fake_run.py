"""Ranks of a large mesh without their peers: a process each, in a group whose collectives send nothing.

Several ranks cannot take turns in one process, since a mesh keeps the coordinates of the process that made it.
"""

import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
import torch.distributed as dist

import torch_kinit as kinit
from tests.support.sharded_run import RULES, Net

# Forked from a process that has imported what each would need seconds for.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "torch.distributed.tensor.debug", "tests.support.fake_run"])


def on_ranks(world, ranks, function, *arguments):
    """What `function(rank, *arguments)`, which a module must hold, returns in the process of each of `ranks`."""
    calls = [(world, rank, function, arguments) for rank in ranks]
    with ProcessPoolExecutor(2, CONTEXT, max_tasks_per_child=1) as pool:
        return [torch.load(io.BytesIO(found)) for found in pool.map(_call, calls)]


def _call(call):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    world, rank, function, arguments = call
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # what must not matter
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    found = io.BytesIO()
    torch.save(function(rank, *arguments), found)  # as bytes: a tensor that is sent is memory shared with its sender
    dist.destroy_process_group()
    return found.getvalue()


def distributed(model, mesh):
    """A model of meta tensors, with layers `up` and `down`, over a mesh of named axes: replica, shard and tensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    devices = init_device_mesh("cpu", tuple(mesh.values()), mesh_dim_names=tuple(mesh))
    if "tensor" in mesh:
        parallelize_module(model, devices["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if data := tuple(axis for axis in mesh if axis != "tensor"):
        fully_shard(model, mesh=devices[data])
    return model.to_empty(device="cpu")


def initialized(rank, mesh):
    """What a rank holds of each parameter and buffer of `Net`, and the number of collectives that took."""
    from torch.distributed.tensor.debug import CommDebugMode

    with torch.device("meta"):
        model = Net()
    distributed(model, mesh)
    with CommDebugMode() as communication:
        kinit.apply(model, RULES, seed=7)
    state = {k: v.to_local() if hasattr(v, "to_local") else v for k, v in model.state_dict().items()}
    return state, communication.get_total_counts()


def cut(whole, name, rank, mesh):
    """What a rank holds of a parameter of `Net`: tensor parallelism chunks it first, and FSDP2 what that leaves."""
    place = {}
    for axis, size in reversed(mesh.items()):  # the last axis counts fastest
        rank, place[axis] = divmod(rank, size)
    dim = {"up.weight": 0, "up.bias": 0, "down.weight": 1}.get(name)
    if "tensor" in mesh and dim is not None:
        whole = chunk(whole, mesh["tensor"], place["tensor"], dim)
    return chunk(whole, mesh["shard"], place["shard"], 0) if "shard" in mesh else whole


def chunk(whole, parts, which, dim):
    """torch.chunk, which gives fewer chunks than asked where elements run out."""
    chunks = whole.chunk(parts, dim)
    return chunks[which] if which < len(chunks) else whole.narrow(dim, 0, 0)
