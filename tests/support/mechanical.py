"""A torch port of any Keras model, made by machine: a torch module for each Keras layer with weights, in their order.

A port has no forward pass, only places for the weights, and says itself where each of Keras' arrays goes.
"""

import inspect
import math

import torch
from torch import nn

import torch_kinit as kinit
from tests.support import port_models
from tests.support.backends import same_bits
from torch_kinit import Variable, register_layout


def described(model):
    """A live Keras model's layers with weights, as (class, shapes) in the order of get_weights()."""
    found, seen = [], set()

    def parts(layer, kind):
        if kind in ("TimeDistributed", "RNN"):
            return [layer.layer if kind == "TimeDistributed" else layer.cell]
        if kind == "StackedRNNCells":
            return layer.cells
        return layer.layers if hasattr(layer, "layers") and hasattr(layer, "get_layer") else None

    def walk(layer):
        kind = type(layer).__name__
        if (inside := parts(layer, kind)) is not None:
            for part in inside:
                walk(part)
            return
        if kind in ("Bidirectional", "SpectralNormalization"):
            kind += " " + type(layer.forward_layer if kind == "Bidirectional" else layer.layer).__name__
        own = [weight for weight in layer.weights if id(weight) not in seen]
        seen.update(map(id, own))
        if own:
            found.append((kind, [tuple(weight.shape) for weight in own]))

    walk(model)
    assert seen == set(map(id, model.weights))
    return found


DESCRIBED = inspect.getsource(described)  # for the processes of tests/support/backends.py


class Held(nn.Module):
    """Weights as Keras has them, for a layer that torch does not have."""

    def __init__(self, roles, shapes):
        super().__init__()
        for role, shape in zip(roles, shapes, strict=False):
            self.register_parameter(role, nn.Parameter(torch.zeros(shape)))


register_layout(Held, lambda m: [Variable(name, name, "keras") for name, _ in m.named_parameters()])


def held(*roles):
    def made(kind, *shapes):
        return Held(roles, shapes), lambda *arrays: dict(zip(roles, arrays, strict=False))

    return made


def linear(kind, kernel, *bias):
    """A matrix with as many columns as the axes of the kernel's end have together."""
    return nn.Linear(kernel[0], math.prod(kernel[1:]), bool(bias)), into


def into(kernel, *bias):
    return port_models.named(kernel.flatten(1).t(), *(b.flatten() for b in bias))


def out_of(kernel, *bias):
    return port_models.named(kernel.flatten(0, -2).t(), *bias)


def rank(kind):
    return next(letter for letter in kind if letter.isdigit())


def conv(kind, kernel, *bias):
    *size, inputs, outputs = kernel
    return getattr(nn, f"Conv{rank(kind)}d")(inputs, outputs, size, bias=bool(bias)), port_models.conv


def conv_transpose(kind, kernel, *bias):
    *size, outputs, inputs = kernel
    return getattr(nn, f"ConvTranspose{rank(kind)}d")(inputs, outputs, size, bias=bool(bias)), port_models.conv


def depthwise(kind, kernel, *bias):
    *size, inputs, multiplier = kernel
    outputs = inputs * multiplier
    made = getattr(nn, f"Conv{rank(kind)}d")(inputs, outputs, size, groups=inputs, bias=bool(bias))
    return made, port_models.depthwise if inputs > 1 else port_models.conv


def separable(kind, first, *second):
    return several(depthwise(kind, first), conv(kind, *second), counts=(1, len(second)))


def several(*pairs, counts):
    """Modules for one Keras layer, which take so many of its arrays each."""

    def mapped(*arrays):
        rest, state = iter(arrays), {}
        for i, ((_, own), count) in enumerate(zip(pairs, counts, strict=True)):
            state |= {f"{i}.{key}": value for key, value in own(*(next(rest) for _ in range(count))).items()}
        return state

    return nn.Sequential(*(module for module, _ in pairs)), mapped


def recurrent(kind, kernel, recurrent_kernel, *bias):
    units, name = recurrent_kernel[0], kind.removesuffix("Cell").removeprefix("Simple")
    if not bias or (name == "GRU" and len(bias[0]) == 1):
        return held("kernel", "recurrent_kernel", "bias")(kind, kernel, recurrent_kernel, *bias)
    own = port_models.gru if name == "GRU" else port_models.one_way
    if not kind.endswith("Cell"):
        return getattr(nn, name)(kernel[0], units), own
    made = getattr(nn, f"{name}Cell")(kernel[0], units)
    return made, lambda *arrays: {key.removesuffix("_l0"): value for key, value in own(*arrays).items()}


def bidirectional(kind, *shapes):
    kind, half = kind.split()[1], len(shapes) // 2
    module, own = recurrent(kind, *shapes[:half])
    if isinstance(module, Held):
        return several((module, own), recurrent(kind, *shapes[half:]), counts=(half, half))
    made = type(module)(module.input_size, module.hidden_size, bidirectional=True)
    return made, lambda *arrays: own(*arrays[:half]) | {f"{k}_reverse": v for k, v in own(*arrays[half:]).items()}


def spectral(kind, kernel, vector, *bias):
    """What the layer inside has; the vector of Keras' has no place in torch."""
    kind = kind.split()[1]
    module, own = MODULES[kind](kind, kernel, *bias)
    return module, lambda kernel, vector, *bias: own(kernel, *bias)


def attention(kind, *shapes):
    """torch's own where its sizes are of that kind, otherwise a Linear for each projection."""
    biased = len(shapes[0]) != len(shapes[1])
    each = 1 + biased
    kernels = shapes[::each]
    width = math.prod(kernels[0][1:])
    same = len(kernels) == 4 and len({kernel[1:] for kernel in kernels[:3]}) == 1
    if biased and same and width == kernels[0][0] == kernels[3][-1]:
        module = nn.MultiheadAttention(width, kernels[0][1], kdim=kernels[1][0], vdim=kernels[2][0])
        return module, port_models.attention
    *first, last = (shapes[i : i + each] for i in range(0, len(shapes), each))
    output = nn.Linear(math.prod(last[0][:-1]), last[0][-1], biased), out_of
    return several(*(linear(kind, *own) for own in first), output, counts=(each,) * len(kernels))


def batch_norm(kind, *shapes):
    if len(shapes) == 2:
        return nn.BatchNorm1d(*shapes[0], affine=False), lambda *arrays: {
            "running_mean": arrays[0], "running_var": arrays[1]}  # fmt: skip
    if len(shapes) == 3:
        return held("beta", "moving_mean", "moving_variance")(kind, *shapes)  # without a scale, as most without one
    return nn.BatchNorm1d(*shapes[0]), port_models.named


def layer_norm(kind, *shapes):
    return nn.LayerNorm(shapes[0], bias=len(shapes) > 1), port_models.named


def group_norm(kind, *shapes):
    return nn.GroupNorm(1, *shapes[0]), port_models.named


def prelu(kind, shape):
    return nn.PReLU(math.prod(shape)), lambda alpha: {"weight": alpha.flatten()}


def embedding(kind, *shapes):
    return nn.Embedding(*shapes[0]), port_models.named


MODULES = {
    **dict.fromkeys(("Dense", "EinsumDense"), linear),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), conv),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), conv_transpose),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), separable),
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU", "SimpleRNNCell", "LSTMCell", "GRUCell"), recurrent),
    **dict.fromkeys(("MultiHeadAttention", "GroupedQueryAttention", "GroupQueryAttention"), attention),
    "Bidirectional": bidirectional,
    "SpectralNormalization": spectral,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "PReLU": prelu,
    "Embedding": embedding,
    "AdditiveAttention": held("scale"),
    "LayerScale": held("gamma"),
}


class Port:
    """The torch port of a described Keras model."""

    def __init__(self, description):
        made = [(*MODULES[kind.split()[0]](kind, *shapes), len(shapes)) for kind, shapes in description]
        self._maps = [(own, count) for _, own, count in made]
        self.model = nn.Sequential(*(module for module, _, _ in made))
        for module in self.model.modules():  # which has no forward pass, so Keras' order
            kinit.flattened(module, None)

    def expected(self, weights):
        """Keras' arrays as the state of the port."""
        arrays, state = iter(weights), {}
        for i, (own, count) in enumerate(self._maps):
            state |= {f"{i}.{key}": value for key, value in own(*(next(arrays) for _ in range(count))).items()}
        return state

    def differing(self, weights, backend):
        """The names of the tensors that are not Keras': bit for bit, but for orthogonal ones of other backends' QR."""
        state = {k: v for k, v in self.model.state_dict().items() if not k.endswith("num_batches_tracked")}
        expected = self.expected(weights)
        assert state.keys() == expected.keys(), state.keys() ^ expected.keys()
        loose = self.expected([torch.full_like(w, backend != "torch" and _orthogonal(w)) for w in weights])
        for key, value in expected.items():
            rounded = (loose[key] == 1) & ((state[key] - value).abs() <= 5e-5)
            state[key] = torch.where(rounded, value, state[key])
        return [key for key, value in state.items() if not same_bits(value, expected[key])]


def _orthogonal(array):
    """Whether one of Keras' arrays is an orthogonal matrix, whose columns are its last axis."""
    if array.ndim < 2:
        return False
    matrix = array.flatten(0, -2)
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    return torch.allclose(small @ small.t(), torch.eye(len(small)), atol=1e-4)
