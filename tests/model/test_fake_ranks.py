"""Each rank of a large mesh holds its slice of what one process draws, and asks no other; see fake_run.py."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.fake_run import cut, distributed, initialized, on_ranks
from tests.support.sharded_run import RULES, Net

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed"),
    pytest.mark.xdist_group("serial"),  # starts processes
]

EIGHT = [
    {"shard": 8},
    {"tensor": 8},
    {"shard": 4, "tensor": 2},
    {"replica": 2, "shard": 4},
    {"replica": 2, "shard": 2, "tensor": 2},
]
SIXTY_FOUR = [
    {"shard": 64},
    {"tensor": 64},
    {"shard": 16, "tensor": 4},
    {"replica": 4, "shard": 16},
    {"replica": 2, "shard": 8, "tensor": 4},
]
SOME_OF_64 = [0, 1, 13, 30, 51, 63]


def named(mesh):
    """A mesh as the id of a test."""
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items())


@pytest.fixture(scope="module")
def single():
    """The parameters and buffers of one process' model, and which are parameters."""
    model = Net()
    kinit.apply(model, RULES, seed=7)
    return model.state_dict(), [name for name, _ in model.named_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", EIGHT, ids=named)
def test_eight_ranks_hold_the_whole_together(mesh, single):
    """Each element of one process' parameters is held by some rank."""
    for name in single[1]:
        places = torch.arange(single[0][name].numel()).view(single[0][name].shape)
        held = torch.cat([cut(places, name, rank, mesh).flatten() for rank in range(8)])
        assert torch.equal(held.unique(), places.flatten())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "mesh"),
    [(range(8), mesh) for mesh in EIGHT] + [(SOME_OF_64, mesh) for mesh in SIXTY_FOUR],
    ids=lambda value: named(value) if isinstance(value, dict) else f"{len(value)} ranks of",
)
def test_each_rank_holds_its_slice(ranks, mesh, single):
    """A rank's local tensors, empty ones too, are its chunks of one process' parameters; buffers are whole."""
    try:
        found = on_ranks(math.prod(mesh.values()), ranks, initialized, mesh)
    except NotImplementedError as error:  # torch 2.6 has no FSDP2 over tensor parallelism where sizes are uneven
        pytest.skip(str(error))
    for rank, (state, sent) in zip(ranks, found, strict=True):
        assert sent == 0
        assert state.keys() == single[0].keys()
        for name, whole in single[0].items():
            want = cut(whole, name, rank, mesh) if name in single[1] else whole
            assert torch.equal(state[name], want), (name, rank)


class Two(nn.Sequential):
    """Two layers of `Net` that tensor parallelism splits, of which the second is large."""

    def __init__(self, rows, columns, dtype):
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(columns, rows, bias=False, dtype=dtype)


def memory(rank, mesh, dtype, law, rows):
    """The bytes by which a process grows while it fills its part of rows x rows values, and the bytes of that part."""
    for size in (32, rows):  # a small one first, for what is loaded once
        with torch.device("meta"):
            model = Two(size, size, dtype)
        distributed(model, mesh)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what it is
        before = status("VmHWM")
        kinit.apply(model, {"down": law}, seed=7)
    local = model.down.weight.to_local()
    return status("VmHWM") - before, local.numel() * local.element_size()


def status(name):
    """A number of bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


linux_only = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process' memory"
)


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize(("dtype", "law"), [(torch.float32, "he_normal"), (torch.bfloat16, "he_uniform")], ids=str)
@pytest.mark.parametrize("mesh", [{"shard": 8}, {"tensor": 8}], ids=named)
def test_a_rank_takes_memory_for_its_shard_alone(mesh, dtype, law):
    """While it fills its eighth of 16 M values, a process grows by at most that and 16 MiB."""
    for grown, local in on_ranks(8, [0, 7], memory, mesh, dtype, law, 4099):
        assert grown <= local + (16 << 20)


@linux_only
def test_the_measure_sees_a_whole_matrix():
    """A process that makes an orthogonal matrix whole, 8 MiB in float64, and keeps an eighth, grows by more."""
    [(grown, local)] = on_ranks(8, [7], memory, {"shard": 8}, torch.float32, "orthogonal", 1024)
    assert grown > local + (16 << 20)
