"""One rank of a large model that FSDP2 shards: `python -m tests.benchmarks.scale [405B] [8B]` prints what it takes.

The process group is torch's fake one, which sends nothing: each rank draws its shard alone. Layers have the sizes of
Llama 3.1 405B, on 4,096 ranks, and of 8B, on 64. Printed are the seconds, and the MiB beside the shard.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import torch_kinit as kinit

KEYS, VOCABULARY = 1024, 128256
MODELS = {"405B": (126, 16384, 53248, 4096), "8B": (32, 4096, 14336, 64)}  # layers, width, inner width, ranks
RANK = 3


class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.query, self.output = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key, self.value = nn.Linear(width, KEYS, bias=False), nn.Linear(width, KEYS, bias=False)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])


def memory(name):
    """What the process holds ("VmRSS"), or has held at most since it was last asked to forget ("VmHWM"), in MiB."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1024


def measure(name):
    layers, width, inner, world = MODELS[name]
    torch.distributed.init_process_group("fake", rank=RANK, world_size=world, store=FakeStore())
    mesh = init_device_mesh("cpu", (world,))
    with torch.device("meta"):
        blocks = [Block(width, inner) for _ in range(layers)]
        head = nn.Linear(width, VOCABULARY, bias=False)
        model = nn.Sequential(nn.Embedding(VOCABULARY, width), *blocks, nn.RMSNorm(width), head)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    count = sum(parameter.numel() for parameter in model.parameters())
    kinit.random_uniform_(torch.empty(1 << 20), generator=kinit.Key(0))  # what the first draw loads
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    kinit.materialize(model, "cpu")
    kinit.apply(model, seed=0)
    seconds = time.perf_counter() - start
    shard = sum(parameter.to_local().nbytes for parameter in model.parameters()) / 2**20
    beside = max(0.0, memory("VmHWM") - before - shard)  # what was free in the process takes no more
    print(f"{count / 1e9:.0f} billion parameters, rank {RANK} of {world}: {seconds:.2f} s, {beside:.0f} MiB beside")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        measure(name)
