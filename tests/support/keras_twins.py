"""Torch modules beside the Keras layers that compute the same, and the check that a layout leads from one to the other.

Both see the same input, channels first. Settings whose defaults differ are Keras' here: eps 1e-3 (RMSNorm 1e-6) and
batch first; torch's GRU is always Keras' reset_after=True.
"""

import functools
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import torch
from keras import layers as kl
from torch import nn

from torch_kinit.layers.table import layout_of
from torch_kinit.layers.variable import Options

# What Keras calls a weight, where that is not the role; and what torch has beyond Keras.
KERAS_NAMES = {"depthwise_kernel": "kernel", "gamma": "scale"}
TORCH_ONLY = ("second_bias", "num_batches_tracked")


def in_turn(layers, x):
    """Each Keras layer on the output of the one before."""
    return functools.reduce(lambda value, layer: layer(value), layers, x)


@dataclass(frozen=True)
class Twin:
    """A torch module, the Keras layers that are its twin, and the shapes of the inputs to both."""

    name: str
    module: Callable[[], nn.Module]
    layers: Callable[[], list]
    shapes: tuple[tuple[int, ...], ...]
    vocabulary: int = 0  # where inputs are integers, below this
    depthwise: bool = True
    run_torch: Callable = lambda module, *inputs: module(*inputs)
    run_keras: Callable = in_turn

    def inputs(self, rng):
        if self.vocabulary:
            return [torch.from_numpy(rng.integers(self.vocabulary, size=shape)) for shape in self.shapes]
        return [torch.from_numpy(rng.standard_normal(shape, np.float32)) for shape in self.shapes]


def tensor_of(module, variable):
    """The tensor a variable names; None where the module goes without."""
    return functools.reduce(lambda holder, name: getattr(holder, name, None), variable.tensor.split("."), module)


def carry(layers, module, variables, rng):
    """Draw every Keras variable; give it to Keras as it is, and to torch through `variables` alone."""
    waiting = defaultdict(deque)
    for weight in [weight for layer in layers for weight in layer.weights]:
        values = torch.from_numpy(rng.uniform(-0.5, 0.5, weight.shape).astype(np.float32))
        if weight.name == "moving_variance":
            values = values + 1
        weight.assign(values)
        if weight.name == "bias" and "gru" in weight.path:
            waiting["bias"].extend(values)  # (2, 3 * units), whose rows are torch's two biases
        else:
            waiting[weight.name].append(values.flatten() if weight.name == "alpha" else values)  # shared axes are 1s

    def put(view, values):
        assert view.shape == values.shape, (view.shape, values.shape)
        view.copy_(values)

    for variable in variables:
        tensor = tensor_of(module, variable)
        if tensor is None:
            continue
        if variable.role in TORCH_ONLY:
            tensor.zero_()
            continue
        role = variable.role if variable.role in waiting else KERAS_NAMES[variable.role]
        variable.fill(tensor, lambda view, values=waiting[role]: put(view, values.popleft()))
    assert not any(waiting.values()), {name: len(values) for name, values in waiting.items()}


@torch.no_grad()
def carried(twin, variables=None):
    """The module that has got the weights of its built Keras twin, the inputs, and what Keras makes of them."""
    rng = np.random.default_rng(0)
    inputs, layers, module = twin.inputs(rng), twin.layers(), twin.module().eval()
    twin.run_keras(layers, *inputs)  # which builds them
    carry(layers, module, variables(module) if variables else layout_of(module, Options(depthwise=twin.depthwise)), rng)
    return module, inputs, twin.run_keras(layers, *inputs)


@torch.no_grad()
def check_same_output(twin, module, inputs, expected):
    """Raise AssertionError unless `module` computes what Keras did, in float32 (Keras on torch has no wider matmul)."""
    got = twin.run_torch(module, *inputs)
    got = got[0] if isinstance(got, tuple) else got
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def _conv(n, name, module, layer, channels=4):
    return Twin(f"conv{n}d {name}", module, lambda: [layer()], ((2, channels, *(7, 9, 8)[:n]),))


def _recurrent(cls, keras_cls, name, layers=1, both_ways=False, sizes=(4, 6), **kwargs):
    def keras_layers():
        made = [keras_cls(sizes[1], return_sequences=True, use_bias=kwargs.get("bias", True)) for _ in range(layers)]
        return [kl.Bidirectional(layer) for layer in made] if both_ways else made

    def module():
        return cls(*sizes, num_layers=layers, bidirectional=both_ways, batch_first=True, **kwargs)

    return Twin(f"{cls.__name__} {name}", module, keras_layers, ((3, 5, sizes[0]),))


def _cell(cls, keras_cls, states=1, **kwargs):
    return Twin(
        f"{cls.__name__}{' no bias' if kwargs else ''}",
        lambda: cls(4, 6, **kwargs),
        lambda: [keras_cls(6, use_bias=kwargs.get("bias", True))],
        ((3, 4), *[(3, 6)] * states),
        run_torch=lambda module, x, *state: module(x, state if states > 1 else state[0]),
        run_keras=lambda layers, x, *state: layers[0](x, list(state))[0],
    )


def _attention(name, shapes=((2, 5, 12), (2, 7, 12), (2, 7, 12)), sizes=(12, 3), **kwargs):
    return Twin(
        f"MultiheadAttention {name}",
        lambda: nn.MultiheadAttention(*sizes, batch_first=True, **kwargs),
        lambda: [kl.MultiHeadAttention(sizes[1], 4, use_bias=kwargs.get("bias", True))],
        shapes,
        run_keras=lambda layers, query, key, value: layers[0](query, value, key=key),
    )


def _norm(cls, layer, shape, *args, **kwargs):
    return Twin(f"{cls.__name__} {shape}", lambda: cls(*args, **kwargs), lambda: [layer()], (shape,))


def _embedding(cls, run_keras=in_turn):
    return Twin(cls.__name__, lambda: cls(11, 4), lambda: [kl.Embedding(11, 4)], ((3, 5),), 11, run_keras=run_keras)


_FIRST = {"data_format": "channels_first"}

WEIGHTED = [
    Twin("Linear", lambda: nn.Linear(5, 7), lambda: [kl.Dense(7)], ((3, 5),)),
    Twin("Linear no bias", lambda: nn.Linear(5, 7, bias=False), lambda: [kl.Dense(7, use_bias=False)], ((3, 5),)),
    _conv(1, "stride", lambda: nn.Conv1d(4, 8, 3, 2), lambda: kl.Conv1D(8, 3, 2, **_FIRST)),
    _conv(1, "groups", lambda: nn.Conv1d(4, 8, 3, groups=2), lambda: kl.Conv1D(8, 3, groups=2, **_FIRST)),
    _conv(2, "rectangular", lambda: nn.Conv2d(4, 8, (3, 5)), lambda: kl.Conv2D(8, (3, 5), **_FIRST)),
    _conv(2, "stride", lambda: nn.Conv2d(4, 8, (3, 5), (2, 1)), lambda: kl.Conv2D(8, (3, 5), (2, 1), **_FIRST)),
    _conv(2, "groups", lambda: nn.Conv2d(4, 8, (3, 2), groups=2), lambda: kl.Conv2D(8, (3, 2), groups=2, **_FIRST)),
    _conv(2, "one channel", lambda: nn.Conv2d(1, 8, (3, 2)), lambda: kl.Conv2D(8, (3, 2), **_FIRST), channels=1),
    _conv(3, "rectangular", lambda: nn.Conv3d(4, 6, (3, 5, 2)), lambda: kl.Conv3D(6, (3, 5, 2), **_FIRST)),
    _conv(
        3, "groups", lambda: nn.Conv3d(4, 6, (2, 3, 1), groups=2), lambda: kl.Conv3D(6, (2, 3, 1), groups=2, **_FIRST)
    ),
    *[
        _conv(
            1,
            f"depthwise x{m}",
            lambda m=m: nn.Conv1d(4, 4 * m, 3, groups=4),
            lambda m=m: kl.DepthwiseConv1D(3, depth_multiplier=m, **_FIRST),
        )
        for m in (1, 2)
    ],
    *[
        _conv(
            2,
            f"depthwise x{m}",
            lambda m=m: nn.Conv2d(4, 4 * m, (3, 5), groups=4),
            lambda m=m: kl.DepthwiseConv2D((3, 5), depth_multiplier=m, **_FIRST),
        )
        for m in (1, 2)
    ],
    Twin(
        "conv1d taken for Conv(groups=4)",
        lambda: nn.Conv1d(4, 8, 3, groups=4),
        lambda: [kl.Conv1D(8, 3, groups=4, **_FIRST)],
        ((2, 4, 7),),
        depthwise=False,
    ),
    Twin(
        "conv2d taken for Conv(groups=4)",
        lambda: nn.Conv2d(4, 8, (3, 5), groups=4),
        lambda: [kl.Conv2D(8, (3, 5), groups=4, **_FIRST)],
        ((2, 4, 7, 9),),
        depthwise=False,
    ),
    Twin(
        "conv3d taken for Conv(groups=4)",
        lambda: nn.Conv3d(4, 8, (3, 5, 2), groups=4),
        lambda: [kl.Conv3D(8, (3, 5, 2), groups=4, **_FIRST)],
        ((2, 4, 7, 9, 8),),
        depthwise=False,
    ),
    _conv(1, "transposed", lambda: nn.ConvTranspose1d(4, 8, 3, 2), lambda: kl.Conv1DTranspose(8, 3, 2, **_FIRST)),
    _conv(
        2,
        "transposed",
        lambda: nn.ConvTranspose2d(4, 8, (3, 5), (2, 1)),
        lambda: kl.Conv2DTranspose(8, (3, 5), (2, 1), **_FIRST),
    ),
    _conv(
        3, "transposed", lambda: nn.ConvTranspose3d(4, 6, (3, 5, 2)), lambda: kl.Conv3DTranspose(6, (3, 5, 2), **_FIRST)
    ),
    _embedding(nn.Embedding),
    _embedding(nn.EmbeddingBag, lambda layers, x: keras.ops.mean(layers[0](x), 1)),
    *[
        _recurrent(cls, twin, name, **kwargs)
        for cls, twin in ((nn.RNN, kl.SimpleRNN), (nn.LSTM, kl.LSTM), (nn.GRU, kl.GRU))
        for name, kwargs in {
            "one layer": {},
            "two layers": {"layers": 2},
            "both ways": {"both_ways": True},
            "two layers both ways": {"layers": 2, "both_ways": True},
            "no bias": {"bias": False},
        }.items()
    ],
    _recurrent(nn.GRU, kl.GRU, "wide", sizes=(200, 150)),  # whose blocks change places in more than one step
    *[
        _cell(cls, twin, states, **kwargs)
        for cls, twin, states in (
            (nn.RNNCell, kl.SimpleRNNCell, 1),
            (nn.LSTMCell, kl.LSTMCell, 2),
            (nn.GRUCell, kl.GRUCell, 1),
        )
        for kwargs in ({}, {"bias": False})
    ],
    _attention("packed"),
    _attention("packed no bias", bias=False),
    _attention("separate", ((2, 5, 12), (2, 7, 9), (2, 7, 8)), kdim=9, vdim=8),
    _attention("separate no bias", ((2, 5, 12), (2, 7, 9), (2, 7, 8)), kdim=9, vdim=8, bias=False),
    _attention("separate kdim only", ((2, 5, 12), (2, 7, 9), (2, 7, 12)), kdim=9),
]

NORMS = [
    _norm(nn.BatchNorm1d, lambda: kl.BatchNormalization(1), (5, 4), 4, eps=1e-3),
    _norm(nn.BatchNorm1d, lambda: kl.BatchNormalization(1), (5, 4, 3), 4, eps=1e-3),
    _norm(nn.BatchNorm2d, lambda: kl.BatchNormalization(1), (5, 4, 3, 2), 4, eps=1e-3),
    _norm(nn.BatchNorm3d, lambda: kl.BatchNormalization(1), (5, 4, 3, 2, 2), 4, eps=1e-3),
    _norm(nn.SyncBatchNorm, lambda: kl.BatchNormalization(1), (5, 4, 3, 2), 4, eps=1e-3),
    _norm(nn.LayerNorm, lambda: kl.LayerNormalization(), (5, 3, 4), 4, eps=1e-3),
    _norm(nn.LayerNorm, lambda: kl.LayerNormalization([1, 2]), (5, 3, 6), (3, 6), eps=1e-3),
    _norm(nn.GroupNorm, lambda: kl.GroupNormalization(2, axis=1), (5, 6, 3, 2), 2, 6, eps=1e-3),
    _norm(nn.InstanceNorm1d, lambda: kl.GroupNormalization(-1, axis=1), (5, 4, 3), 4, eps=1e-3, affine=True),
    _norm(nn.InstanceNorm2d, lambda: kl.GroupNormalization(-1, axis=1), (5, 4, 3, 2), 4, eps=1e-3, affine=True),
    _norm(nn.InstanceNorm3d, lambda: kl.GroupNormalization(-1, axis=1), (5, 4, 3, 2, 2), 4, eps=1e-3, affine=True),
    _norm(nn.RMSNorm, lambda: kl.RMSNormalization(), (5, 3, 4), 4, eps=1e-6),
    _norm(nn.PReLU, lambda: kl.PReLU(shared_axes=[2, 3]), (5, 4, 3, 2), 4),
    _norm(nn.PReLU, lambda: kl.PReLU(shared_axes=[1]), (5, 4), 1),
]

TWINS = WEIGHTED + NORMS


def _heads_and_dims_exchanged(axis):
    return lambda w: w.t().unflatten(axis, (4, 4)).transpose(axis, axis + 1)


# Shapes in which the wrong layout fits as well as the right one.
SQUARE = {
    "linear": Twin("", lambda: nn.Linear(5, 5), lambda: [kl.Dense(5)], ((3, 5),)),
    "conv": Twin(
        "", lambda: nn.Conv2d(4, 4, 3), lambda: [kl.Conv2D(4, 3, data_format="channels_first")], ((2, 4, 7, 9),)
    ),
    "depthwise": Twin(
        "",
        lambda: nn.Conv2d(2, 4, 3, groups=2),
        lambda: [kl.DepthwiseConv2D(3, depth_multiplier=2, data_format="channels_first")],
        ((2, 2, 7, 9),),
    ),
    "transposed": Twin(
        "",
        lambda: nn.ConvTranspose2d(4, 4, 3),
        lambda: [kl.Conv2DTranspose(4, 3, data_format="channels_first")],
        ((2, 4, 5, 6),),
    ),
    "embedding": Twin("", lambda: nn.Embedding(4, 4), lambda: [kl.Embedding(4, 4)], ((3, 5),), vocabulary=4),
    "norm": Twin("", lambda: nn.LayerNorm((4, 4), eps=1e-3), lambda: [kl.LayerNormalization([1, 2])], ((3, 4, 4),)),
    "gru": next(twin for twin in TWINS if twin.name == "GRU one layer"),
    "attention": _attention("", ((2, 5, 16), (2, 7, 16), (2, 7, 16)), sizes=(16, 4)),
}
WRONG = [
    ("linear", "kernel", "weight", {"layout": "keras"}),
    ("conv", "in and out exchanged", "weight", {"layout": lambda w: w.permute(2, 3, 0, 1)}),
    ("conv", "height and width exchanged", "weight", {"layout": lambda w: w.permute(3, 2, 1, 0)}),
    ("depthwise", "channels fastest", "weight", {"layout": lambda w: w[:, 0].unflatten(0, (2, 2)).permute(2, 3, 1, 0)}),
    ("transposed", "in and out exchanged", "weight", {"layout": lambda w: w.permute(2, 3, 0, 1)}),
    ("embedding", "transposed", "weight", {"layout": "torch"}),
    ("norm", "transposed", "weight", {"layout": "torch"}),
    ("gru", "kernel's gates as in torch", "weight_ih_l0", {"swapped": False}),
    ("gru", "recurrent kernel's gates as in torch", "weight_hh_l0", {"swapped": False}),
    ("gru", "bias' gates as in torch", "bias_ih_l0", {"swapped": False}),
    ("gru", "recurrent bias' gates as in torch", "bias_hh_l0", {"swapped": False}),
    ("attention", "heads in the wrong order", "in_proj_weight", {"layout": _heads_and_dims_exchanged(1)}),
    ("attention", "output's heads in the wrong order", "out_proj.weight", {"layout": _heads_and_dims_exchanged(0)}),
    ("attention", "not transposed", "in_proj_weight", {"layout": lambda w: w.unflatten(1, (4, 4))}),
]
