"""With seed=, a parameter's values depend on the seed, its name and its shape; with only=, the others stay."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.models import Positions, network, symmetric
from torch_kinit import KerasSeed, Key


class Back(nn.Module):
    """A parametrization with a way back, exact in floating point."""

    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def check_equal(found, want):
    """Raise AssertionError unless two dicts have the same names, in any order, and equal tensors."""
    assert found.keys() == want.keys()
    assert [name for name in want if not torch.equal(found[name], want[name])] == []


def made(seed=5, **arguments):
    """The values that `network` gets."""
    model = network()
    kinit.apply(model, seed=seed, **arguments)
    return state(model)


def test_equal_seeds_give_equal_values():
    """The seed is all that counts: torch's global state is neither read nor moved, and a Key is the same as a seed."""
    want = made()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = network()
    moved = torch.get_rng_state()
    assert not torch.equal(before, moved)  # by torch's own initialization
    kinit.apply(model, generator=Key(5))
    assert torch.equal(torch.get_rng_state(), moved)
    check_equal(state(model), want)
    check_equal(made(), want)


def test_two_seeds_differ():
    """Another seed gives every drawn weight other values."""
    first, second = made(5), made(6)
    equal = {name for name in first if torch.equal(first[name], second[name])}
    assert equal == {name for name in first if "bias" in name or name.startswith("norm.")}


def test_construction_order_does_not_count():
    """Layers made or registered in another order, or beside new ones, get the values of their names."""
    want = made()
    model = nn.ModuleDict({"new": nn.Linear(12, 12), **dict(reversed(network().items())), "newer": nn.GRU(3, 6)})
    kinit.apply(model, seed=5)
    found = state(model)
    check_equal({name: found[name] for name in want}, want)


def test_memory_format_does_not_count():
    """A model in channels_last gets the same values."""
    model = network()
    model["stem"].to(memory_format=torch.channels_last)
    kinit.apply(model, seed=5)
    check_equal(state(model), made())


def test_parameters_of_equal_shape_differ():
    """Two layers of one shape get different values, and so do the packed blocks of an attention layer and a GRU's."""
    model = nn.ModuleDict({"a": nn.Linear(12, 12), "b": nn.Linear(12, 12), "attend": nn.MultiheadAttention(12, 3)})
    model["read"] = nn.GRU(12, 12)
    for rules in ({}, {"*": {"kernel": "orthogonal"}}):
        kinit.apply(model, rules, seed=1)
        blocks = [model["a"].weight, model["b"].weight, model["attend"].out_proj.weight]
        blocks += [*model["attend"].in_proj_weight.chunk(3), *model["read"].weight_ih_l0.chunk(3)]
        for i, block in enumerate(blocks):
            assert not any(torch.equal(block, other) for other in blocks[:i])


@pytest.mark.parametrize("name", ["he_normal", "glorot_uniform", "random_normal", "orthogonal"])
def test_packed_blocks_have_their_law(name):
    """Each block of packed attention weights is scaled by its own fans, as the unpacked ones are."""
    packed, split = nn.MultiheadAttention(64, 4), nn.MultiheadAttention(64, 4, kdim=65)
    for model in (packed, split):
        kinit.apply(model, {"": name}, seed=1)
    for block in packed.in_proj_weight.chunk(3):
        assert block.std().item() == pytest.approx(split.q_proj_weight.std().item(), rel=0.05)


# --- wrappers and parts ----------------------------------------------------------------------------------------------


def checkpointed(model):
    model["attend"] = checkpoint_wrapper(model["attend"])
    model["head"] = nn.DataParallel(checkpoint_wrapper(torch.compile(model["head"])))
    return model


WRAPPERS = {"compiled": torch.compile, "parallel": nn.DataParallel, "checkpointed inside": checkpointed}
WRAPPERS["all"] = lambda model: nn.DataParallel(torch.compile(checkpoint_wrapper(model)))
WRAPPED = re.compile(r"(^|\.)(module|_orig_mod|_checkpoint_wrapped_module)(?=\.)")


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_do_not_count(wrap):
    """A compiled, checkpointed or data-parallel model, or part of one, gets the values of the bare one."""
    model = wrap(network())
    kinit.apply(model, seed=5)
    check_equal({WRAPPED.sub("", name).lstrip("."): tensor for name, tensor in state(model).items()}, made())


def test_a_child_of_the_name_of_a_wrapper_counts():
    """A layer that somebody calls "module" is none of a wrapper's, and its name counts."""
    model = nn.ModuleDict({"module": nn.Linear(4, 4)})
    kinit.apply(model, seed=1)
    lone = nn.Linear(4, 4)
    kinit.apply(lone, seed=1)
    assert not torch.equal(lone.weight, model["module"].weight)


@pytest.mark.parametrize("name", list(network()))
@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile], ids=["bare", "compiled"])
def test_a_part_gets_what_the_whole_gives_it(name, wrap):
    """A submodule initialized alone, with its name as prefix, gets the values it has in the whole."""
    want = {key.removeprefix(f"{name}."): t for key, t in made().items() if key.startswith(f"{name}.")}
    for source in ({"seed": 5}, {"generator": Key(5)}):
        model = network()[name]
        kinit.apply(wrap(model), prefix=name, **source)
        check_equal(state(model), want)


def test_a_deeper_prefix():
    """A prefix may be a path, and names are folded in after it."""
    whole = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Sequential(nn.Linear(3, 4))})})
    kinit.apply(whole, seed=2)
    part = nn.Sequential(nn.Linear(3, 4))
    kinit.plan(part).apply(seed=2, prefix="a.b")
    check_equal(state(part), state(whole["a"]["b"]))


# --- ties, precision, parametrizations, rules ------------------------------------------------------------------------


def twice(order):
    layers = {name: nn.Linear(6, 6) for name in order}
    layers["b"].weight = layers["a"].weight
    return nn.ModuleDict(layers)


def test_ties_whatever_owner_comes_first():
    """A tied weight has the key of its first name in the alphabet, whichever layer is registered first."""
    models = [twice("ab"), twice("ba")]
    for model in models:
        kinit.apply(model, seed=3)
        assert model["a"].weight is model["b"].weight
    check_equal(state(models[0]), state(models[1]))
    alone = nn.ModuleDict({"a": nn.Linear(6, 6)})
    kinit.apply(alone, seed=3)
    assert torch.equal(alone["a"].weight, models[1]["b"].weight)


def test_the_row_of_padding_is_zero():
    """The row of padding_idx is zero, and the others are those of an embedding without one."""
    padded, plain = nn.Embedding(10, 4, padding_idx=-2), nn.Embedding(10, 4)
    for model in (padded, plain):
        kinit.apply(model, seed=1)
    assert not padded.weight[8].any()
    assert torch.equal(
        torch.cat((padded.weight[:8], padded.weight[9:])), torch.cat((plain.weight[:8], plain.weight[9:]))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded(dtype):
    """A model in half precision gets the float32 one's values rounded, inwards where that would leave the bounds."""
    model = network().to(dtype)
    rules = {"*": {"kernel": "he_normal", "recurrent_kernel": "orthogonal"}}
    kinit.apply(model, rules, seed=5)
    for name, exact in made(rules=rules).items():
        found, rounded = model.state_dict()[name], exact.to(model.state_dict()[name].dtype)
        assert torch.equal(found, rounded.clamp(found.min(), found.max()))
        assert int((found != rounded).sum()) <= 0.02 * found.numel()


def test_parametrized_weights():
    """A parametrized weight gets the value of a plain one, and torch's global state is left alone."""
    plain, doubled = nn.Linear(4, 4), symmetric(Back())
    orthogonal = [parametrizations.orthogonal(nn.Linear(5, 3)) for _ in range(2)]
    before = torch.get_rng_state()
    for model in (plain, doubled, *orthogonal):
        kinit.apply(model, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(plain.weight, doubled.weight)
    check_equal(state(orthogonal[0]), state(orthogonal[1]))


@pytest.mark.parametrize("own", [KerasSeed(3, "jax"), KerasSeed(3, "torch"), Key(3)], ids=str)
@pytest.mark.parametrize("name", ["attend", "sum", "stem", "head", "words"])
def test_a_rule_keeps_its_own_numbers(own, name):
    """A rule with a generator of its own gives the same values whether or not the model has a seed."""
    models = [network(), network()]
    rules = {name: partial(kinit.he_normal_, generator=own)}
    kinit.apply(models[0], rules)
    kinit.apply(models[1], rules, seed=9)
    main = kinit.plan(network()[name]).steps[0].name
    assert torch.equal(*(model.state_dict()[f"{name}.{main}"] for model in models))


# --- only=, and errors -----------------------------------------------------------------------------------------------


def check_only(model, chosen, **arguments):
    """Raise AssertionError unless apply(only=...) sets those tensors, to what it sets them to in the whole."""
    before = state(model)
    kinit.apply(model, seed=5, **arguments)
    after, want = state(model), made()
    check_equal({name: after[name] for name in chosen}, {name: want[name] for name in chosen})
    check_equal(
        {name: t for name, t in after.items() if name not in chosen},
        {name: t for name, t in before.items() if name not in chosen},
    )


def test_only_what_is_missing():
    """After loading a checkpoint that lacks a layer, that layer is initialized and nothing else is touched."""
    saved = {name: t for name, t in state(network()).items() if not name.startswith(("head", "norm"))}
    model = network()
    missing = model.load_state_dict(saved, strict=False).missing_keys
    assert {"head.weight", "head.bias", "norm.weight", "norm.running_var"} <= set(missing)
    check_only(model, missing, only=missing)


@pytest.mark.parametrize("only", [lambda name: re.match("read|stem", name), lambda name: False, [], {"head.bias": 1}])
def test_only_by_predicate_or_any_collection(only):
    """A function of the name chooses, and so does any collection of names, also an empty one."""
    names = list(network().state_dict())
    check_only(network(), [n for n in names if (only(n) if callable(only) else n in only)], only=only)


def test_only_needs_no_rule_for_the_others():
    """A raw parameter that is left alone needs no rule; one that is chosen does."""
    model = Positions()
    before = state(model)
    plan = kinit.apply(model, seed=1, only=["head.weight"])
    assert plan["positions"].rule == "left alone (only=)"
    assert torch.equal(model.positions, before["positions"])
    assert not torch.equal(model.head.weight, before["head.weight"])
    with pytest.raises(kinit.UncoveredParameterError, match="positions"):
        kinit.apply(model, seed=1, only=["positions"])


REFUSED = {
    "unknown name": ({"only": ["head.wieght"]}, ValueError, "'head.wieght', which .* Did you mean 'head.weight'"),
    "one string": ({"only": "head.weight"}, TypeError, "`only` must be a list of names or a function"),
    "a number": ({"only": 3}, TypeError, "`only` must be a list of names or a function of a name, got 3"),
    "both": ({"seed": 1, "generator": Key(1)}, ValueError, "`seed` and `generator` exclude each other"),
    "prefix alone": ({"prefix": "a"}, ValueError, "`prefix`='a' is for values that depend on names"),
    "prefix and torch's": ({"prefix": "a", "generator": torch.Generator()}, ValueError, "it needs `seed` or a Key"),
    "prefix and Keras'": ({"prefix": "a", "generator": KerasSeed(1, "jax")}, ValueError, "it needs `seed` or a Key"),
    "prefix of no string": ({"prefix": 3, "seed": 1}, TypeError, "`prefix` must be a name such as 'encoder', got 3"),
    "prefix with an empty part": ({"prefix": "encoder.", "seed": 1}, ValueError, "`prefix`"),
    "bool": ({"seed": True}, TypeError, "`seed` must be an int, got True"),
    "negative": ({"seed": -1}, ValueError, "`seed` must be from 0"),
    "another's initializer": (
        {"seed": 1, "rules": {"head": nn.init.kaiming_normal_}}, ValueError, "is none of Keras' initializers"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(arguments, error, message):
    """What contradicts itself or names nothing is an error, after which no value and no random state has changed."""
    model = network()
    before, numbers = state(model), torch.get_rng_state()
    with pytest.raises(error, match=message):
        kinit.apply(model, **arguments)
    check_equal(state(model), before)
    assert torch.equal(torch.get_rng_state(), numbers)
