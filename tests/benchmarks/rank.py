"""One rank of a model of 405 billion parameters on 4,096: `python -m tests.benchmarks.rank` prints what it takes.

The process group is torch's fake one, which sends nothing: each rank draws its shard alone. Layers have the sizes of
Llama 3.1 405B.
"""

import time
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import torch_kinit as kinit

LAYERS, WIDTH, INNER, KEYS, VOCABULARY = 126, 16384, 53248, 1024, 128256


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.output = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.key, self.value = nn.Linear(WIDTH, KEYS, bias=False), nn.Linear(WIDTH, KEYS, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)
        self.norms = nn.ModuleList([nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)])


def memory(name):
    """What the process holds ("VmRSS"), or has held at most since it was last asked to forget ("VmHWM"), in MiB."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1024


def main(rank=3, world=4096):
    torch.distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    mesh = init_device_mesh("cpu", (world,))
    with torch.device("meta"):
        blocks = [Block() for _ in range(LAYERS)]
        head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *blocks, nn.RMSNorm(WIDTH), head)
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
    print(f"{count / 1e9:.0f} {seconds:.2f} {memory('VmHWM') - before - shard:.0f}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
