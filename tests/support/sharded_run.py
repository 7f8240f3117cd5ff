"""What each process of a group runs: shard models, initialize them by name, and digest the gathered weights.

python -m tests.support.sharded_run WORLD DEVICE CASE ...
"""

import hashlib
import os
import sys
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import torch_kinit as kinit

RUNS_FSDP2 = hasattr(torch.cpu.Stream(), "record_event")  # torch 2.6 runs no model of fully_shard on the CPU


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
        found.update(
            state[name].cpu().contiguous().view(torch.uint8 if state[name].dim() else torch.int64).numpy().tobytes()
        )
    return found.hexdigest()


def single(device="cpu"):
    """The digest of one process."""
    model = Net().to(device)
    kinit.apply(model, RULES, seed=7)
    return digest(model.state_dict())


def shard(model, world, case, device="cpu"):
    """Distribute the model as the case says."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    tensor_parallel = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    if case.startswith("FSDP2 "):
        if not RUNS_FSDP2:
            raise NotImplementedError("torch runs no model of fully_shard on the CPU")
        fully_shard(model, mesh=init_device_mesh(device, (world,)))
        model(torch.arange(4, device=device))  # after which the root keeps whole copies
    elif case == "FSDP2":
        mesh = init_device_mesh(device, (world,))
        for part in (model.up, model.down):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif case == "TP":
        parallelize_module(model, init_device_mesh(device, (world,)), tensor_parallel)
    elif case == "FSDP2+TP":
        mesh = init_device_mesh(device, (world // 2, 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], tensor_parallel)
        fully_shard(model, mesh=mesh["data"])
    elif case == "HSDP":
        fully_shard(model, mesh=init_device_mesh(device, (2, world // 2), mesh_dim_names=("replica", "shard")))
    elif case == "DDP":
        model = nn.parallel.DistributedDataParallel(model)
    return model


def run(rank, world, cases, path, device):
    """One process."""
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{path}", rank=rank, world_size=world)
    for case in cases:
        try:
            check_case(rank, world, case, device)
        except NotImplementedError as error:  # on all processes alike
            os.write(1, f"{case}: NotImplementedError {str(error).splitlines()[0]}\n".encode())
        dist.barrier()  # or a process that ends cuts off one that still receives
    os._exit(0)  # gloo's threads abort now and then a process that takes its groups of several meshes down


def check_case(rank, world, case, device):
    """Shard and initialize a network, and print the case, the digest and the number of collectives."""
    from torch.distributed.tensor.debug import CommDebugMode

    torch.manual_seed(rank)  # what must not matter
    from_meta = case.startswith("meta, ")
    with torch.device("meta" if from_meta else device):
        model = Net()
    model = shard(model, world, case.removeprefix("meta, "), device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    if from_meta:
        check_materialized(model, device)
    with CommDebugMode() as communication:
        kinit.apply(model, RULES, seed=7)
    state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}
    state = {name.removeprefix("module."): value for name, value in state.items()}
    found = f"{case}: {digest(state)} {communication.get_total_counts()}\n"
    os.write(1, found.encode())  # whole lines from each process
    refused = ""
    if case == "FSDP2":
        for call in (lambda: kinit.he_normal_(model.up.weight), lambda: kinit.apply(model)):
            try:
                call()
            except ValueError as error:
                refused = str(error)
            assert "DTensor" in refused, refused
    if case == "meta, FSDP2":
        check_spectral_norm(world, device)
    if from_meta and "TP" not in case and RUNS_FSDP2:  # torch cannot run TP with uneven shards
        check_trains(model, optimizer, device)


def check_materialized(model, device):
    """Raise AssertionError unless all is real and NaN, or zero, and the parameters are the objects they were."""
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    with pytest.raises(ValueError, match=r"kinit\.materialize\(model, device\)"):
        kinit.apply(model, RULES, seed=7)
    assert kinit.materialize(model, device) is model
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        assert local.device.type == device, name
        assert bool(local.isnan().all() if local.is_floating_point() else (local == 0).all()), name


def check_spectral_norm(world, device):
    """Raise AssertionError unless spectral_norm's originals and vectors are those of one process, twice."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.utils.parametrizations import spectral_norm

    def make():
        return nn.Sequential(spectral_norm(nn.Linear(6, 5)), spectral_norm(nn.ConvTranspose1d(3, 5, 2)))

    single = make().to(device)
    kinit.apply(single, seed=7)
    with torch.device("meta"):
        model = make()
    mesh = init_device_mesh(device, (world,))
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    kinit.materialize(model, device)
    for _ in range(2):
        kinit.apply(model, seed=7)
        state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}
        assert digest(state) == digest(single.state_dict())
        if RUNS_FSDP2:
            model[0](torch.ones(2, 6, device=device)).sum().backward()


def check_trains(model, optimizer, device):
    """Raise AssertionError unless a step of an optimizer that was made on the meta device moves the weights."""
    before = {name: local_clone(tensor) for name, tensor in model.named_parameters()}
    model(torch.arange(4, device=device)).square().sum().backward()
    optimizer.step()
    for name, tensor in model.named_parameters():
        if name.startswith(("up", "down")) and before[name].numel():
            after = local_clone(tensor)
            assert bool(after.isfinite().all()), name
            assert not torch.equal(after, before[name]), name


def local_clone(tensor):
    """What this process holds of a parameter, copied."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach().clone()


if __name__ == "__main__":
    world, device, *cases = int(sys.argv[1]), *sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, args=(world, cases, os.path.join(folder, "rendezvous"), device), nprocs=world)
