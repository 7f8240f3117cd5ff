"""What `flattened` takes, which variables of a layer it marks, and the errors of what it does not take."""

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from torch_kinit import Variable

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def marked(module, sizes=(4, 5, 3)):
    kinit.flattened(module, sizes)
    return module


def norm(cls):
    return [marked(cls(60, eps=1e-3)), marked(nn.Linear(60, 2))]


BETWEEN = {
    "batch norm": (lambda: norm(nn.BatchNorm1d), lambda: [kl.BatchNormalization(), kl.Dense(2)]),
    "layer norm": (lambda: norm(nn.LayerNorm), lambda: [kl.LayerNormalization(), kl.Dense(2)]),
    "prelu": (lambda: [marked(nn.PReLU(60)), marked(nn.Linear(60, 2))], lambda: [kl.PReLU(), kl.Dense(2)]),
    "weight norm": (lambda: [marked(parametrizations.weight_norm(nn.Linear(60, 2)))], lambda: [kl.Dense(2)]),
}  # fmt: skip


@pytest.mark.parametrize("case", BETWEEN)
@torch.no_grad()
def test_layers_between_flatten_and_dense(case):
    """Layers that work feature by feature have their weights in Keras' order, too."""
    modules, layers = (make() for make in BETWEEN[case])
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), *modules).eval()
    twin = keras.Sequential([keras.Input((6, 4, 3)), kl.Conv2D(4, 2), kl.Flatten(), *layers])
    rng = np.random.default_rng(0)
    twin.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in twin.weights])
    kinit.from_keras(model, twin.get_weights())
    x = torch.randn(3, 6, 4, 3)
    torch.testing.assert_close(model(x.movedim(-1, 1)), twin(x, training=False), rtol=1e-5, atol=1e-4)
    for given, back in zip(twin.get_weights(), kinit.to_keras(model), strict=True):
        np.testing.assert_allclose(given, back, rtol=1e-6)


RECURRENT = {
    "LSTM of two layers": (lambda: nn.LSTM(60, 5, 2, batch_first=True), lambda: [
        kl.LSTM(5, return_sequences=True), kl.LSTM(5, return_sequences=True)]),
    "GRU": (lambda: nn.GRU(60, 5, batch_first=True), lambda: [kl.GRU(5, return_sequences=True)]),
    "both ways": (lambda: nn.RNN(60, 5, batch_first=True, bidirectional=True),
                  lambda: [kl.Bidirectional(kl.SimpleRNN(5, return_sequences=True))]),
}  # fmt: skip


@pytest.mark.parametrize("case", RECURRENT)
@torch.no_grad()
def test_recurrent_layers_on_flattened_frames(case):
    """Of each example in a sequence: TimeDistributed(Flatten) in Keras."""
    module, layers = (make() for make in RECURRENT[case])
    model = Last(marked(module))
    twin = keras.Sequential([keras.Input((7, 5, 3, 4)), kl.TimeDistributed(kl.Flatten()), *layers])
    twin.set_weights([np.random.default_rng(i).standard_normal(w.shape) for i, w in enumerate(twin.weights)])
    kinit.from_keras(model, twin.get_weights())
    x = torch.randn(2, 7, 5, 3, 4)
    torch.testing.assert_close(model(x.movedim(-1, 2).flatten(2)), twin(x), rtol=1e-5, atol=1e-4)


def test_a_registered_layout(register):
    """A class of one's own is marked like the layer that it stands for; so is a Variable."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(60, 2))

    register(Own, lambda m: [Variable("kernel", "weight", "keras")])
    own, kernel = marked(Own()), np.arange(120.0).reshape(60, 2)
    kinit.from_keras(own, [kernel])
    linear = nn.Linear(60, 2, bias=False)
    kinit.from_keras(marked(linear), [kernel])
    assert torch.equal(own.weight, linear.weight.t())
    register(Own, lambda m: [Variable("kernel", "weight", "keras", flattened=(4, 5, 3))])
    again = Own()
    kinit.from_keras(again, [kernel])
    assert torch.equal(again.weight, own.weight)


def test_the_module_comes_back_and_the_last_word_counts():
    """None takes back what was said."""
    module = nn.Linear(60, 2)
    assert kinit.flattened(module, torch.Size((4, 5, 3))) is module
    assert kinit.plan(module)["weight"].flattened == (4, 5, 3)
    assert kinit.plan(module)["bias"].flattened is None
    kinit.flattened(module, [5, 4, 3])
    assert kinit.plan(module)["weight"].flattened == (5, 4, 3)
    kinit.flattened(module, None)
    assert kinit.plan(module)["weight"].flattened is None


def test_the_mark_of_a_tied_weight_is_its_first_owners():
    """As its layout is."""
    first, second = marked(nn.Linear(60, 2)), nn.Linear(60, 2)
    second.weight = first.weight
    assert kinit.plan(nn.Sequential(first, second))["0.weight"].flattened == (4, 5, 3)


LINEAR = nn.Linear(60, 2)
WRONG = {
    "no module": ("fc", (4, 5, 3), TypeError, "`module` must be a torch.nn.Module, got 'fc'"),
    "a number": (LINEAR, 60, TypeError, r"`sizes` must be \(channels, \*spatial\) as before.*got 60"),
    "one size": (LINEAR, (60,), ValueError, r"`sizes` must be \(channels, \*spatial\)"),
    "a name": (LINEAR, "60", TypeError, "`sizes` must be"),
    "no int": (LINEAR, (4, 5, 3.0), TypeError, "`sizes` must be a sequence of ints, got 3.0"),
    "zero": (LINEAR, (4, 5, 0), ValueError, r"`sizes` must be .*at least 1, got \(4, 5, 0\)"),
    "another number": (LINEAR, (4, 5, 4), ValueError, r"Flatten of \(4, 5, 4\), which gives 80 inputs.*\(60, 2\)"),
    "a convolution": (nn.Conv2d(60, 2, 3), (4, 5, 3), ValueError, "`module` must be a layer with an input for each"),
    "groups": (nn.GroupNorm(4, 60), (4, 5, 3), ValueError, "`module` must be a layer"),
    "attention": (nn.MultiheadAttention(60, 2), (4, 5, 3), ValueError, "`module` must be a layer"),
    "a norm of an image": (nn.LayerNorm((4, 5, 3)), (4, 5, 3), ValueError, "`module` must be a layer"),
    "no weights": (nn.Flatten(), (4, 5, 3), ValueError, "`module` must be a layer"),
    "a container": (nn.Sequential(nn.Linear(60, 2)), (4, 5, 3), ValueError, "`module` must be a layer"),
}  # fmt: skip


@pytest.mark.parametrize(("module", "sizes", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(module, sizes, error, message):
    """The argument, what came, and a module that stays unmarked."""
    with pytest.raises(error, match=message):
        kinit.flattened(module, sizes)
    assert not hasattr(module, "_kinit_flattened")
