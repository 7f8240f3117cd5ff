"""`to_keras` and `from_keras` carry weights between torch modules and the Keras layers that compute the same.

The oracle is Keras: with the same weights its layers must give the same outputs.
"""

import copy

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.fake_run import distributed, on_ranks
from tests.support.fingerprint import fingerprint
from tests.support.keras_twins import TWINS, check_same_output
from tests.support.models import Positions, Symmetric, symmetric, tied

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


def built(twin):
    """The built Keras layers, the torch module, inputs for both, and a source of values."""
    rng = np.random.default_rng(0)
    inputs, layers, module = twin.inputs(rng), twin.layers(), twin.module().eval()
    with torch.no_grad():
        twin.run_keras(layers, *inputs)
    return layers, module, inputs, rng


def random_weights(layers, rng):
    """Values for every weight, as `get_weights` would give them; variances positive."""
    weights = [weight for layer in layers for weight in layer.weights]
    draws = [rng.uniform(-0.5, 0.5, weight.shape).astype(np.float32) for weight in weights]
    return [d + (w.name == "moving_variance") for w, d in zip(weights, draws, strict=True)]


def set_weights(layers, arrays):
    """Give the arrays to the layers, as many to each as it has weights."""
    arrays = list(arrays)
    for layer in layers:
        own, arrays = arrays[: len(layer.weights)], arrays[len(layer.weights) :]
        # alpha and gamma keep their shared axes, of size one, in Keras
        layer.set_weights([a.reshape(w.shape) for a, w in zip(own, layer.weights, strict=True)])
    assert not arrays


def randomize(module):
    """Values in every parameter and buffer of a torch module, the second bias of an LSTM too."""
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(-0.5, 0.5).add_(1.0 if "running_var" in name else 0.0)


@torch.no_grad()
def check_outputs(twin, layers, module, inputs):
    """Raise AssertionError unless both compute the same."""
    check_same_output(twin, module, inputs, twin.run_keras(layers, *inputs))


each_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)


@each_twin
def test_from_keras(twin):
    """A module that has got `get_weights()` of its Keras twin computes what Keras does; a wrong weight shows."""
    layers, module, inputs, rng = built(twin)
    randomize(module)
    arrays = random_weights(layers, rng)
    set_weights(layers, arrays)
    kinit.from_keras(module, [a for layer in layers for a in layer.get_weights()], depthwise=twin.depthwise)
    check_outputs(twin, layers, module, inputs)
    for i in range(len(arrays)):
        if "MultiheadAttention" in twin.name and (i, len(arrays)) == (3, 8):
            continue  # the key's bias adds the same to all scores of a query, which softmax does not see
        kinit.from_keras(module, [a + 0.25 * (i == j) for j, a in enumerate(arrays)], depthwise=twin.depthwise)
        with pytest.raises(AssertionError, match="not close"):
            check_outputs(twin, layers, module, inputs)


@each_twin
def test_to_keras(twin):
    """Keras layers that have got `to_keras(module)` by `set_weights` compute what the module does."""
    layers, module, inputs, _ = built(twin)
    randomize(module)
    arrays = kinit.to_keras(module, depthwise=twin.depthwise)
    set_weights(layers, arrays)
    check_outputs(twin, layers, module, inputs)


# --- whole models, orders, merged axes -------------------------------------------------------------------------------


class Port(nn.Module):
    """A small image classifier whose modules are registered in another order than Keras' layers."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU())
        self.last = nn.Conv2d(4, 6, (3, 2))

    def forward(self, x):
        return self.head(self.last(self.stem(x)).relu().mean((2, 3)))


ORDER = ["stem", "last", "head"]


def keras_port():
    first = {"data_format": "channels_first"}
    stem = [keras.Input((2, 9, 8)), kl.Conv2D(4, 3, **first), kl.BatchNormalization(1), kl.ReLU()]
    last = [kl.Conv2D(6, (3, 2), activation="relu", **first), kl.GlobalAveragePooling2D(**first)]
    return keras.Sequential([*stem, *last, kl.Dense(3)])


@torch.no_grad()
def test_order():
    """With `order`, whole models exchange weights whatever the order in which torch registers their modules."""
    model, real, x = Port().eval(), keras_port(), torch.randn(5, 2, 9, 8)
    randomize(model)
    real.set_weights(kinit.to_keras(model, order=ORDER))
    torch.testing.assert_close(model(x), real(x, training=False), rtol=1e-5, atol=1e-5)
    other = Port().eval()
    kinit.from_keras(other, real.get_weights(), order=ORDER)
    assert torch.equal(model(x), other(x))


WRONG_ORDERS = {
    "unknown": ([*ORDER, "tail"], r"`order` has 'tail', which holds no weights"),
    "misspelt": (["stem", "last", "haed"], r"`order` has 'haed'.* Did you mean 'head'"),
    "twice": ([*ORDER, "stem.0"], r"`order` lists a module twice"),
    "left out": (["stem", "head"], r"`order` leaves out last.weight \(Conv2d's kernel, \(3, 2, 4, 6\)"),
}


@pytest.mark.parametrize(("order", "message"), WRONG_ORDERS.values(), ids=WRONG_ORDERS)
def test_wrong_orders(order, message):
    """An order that leaves out, repeats or invents a module is an error, both ways, and changes nothing."""
    model = Port()
    arrays, before = kinit.to_keras(model, order=ORDER), fingerprint(model)
    with pytest.raises(ValueError, match=message):
        kinit.to_keras(model, order=order)
    with pytest.raises(ValueError, match=message):
        kinit.from_keras(model, arrays, order=order)
    assert fingerprint(model) == before


def port_with_config():
    """A port, its Keras twin, and what is what."""
    real = keras_port()
    names = [layer.name for layer in real.layers if layer.weights]
    return Port(), real, dict(zip(names, ["stem.0", "stem.1", "last", "head"], strict=True))


def test_a_config_gives_the_order():
    """With it and `modules`, arrays come in Keras' order, whatever that of the modules; `order` names other ones."""
    model, real, modules = port_with_config()
    told = {"keras_config": real.to_json(), "modules": modules}
    given = kinit.to_keras(model, **told)
    assert all(map(np.array_equal, given, kinit.to_keras(model, order=ORDER)))
    other, third = Port(), Port()
    kinit.from_keras(other, given, **told)
    assert fingerprint(other) == fingerprint(model)
    backwards = kinit.to_keras(model, **told, order=list(modules)[::-1])
    assert all(map(np.array_equal, backwards, [*given[8:], *given[6:8], *given[2:6], *given[:2]]))
    kinit.from_keras(third, backwards, **told, order=list(modules)[::-1])
    assert fingerprint(third) == fingerprint(model)


def test_arrays_have_the_shapes_of_the_config():
    """Heads of attention in Linears are apart, as `set_weights` wants them."""
    x = keras.Input((5, 12))
    real = keras.Model(x, kl.MultiHeadAttention(3, 4)(x, x))
    parts = nn.ModuleList([nn.Linear(12, 12) for _ in range(4)])
    real.set_weights(kinit.to_keras(parts, keras_config=real))
    assert np.array_equal(real.get_weights()[0].reshape(12, 12), parts[0].weight.detach().t())


def test_layers_that_the_port_goes_without():
    """Their arrays are passed over; `to_keras` has none for them."""
    model, real, modules = port_with_config()
    model.stem[1] = nn.Identity()
    without = {name: None if "batch" in name else path for name, path in modules.items()}
    told = {"keras_config": real, "modules": without}
    kinit.from_keras(model, real.get_weights(), **told)
    assert np.array_equal(model.head.bias.detach(), real.get_weights()[-1])
    with pytest.raises(ValueError, match=r"has gamma \(4,\), of which the torch model holds nothing"):
        kinit.to_keras(model, **told)


def with_config(**told):
    """What from_keras and to_keras say of `told`, where the model and the config are right."""
    model, real, modules = port_with_config()
    arrays = told.pop("arrays", list)(real.get_weights())
    names = list(modules)
    told = {key: value(names) if callable(value) else value for key, value in told.items()}
    told = {"keras_config": real.to_json(), "modules": modules, **told}
    return model, lambda: kinit.from_keras(model, arrays, **told), lambda: kinit.to_keras(model, **told)


PLACE = r"last.weight \(Conv2d's kernel, \(3, 2, 4, 6\) in Keras' layout\)"
WRONG_WITH_CONFIG = {
    "modules alone": ({"keras_config": None}, ValueError, "`modules` maps the layers of a `keras_config`"),
    "paths for names": ({"order": ORDER}, ValueError, "`order` has 'stem', which is no Keras layer with weights"),
    "a layer less": ({"order": lambda names: names[1:]}, ValueError, "`order` leaves out Keras' layer 'conv2d"),
    "a layer twice": ({"order": lambda names: [*names, names[0]]}, ValueError, "`order` lists a layer twice"),
    "no list": ({"order": "dense"}, TypeError, "`order` is a list of the names of its layers, got 'dense'"),
    "order alone": ({"modules": None}, ValueError,
                    r"'conv2d.*' \(Conv2D\) has kernel \(3, 3, 2, 4\), and the torch model in its place head.weight"),
}  # fmt: skip
ARRAYS_OF_ANOTHER = {
    "another shape": (lambda arrays: [*arrays[:6], arrays[6][:2], *arrays[7:]],
                      rf"Array 6 of 10 has shape \(2, 2, 4, 6\); its place is {PLACE}, the kernel \(3, 2, 4, 6\) of "
                      r"Keras' layer 'conv2d.*' \(Conv2D\)\. Are the arrays"),
    "too few": (lambda arrays: arrays[:-1], "9 arrays for 10 weights of the config; the first without one is the bias"),
    "too many": (lambda arrays: [*arrays, arrays[0]], r"11 arrays for 10 weights of the config; its last weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*WRONG_WITH_CONFIG, *ARRAYS_OF_ANOTHER])
def test_errors_with_a_config(case):
    """They name the Keras layer and the torch module, with both shapes, and nothing changes."""
    if case in WRONG_WITH_CONFIG:
        told, error, message = WRONG_WITH_CONFIG[case]
    else:
        told, error, message = {"arrays": ARRAYS_OF_ANOTHER[case][0]}, ValueError, ARRAYS_OF_ANOTHER[case][1]
    model, write, read = with_config(**told)
    before = fingerprint(model)
    for call in (write, read) if case in WRONG_WITH_CONFIG else (write,):
        with pytest.raises(error, match=message):
            call()
    assert fingerprint(model) == before


@torch.no_grad()
def test_merged_axes():
    """Linears take the arrays of a MultiHeadAttention, whose heads have an axis of their own, and give them merged."""
    x, y, layer = torch.randn(2, 5, 12), torch.randn(2, 7, 12), kl.MultiHeadAttention(3, 4)
    layer(x, y)
    layer.set_weights(random_weights([layer], np.random.default_rng(0)))
    query, key, value, out = parts = nn.ModuleList([nn.Linear(12, 12) for _ in range(4)])
    kinit.from_keras(parts, layer.get_weights())
    q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in (query(x), key(y), value(y)))
    found = out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, layer(x, y), rtol=1e-5, atol=1e-5)
    packed = nn.MultiheadAttention(12, 3, batch_first=True)
    kinit.from_keras(packed, kinit.to_keras(parts))
    torch.testing.assert_close(packed(x, y, y)[0], found, rtol=1e-5, atol=1e-5)


# --- kinds of tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(dtype):
    """Arrays have the parameters' dtype, bfloat16 float32's, and lose nothing there and back."""
    model, other = (nn.Linear(3, 5).to(getattr(torch, dtype)) for _ in range(2))
    arrays = kinit.to_keras(model)
    assert {str(a.dtype) for a in arrays} == {"float32" if dtype == "bfloat16" else dtype}
    kinit.from_keras(other, arrays)
    assert torch.equal(other.weight, model.weight)
    assert other.weight.dtype == model.weight.dtype


def test_arrays_are_copies():
    """Neither the arrays nor the parameters change with the other."""
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.GRU(3, 2))
    arrays, before = kinit.to_keras(model), fingerprint(model)
    for array in arrays:
        array += 1
    assert fingerprint(model) == before
    kinit.from_keras(model, arrays)
    changed = fingerprint(model)
    for array in arrays:
        array += 1
    assert fingerprint(model) == changed != before


def test_accepted_arrays():
    """Arrays may be tensors, backwards, read-only, of another dtype, and come from an iterator."""
    model = nn.Linear(3, 2)
    kernel = np.arange(6.0).reshape(3, 2)
    locked = kernel.copy()
    locked.flags.writeable = False
    backwards = kernel[::-1].copy()[::-1]
    for form in (kernel, backwards, locked, torch.tensor(kernel), kernel.astype("int64"), kernel.tolist()):
        kinit.from_keras(model, iter([form, torch.ones(2)]))
        assert torch.equal(model.weight, torch.arange(6.0).view(3, 2).t())


def test_tied_weights_are_given_once():
    """A tied tensor is one array, its first owner's, and stays tied."""
    model = tied()
    assert [a.shape for a in kinit.to_keras(model)] == [(10, 8), (10,)]
    kinit.from_keras(model, [np.ones((10, 8)), np.zeros(10)])
    assert model["head"].weight is model["words"].weight
    assert bool((model["head"].weight == 1).all())


def test_parametrized_weights():
    """A parametrized weight is read as the value it has, and set through its right_inverse."""
    module, value = parametrizations.weight_norm(nn.Linear(4, 3)), torch.randn(4, 3)
    kinit.from_keras(module, [value, torch.zeros(3)])
    torch.testing.assert_close(module.weight, value.T, rtol=1e-6, atol=1e-6)
    assert np.array_equal(kinit.to_keras(module)[0], module.weight.detach().T)


N, BOTH = st.integers(1, 4), st.booleans()
MODULES = st.one_of(
    st.builds(nn.Linear, N, N, bias=BOTH),
    st.builds(lambda g, i, o, k: nn.Conv2d(g * i, g * o, (k, 2), groups=g), N, N, N, N),
    st.builds(nn.ConvTranspose3d, N, N, st.tuples(N, N, N)),
    *[st.builds(cls, N, N, num_layers=N, bias=BOTH, bidirectional=BOTH) for cls in (nn.RNN, nn.LSTM, nn.GRU)],
    *[st.builds(cls, N, N, bias=BOTH) for cls in (nn.RNNCell, nn.LSTMCell, nn.GRUCell)],
    st.builds(lambda h, d, k, b: nn.MultiheadAttention(h * d, h, bias=b, kdim=k), N, N, N, BOTH),
    st.builds(lambda n, d, pad: nn.Embedding(n, d, padding_idx=0 if pad else None), N, N, BOTH),
    st.builds(nn.BatchNorm2d, N, affine=BOTH, track_running_stats=BOTH),
    st.builds(nn.LayerNorm, st.lists(N, min_size=1, max_size=3)),
)


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(modules=st.lists(MODULES, max_size=4))
def test_any_model_there_and_back(modules):
    """A copy that gets a model's arrays gives them again; the second biases of LSTM and RNN have joined the first."""
    model = nn.Sequential(*modules)
    randomize(model)
    other = copy.deepcopy(model)
    randomize(other)
    arrays = kinit.to_keras(model)
    kinit.from_keras(other, arrays)
    assert all(map(np.array_equal, kinit.to_keras(other), arrays))
    summed = [m for m in other if isinstance(m, (nn.RNN, nn.LSTM, nn.RNNCell, nn.LSTMCell))]
    assert not any(p.any() for m in summed for name, p in m.named_parameters() if "bias_hh" in name)


# --- errors ----------------------------------------------------------------------------------------------------------

TWO = [np.ones((2, 3)), np.ones(3), np.ones((3, 4)), np.ones(4)]  # the weights of two Linears
WRONG = {
    "too few": (TWO[:-1], r"3 arrays for 4 weights of the model; the first without one is 1\.bias \(Linear's bias, "),
    "too many": ([*TWO, TWO[0]], r"5 arrays for 4 weights of the model; its last weight is 1\.bias"),
    "transposed": ([*TWO[:2], TWO[2].T, TWO[3]], r"Array 2 of 4 has shape \(4, 3\); its place is 1\.weight \(Linear"),
    "scalar": ([1.0, *TWO[1:]], r"Array 0 of 4 has shape \(\); its place is 0\.weight"),
    "other order": (TWO[2:] + TWO[:2], r"Array 0 of 4 has shape \(3, 4\); its place is 0\.weight"),
}


@pytest.mark.parametrize(("arrays", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arrays(arrays, message):
    """Too few, too many or misshapen arrays are an error that names the place, and change nothing."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        kinit.from_keras(model, arrays)
    assert fingerprint(model) == before


MODELS = {
    "raw parameters": (Positions, ValueError, r"Keras has no weight for positions of Positions, token of Pos"),
    "learned keys": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), ValueError, r"no weight for bias_k of M"),
    "lazy": (lambda: nn.LazyLinear(3), ValueError, r"lazy"),
    "no module": (dict, TypeError, r"`model` must be a torch.nn.Module, got \{\} of type dict"),
}


@pytest.mark.parametrize(("make", "error", "message"), MODELS.values(), ids=MODELS)
def test_models_without_a_twin(make, error, message):
    """A model with weights that Keras does not have is an error, both ways."""
    for call in (lambda: kinit.to_keras(make()), lambda: kinit.from_keras(make(), [])):
        with pytest.raises(error, match=message):
            call()


def refusals(rank):
    """What to_keras and from_keras say of a model of DTensors, and of a DTensor among the arrays."""
    with torch.device("meta"):
        plain, sharded = nn.Linear(3, 2), nn.Linear(3, 2)
    plain, sharded = plain.to_empty(device="cpu"), distributed(sharded, {"shard": 2})
    arrays = [torch.zeros(3, 2), torch.zeros(2)]
    calls = [lambda: kinit.to_keras(sharded), lambda: kinit.from_keras(sharded, arrays)]
    texts = []
    for call in [*calls, lambda: kinit.from_keras(plain, [arrays[0], sharded.bias])]:
        with pytest.raises(ValueError, match="DTensor") as caught:
            call()
        texts.append(str(caught.value))
    return texts


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_distributed_tensors():
    """Each process holds a part only: both ways name the tensor and the functions that gather and shard it."""
    [(read, written, array)] = on_ranks(2, [0], refusals)
    assert read == written
    assert read.startswith("weight is a DTensor, of which each process holds a part.")
    assert "full_state_dict=True" in read
    assert "broadcast_from_rank0=True" in read
    assert array == "Array 1 is a DTensor; it must be dense and hold real numbers in this process."


ARRAYS = {
    "complex": (torch.zeros(3, 2, dtype=torch.complex64), ValueError, "Array 0 is complex"),
    "sparse": (torch.zeros(3, 2).to_sparse(), ValueError, r"Array 0 is torch\.sparse_coo"),
    "meta": (torch.zeros(3, 2, device="meta"), ValueError, "Array 0 is on the meta device"),
    "words": ("kernel", TypeError, "Array 0 is none of numbers that torch can take"),
}


@pytest.mark.parametrize(("array", "error", "message"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_without_real_numbers(array, error, message):
    """What cannot be copied into a parameter is refused before any is changed."""
    model = nn.Linear(3, 2)
    before = fingerprint(model)
    with pytest.raises(error, match=message):
        kinit.from_keras(model, [array, torch.ones(2)])
    assert fingerprint(model) == before


class Exhausted(nn.Module):
    """A parametrization that changes a buffer of its own, and raises once it is inverted more often than `allowed`."""

    def __init__(self):
        super().__init__()
        self.allowed = 9
        self.register_buffer("inverted", torch.zeros(()))

    def forward(self, x):
        return x + 1

    def right_inverse(self, value):
        self.inverted += 1
        if self.inverted > self.allowed:
            raise RuntimeError("not again")
        return value - 1


def exhausted():
    """A plain layer, one that can be set, and one that cannot."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    shared = Exhausted()
    for layer in model[1:]:
        nn.utils.parametrize.register_parametrization(layer, "weight", shared)
    shared.allowed = int(shared.inverted) + 1
    return model


def test_an_error_of_a_parametrization_changes_nothing():
    """If the right_inverse of the last tensor raises, all are as they were, and the error is its own."""
    model = exhausted()
    arrays, before = [a + 1 for a in kinit.to_keras(model)], fingerprint(model)
    with pytest.raises(RuntimeError, match="not again"):
        kinit.from_keras(model, arrays)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(3).expand(3, 3), "holds the same memory more than once"),
        (lambda: torch.inference_mode()(torch.zeros)(3, 3), "torch.inference_mode"),
    ],
    ids=["expanded", "inference"],
)
def test_memory_that_cannot_be_written_to(make, message):
    """It is refused by name before any other weight has changed."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    arrays = [a + 1 for a in kinit.to_keras(model)]
    model[1].weight = nn.Parameter(make(), requires_grad=False)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=f"`1.weight`.*{message}"):
        kinit.from_keras(model, arrays)
    assert fingerprint(model) == before


def test_weights_that_cannot_be_set():
    """A parametrization without right_inverse is an error before any other weight has changed."""
    model = nn.Sequential(nn.Linear(4, 4), symmetric(Symmetric()))
    arrays, before = [a + 1 for a in kinit.to_keras(model)], fingerprint(model)
    with pytest.raises(ValueError, match=r"1\.weight.*Symmetric has no right_inverse"):
        kinit.from_keras(model, arrays)
    assert fingerprint(model) == before
