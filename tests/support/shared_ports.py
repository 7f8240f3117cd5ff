"""What each of two processes runs: share a port, and compare and probe it as a whole one.

python -m tests.support.shared_ports CONFIG, a file with recorded outputs
"""

import json
import os
import sys
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torch_kinit as kinit
from torch_kinit.inspection.untouched import untouched
from torch_kinit.shards import is_distributed, local_of

SHAPE = (2, 6, 5)
CASES = ("FSDP2", "FSDP2 after a forward", "TP")
if hasattr(FSDPModule, "reset_iter_state"):  # or the pass that is refused would not be undone
    CASES += ("FSDP2 and TP",)


class Port(nn.Module):
    """Made without care: momentum, epsilon, an activation, and the order of steps."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.ZeroPad1d((2, 0)), nn.Conv1d(5, 7, 3), nn.ReLU())
        self.norm = nn.BatchNorm1d(7)
        self.lstm = nn.LSTM(7, 4, batch_first=True)
        self.up, self.act, self.down = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(self.act(self.up(self.lstm(self.norm(self.conv(x.mT)).mT)[0])))


def whole():
    """A port, with the same weights in each process."""
    port = Port()
    kinit.apply(port, seed=3)
    nn.init.zeros_(port.lstm.bias_hh_l0).requires_grad_(False)
    return port


def share(port, case):
    """Share it between the processes."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    if "TP" in case:
        parallelize_module(port, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if "FSDP2" in case:
        mesh = mesh["data"] if "TP" in case else init_device_mesh("cpu", (2,))
        for part in (port.lstm, port.up, port.down, port):
            fully_shard(part, mesh=mesh)
    if case == "FSDP2 after a forward":
        port(torch.ones(SHAPE))  # after which the root keeps its parameters whole
    return port


def state(port):
    """What this process holds, by name, in copies."""
    held = port.state_dict()
    return {k: (v.to_local() if hasattr(v, "to_local") else v).detach().clone() for k, v in held.items()}


def trained(port):
    """The losses of three steps."""
    optimizer, losses = torch.optim.SGD(port.parameters(), 0.1), []
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        loss = (port(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def check(config, case):
    """Raise AssertionError unless the shared port is found to be what the whole is, and stays as it was."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    bare = {key: value for key, value in config.items() if key != "outputs"}
    port = share(whole(), case)
    before = state(port)
    with CommDebugMode() as communication:
        found = kinit.compare(bare, port)
        with pytest.raises(ValueError, match="`port` is shared among processes"):
            kinit.compare(config, port)
    assert communication.get_total_counts() == 0
    assert found.to_dict() == kinit.compare(bare, whole()).to_dict()
    assert {d.what for d in found.differences} == {"momentum", "epsilon", "activation", "go_backwards"}
    if "TP" in case:
        with pytest.raises(ValueError, match="`model` is tensor parallel: up"):
            kinit.probe(port, x)
    else:
        other = kinit.probe(whole(), x).to_dict()["rows"]
        rows = kinit.probe(port, x).to_dict()["rows"]
        assert len(rows) == len(other)
        for row, its in zip(rows, other, strict=True):
            assert all(row[k] == (pytest.approx(v, 1e-5, 1e-6) if isinstance(v, float) else v) for k, v in its.items())
        assert any(row["to_law"] for row in rows)
        if hasattr(port, "reset_iter_state"):  # of torch 2.13, without which a pass that fails leaves whole parameters
            with pytest.raises(RuntimeError, match="channels"):
                kinit.probe(port, x.mT)
    with untouched(port), torch.no_grad():
        for parameter in port.parameters():
            local_of(parameter).add_(1)
        port.up.weight.grad = torch.zeros_like(port.up.weight)
    assert port.up.weight.grad is None
    if case == "FSDP2":
        assert all(map(is_distributed, port.parameters()))
    after = state(port)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    expected = whole()
    expected(torch.ones(SHAPE)) if case == "FSDP2 after a forward" else None
    assert trained(port) == pytest.approx(trained(expected), rel=1e-5)


def run(rank, config, store):
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    for case in CASES:
        check(config, case)
        os.write(1, f"{case}\n".encode())
        dist.barrier()
    os._exit(0)  # gloo's threads abort now and then a process that takes its groups down


if __name__ == "__main__":
    with open(sys.argv[1]) as file, tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (json.load(file), f"{folder}/store"), nprocs=2)
