"""Sharded tensors get the values that one process would give the whole; see sharded_run.py for what processes do."""

import itertools
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

import torch_kinit as kinit
from tests.support.sharded_run import RULES, RUNS_FSDP2, Net, digest, single
from torch_kinit import checks
from torch_kinit.shards import ranges_of
from torch_kinit.streams import compiled

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

CASES = [
    (2, "FSDP2"),
    (2, "FSDP2 after a forward"),
    (2, "TP"),
    (2, "DDP"),
    (4, "FSDP2"),
    (4, "TP"),
    (4, "FSDP2+TP"),
    (4, "HSDP"),
    (2, "meta, FSDP2"),
    (2, "meta, TP"),
    (4, "meta, FSDP2+TP"),
]


@pytest.mark.slow
@pytest.mark.xdist_group("serial")
@pytest.mark.parametrize(("world", "case"), CASES, ids=[f"{case} on {world}" for world, case in CASES])
def test_the_gathered_weights_are_those_of_one_process(world, case):
    """Each process finds the digest of a single one, though their torch seeds differ, and they send nothing."""
    found = digests(world, case, "cpu")
    if not RUNS_FSDP2 and found[0].startswith("NotImplementedError"):
        pytest.skip(found[0])
    assert found == [f"{single()} 0"] * world


def reordered():
    """The network, its layers registered from the last to the first."""
    model = Net()
    for name, layer in reversed(list(model.named_children())):
        delattr(model, name)
        setattr(model, name, layer)
    assert [name for name, _ in model.named_children()] == [name for name, _ in Net().named_children()][::-1]
    return model


def with_a_stranger():
    """The network with a layer that has nothing to do with it, before all others."""
    model = reordered()
    model._modules = {"stranger": nn.Linear(5, 7), **model._modules}
    return model


VARIANTS = {
    "registered in another order": reordered,
    "channels_last": lambda: Net().to(memory_format=torch.channels_last),
    "an unrelated layer": with_a_stranger,
    "compiled": Net,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_a_network_have_its_digest(variant, monkeypatch):
    """Names and shapes decide, not order, memory format, other layers, or whether draws are compiled."""
    model = VARIANTS[variant]()
    if variant == "compiled":
        monkeypatch.setattr(compiled, "_LEAST", 1)  # or tensors so small would be drawn eagerly
        monkeypatch.setattr(checks, "warn", lambda message: pytest.skip(message))  # where nothing compiles
    with kinit.compiled() if variant == "compiled" else nullcontext():
        kinit.apply(model, RULES, seed=7)
    assert digest({k: v for k, v in model.state_dict().items() if not k.startswith("stranger")}) == single()


@pytest.mark.slow
@pytest.mark.xdist_group("serial")
def test_the_script_prints_one_digest():
    """The README's script says the same of one process and of two under torchrun."""
    script = str(Path(__file__).parents[1] / "notebooks" / "sharded.py")
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    printed, environment = [], {**os.environ, "PYTHONPATH": str(Path(kinit.__file__).parents[1])}
    for start in ([], several):
        command = [sys.executable, "-W", "ignore", *start, script, "--seed", "3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        printed.append(done.stdout.split())
    (one, *_, digest), (two, *_, same) = printed
    assert (one, two) == ("1", "2")
    assert digest == same
    assert len(digest) == 16


@pytest.mark.xdist_group("serial")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
@pytest.mark.parametrize("case", dict.fromkeys(case for _, case in CASES))
def test_the_same_over_nccl(case):
    """Each GPU's process finds the digest of a single one with a GPU."""
    world = torch.cuda.device_count()
    if world % 2 and case.endswith(("+TP", "HSDP")):
        pytest.skip("a mesh of two axes needs an even number of GPUs")
    assert digests(world, case, "cuda") == [f"{single('cuda')} 0"] * world


def digests(world, case, device):
    """What each process writes: the digest of the gathered weights, and the number of collectives."""
    own = tuple(dict.fromkeys(case for n, case in CASES if device == "cuda" or n == world))
    if world % 2:
        own = tuple(case for case in own if not case.endswith(("+TP", "HSDP")))
    return [line.partition(": ")[2] for line in printed(world, own, device) if line.startswith(f"{case}: ")]


@cache
def printed(world, cases, device):
    """The lines that all processes of a group print, which takes up the cases one after the other."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.sharded_run", str(world), device, *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("\n")[:-1]


def indices(held):
    """The global indices that ranges stand for, along each axis."""
    return [[i for start, stop in along for i in range(start, stop)] for along in held]


def chunk(values, parts, which):
    """torch.chunk, which gives fewer chunks than asked where values run out."""
    chunks = torch.tensor(values).chunk(parts) if values else ()
    return chunks[which].tolist() if which < len(chunks) else []


PLACEMENTS = [Replicate(), Shard(0), Shard(1), Shard(-1)]


@pytest.mark.parametrize("mesh", [(1,), (2,), (3,), (5,), (2, 3), (3, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 4), (13, 9), (5, 0)], ids=str)
def test_shards_are_cut_as_torch_chunk_does(mesh, shape):
    """From the first axis of the mesh to the last, each Shard takes a chunk of what those before it have left."""
    for placements in itertools.product(PLACEMENTS, repeat=len(mesh)):
        for coordinate in itertools.product(*map(range, mesh)):
            expected = [list(range(size)) for size in shape]
            for size, place, placement in zip(mesh, coordinate, placements, strict=True):
                if isinstance(placement, Shard):
                    expected[placement.dim] = chunk(expected[placement.dim], size, place)
            assert indices(ranges_of(shape, mesh, coordinate, placements)) == expected


@pytest.mark.parametrize("rows", range(14))
@pytest.mark.parametrize("mesh", [(2, 2), (3, 2), (2, 4), (4, 3)], ids=str)
def test_fsdp2_splits_what_tensor_parallelism_has_left(rows, mesh):
    """A strided Shard before a Shard of the same axis cuts the latter's chunk (torch's own helper errs)."""
    for data, tensor in itertools.product(*map(range, mesh)):
        placements = (_StridedShard(0, split_factor=mesh[1]), Shard(0))
        expected = chunk(chunk(list(range(rows)), mesh[1], tensor), mesh[0], data)
        assert indices(ranges_of((rows,), mesh, (data, tensor), placements)) == [expected]


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_other_strided_shards_share_out_every_index_once(factor):
    """Whatever its split factor, the processes of a mesh together hold each index once."""
    placements = (_StridedShard(0, split_factor=factor),)
    held = [indices(ranges_of((17,), (4,), (place,), placements))[0] for place in range(4)]
    assert sorted(itertools.chain(*held)) == list(range(17))


def test_partial_is_refused():
    """A tensor whose parts are summands has no values to set."""
    with pytest.raises(ValueError, match="only Shard and Replicate can be initialized"):
        ranges_of((4,), (2,), (0,), (Partial(),))
