"""The same weights on any number of processes.

    torchrun --nproc-per-node 4 notebooks/sharded.py

A transformer is built without memory, sharded over the processes, given storage, and initialized: each process draws
its own shards and nothing is sent. Then, to show it, the whole model is gathered and its digest printed: the same
string for any number of processes, and for one without torchrun.
"""

import argparse
import hashlib
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import torch_kinit as kinit


class Transformer(nn.Module):
    """A language model of a few million parameters; no size divides evenly by the number of processes."""

    def __init__(self, words=5003, width=130, layers=3):
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(width, nhead=5, dim_feedforward=333, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words)
        self.register_buffer("positions", torch.empty(64, width), persistent=False)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        return self.head(self.norm(self.encoder(x)))


def sinusoids(positions):
    """Fill the table of positions (length, width) with sines and cosines."""
    length, width = positions.shape
    rates = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length).unsqueeze(1) * rates
    positions[:, 0::2], positions[:, 1::2] = angles.sin(), angles.cos()


RULES = {
    nn.Linear: "he_normal",
    "head": {"kernel": kinit.trunc_normal_, "bias": -8.5},
    "positions": sinusoids,
}


def digest(state):
    """A hash of names and bytes."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + bytes(state[name].cpu().contiguous().view(torch.uint8).flatten().tolist()))
    return found.hexdigest()[:16]


def main():
    """Build, shard, initialize, gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))

    with torch.device("meta"):
        model = Transformer()
    if world > 1:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        mesh = init_device_mesh(device, (world,))
        for layer in model.encoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    kinit.materialize(model, device)
    kinit.apply(model, RULES, seed=seed)

    state = (
        get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) if world > 1 else model.state_dict()
    )
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"{world} processes: {digest(state)}")
    if dist.is_initialized():
        dist.barrier()  # or a process that ends cuts off one that still receives
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
