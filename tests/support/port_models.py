"""Whole Keras models as code for a process of tests/support/backends.py, beside their torch ports.

A port says by hand where torch keeps each of Keras' arrays, so that weights can be compared without this package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.backends import backend, same_bits

RUN = """
import random
import keras
from keras import initializers as ki
from keras import layers as kl
{source}
keras.backend.clear_session()  # so that automatic names start anew, as in a program
keras.utils.set_random_seed(seed)
model = make()
result = {{"weights": model.get_weights(), "next": random.randint(1, 10**9), "config": model.to_json()}}
if inputs is not None:
    result["output"] = model(inputs, training=False)
"""


@cache
def real(name, port, seed=1, output=False):
    """The weights, config and output of the Keras model that the port's source makes after set_random_seed."""
    return backend(name)(RUN.format(source=port.source), seed=seed, inputs=port.inputs if output else None)


def spread(cases):
    """Each case on torch and, as JAX takes seconds to compile its shapes, on JAX or TensorFlow in turn."""
    return [(name, case) for i, case in enumerate(cases) for name in (("jax", "tensorflow")[i % 2], "torch")]


IMAGE = """
def make():
    return keras.Sequential([
        keras.Input((12, 10, 3)),
        kl.Conv2D(6, (3, 2), activation="relu"),
        kl.BatchNormalization(),
        kl.DepthwiseConv2D((2, 3), depth_multiplier=2),
        kl.Dropout(0.25),
        kl.SeparableConv2D(8, (3, 2), depth_multiplier=2),
        kl.Conv2DTranspose(5, (3, 4), strides=2),
        kl.SpatialDropout2D(0.1),
        kl.Flatten(),
        kl.Dense(9, activation="relu"),
        kl.Dropout(0.5),
        kl.Dense(4),
    ])
"""

ATTENTION = """
def make():
    tokens = keras.Input((7,), dtype="int32")
    x = kl.Embedding(11, 12)(tokens)
    for _ in range(2):
        y = kl.MultiHeadAttention(3, 4, dropout=0.1)(x, x)
        x = kl.LayerNormalization()(x + kl.Dropout(0.1)(y))
        y = kl.Dense(16, "relu")(x)
        y = kl.Dense(12)(y)
        x = kl.LayerNormalization()(x + kl.Dropout(0.1)(y))
    return keras.Model(tokens, kl.Dense(3)(kl.GlobalAveragePooling1D()(x)))
"""

RECURRENT = """
def make():
    return keras.Sequential([
        keras.Input((7,), dtype="int32"),
        kl.Embedding(11, 6),
        kl.Bidirectional(kl.LSTM(5, return_sequences=True)),
        kl.GRU(6, return_sequences=True),
        kl.Dropout(0.2),
        kl.SimpleRNN(4),
        kl.Dense(3),
    ])
"""


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, (3, 2))
        self.norm = nn.BatchNorm2d(6, eps=1e-3)
        self.depthwise = nn.Conv2d(6, 12, (2, 3), groups=6)
        self.drop = nn.Dropout(0.25)
        self.separable = nn.Sequential(nn.Conv2d(12, 24, (3, 2), groups=12, bias=False), nn.Conv2d(24, 8, 1))
        self.up = nn.ConvTranspose2d(8, 5, (3, 4), 2)
        self.drop_channels = nn.Dropout2d(0.1)
        self.hidden = kinit.flattened(nn.Linear(15 * 14 * 5, 9), None)  # see forward
        self.drop_hidden = nn.Dropout(0.5)
        self.head = nn.Linear(9, 4)

    def forward(self, x):
        x = self.norm(self.conv(x.permute(0, 3, 1, 2)).relu())
        x = self.up(self.separable(self.drop(self.depthwise(x))))
        x = self.drop_channels(x).permute(0, 2, 3, 1).flatten(1)  # Keras flattens channels last
        return self.head(self.drop_hidden(self.hidden(x).relu()))


class HandAttention(nn.Module):
    """Attention as many ports have it: four Linear, registered as Keras has its kernels."""

    def __init__(self, size, heads, dropout):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.drop = nn.Dropout(dropout)
        self.output = nn.Linear(size, size)

    def forward(self, query, key, value, need_weights=False):
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        weights = self.drop((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))
        return self.output((weights @ v).transpose(1, 2).flatten(2)), None


def packed(size, heads, dropout):
    return nn.MultiheadAttention(size, heads, dropout, batch_first=True)


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention(12, 3, 0.1)
        self.drop = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(12, eps=1e-3)
        self.wide, self.narrow = nn.Linear(12, 16), nn.Linear(16, 12)
        self.drop_last = nn.Dropout(0.1)
        self.norm_last = nn.LayerNorm(12, eps=1e-3)

    def forward(self, x):
        x = self.norm(x + self.drop(self.attention(x, x, x, need_weights=False)[0]))
        return self.norm_last(x + self.drop_last(self.narrow(self.wide(x).relu())))


class Transformer(nn.Module):
    def __init__(self, attention=packed):
        super().__init__()
        self.words = nn.Embedding(11, 12)
        self.blocks = nn.Sequential(Block(attention), Block(attention))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.blocks(self.words(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.both = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.gated = nn.GRU(10, 6, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.plain = nn.RNN(6, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.drop(self.gated(self.both(self.words(x))[0])[0])
        return self.head(self.plain(x)[1][0])


# From Keras' arrays of a layer to torch's, by name.


def dense(kernel, *bias):
    return named(kernel.t(), *bias)


def conv(kernel, *bias):
    """Also of transposed ones, where Keras has (..., out, in) and torch (in, out, ...)."""
    return named(kernel.permute(-1, -2, *range(kernel.ndim - 2)), *bias)


def depthwise(kernel, *bias):
    """Keras has (..., channels, multiplier)."""
    kernel = kernel.permute(-2, -1, *range(kernel.ndim - 2))
    return named(kernel.flatten(0, 1).unsqueeze(1), *bias)


def named(*arrays):
    return dict(zip(("weight", "bias", "running_mean", "running_var"), arrays, strict=False))


def one_way(kernel, recurrent_kernel, bias, suffix=""):
    names = (f"weight_ih_l0{suffix}", f"weight_hh_l0{suffix}", f"bias_ih_l0{suffix}", f"bias_hh_l0{suffix}")
    return dict(zip(names, (kernel.t(), recurrent_kernel.t(), bias, torch.zeros_like(bias)), strict=True))


def both_ways(*arrays):
    return one_way(*arrays[:3]) | one_way(*arrays[3:], "_reverse")


def gru(kernel, recurrent_kernel, bias):
    """Keras has the gates z, r, h and torch r, z, n."""

    def gates(array):
        z, r, h = array.chunk(3, -1)
        return torch.cat([r, z, h], -1)

    made = one_way(gates(kernel), gates(recurrent_kernel), gates(bias[0]))
    return made | {"bias_hh_l0": gates(bias[1])}


def attention(*arrays):
    """Keras has (in, heads, size) and (heads, size, out)."""
    kernels = [kernel.flatten(1).t() for kernel in arrays[:6:2]]
    if kernels[0].shape == kernels[1].shape:
        made = {"in_proj_weight": torch.cat(kernels)}
    else:
        made = dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), kernels, strict=True))
    output = {f"out_proj.{name}": value for name, value in out_of(*arrays[6:]).items()}
    return {**made, "in_proj_bias": torch.cat([bias.flatten() for bias in arrays[1:6:2]]), **output}


def into(kernel, bias):
    return named(kernel.flatten(1).t(), bias.flatten())


def out_of(kernel, bias):
    return named(kernel.flatten(0, 1).t(), bias)


def arrays_of(module):
    """The map of a module's arrays, and their number."""
    if isinstance(module, nn.MultiheadAttention):
        return attention, 8
    if isinstance(module, nn.RNNBase):
        return (both_ways, 6) if module.bidirectional else (gru if isinstance(module, nn.GRU) else one_way, 3)
    count = len(list(module.parameters(recurse=False))) + 2 * isinstance(module, nn.BatchNorm2d)
    if isinstance(module, nn.Linear):
        return dense, count
    if hasattr(module, "kernel_size"):
        return (depthwise if module.groups == module.in_channels > 1 else conv), count
    return named, count


@dataclass(frozen=True, eq=False)
class Port:
    """A Keras model and its torch port.

    `layers` has, in the order of Keras' get_weights(), a path of a module of the port, or (path, map of its arrays,
    their number); by default those of the port's modules. Tensors with `orthogonal` in their names are.
    """

    source: str
    make: Callable[[], nn.Module]
    layers: tuple = ()
    inputs: np.ndarray | None = None
    orthogonal: str = "weight_hh"

    def expected(self, weights):
        """Keras' arrays as the state of the port."""
        arrays, state, model = iter(weights), {}, self.make()
        for layer in self.layers or dict(model.named_modules()):
            path, mapped, count = (layer, *arrays_of(model.get_submodule(layer))) if isinstance(layer, str) else layer
            if count and not path.endswith("out_proj"):  # which its attention has
                made = mapped(*[next(arrays) for _ in range(count)])
                state |= {f"{path}.{name}".removeprefix("."): value for name, value in made.items()}
        assert next(arrays, None) is None
        return state


def check_state(model, expected, name, orthogonal="weight_hh"):
    """Raise AssertionError unless the model's tensors are the expected: bit for bit, but for other backends' QR."""
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert state.keys() == expected.keys()
    for key, value in state.items():
        if orthogonal in key and name != "torch":
            torch.testing.assert_close(value, expected[key], rtol=0, atol=5e-5, msg=lambda m, key=key: f"{key}: {m}")
        else:
            assert same_bits(value, expected[key]), key


@torch.no_grad()
def check_output(model, inputs, output):
    """Raise AssertionError unless the model computes what Keras did."""
    torch.testing.assert_close(model.eval()(torch.from_numpy(inputs)), output, rtol=1e-4, atol=1e-5)


def hand_written():
    return Transformer(HandAttention)


def _hand_written(block):
    kernels = ((f"{block}.attention.{part}", into, 2) for part in ("query", "key", "value"))
    rest = (f"{block}.{part}" for part in ("norm", "wide", "narrow", "norm_last"))
    return (*kernels, (f"{block}.attention.output", out_of, 2), *rest)


_TOKENS = np.random.default_rng(0).integers(11, size=(3, 7)).astype(np.int32)
_PICTURES = np.random.default_rng(0).standard_normal((2, 12, 10, 3), np.float32)
_LAYERS = ("words", *_hand_written("blocks.0"), *_hand_written("blocks.1"), "head")
PORTS = {
    "image": Port(IMAGE, Image, inputs=_PICTURES),
    "attention": Port(ATTENTION, Transformer, inputs=_TOKENS),
    "hand-written attention": Port(ATTENTION, hand_written, _LAYERS, _TOKENS),
    "recurrent": Port(RECURRENT, Recurrent, inputs=_TOKENS),
}
