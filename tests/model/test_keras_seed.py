"""A KerasSeed is what Keras takes for a seed; a model drawn from it has the weights of Keras layers with that seed.

The oracle is Keras, with each of its backends in a process of its own.
"""

import copy
import dataclasses
import json
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.backends import NAMES, backend, same_bits
from tests.support.fingerprint import fingerprint
from torch_kinit import KerasSeed

every_backend = pytest.mark.parametrize("name", NAMES)

# --- the seed --------------------------------------------------------------------------------------------------------

ASKED = """
import keras
result = []
for seed in seeds:
    try:
        keras.initializers.RandomNormal(seed=seed)((2,))
        result.append(True)
    except (OverflowError, ValueError):
        result.append(False)
"""
SEEDS = [sign * (2**power) + more for power in (0, 31, 32, 53, 63, 64, 100) for sign in (-1, 1) for more in (-1, 0, 1)]


@pytest.mark.slow
@every_backend
def test_range(name):
    """A seed is refused exactly where Keras on that backend raises."""
    accepted = backend(name)(ASKED, seeds=SEEDS)
    for seed, taken in zip(SEEDS, accepted, strict=True):
        if taken:
            assert KerasSeed(seed, name).seed == seed
        else:
            with pytest.raises(ValueError, match=rf"`seed` must be from .* to .* for Keras on {name}, got {seed}\."):
                KerasSeed(seed, name)
    assert all(accepted) == (name == "torch")


@pytest.mark.parametrize("seed", [True, np.True_, 1.0, np.float32(1), "1", None, [1], 1j], ids=repr)
def test_seeds_of_other_types(seed):
    """A seed that is no int is a TypeError that names it."""
    with pytest.raises(TypeError, match=r"`seed` must be an int, got .* of type"):
        KerasSeed(seed, "torch")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_numpy_seeds(dtype):
    """NumPy's integers are seeds, kept as Python's."""
    seed = KerasSeed(np.dtype(dtype).type(7), "jax")
    assert (type(seed.seed), seed) == (int, KerasSeed(7, "jax"))


@pytest.mark.parametrize("backend", ["Jax", "tf", "numpy", "", None, 3], ids=repr)
def test_unknown_backends(backend):
    """A backend that is not one of three is a ValueError that lists them."""
    with pytest.raises(ValueError, match=r"`backend` must be one of 'jax', 'tensorflow', 'torch', got"):
        KerasSeed(1, backend)


def test_value():
    """A KerasSeed is a value: frozen, hashable, compared, printed, copied and pickled as its two numbers."""
    seed = KerasSeed(3, backend="jax")
    assert repr(seed) == "KerasSeed(seed=3, backend='jax')"
    assert {seed, KerasSeed(3, "jax"), copy.deepcopy(seed), pickle.loads(pickle.dumps(seed))} == {seed}
    assert seed not in (KerasSeed(3, "torch"), KerasSeed(4, "jax"))
    for name in ("seed", "backend"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(seed, name, 4)


REFUSED = {
    "lower": (partial(kinit.trunc_normal_, lower=-3), torch.float32, r"at two .*`lower`=-3 and `upper`=2"),
    "upper": (partial(kinit.trunc_normal_, upper=float("inf")), torch.float32, r"`lower`=-2 and `upper`=inf"),
    "float8": (kinit.random_normal_, torch.float8_e4m3fn, r"Keras draws .*not torch\.float8_e4m3fn"),
}


@every_backend
@pytest.mark.parametrize(("draw", "dtype", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_laws_that_keras_lacks(name, draw, dtype, message, device):
    """Other truncations and dtypes are an error, on the meta device too, and change nothing."""
    tensor = torch.zeros(3, 3, device=device).to(dtype)
    with pytest.raises(ValueError, match=message):
        draw(tensor, generator=KerasSeed(1, name))
    if device == "cpu":
        assert not tensor.float().any()


# --- layers ----------------------------------------------------------------------------------------------------------

KERAS = """
import keras
from keras import layers as kl

glorot, orthogonal, normal, he, uniform = (
    getattr(keras.initializers, law)(seed=seed)
    for law in ("GlorotUniform", "Orthogonal", "RandomNormal", "HeNormal", "RandomUniform")
)
recurrent = {"kernel_initializer": glorot, "recurrent_initializer": orthogonal}
random = {**recurrent, "bias_initializer": normal}
layer = eval(call)
layer(*[keras.Input(shape) for shape in shapes])
result = layer.get_weights()
"""
NORMAL = {"bias": "random_normal"}
IMAGE, SERIES = [(9, 8, 4)], [(5, 4)]
LAYERS = {
    "Dense": (lambda: nn.Linear(5, 7), {}, "kl.Dense(7, kernel_initializer=glorot)", [(5,)]),
    "Dense, random bias": (
        lambda: nn.Linear(5, 7),
        {"": {"kernel": "he_normal", "bias": "random_normal"}},
        "kl.Dense(7, kernel_initializer=he, bias_initializer=normal)",
        [(5,)],
    ),
    "Conv2D": (lambda: nn.Conv2d(4, 8, (3, 5)), {}, "kl.Conv2D(8, (3, 5), kernel_initializer=glorot)", IMAGE),
    "Conv2D in groups": (
        lambda: nn.Conv2d(4, 6, (3, 5), groups=2),
        {"": "he_normal"},
        "kl.Conv2D(6, (3, 5), groups=2, kernel_initializer=he)",
        IMAGE,
    ),
    "DepthwiseConv2D": (
        lambda: nn.Conv2d(4, 8, (3, 5), groups=4),
        {"": "he_normal"},
        "kl.DepthwiseConv2D((3, 5), depth_multiplier=2, depthwise_initializer=he)",
        IMAGE,
    ),
    "Conv2DTranspose": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 5)),
        {"": "he_normal"},
        "kl.Conv2DTranspose(6, (3, 5), kernel_initializer=he)",
        IMAGE,
    ),
    "Embedding": (lambda: nn.Embedding(11, 4), {}, "kl.Embedding(11, 4, embeddings_initializer=uniform)", [(3,)]),
    "LSTM": (lambda: nn.LSTM(4, 6), {}, "kl.LSTM(6, **recurrent)", SERIES),
    "GRU": (lambda: nn.GRU(4, 6), {}, "kl.GRU(6, **recurrent)", SERIES),
    "SimpleRNN": (lambda: nn.RNN(4, 6), {}, "kl.SimpleRNN(6, **recurrent)", SERIES),
    "GRUCell": (lambda: nn.GRUCell(4, 6), {"": NORMAL}, "kl.GRUCell(6, **random)", [(4,), (6,)]),
    "GRU, random bias": (lambda: nn.GRU(4, 6), {"": NORMAL}, "kl.GRU(6, **random)", SERIES),
    "GRU, scaled bias": (
        lambda: nn.GRU(4, 6),
        {"": {"bias": "he_normal"}},
        "kl.GRU(6, **recurrent, bias_initializer=he)",
        SERIES,
    ),
    "SimpleRNN, random bias": (lambda: nn.RNN(4, 6), {"": NORMAL}, "kl.SimpleRNN(6, **random)", SERIES),
    "LSTM, random bias": (lambda: nn.LSTM(4, 6), {"": NORMAL}, "kl.LSTM(6, **random, unit_forget_bias=False)", SERIES),
    "LSTM, random bias but in the forget gate": (
        lambda: nn.LSTM(4, 6),
        {"bias_ih_l0": partial(kinit.unit_forget_bias_, others=kinit.random_normal_)},
        "kl.LSTM(6, **random)",
        SERIES,
    ),
    "MultiHeadAttention": (
        lambda: nn.MultiheadAttention(12, 3),
        {"": NORMAL},
        "kl.MultiHeadAttention(3, 4, kernel_initializer=glorot, bias_initializer=normal)",
        [(5, 12), (7, 12)],
    ),
    "MultiHeadAttention of three widths": (
        lambda: nn.MultiheadAttention(12, 3, kdim=5, vdim=7),
        {},
        "kl.MultiHeadAttention(3, 4, kernel_initializer=glorot)",
        [(5, 12), (7, 7), (7, 5)],
    ),
}


def check_layer(name, module, call, shapes, seed):
    """Raise AssertionError unless the module has the weights of the Keras layer: its bits, or nearly for a QR."""
    found, expected = kinit.to_keras(module), backend(name)(KERAS, call=call, shapes=shapes, seed=seed)
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if name != "torch" and i == 1 and isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=0, atol=5e-5)
        else:
            assert same_bits(torch.from_numpy(ours), theirs), i


@pytest.mark.slow
@every_backend
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers(name, layer):
    """A layer drawn from a KerasSeed has the weights of the Keras layer whose initializers all have that seed."""
    make, rules, call, shapes = layer
    module = make()
    kinit.apply(module, rules, generator=KerasSeed(21, name))
    check_layer(name, module, call, shapes, 21)


def test_attention_kernels_are_alike():
    """Query, key and value have the same numbers, as in Keras, whose kernels each draw from the seed anew."""
    module = nn.MultiheadAttention(12, 3)
    kinit.apply(module, generator=KerasSeed(21, "jax"))
    query, key, value = module.in_proj_weight.detach().chunk(3)
    assert torch.equal(query, key)
    assert torch.equal(query, value)


# --- plans -----------------------------------------------------------------------------------------------------------

SEEDED = partial(kinit.he_normal_, generator=KerasSeed(3, "jax"))


def two():
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2))


def test_rules_with_seeds_of_their_own():
    """A rule's own KerasSeed draws its parameters, whatever `apply` is given for the others."""
    for generator in (None, torch.Generator().manual_seed(1), KerasSeed(4, "torch")):
        model = two()
        kinit.apply(model, {"0": SEEDED}, generator=generator)
        check_layer("jax", model[0], "kl.Dense(7, kernel_initializer=he)", [(5,)], 3)
    check_layer("torch", model[1], "kl.Dense(2, kernel_initializer=glorot)", [(7,)], 4)


def test_json():
    """A plan with seeds goes through JSON, and draws the same numbers for another model of the same shapes."""
    others = partial(kinit.unit_forget_bias_, others=partial(kinit.random_normal_, generator=KerasSeed(2**63, "torch")))
    model = nn.ModuleDict({"a": nn.Linear(5, 7), "b": nn.LSTM(3, 2)})
    made = kinit.apply(model, {"a": SEEDED, "b.bias_ih_l0": others}, generator=KerasSeed(-1, "tensorflow"))
    read = kinit.Plan.from_dict(json.loads(json.dumps(made.to_dict())))
    assert read == made
    other = nn.ModuleDict({"a": nn.Linear(5, 7), "b": nn.LSTM(3, 2)})
    read.apply(other, generator=KerasSeed(-1, "tensorflow"))
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert same_bits(ours.detach(), theirs.detach())
    assert "he_normal(generator=KerasSeed(seed=3, backend='jax'))" in str(made["a.weight"].initializer)


@pytest.mark.slow
def test_a_seed_in_a_rule_fills_both_rows():
    """The two biases of a GRU are the rows of one variable of Keras', which the seed of a rule gives."""
    gru = nn.GRU(4, 6)
    draw = partial(kinit.random_normal_, generator=KerasSeed(3, "jax"))
    kinit.apply(gru, {nn.GRU: {"bias": draw}})
    expected = backend("jax")("import keras; result = keras.initializers.RandomNormal(seed=3)((2, 18))")
    assert same_bits(torch.from_numpy(kinit.to_keras(gru)[2]), expected)


@pytest.mark.slow
@every_backend
def test_serialize(name):
    """Keras reads the config of an initializer with a KerasSeed, and draws the same numbers from it."""
    draw = partial(kinit.variance_scaling_, scale=2.0, mode="fan_out", generator=KerasSeed(77, name))
    config = kinit.serialize(draw)
    assert config["config"]["seed"] == 77
    expected = backend(name)("import keras; result = keras.initializers.deserialize(config)((4, 9))", config=config)
    assert same_bits(draw(torch.empty(4, 9), layout="keras"), expected)


UNFIT = {
    "foreign": (nn.init.xavier_uniform_, r"1\.weight .*xavier_uniform_ is none of Keras' initializers and cannot draw"),
    "truncation": (partial(kinit.trunc_normal_, lower=-1.0), r"1\.weight .*`lower`=-1 and `upper`=2"),
}


@pytest.mark.parametrize(("rule", "message"), UNFIT.values(), ids=UNFIT)
def test_unfit_rules(rule, message):
    """An initializer that cannot draw from a KerasSeed is an error that names its parameter; nothing has changed."""
    model = two()
    made, before = kinit.plan(model, {"1": rule}), fingerprint(model)
    with pytest.raises(ValueError, match=message):
        made.apply(generator=KerasSeed(1, "jax"))
    assert fingerprint(model) == before
    made.apply(generator=torch.Generator())  # the plan itself is good


def test_foreign_initializers_without_chance():
    """Somebody else's function that draws nothing goes with a KerasSeed."""
    model = two()
    kinit.apply(model, {"1": nn.init.ones_}, generator=KerasSeed(1, "jax"))
    assert bool((model[1].weight == 1).all())


@every_backend
def test_parametrized_weights(name):
    """A weight behind a parametrization gets Keras' numbers through its right_inverse; the global state stays."""
    plain, normed = nn.Linear(5, 7), parametrizations.weight_norm(nn.Linear(5, 7))
    bases = [parametrizations.orthogonal(nn.Linear(5, 7)) for _ in range(2)]
    state = torch.get_rng_state()
    for module in (plain, normed):
        kinit.apply(module, generator=KerasSeed(6, name))
    torch.testing.assert_close(normed.weight, plain.weight, rtol=1e-6, atol=0)
    for module in bases:
        kinit.apply(module, {"": "orthogonal"}, generator=KerasSeed(6, name))
    assert torch.equal(*(module.parametrizations.weight[0].base for module in bases))
    assert torch.equal(torch.get_rng_state(), state)
