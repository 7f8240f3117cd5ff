"""Models that FSDP1 wraps get the values of one process: through param_init_fn, and inside summon_full_params.

python -m tests.test_fsdp1 runs what the two processes of the test do.
"""

import os
import subprocess
import sys
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.models import on_meta
from tests.support.states import check_same_state, state

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")


class Block(nn.Module):
    """A part that is wrapped by itself, with a layer that draws for its child, and two that are parametrized."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.BatchNorm1d(8)
        self.up = parametrizations.weight_norm(nn.Linear(8, 8))
        self.down = parametrizations.spectral_norm(nn.Linear(8, 8))

    def forward(self, x):
        return self.down(self.up(self.norm(self.attention(x, x, x)[0])))


class TiedBlocks(nn.Module):
    """Tied embeddings around blocks, and a buffer that only a rule can set."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=2)
        self.register_buffer("scale", torch.full((3,), 0.5), persistent=False)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, 11)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(self.blocks(self.words(tokens)) * self.scale.sum())


RULES = {
    nn.Linear: "he_normal",
    "words": "random_normal",
    "head.weight": kinit.skip,
    "scale": torch.tensor([0.5, 0.25, 0.25]),
}
WRAPPED = {"whole": None, "blocks": {Block}, "a child whose parent draws": {Block, NonDynamicallyQuantizableLinear}}


def bare_state(model):
    """Copies of all tensors by their names without wrappers'."""
    return {name.replace("_fsdp_wrapped_module.", ""): tensor for name, tensor in state(model).items()}


def single():
    """What one process has."""
    model = TiedBlocks()
    kinit.apply(model, RULES, seed=7)
    return bare_state(model)


def check_wrapped(wrapped):
    """Raise AssertionError unless the wrapped model, put together, has the values of one process."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(wrapped):
        check_same_state(bare_state(wrapped), single())


def wrap(model, classes, **arguments):
    """The model wrapped by FSDP1, and each module of these classes in it."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    policy = ModuleWrapPolicy(classes) if classes else None
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=cpu, **arguments)


def check_wrapping(classes, use_orig_params):
    """Raise AssertionError unless a meta model is right as it is wrapped, trains, and can be set again."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = on_meta(TiedBlocks)
    initialize = kinit.param_init_fn(model, RULES, seed=7, device="cpu")
    wrapped = wrap(model, classes, use_orig_params=use_orig_params, param_init_fn=initialize)
    check_wrapped(wrapped)
    if classes != WRAPPED["a child whose parent draws"]:  # attention reads its child's weight without calling it
        wrapped(torch.arange(10)).square().sum().backward()
    for call in (lambda: kinit.apply(wrapped, seed=7), lambda: kinit.materialize(wrapped, "cpu")):
        with pytest.raises(ValueError, match=r"FSDP1.*kinit\.param_init_fn.*summon_full_params"):
            call()
    with FullyShardedDataParallel.summon_full_params(wrapped, writeback=True, rank0_only=False):
        for parameter in wrapped.parameters():
            parameter.detach().fill_(7)
        kinit.apply(wrapped, RULES, seed=7)
    check_wrapped(wrapped)


def run(rank, world, path):
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    torch.manual_seed(rank)  # what must not matter
    for name, classes in WRAPPED.items():
        for use_orig_params in (False, True):
            check_wrapping(classes, use_orig_params)
            os.write(1, f"{name}, {use_orig_params}\n".encode())  # whole lines from each process
    dist.barrier()  # or a process that ends cuts off one that still receives
    os._exit(0)  # gloo's threads abort now and then a process that takes its groups down


@pytest.mark.slow
@pytest.mark.xdist_group("serial")
def test_wrapped_models_get_the_values_of_one_process():
    """Whatever is wrapped, with flat parameters or the original ones, on two processes whose torch seeds differ."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.model.test_fsdp1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    cases = [f"{name}, {orig}" for name in WRAPPED for orig in (False, True)]
    assert sorted(done.stdout.splitlines()) == sorted(cases * 2)


def test_modules_in_any_order():
    """Each module is set when it is asked for, a tied parameter with the first that holds it, and nothing twice."""
    expected = single()
    for order in (list, lambda modules: list(modules)[::-1]):
        model = on_meta(TiedBlocks)
        initialize = kinit.param_init_fn(model, RULES, seed=7, device="cpu")
        for module in order(model.modules()):
            initialize(module)
        found = state(model)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        model.head.weight.detach().fill_(3)
        initialize(model.words)
        assert bool((model.words.weight == 3).all())


def test_prefix():
    """A part of a larger model gets what the whole would give it."""
    model = on_meta(Block)
    initialize = kinit.param_init_fn(model, {nn.Linear: "he_normal"}, seed=7, prefix="blocks.1", device="cpu")
    for module in model.modules():
        initialize(module)
    expected = single()
    assert all(torch.equal(tensor, expected[f"blocks.1.{name}"]) for name, tensor in state(model).items())


REFUSED = {
    "real parameters": (
        {"model": nn.Linear(3, 2), "rules": None},
        ValueError,
        "not on the meta device: weight, bias.*kinit.apply",
    ),
    "a buffer nobody sets": (
        {"rules": {"head.weight": kinit.skip}},
        ValueError,
        r"(?s)scale \(3,\) of TiedBlocks.*'scale'",
    ),
    "a rule for nothing": ({"rules": {"haed": "zeros"}}, kinit.UnusedRuleError, "'haed' matches nothing"),
    "no seed": ({"seed": None}, TypeError, "`seed` must be an int, got None"),
    "meta": ({"device": "meta"}, ValueError, "`device` must have memory"),
    "no device": ({"device": 1.5}, TypeError, "`device` must be a device such as 'cpu' or 'cuda', got 1.5"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(arguments, error, message):
    """What could not be carried out is an error before anything is wrapped."""
    with pytest.raises(error, match=message):
        kinit.param_init_fn(**{"model": on_meta(TiedBlocks), "rules": RULES, "seed": 1, "device": "cpu", **arguments})


def test_a_module_of_another_model_is_refused():
    """The function is for the modules that it was made for."""
    initialize = kinit.param_init_fn(on_meta(TiedBlocks), RULES, seed=1, device="cpu")
    with pytest.raises(ValueError, match="A Linear is no part of the model that"):
        initialize(on_meta(lambda: nn.Linear(3, 2)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, args=(2, os.path.join(folder, "rendezvous")), nprocs=2)
