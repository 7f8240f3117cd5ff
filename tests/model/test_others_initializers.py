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


# --- initializers that do not fill -----------------------------------------------------------------------------------

ELSEWHERE = torch.zeros(2, 12)
NOT_FILLING = {
    "a new tensor": (lambda w: torch.full_like(w, 0.5), r"returned a new tensor.*write `lambda w: w\.copy_\(\.\.\.\)`"),
    "another one, filled": (lambda w: ELSEWHERE.normal_(), r"returned a new tensor.*`lambda w: w\.copy_\(\.\.\.\)`"),
    "another shape": (lambda w: torch.ones(3), r"returned a tensor of shape \(3,\), not \(2, 12\),"),
    "None": (lambda w: None, r"returned None and left the tensor.*kinit\.skip leaves a tensor alone"),
    "a copy, filled": (lambda w: [w.clone().zero_()].clear(), "returned None and left the tensor"),
    "a number": (lambda w: 0.5, "returned 0.5 and left the tensor.*write the number itself as the rule"),
    "itself": (lambda w: w, "returned the tensor that it was given, as it was"),
    "text": (lambda w: "he_normal", "returned a str and left the tensor"),
}
SOURCES = {"seed": {"seed": 1}, "generator": {"generator": torch.Generator()}, "none": {}}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize(("fill", "sentence"), NOT_FILLING.values(), ids=NOT_FILLING)
def test_those_that_do_not_fill_are_refused(fill, sentence, source):
    """What leaves the tensor as it was is an error that names it and the way out, and changes nothing."""
    for model in (network(), kinit.materialize(network().to("meta"), "cpu")):
        before = {name: t.nan_to_num(9) for name, t in state(model).items()}
        with pytest.raises(ValueError, match=rf"(?s)^head\.weight \(rule 'head'\): .*{sentence}"):
            kinit.apply(model, {"head": fill}, **source)
        check_same_state({name: t.nan_to_num(9) for name, t in state(model).items()}, before)


def test_those_that_do_not_fill_a_parametrized_weight_or_a_buffer():
    """The same holds of a parametrized weight, in another memory format, and of a buffer."""
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    counts = nn.BatchNorm1d(3)
    for model, name in ((conv, "weight"), (symmetric(Twice()), "weight"), (counts, "running_var")):
        for source in SOURCES.values():
            with pytest.raises(ValueError, match=rf"^{name} .*returned a new tensor"):
                kinit.apply(model, {name: torch.ones_like}, **source)


def filled_by_data(tensor):
    tensor.data.copy_(torch.arange(tensor.numel()).view(tensor.shape))


def filled_by_numpy(tensor):
    tensor.detach().numpy()[:] = 3


def zeroed_by_data(tensor):
    tensor.data.zero_()


def exchanged(tensor):
    tensor.data = torch.full_like(tensor, 2.0)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("fill", [filled_by_data, filled_by_numpy, zeroed_by_data, exchanged, nn.init.zeros_])
def test_those_that_fill_unseen_are_let_through(fill, source):
    """Writes that torch does not count are seen by the values, also where the very values were there before."""
    model, want = network(), torch.empty(2, 12)
    fill(want)
    for _ in range(2):
        kinit.apply(model, {"head": fill}, **source)
        assert torch.equal(model["head"].weight, want)


def test_a_tensor_without_elements_is_filled_by_anything():
    """Nothing is asked of an initializer of no values."""
    kinit.apply(nn.ParameterDict({"none": nn.Parameter(torch.empty(0, 3))}), {"none": lambda w: None}, seed=1)


def test_telling_takes_no_numbers():
    """An initializer is called again to see whether it fills: its generator and torch's stay where they were."""
    own = torch.Generator().manual_seed(3)

    def fill_(tensor, generator):
        tensor.data.zero_().add_(torch.rand(tensor.shape, generator=generator) > 2).add_(torch.rand(()) > 2)

    model = nn.Linear(3, 3)
    kinit.apply(model, {"weight": "zeros"})
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        own.manual_seed(3)
        kinit.apply(model, {"weight": partial(fill_, generator=own)})  # called twice on zeros, once on ones
        states.append((torch.get_rng_state(), own.get_state()))
        kinit.apply(model, {"weight": "ones"})
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_nothing_stays_nan_in_part(source):
    """An initializer that fills a part of what `materialize` made is an error with the count; nothing has changed."""
    model = kinit.materialize(nn.Sequential(nn.Linear(4, 3)).to("meta"), "cpu")
    with pytest.raises(ValueError, match=r"^0\.weight \(rule '0'\): .*left NaN in 8 of 12 values"):
        kinit.apply(model, {"0": lambda w: w[0].fill_(1)}, **source)
    assert bool(model[0].weight.isnan().all())
    gates = {"bias": partial(kinit.unit_forget_bias_, others=lambda w: None)}
    with pytest.raises(ValueError, match=r"bias_ih_l0 .*left NaN in 12 of 16 values"):
        kinit.apply(kinit.materialize(nn.LSTM(3, 4).to("meta"), "cpu"), {nn.LSTM: gates}, **source)


# --- process groups --------------------------------------------------------------------------------------------------


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
