"""The six careful ports train as Keras' models do: the same losses, step by step; a single careless detail shows."""

import json
import math
from pathlib import Path

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
# losses. Nothing is dropped. TensorFlow's gradient of an Embedding is made dense, but for one more model, "sparse".
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
finally:
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(before)
"""


@pytest.fixture(scope="module")
def trained():
    """What TensorFlow makes of each model."""
    return backend("tensorflow")(TRAINED, support=str(Path(__file__).parents[1] / "support"))


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
    "mnist": lambda p: torch.optim.Adam(p, RATE[1e-3]),
    "lstm": lambda p: Rmsprop(p, RATE[1e-3]),
    "gru": lambda p: torch.optim.SGD(p, RATE[0.05], momentum=0.9),
    "transformer": lambda p: torch.optim.AdamW(p, RATE[0.01], weight_decay=0.02),
    "unet": lambda p: torch.optim.Adagrad(p, RATE[0.01], initial_accumulator_value=0.1 + 1e-7, eps=0.0),
    "discriminator": lambda p: torch.optim.Adam(p, RATE[2e-4], (0.5, 0.999)),
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
            conv.weight.div_(u @ kernel @ v)

    conv.register_forward_pre_hook(divide)


def curve(name, made, change=None):
    """The losses of a careful port, or of one with a change, on what Keras had."""
    config, weights, batches, _ = made[name]
    port = CAREFUL[name]().double()
    kinit.from_keras(port, weights, keras_config=config)
    port.train()
    for module in port.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d)):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    if name == "discriminator":
        port[6].eval()  # the frozen norm
        if change is not torchs_spectral_norm:
            written_back(port, weights)
    if change:
        change(port)
    optimizer = OPTIMIZERS[name]([parameter for parameter in port.parameters() if parameter.requires_grad])
    losses = []
    for step, (x, y) in enumerate(batches, 1):
        out = port(x.permute(0, 3, 1, 2) if x.ndim == 4 else x)
        loss = LOSSES[name](port, out.permute(0, 2, 3, 1) if out.ndim == 4 else out, y)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            if "betas" in group:  # Keras' epsilon is added before the correction of the second moment
                group["eps"] = 1e-7 / math.sqrt(1 - group["betas"][1] ** step)
        optimizer.step()
        losses.append(float(loss.detach()))
    return np.array(losses)


def off(found, expected):
    """The largest difference, in parts of the loss."""
    return float(np.max(np.abs(found / np.array(expected) - 1)))


# Of Adam Keras takes the beta of the correction, and of L2 and GELU a constant, in float32 whatever the model's dtype.
LIMITS = dict.fromkeys(MODELS, 1e-5) | dict.fromkeys(("lstm", "gru", "unet"), 1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_a_careful_port_trains_as_keras_does(name, trained):
    """What `compare` leaves unsaid has no part in training."""
    assert off(curve(name, trained), trained[name][-1]) <= LIMITS[name]


def torchs_spectral_norm(port):
    """torch's own, which divides and keeps the kernel."""


CARELESS = {
    "mnist": lambda port: setattr(port[3], "eps", 1e-5),
    "lstm": lambda port: port.second.requires_grad_(True),  # the second biases
    "gru": lambda port: port.rnn.requires_grad_(True),
    "transformer": lambda port: setattr(port.norm_2, "eps", 1e-5),
    "unet": lambda port: setattr(port.average[1], "count_include_pad", True),
    "discriminator": torchs_spectral_norm,
}


@pytest.mark.parametrize(("name", "change"), CARELESS.items(), ids=CARELESS)
def test_one_careless_detail_shows(name, change, trained):
    """The check above sees it."""
    assert off(curve(name, trained, change), trained[name][-1]) > 1e-5


def test_a_sparse_gradient_trains_otherwise(trained):
    """Which is noted: on TensorFlow, Keras takes other steps for an Embedding than this port, and than elsewhere."""
    config, *_, losses = trained["sparse"]
    assert 1e-5 < off(losses, trained["lstm"][-1]) < 0.003
    (note,) = [note for note in kinit.compare(config, CAREFUL["lstm"]()).notes if "TensorFlow" in note.what]
    assert note.layer == "words"
    plain = {"compile_config": {"optimizer": {"class_name": "SGD", "config": {"learning_rate": 0.1}}, "loss": "mse"}}
    others = kinit.compare(json.dumps({**json.loads(config), **plain}), CAREFUL["lstm"]()).notes
    assert not [note for note in others if "TensorFlow" in note.what]
