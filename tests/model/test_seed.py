"""With seed=, a parameter's values depend on the seed, its name and its shape."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.models import Twice, network, symmetric
from tests.support.states import check_same_state, network_state, state
from torch_kinit import KerasSeed, Key


def test_equal_seeds_give_equal_values():
    """The seed is all that counts: torch's global state is neither read nor moved, and a Key is the same as a seed."""
    want = network_state()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = network()
    moved = torch.get_rng_state()
    assert not torch.equal(before, moved)  # by torch's own initialization
    kinit.apply(model, generator=Key(5))
    assert torch.equal(torch.get_rng_state(), moved)
    check_same_state(state(model), want)
    check_same_state(network_state(), want)


def test_two_seeds_differ():
    """Another seed gives every drawn weight other values."""
    first, second = network_state(5), network_state(6)
    equal = {name for name in first if torch.equal(first[name], second[name])}
    assert equal == {name for name in first if "bias" in name or name.startswith("norm.")}


def test_construction_order_does_not_count():
    """Layers made or registered in another order, or beside new ones, get the values of their names."""
    want = network_state()
    model = nn.ModuleDict({"new": nn.Linear(12, 12), **dict(reversed(network().items())), "newer": nn.GRU(3, 6)})
    kinit.apply(model, seed=5)
    found = state(model)
    check_same_state({name: found[name] for name in want}, want)


def test_memory_format_does_not_count():
    """A model in channels_last gets the same values."""
    model = network()
    model["stem"].to(memory_format=torch.channels_last)
    kinit.apply(model, seed=5)
    check_same_state(state(model), network_state())


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


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(network()))
@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile], ids=["bare", "compiled"])
def test_a_part_gets_what_the_whole_gives_it(name, wrap):
    """A submodule initialized alone, with its name as prefix, gets the values it has in the whole."""
    want = {key.removeprefix(f"{name}."): t for key, t in network_state().items() if key.startswith(f"{name}.")}
    for source in ({"seed": 5}, {"generator": Key(5)}):
        model = network()[name]
        kinit.apply(wrap(model), prefix=name, **source)
        check_same_state(state(model), want)


def test_a_deeper_prefix():
    """A prefix may be a path, and names are folded in after it."""
    whole = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Sequential(nn.Linear(3, 4))})})
    kinit.apply(whole, seed=2)
    part = nn.Sequential(nn.Linear(3, 4))
    kinit.plan(part).apply(seed=2, prefix="a.b")
    check_same_state(state(part), state(whole["a"]["b"]))


# --- ties, precision, parametrizations, rules ------------------------------------------------------------------------


def shared(order, **make):
    """Layers that share the weight of the first in the alphabet, registered in that order."""
    layers = {name: make[name]() for name in sorted(make)}
    first = next(iter(layers.values()))
    for layer in layers.values():
        layer.weight = first.weight
    return nn.ModuleDict({name: layers[name] for name in order})


TIES = {  # layers; the class of the one whose law the weight gets, and that law
    "alike": ({"a": lambda: nn.Linear(6, 6), "b": lambda: nn.Linear(6, 6)}, {}, "Linear", "glorot_uniform"),
    "embedding first": ({"a": lambda: nn.Embedding(9, 6), "b": lambda: nn.Linear(6, 9)}, {}, "Embedding", "random_uni"),
    "embedding last": ({"a": lambda: nn.Linear(6, 9), "b": lambda: nn.Embedding(9, 6)}, {}, "Embedding", "random_uni"),
    "with padding": (
        {"a": lambda: nn.Linear(6, 9), "b": lambda: nn.Embedding(9, 6, 2)}, {"[ab]": "he_normal"}, "Embedding", "he_n"
    ),
    "two embeddings and a rule": (
        {"a": lambda: nn.Embedding(9, 6), "b": lambda: nn.Embedding(9, 6)}, {"b": "he_normal"}, "Embedding", "he_n"
    ),
    "two layers and a rule": (
        {"a": lambda: nn.Linear(6, 9), "b": lambda: nn.Linear(6, 9)}, {"b": "orthogonal"}, "Linear", "orthogonal"
    ),
    "one yields": (
        {"a": lambda: nn.Linear(6, 9), "b": lambda: nn.Embedding(9, 6)}, {"b": kinit.skip}, "Linear", "glorot_uniform"
    ),
    "norms of two laws": ({"a": lambda: nn.PReLU(4), "b": lambda: nn.LayerNorm(4)}, {}, "PReLU", "zeros"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "rules", "layer", "law"), TIES.values(), ids=TIES)
def test_ties_whatever_owner_comes_first(make, rules, layer, law):
    """A tied weight has the law that its owners agree on, whichever is registered first, and stays tied."""
    models = [shared(order, **make) for order in ("ab", "ba")]
    for model in models:
        step = kinit.apply(model, rules, seed=3)["a.weight"]
        assert step.layer == layer
        assert str(step.initializer).startswith(law)
        assert model["a"].weight is model["b"].weight
    check_same_state(state(models[0]), state(models[1]))


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_tie_has_the_key_of_the_first_name(order):
    """A tied weight has the values that its first owner in the alphabet would have alone."""
    model = shared(order, a=lambda: nn.Linear(6, 6), b=lambda: nn.Linear(6, 6))
    alone = nn.ModuleDict({"a": nn.Linear(6, 6)})
    for each in (model, alone):
        kinit.apply(each, seed=3)
    assert torch.equal(alone["a"].weight, model["b"].weight)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_rule_against_an_embedding(order):
    """A rule for a layer that shares an embedding's weight contradicts its law, in whatever order they come."""
    model = shared(order, a=lambda: nn.Linear(6, 9), b=lambda: nn.Embedding(9, 6))
    with pytest.raises(kinit.TiedParameterError, match=r"b\.weight gets random_uniform .* and a\.weight gets ones"):
        kinit.plan(model, {"a": "ones"})


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
    for name, exact in network_state(rules=rules).items():
        found, rounded = model.state_dict()[name], exact.to(model.state_dict()[name].dtype)
        assert torch.equal(found, rounded.clamp(found.min(), found.max()))
        assert int((found != rounded).sum()) <= 0.02 * found.numel()


def test_parametrized_weights():
    """A parametrized weight gets the value of a plain one, and torch's global state is left alone."""
    plain, doubled = nn.Linear(4, 4), symmetric(Twice())
    orthogonal = [parametrizations.orthogonal(nn.Linear(5, 3)) for _ in range(2)]
    before = torch.get_rng_state()
    for model in (plain, doubled, *orthogonal):
        kinit.apply(model, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(plain.weight, doubled.weight)
    check_same_state(state(orthogonal[0]), state(orthogonal[1]))


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


def test_a_rule_with_a_key_is_taken_at_its_word():
    """A rule with a Key of its own gives all parameters it is for the same numbers, as a call with it does."""
    model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    kinit.apply(model, {nn.Linear: partial(kinit.he_normal_, generator=Key(5))}, seed=1)
    want = kinit.he_normal_(torch.empty(3, 4), generator=Key(5))
    assert torch.equal(model["a"].weight, want)
    assert torch.equal(model["b"].weight, want)


@pytest.mark.parametrize("key", [Key(5), Key(2**64 - 1), Key(5).fold_in("a.b")], ids=["small", "large", "derived"])
def test_a_plan_with_a_key_becomes_json(key):
    """A Key in a plan survives JSON, and Keras, which has none, is told so."""
    rule = partial(kinit.he_normal_, generator=key)
    plan = kinit.plan(network(), {"head": rule})
    read = kinit.Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert read == plan
    assert read["head.weight"].initializer.arguments["generator"] == key
    with pytest.raises(ValueError, match="HeNormal has no argument like `generator`=Key"):
        kinit.serialize(rule)


@pytest.mark.parametrize("seed", [np.int64(5), np.uint8(5), torch.tensor(5)], ids=["int64", "uint8", "tensor"])
def test_seeds_of_other_types(seed):
    """An int of NumPy's, or a tensor of one, is the same seed as Python's."""
    check_same_state(network_state(seed), network_state(5))


# --- errors -----------------------------------------------------------------------------------------------------------


REFUSED = {
    "unknown name": ({"only": ["head.wieght"]}, ValueError, "'head.wieght', which .* Did you mean 'head.weight'"),
    "one string": ({"only": "head.weight"}, TypeError, "`only` must be a list of names or a function"),
    "a number": ({"only": 3}, TypeError, "`only` must be a list of names or a function of a name, got 3"),
    "a layer": ({"only": nn.Linear(1, 1)}, TypeError, "`only` must be a list of names or a function of a name, got L"),
    "a class": ({"only": nn.Linear}, TypeError, "`only` must be a list of names or a function of a name, got <class"),
    "a tensor": ({"only": torch.zeros(2)}, TypeError, "`only` must be a list of names or .* of type Tensor"),
    "tensors": ({"only": [torch.zeros(2)]}, TypeError, "`only` must hold names, which are strings, got .* Tensor"),
    "a layer's path": ({"only": ["head"]}, ValueError, "'head', which no parameter or buffer of the model is called"),
    "both": ({"seed": 1, "generator": Key(1)}, ValueError, r"`seed` and `generator` exclude each other, got 1 and Key"),
    "prefix alone": ({"prefix": "a"}, ValueError, "`prefix`='a' is for values that depend on names"),
    "prefix and torch's": ({"prefix": "a", "generator": torch.Generator()}, ValueError, "it needs `seed` or a Key"),
    "prefix and Keras'": ({"prefix": "a", "generator": KerasSeed(1, "jax")}, ValueError, "it needs `seed` or a Key"),
    "prefix of no string": ({"prefix": 3, "seed": 1}, TypeError, "`prefix` must be a name such as 'encoder', got 3"),
    "prefix with an empty part": ({"prefix": "encoder.", "seed": 1}, ValueError, "without empty parts, got 'encoder.'"),
    "blank prefix": ({"prefix": " ", "seed": 1}, ValueError, "`prefix` must be a name such as .*, got ' '"),
    "bool": ({"seed": True}, TypeError, "`seed` must be an int, got True"),
    "bool of NumPy": ({"seed": np.True_}, TypeError, "`seed` must be an int, got "),
    "float": ({"seed": 1.0}, TypeError, "`seed` must be an int, got 1.0 of type float"),
    "string": ({"seed": "1"}, TypeError, "`seed` must be an int, got '1' of type str"),
    "negative": ({"seed": -1}, ValueError, r"`seed` must be from 0 to 2\*\*64 - 1, got -1"),
    "too large": ({"seed": 2**64}, ValueError, r"`seed` must be from 0 to 2\*\*64 - 1, got 18446744073709551616"),
    "seed as generator": ({"generator": 3}, TypeError, r"`generator` must be a torch.Generator, a Key, .* or Key\(3\)"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(arguments, error, message):
    """What contradicts itself or names nothing is an error, after which no value and no random state has changed."""
    model = network()
    before, numbers = state(model), torch.get_rng_state()
    with pytest.raises(error, match=message):
        kinit.apply(model, **arguments)
    check_same_state(state(model), before)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_small_tensors_are_drawn_together(monkeypatch):
    """A model of small layers takes one pass for many tensors, with the values that each key gives alone."""
    rules = {"2": "he_normal", "3": partial(kinit.random_normal_, layout="keras")}
    layers = [nn.Linear(8, 6), nn.Embedding(9, 4, padding_idx=2), nn.Linear(6, 5), nn.Linear(5, 7), nn.LSTM(3, 4)]
    model = nn.ModuleList(layers)
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr("torch_kinit.model.execute.draw_together", lambda draws: calls.append(len(draws)))
        kinit.apply(model, rules, seed=1)
    assert calls == [5]  # the kernels; the LSTM's recurrent one is orthogonal
    kinit.apply(model, rules, seed=1)
    together = [p.detach().clone() for p in model.parameters()]
    monkeypatch.setattr("torch_kinit.model.execute.joins", lambda tensor, law: False)
    kinit.apply(model, rules, seed=1)
    assert all(map(torch.equal, together, model.parameters()))
    assert not together[2][2].any()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_function_reads_what_is_drawn_before_it(seed):
    """A rule's function that copies an earlier parameter gets its new values, though small ones are drawn together."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 5)})
    kinit.apply(model, {"head.weight": lambda w: w.copy_(model["embed"].weight)}, seed=seed)
    assert torch.equal(model["head"].weight, model["embed"].weight)
    alone = kinit.random_uniform_(torch.empty(5, 4), generator=Key(seed).fold_in("embed.weight"))
    assert torch.equal(model["embed"].weight, alone)
