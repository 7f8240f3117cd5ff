"""The six careful ports train as Keras' models do, step by step; each careless detail shows, and `compare` tells it."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrize

import torch_kinit as kinit
from tests.support.backends import backend
from tests.support.compared_keras import MODELS
from tests.support.compared_ports import CAREFUL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_one_thread")]

# Each model trained for 20 steps in float64, so that nothing hides in rounding: its config, first weights, batches and
# losses, and the outputs in eval mode for the last batch then. Nothing is dropped. TensorFlow's gradient of an
# Embedding is made dense, but for one more model, "sparse".
TRAINED = """
import sys
import numpy as np
sys.path.insert(0, support)
import keras
import tensorflow as tf
from compared_keras import MODELS

def batches(model, count):
    rng = np.random.default_rng(0)
    shape, outputs = (8, *model.inputs[0].shape[1:]), (8, *model.outputs[0].shape[1:])
    for _ in range(count):
        x = rng.standard_normal(shape)
        if model.inputs[0].dtype == "int32":
            x = rng.integers(1, 20, shape).astype("int32")
            if name in ("lstm", "sparse"):
                x[np.arange(6) >= rng.integers(2, 7, (8, 1))] = 0  # masked steps
        y = rng.integers(0, 2, outputs).astype(float)
        if name == "mnist":
            y = np.eye(10)[rng.integers(0, 10, 8)]
        elif name == "gru":
            y = rng.integers(0, 3, 8)
        elif name == "transformer":
            y = rng.standard_normal(outputs)
        yield x, y

def losses(model, given, sparse):
    for x, y in given:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        model.optimizer.apply(gradients if sparse else [tf.convert_to_tensor(g) for g in gradients], variables)
        yield float(loss)

result, before = {}, keras.config.floatx()
keras.config.set_floatx('float64')
keras.config.set_dtype_policy('float64')
try:
    for name, made in {**MODELS, "sparse": MODELS["lstm"]}.items():
        keras.utils.set_random_seed(1)
        model = made(rate=0.0)
        weights, given = model.get_weights(), list(batches(model, 20))
        result[name] = [model.to_json(), weights, given, list(losses(model, given, name == "sparse"))]
        result[name].append(keras.ops.convert_to_numpy(model(given[-1][0], training=False)))
finally:
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(before)
"""


class Trained(NamedTuple):
    """What Keras made of a model."""

    config: str
    weights: list
    batches: list
    losses: list
    outputs: torch.Tensor


@pytest.fixture(scope="module")
def trained():
    """What TensorFlow makes of each model."""
    made = backend("tensorflow")(TRAINED, support=str(Path(__file__).parents[1] / "support"))
    return {name: Trained(*own) for name, own in made.items()}


class Rmsprop(torch.optim.Optimizer):
    """Keras', whose epsilon stands under the root, and which clips each gradient by itself."""

    def __init__(self, parameters, lr, rho=0.9, epsilon=1e-7, clipnorm=1.0):
        super().__init__(parameters, {"lr": lr, "rho": rho, "epsilon": epsilon, "clipnorm": clipnorm})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                gradient = parameter.grad * (group["clipnorm"] / parameter.grad.norm()).clamp(max=1)
                square = self.state[parameter].setdefault("square", torch.zeros_like(parameter))
                square.mul_(group["rho"]).addcmul_(gradient, gradient, value=1 - group["rho"])
                parameter.sub_(group["lr"] * gradient / (square + group["epsilon"]).sqrt())


RATE = {rate: float(np.float32(rate)) for rate in (1e-3, 2e-4, 0.01, 0.05)}  # which Keras keeps in float32
OPTIMIZERS = {
    "mnist": lambda p: torch.optim.Adam(p, RATE[1e-3], eps=1e-7),
    "lstm": lambda p: Rmsprop(p, RATE[1e-3]),
    "gru": lambda p: torch.optim.SGD(p, RATE[0.05], momentum=0.9),
    "transformer": lambda p: torch.optim.AdamW(p, RATE[0.01], eps=1e-7, weight_decay=0.02),
    "unet": lambda p: torch.optim.Adagrad(p, RATE[0.01], initial_accumulator_value=0.1 + 1e-7, eps=0.0),
    "discriminator": lambda p: torch.optim.Adam(p, RATE[2e-4], (0.5, 0.999), eps=1e-7),
}
LOSSES = {
    "mnist": lambda port, out, y: -(y * out.log()).sum(-1).mean() + 0.01 * port[8].weight.square().sum(),
    "lstm": lambda port, out, y: F.binary_cross_entropy(out, y),
    "gru": lambda port, out, y: F.cross_entropy(out, y),
    "transformer": lambda port, out, y: F.mse_loss(out, y),
    "unet": lambda port, out, y: F.binary_cross_entropy(out, y),
    "discriminator": lambda port, out, y: F.binary_cross_entropy_with_logits(out, y),
}


def written_back(port, weights):
    """Divide as Keras does, which is a note of `compare`: before each step, the kernel itself, by its own estimate."""
    conv = port[4]
    parametrize.remove_parametrizations(conv, "weight", leave_parametrized=False)
    u = next(array for array in weights if array.shape == (1, 6))[0]

    def divide(*_):
        nonlocal u
        with torch.no_grad():
            kernel = conv.weight.flatten(1)
            v = F.normalize(kernel.T @ u, dim=0)
            u = F.normalize(kernel @ v, dim=0)
            if conv.training:
                conv.weight.div_(u @ kernel @ v)

    conv.register_forward_pre_hook(divide)


def with_biased_variance(norm):
    """Keep the running variance as Keras does, which is a note of `compare`."""

    def keep(_, given):
        kept.copy_(norm.running_var)
        values.append(given[0].var((0, 2, 3), correction=0).detach())

    def put(*_):
        if norm.training:
            norm.running_var.data.copy_(torch.lerp(kept, values.pop(), norm.momentum))

    kept, values = torch.empty_like(norm.running_var), []
    norm.register_forward_pre_hook(keep)
    norm.register_forward_hook(put)


def channels_first(x):
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def channels_last(x):
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def careful(name):
    """The port that is made with care, its dropout aside."""
    port = CAREFUL[name]()
    for module in port.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d)):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return port


def curve(name, made, change=None, optimizer=None, dtype=torch.float64):
    """The losses of a careful port, or of one with a change, on what Keras had; and its outputs in eval mode then."""
    config, weights, batches, *_ = made[name]
    port = careful(name).to(dtype)
    kinit.from_keras(port, [weight.to(dtype) for weight in weights], keras_config=config)
    port.train()
    for module in port.modules():
        if isinstance(module, nn.BatchNorm2d):
            with_biased_variance(module)
    if name == "discriminator":
        port[6].eval()  # the frozen norm
        if change is not torchs_spectral_norm:
            written_back(port, [weight.to(dtype) for weight in weights])
    if change:
        change(port)
    corrected = optimizer is None
    optimizer = (optimizer or OPTIMIZERS[name])([p for p in port.parameters() if p.requires_grad])
    losses = []
    for step, (x, y) in enumerate(batches, 1):
        x, y = (value.to(dtype) if value.is_floating_point() else value for value in (x, y))
        loss = LOSSES[name](port, channels_last(port(channels_first(x))), y)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            if "betas" in group and corrected:  # Keras' epsilon is added before the correction of the second moment
                group["eps"] = 1e-7 / math.sqrt(1 - group["betas"][1] ** step)
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        return np.array(losses), channels_last(port.eval()(channels_first(x)))


def off(found, expected):
    """The largest difference, in parts of the loss."""
    return float(np.max(np.abs(found / np.array(expected) - 1)))


# Of Adam Keras takes the beta of the correction, and of L2 and GELU a constant, in float32 whatever the model's dtype.
LIMITS = dict.fromkeys(MODELS, 1e-5) | dict.fromkeys(("lstm", "gru", "unet"), 1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_a_careful_port_trains_as_keras_does(name, trained):
    """What `compare` leaves unsaid has no part in training; the outputs in eval mode after it are Keras', too."""
    losses, outputs = curve(name, trained)
    assert off(losses, trained[name].losses) <= LIMITS[name]
    torch.testing.assert_close(outputs, trained[name].outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_careful_port_trains_alike_in_float32(name, trained):
    """Rounding is no excuse: its noise, of Keras' 1e-7 to 1e-6 within 20 steps, is below the limit."""
    assert off(curve(name, trained, dtype=torch.float32)[0], trained[name].losses) <= 1e-5


def torchs_spectral_norm(port):
    """torch's own, which divides and keeps the kernel."""


def replaced(index, module):
    return lambda port: port.__setitem__(index, module)


# A model, what is changed in its careful port, and what `compare` says of it.
CARELESS = {
    "epsilon": ("mnist", lambda port: setattr(port[3], "eps", 1e-5), ("norm", "epsilon")),
    "the other side": ("mnist", replaced(0, nn.ZeroPad2d((1, 0, 1, 0))), ("conv", "padding")),
    "tanh": ("mnist", replaced(9, nn.Tanh()), ("hidden", "activation")),
    "second bias": ("lstm", lambda port: port.second.requires_grad_(True), ("second", "second bias")),
    "second bias of RNN": ("gru", lambda port: port.rnn.requires_grad_(True), ("rnn", "second bias")),
    "LayerNorm": ("transformer", lambda port: setattr(port.norm_2, "eps", 1e-5), ("norm_2", "epsilon")),
    "GELU": ("transformer", lambda port: setattr(port.feed_forward[1], "approximate", "tanh"), ("up", "activation")),
    "causal": ("transformer", lambda port: replaced(0, nn.ZeroPad1d((2, 2)))(port.conv), ("conv", "padding")),
    "mean of zeros": (
        "unet",
        lambda port: setattr(port.average[1], "count_include_pad", True),
        ("pool_2", "count_include_pad"),
    ),
    "crop": ("unet", lambda port: replaced(1, nn.ZeroPad2d((-2, 0, -2, 0)))(port.up_1), ("up_1", "padding")),
    "corners": ("unet", lambda port: setattr(port.up_2, "align_corners", True), ("up_2", "interpolation")),
    "GroupNorm": ("unet", lambda port: setattr(port.deep[1], "eps", 1e-5), ("groups", "epsilon")),
    "ELU": ("unet", lambda port: replaced(1, nn.ELU(0.5))(port.middle), ("middle", "activation")),
    "slope": ("discriminator", replaced(2, nn.LeakyReLU()), ("leaky", "activation")),
    "frozen epsilon": ("discriminator", lambda port: setattr(port[6], "eps", 1e-5), ("frozen", "epsilon")),
    "not frozen": ("discriminator", lambda port: port[6].train(), ("frozen", "trainable")),
}


@pytest.mark.parametrize(("name", "change", "told"), CARELESS.values(), ids=CARELESS)
def test_one_careless_detail_shows_and_is_told(name, change, told, trained):
    """The losses tell it, and it is the one difference that `compare` finds."""
    assert off(curve(name, trained, change)[0], trained[name].losses) > 1e-5
    port = careful(name)
    change(port)
    assert {(d.layer, d.what) for d in kinit.compare(trained[name].config, port).differences} == {told}


def test_torchs_spectral_norm_shows_and_is_noted(trained):
    """It keeps the kernel undivided; no argument mends that, so it is no difference."""
    config = trained["discriminator"].config
    losses, _ = curve("discriminator", trained, torchs_spectral_norm)
    assert off(losses, trained["discriminator"].losses) > 1e-5
    (note,) = [note for note in kinit.compare(config, CAREFUL["discriminator"]()).notes if "divided" in note.what]
    assert note.layer == "conv_2"


@pytest.mark.parametrize(("name", "norm", "momentum"), [("mnist", "3", 0.99), ("unet", "enter.1", 0.9)])
def test_the_momentum_of_a_norm_shows_in_eval_mode(name, norm, momentum, trained):
    """As Keras counts it, the losses are equal and the outputs after training are not."""

    def change(port):
        port.get_submodule(norm).momentum = momentum

    losses, outputs = curve(name, trained, change)
    assert off(losses, trained[name].losses) <= LIMITS[name]
    assert (outputs - trained[name].outputs).abs().max() > 1e-3
    port = careful(name)
    change(port)
    assert [d.what for d in kinit.compare(trained[name].config, port).differences] == ["momentum"]


# torch's optimizers as people make them, and what `compare` says.
OTHERS = {
    "AdamW's decay": ("mnist", lambda p: torch.optim.AdamW(p, eps=1e-7), {"weight_decay"}),
    "RMSprop's alpha": ("lstm", lambda p: torch.optim.RMSprop(p, 1e-3, eps=1e-7), {"alpha"}),
    "dampening": ("gru", lambda p: torch.optim.SGD(p, 0.05, 0.9, dampening=0.9), {"dampening"}),
    "coupled decay": ("transformer", lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.02), {"optimizer"}),
    "accumulator": ("unet", lambda p: torch.optim.Adagrad(p, 0.01, eps=1e-7), {"initial_accumulator_value"}),
    "beta": ("discriminator", lambda p: torch.optim.Adam(p, 2e-4, eps=1e-7), {"betas"}),
}


@pytest.mark.parametrize(("name", "make", "told"), OTHERS.values(), ids=OTHERS)
def test_an_optimizer_made_without_care_shows_and_is_told(name, make, told, trained):
    """So is each of torch's arguments; that which trains as Keras' does is right."""
    assert off(curve(name, trained, optimizer=make)[0], trained[name].losses) > 1e-5
    port = careful(name)
    given = trained[name].config, port
    assert {d.what for d in kinit.compare(*given, optimizer=make(port.parameters())).differences} == told
    if name != "lstm":  # whose class is the test's own
        assert kinit.compare(*given, optimizer=OPTIMIZERS[name](port.parameters())).ok


def test_a_sparse_gradient_trains_otherwise(trained):
    """Which is noted: on TensorFlow, Keras takes other steps for an Embedding than this port, and than elsewhere."""
    config, *_, losses, _ = trained["sparse"]
    assert 1e-5 < off(losses, trained["lstm"].losses) < 0.003
    (note,) = [note for note in kinit.compare(config, CAREFUL["lstm"]()).notes if "TensorFlow" in note.what]
    assert note.layer == "words"
    plain = {"compile_config": {"optimizer": {"class_name": "SGD", "config": {"learning_rate": 0.1}}, "loss": "mse"}}
    others = kinit.compare(json.dumps({**json.loads(config), **plain}), CAREFUL["lstm"]()).notes
    assert not [note for note in others if "TensorFlow" in note.what]
