"""Initializers of somebody else's, such as torch.nn.init's, in a plan with a seed."""

from functools import partial

import pytest
import torch
from torch import distributed, nn

import torch_kinit as kinit
from tests.support.models import Twice, network, symmetric
from tests.support.states import check_same_state, network_state, state
from torch_kinit import KerasSeed, Key


def zoomed_(tensor):
    """An initializer without a generator, which draws from torch's global one."""
    nn.init.xavier_uniform_(tensor)
    tensor.mul_(torch.rand(()))


def both_(tensor, generator=None):
    """One with a generator that draws from the global one as well; zero where these agree."""
    tensor.copy_(torch.rand(tensor.shape, generator=generator) - torch.rand(tensor.shape))


OTHERS = {
    "with a generator": nn.init.xavier_normal_,
    "with arguments": partial(nn.init.trunc_normal_, std=0.02),
    "without a generator": zoomed_,
    "both": both_,
    "sparse": partial(nn.init.sparse_, sparsity=0.5),
}


@pytest.mark.parametrize("fill", OTHERS.values(), ids=OTHERS)
def test_values_depend_on_seed_name_and_shape(fill):
    """Order, other layers and torch's global state do not count, and the latter is not moved."""
    rules = {"head": fill, "attend": fill}
    want = network_state(rules=rules)
    torch.manual_seed(1)
    model = nn.ModuleDict({"new": nn.Linear(3, 3), **dict(reversed(network().items()))})
    before = torch.get_rng_state()
    kinit.apply(model, rules, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    found = state(model)
    check_same_state({name: found[name] for name in want}, want)
    assert not torch.equal(found["head.weight"], network_state(6, rules=rules)["head.weight"])


@pytest.mark.parametrize("fill", [nn.init.xavier_normal_, zoomed_], ids=["with", "without"])
def test_memory_format_does_not_count(fill):
    """A convolution in channels_last, whose storage torch fills in another order, gets the same values."""
    models = [nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)]
    for model in models:
        kinit.apply(model, {"weight": fill}, seed=5)
    assert models[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(models[0].weight, models[1].weight)


def test_they_draw_torchs_own_numbers():
    """The numbers are torch's for the seed that the parameter's key is, with a generator or without."""
    seed = Key(5).fold_in("head.weight").native_seed
    want = nn.init.xavier_normal_(torch.empty(2, 12), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(network_state(rules={"head": nn.init.xavier_normal_})["head.weight"], want)
    torch.manual_seed(seed)
    zoomed_(want)
    assert torch.equal(network_state(rules={"head": zoomed_})["head.weight"], want)


def test_the_two_sources_of_one_initializer_differ():
    """An initializer that draws from its generator and from the global one gets different numbers from them."""
    assert bool((network_state(rules={"head": both_})["head.weight"] != 0).all())


def test_they_may_read_and_keep_what_is_there():
    """An initializer that scales what a tensor holds finds it there, in whatever memory format."""
    for model in (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)):
        before = model.weight.detach().clone()
        kinit.apply(model, {"weight": lambda tensor: tensor.mul_(2)}, seed=5)
        assert torch.equal(model.weight, 2 * before)


def test_they_set_parametrized_weights():
    """A parametrized weight gets what a plain one gets."""
    plain, doubled = nn.Linear(4, 4), symmetric(Twice())
    for model in (plain, doubled):
        kinit.apply(model, {"weight": nn.init.xavier_normal_}, seed=5)
    assert torch.equal(plain.weight, doubled.weight)


def test_a_generator_of_their_own_stays():
    """A generator that a rule gives them is what they draw from."""
    rule = {"head": partial(nn.init.normal_, generator=torch.Generator().manual_seed(3))}
    want = nn.init.normal_(torch.empty(2, 12), generator=torch.Generator().manual_seed(3))
    assert torch.equal(network_state(rules=rule)["head.weight"], want)


@pytest.mark.parametrize("source", [{"seed": 1}, {"generator": torch.Generator()}, {}], ids=["seed", "torch's", "none"])
def test_after_an_error_nothing_has_changed(source):
    """When one of them raises halfway, values and random states are put back."""

    def fail_(tensor):
        zoomed_(tensor)
        raise RuntimeError("halfway")

    model = network()
    before, numbers = state(model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="halfway"):
        kinit.apply(model, {"head": fail_}, **source)
    check_same_state(state(model), before)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_seed_of_keras_is_none_for_them():
    """Those with a generator cannot draw Keras' numbers, and are refused."""
    model = network()
    before = state(model)
    with pytest.raises(
        ValueError, match=r"head\.weight .*is none of Keras' initializers and cannot draw from KerasSeed"
    ):
        kinit.apply(model, {"head": nn.init.xavier_normal_}, generator=KerasSeed(1, "jax"))
    check_same_state(state(model), before)


@pytest.fixture
def _group():
    """A process group of one."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("fill", [nn.init.xavier_normal_, zoomed_, kinit.he_normal_], ids=["with", "without", "ours"])
def test_a_process_group_needs_a_seed(fill):
    """Where other processes must find the same values, an initializer that may draw needs a seed."""
    model = nn.Linear(12, 2)
    rules = {"weight": fill}
    with pytest.raises(ValueError, match=r"weight is drawn in a process group: give `seed`, equal on each process"):
        kinit.apply(model, rules)
    if fill is zoomed_:  # whose numbers a seed of Keras' does not decide
        with pytest.raises(ValueError, match="give `seed`"):
            kinit.apply(model, rules, generator=KerasSeed(1, "jax"))
    kinit.apply(model, rules, seed=1)
    single = model.weight.detach().clone()
    kinit.apply(nn.parallel.DistributedDataParallel(model), rules, seed=1)
    assert torch.equal(model.weight, single)
