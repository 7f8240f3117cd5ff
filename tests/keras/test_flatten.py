"""`flattened` gives the inputs of a layer after a Flatten Keras' order; the oracle is real Keras."""

import copy
import io
import pickle
import warnings

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.backends import NAMES
from tests.support.fake_run import distributed, on_ranks
from tests.support.port_models import Port, check_state, conv, named, real

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")

SIZES = {1: (4, 7), 2: (4, 5, 3), 3: (4, 3, 2, 5)}  # what the convolution gives for inputs of these spatial sizes
SPATIAL = {1: (8,), 2: (6, 4), 3: (4, 3, 6)}


def chain(rank, last=None):
    """A convolution, a Flatten, and a Linear that is marked."""
    last = last or nn.Linear(torch.Size(SIZES[rank]).numel(), 6)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](3, 4, 2)
    return nn.Sequential(convolution, nn.Flatten(), kinit.flattened(last, SIZES[rank]))


def keras_chain(rank):
    convolution = (kl.Conv1D, kl.Conv2D, kl.Conv3D)[rank - 1](4, 2)
    return keras.Sequential([keras.Input((*SPATIAL[rank], 3)), convolution, kl.Flatten(), kl.Dense(6)])


def inputs(rank):
    """The same for Keras, channels last, and for torch."""
    x = torch.randn(2, *SPATIAL[rank], 3)
    return x, x.movedim(-1, 1)


@torch.no_grad()
def check_same(real_model, model, x, channels_first):
    torch.testing.assert_close(model.eval()(channels_first), real_model(x, training=False), rtol=1e-5, atol=1e-5)


ranks = pytest.mark.parametrize("rank", SIZES)


@ranks
def test_weights_of_keras_give_the_same_outputs(rank):
    """After `from_keras` the port computes what Keras does, and `to_keras` gives the very arrays back."""
    real_model, model, (x, first) = keras_chain(rank), chain(rank), inputs(rank)
    kinit.from_keras(model, real_model.get_weights())
    check_same(real_model, model, x, first)
    for given, back in zip(real_model.get_weights(), kinit.to_keras(model), strict=True):
        assert np.array_equal(given, back)
    kinit.flattened(model[2], None)
    kinit.from_keras(model, real_model.get_weights())
    with pytest.raises(AssertionError, match="not close"):
        check_same(real_model, model, x, first)


def test_a_lazy_linear_is_marked_before_or_after_its_first_forward():
    """The sizes are checked once they are known."""
    real_model, (x, first) = keras_chain(2), inputs(2)
    model = chain(2, nn.LazyLinear(6))
    with pytest.raises(ValueError, match="lazy"):
        kinit.plan(model)
    model(first)
    other = chain(2, nn.LazyLinear(6))
    other(first)
    kinit.flattened(other[2], SIZES[2])
    for made in (model, other):
        kinit.from_keras(made, real_model.get_weights())
        check_same(real_model, made, x, first)
    wrong = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), kinit.flattened(nn.LazyLinear(6), (4, 5, 4)))
    wrong(first)
    with pytest.raises(ValueError, match=r"weight was said to follow a Flatten of \(4, 5, 4\), which gives 80 inputs"):
        kinit.plan(wrong)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved_and_loaded}


@pytest.mark.parametrize("how", COPIES)
def test_copies_keep_the_mark(how):
    """And a state_dict is that of a model without it."""
    model = chain(2)
    again = COPIES[how](model)
    kinit.replay_keras(model, 3, backend="torch")
    kinit.replay_keras(again, 3, backend="torch")
    check_state(again, model.state_dict(), "torch")
    assert kinit.plan(again)["2.weight"].flattened == SIZES[2]
    plain = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(60, 6))
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())


def test_laws_fans_and_the_values_of_a_key_stay():
    """The plan differs by the mark alone, which it shows; so do the values of `seed`, which do not at all."""
    model, plain = chain(2), nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(60, 6))
    marked, unmarked = (kinit.apply(m, {nn.Linear: "he_normal"}, seed=5) for m in (model, plain))
    step, other = marked["2.weight"], unmarked["2.weight"]
    assert (step.fans, step.law, step.std) == (other.fans, other.law, other.std)
    assert step.fans == (60, 6)
    assert torch.equal(model[2].weight, plain[2].weight)
    assert "Linear after (4, 5, 3)" in str(marked)
    assert "after" not in str(unmarked)
    assert kinit.Plan.from_dict(marked.to_dict()) == marked
    with pytest.raises(ValueError, match=r"2.weight was planned with flattened=\(4, 5, 3\), and the model has None"):
        marked.apply(plain)


def test_an_array_for_the_kernel_has_keras_shape():
    """As without the mark; an identity counts Keras' inputs."""
    model, kernel = chain(2), torch.randn(60, 6)
    kinit.apply(model, {"2": {"kernel": kernel}})
    assert np.array_equal(kinit.to_keras(model)[2], kernel)
    kinit.apply(model, {"2": "identity"})
    assert np.array_equal(kinit.to_keras(model)[2], np.eye(60, 6))
    with pytest.raises(ValueError, match=r"the array has shape \(5, 3, 4, 6\), Keras' variable's is \(60, 6\)"):
        kinit.plan(model, {"2": {"kernel": kernel.reshape(5, 3, 4, 6)}})


# --- the numbers that Keras draws -------------------------------------------------------------------------------------


def after(*sizes):
    """The map of a Dense kernel's rows, (*spatial, channels), to the columns of a Linear, (channels, *spatial)."""

    def mapped(kernel, *bias):
        apart = kernel.reshape(*sizes[1:], sizes[0], -1)
        return named(apart.movedim(len(sizes) - 1, 0).flatten(0, -2).t(), *bias)

    return mapped


def flat(source, make, *layers, orthogonal="weight_hh"):
    return Port(f"def make():\n    return keras.Sequential([{source}])", make, layers, orthogonal=orthogonal)


def replayed(rank, law):
    text = f"keras.Input(({', '.join(map(str, SPATIAL[rank]))}, 3)), kl.Conv{rank}D(4, 2), kl.Flatten(),"
    layers = ("0", conv, 2), ("2", after(*SIZES[rank]), 2)
    return flat(
        f"{text} kl.Dense(6, kernel_initializer={law!r})", lambda: chain(rank), *layers,
        orthogonal="2.weight" if law == "orthogonal" else "weight_hh",
    )  # fmt: skip


REPLAYED = {
    f"{rank}d {law}": replayed(rank, law)
    for rank in SIZES
    for law in ("glorot_uniform", "he_normal", "orthogonal")
    if rank == 2 or law == "glorot_uniform"
}
REPLAYED["random_normal"] = replayed(2, "random_normal")
REPLAYED["large"] = flat(
    "keras.Input((33, 32, 3)), kl.Conv2D(16, 2), kl.Flatten(), kl.Dense(70)",
    lambda: nn.Sequential(
        nn.Conv2d(3, 16, 2), nn.Flatten(), kinit.flattened(nn.Linear(16 * 32 * 31, 70), (16, 32, 31))
    ),
    *(("0", conv, 2), ("2", after(16, 32, 31), 2)),
)


@pytest.mark.slow
@pytest.mark.parametrize("case", REPLAYED)
@pytest.mark.parametrize("name", NAMES)
def test_replayed_kernels_are_keras_own(name, case):
    """From the config, and from the modules where the laws are Keras' defaults, each weight has the bits of Keras'."""
    port = REPLAYED[case]
    found = real(name, port)
    model, expected = port.make(), port.expected(found["weights"])
    kinit.replay_keras(model, 1, backend=name, keras_config=found["config"])
    check_state(model, expected, name, port.orthogonal)
    if "glorot" in case or case == "large":
        other = port.make()
        kinit.replay_keras(other, 1, backend=name)
        check_state(other, expected, name, port.orthogonal)


def shards(rank):
    """What a rank holds of a marked Linear after a replay and after `seed`."""
    with torch.device("meta"):
        model = nn.Sequential(kinit.flattened(nn.Linear(60, 6), SIZES[2]))
    sharded = distributed(model, {"shard": 2})
    found = []
    for run in (lambda: kinit.replay_keras(sharded, 1, backend="jax"), lambda: kinit.apply(sharded, seed=1)):
        run()
        found.append(sharded[0].weight.to_local().detach().clone())
    return found


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_a_sharded_weight_has_the_values_of_a_whole_one():
    """Each process draws its part of the marked weight."""
    whole = nn.Sequential(kinit.flattened(nn.Linear(60, 6), SIZES[2]))
    found = on_ranks(2, [0, 1], shards)
    for i, run in enumerate((lambda: kinit.replay_keras(whole, 1, backend="jax"), lambda: kinit.apply(whole, seed=1))):
        run()
        assert torch.equal(torch.cat([parts[i] for parts in found]), whole[0].weight)


# --- a port that does not say how it flattens -------------------------------------------------------------------------


def sequential(*layers, shape=(6, 4, 3)):
    keras.backend.clear_session()
    return keras.Sequential([keras.Input(shape), *layers])


def functional(function, *shapes):
    keras.backend.clear_session()
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, function(*inputs))


def after_conv(*layers):
    """A convolution that gives (5, 3, 4), and other layers."""
    return sequential(kl.Conv2D(4, 2), *layers)


def conv_and(*modules):
    return nn.Sequential(nn.Conv2d(3, 4, 2), *modules)


def one_linear():
    return conv_and(nn.Linear(60, 6))


def two_branches(x):
    return kl.Dense(6)(kl.Flatten()(kl.Add()([kl.Conv2D(4, 2)(x), kl.Conv2D(4, 2)(x)])))


def two_heads(x):
    flat = kl.Flatten()(kl.Conv2D(4, 2)(x))
    return [kl.Dense(6, name="mean")(flat), kl.Dense(6, name="variance")(flat)]


def joined(x, y):
    return kl.Dense(6)(kl.Concatenate()([kl.Flatten()(kl.Conv2D(4, 2)(x)), y]))


def frames():
    layers = kl.TimeDistributed(kl.Conv2D(4, 2)), kl.TimeDistributed(kl.Flatten()), kl.LSTM(2)
    return sequential(*layers, shape=(3, 6, 4, 3))


def rows(x):
    return kl.GRU(2)(kl.Reshape((5, -1))(kl.Conv2D(4, 2)(x)))


FIRST = {"data_format": "channels_first"}
IMAGE, SIZE, UNKNOWN = (6, 4, 3), (4, 5, 3), None
WARNED = {  # the Keras model, the port, and what is said of the port's modules
    "flatten": (after_conv(kl.Flatten(), kl.Dense(6)), one_linear(), {"1": SIZE}),
    "1d": (sequential(kl.Conv1D(4, 2), kl.Flatten(), kl.Dense(6), shape=(8, 3)),
           nn.Sequential(nn.Conv1d(3, 4, 2), nn.Linear(28, 6)), {"1": (4, 7)}),
    "3d": (sequential(kl.Conv3D(4, 2), kl.Flatten(), kl.Dense(6), shape=(4, 3, 6, 3)),
           nn.Sequential(nn.Conv3d(3, 4, 2), nn.Linear(120, 6)), {"1": (4, 3, 2, 5)}),
    "reshape to one axis": (after_conv(kl.Reshape((-1,)), kl.Dense(6)), one_linear(), {"1": UNKNOWN}),
    "other layers about it": (
        after_conv(kl.BatchNormalization(), kl.ReLU(), kl.MaxPooling2D((2, 1)), kl.Flatten(), kl.ReLU(), kl.Dense(6)),
        conv_and(nn.BatchNorm2d(4), nn.Linear(24, 6)), {"2": (4, 2, 3)}),
    "norm after it": (after_conv(kl.Flatten(), kl.BatchNormalization(), kl.Dense(6), kl.Dense(2)),
                      conv_and(nn.BatchNorm1d(60), nn.Linear(60, 6), nn.Linear(6, 2)), {"1": SIZE, "2": SIZE}),
    "nested": (sequential(keras.Sequential([kl.Conv2D(4, 2), kl.Flatten()]), kl.Dense(6)), one_linear(), {"1": SIZE}),
    "branches": (functional(two_branches, IMAGE), conv_and(nn.Conv2d(3, 4, 2), nn.Linear(60, 6)), {"2": SIZE}),
    "two heads": (functional(two_heads, IMAGE), conv_and(nn.Linear(60, 6), nn.Linear(60, 6)), {"1": SIZE, "2": SIZE}),
    "joined to other inputs": (functional(joined, IMAGE, (2,)), conv_and(nn.Linear(62, 6)), {"1": UNKNOWN}),
    "over time": (frames(), conv_and(nn.LSTM(60, 2)), {"1": SIZE}),
    "rows": (functional(rows, IMAGE), conv_and(nn.GRU(12, 2)), {"1": (4, 3)}),
    "rows of a Sequential": (after_conv(kl.Reshape((5, 12)), kl.GRU(2)), conv_and(nn.GRU(12, 2)), {"1": UNKNOWN}),
}  # fmt: skip


def said(call):
    """The warnings about Flatten; Keras and the order of draws have others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if "Keras flattens" in str(warning.message)]


def calls(keras_model, module):
    told = {"keras_config": keras_model.to_json()}
    yield lambda: kinit.replay_keras(module, 0, backend="torch", **told)
    yield lambda: kinit.from_keras(module, keras_model.get_weights(), **told)
    yield lambda: kinit.from_keras(module, keras_model)
    yield lambda: kinit.to_keras(module, **told)


@pytest.mark.parametrize(("keras_model", "module", "expected"), WARNED.values(), ids=WARNED)
def test_a_port_that_does_not_say_how_it_flattens(keras_model, module, expected):
    """A warning names layer and module and the line that settles it, in each function; then there is none."""
    for call in calls(keras_model, module):
        (text,) = said(call)
        for path, sizes in expected.items():
            shown = sizes or "(channels, *spatial)"
            assert f"in the port {path}: kinit.flattened(model.get_submodule({path!r}), {shown})" in text
        assert text.count("kinit.flattened") == len(expected)
    for path, sizes in expected.items():
        kinit.flattened(module.get_submodule(path), sizes)
    assert not [text for call in calls(keras_model, module) for text in said(call)]


QUIET = {
    "global pooling": (after_conv(kl.GlobalAveragePooling2D(), kl.Dense(6)), conv_and(nn.Linear(4, 6))),
    "one position": (sequential(kl.Conv2D(4, (6, 4)), kl.Flatten(), kl.Dense(6)),
                     nn.Sequential(nn.Conv2d(3, 4, (6, 4)), nn.Linear(4, 6))),
    "one channel": (sequential(kl.Conv2D(1, 2), kl.Flatten(), kl.Dense(6)),
                    nn.Sequential(nn.Conv2d(3, 1, 2), nn.Linear(15, 6))),
    "no convolution": (sequential(kl.Flatten(), kl.Dense(6)), nn.Sequential(nn.Linear(72, 6))),
    "embedding": (sequential(kl.Embedding(9, 4), kl.Flatten(), kl.Dense(6), shape=(5,)),
                  nn.Sequential(nn.Embedding(9, 4), nn.Linear(20, 6))),
    "recurrent": (sequential(kl.Conv1D(4, 2), kl.GRU(3, return_sequences=True), kl.Flatten(), kl.Dense(6),
                             shape=(8, 3)),
                  nn.Sequential(nn.Conv1d(3, 4, 2), nn.GRU(4, 3), nn.Linear(21, 6))),
    "patches": (after_conv(kl.Reshape((-1, 4)), kl.Dense(5), kl.Flatten(), kl.Dense(6)),
                conv_and(nn.Linear(4, 5), nn.Linear(75, 6))),
    "channels first in Keras": (
        functional(lambda x: kl.Dense(6)(kl.Flatten("channels_last")(kl.Conv2D(4, 2, **FIRST)(x))), (3, 6, 4)),
        one_linear()),
    "permuted": (after_conv(kl.Permute((3, 1, 2)), kl.Flatten(), kl.Dense(6)), one_linear()),
    "a convolution for the Dense": (after_conv(kl.Flatten(), kl.Dense(6)), conv_and(nn.Conv2d(4, 6, (5, 3)))),
    "further layers": (after_conv(kl.Flatten(), kl.Dense(6), kl.Dense(5)),
                       conv_and(kinit.flattened(nn.Linear(60, 6), SIZE), nn.Linear(6, 5))),
}  # fmt: skip


@pytest.mark.parametrize(("keras_model", "module"), QUIET.values(), ids=QUIET)
def test_what_needs_no_word(keras_model, module):
    """Nothing is said where torch and Keras have the values in one order, or the data is not the convolution's."""
    assert not [text for call in calls(keras_model, module) for text in said(call)]


def test_channels_first_data_that_keras_transposes():
    """Flatten(data_format="channels_first") has the channels last, too."""
    model = functional(lambda x: kl.Dense(6)(kl.Flatten(**FIRST)(kl.Conv2D(4, 2, **FIRST)(x))), (3, 6, 4))
    port, x = conv_and(nn.Flatten(), nn.Linear(60, 6)), torch.randn(2, 3, 6, 4)
    (text,) = said(lambda: kinit.from_keras(port, model))
    assert "model.get_submodule('2'), (4, 5, 3))" in text
    kinit.flattened(port[2], (4, 5, 3))
    kinit.from_keras(port, model)
    check_same(model, port, x, x)


def test_a_wrapped_layer():
    """A SpectralNormalization of a Dense; its vector has no place in torch."""
    model, port = after_conv(kl.Flatten(), kl.SpectralNormalization(kl.Dense(6))), one_linear()
    assert said(lambda: kinit.from_keras(port, model))
    with pytest.raises(ValueError, match=r"has vector_u \(1, 6\), of which the torch model holds nothing"):
        kinit.to_keras(kinit.flattened(port[1], SIZE) and port, keras_config=model)


def test_sizes_that_are_not_those_of_the_config():
    """An error has both."""
    model, port = keras_chain(2), chain(2)
    kinit.flattened(port[2], (5, 4, 3))
    with pytest.raises(
        ValueError, match=r"Flatten of \(5, 4, 3\); Keras flattens \(5, 3, 4\) .*, which is \(4, 5, 3\)"
    ):
        kinit.from_keras(port, model)


def test_the_laws_need_no_word():
    """Rules are the same whatever the order, and nothing is known without a config."""
    model, port = keras_chain(2), conv_and(nn.Flatten(), nn.Linear(60, 6))
    assert kinit.rules_from_keras(model, port)["2.weight"] == "glorot_uniform"
    kinit.from_keras(port, model.get_weights())
