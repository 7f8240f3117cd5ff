"""Padding: what is said to agree computes what Keras does, and what is said to differ does not."""

import itertools

import keras
import pytest
import torch
from torch import nn

from tests.support.backends import backend
from torch_kinit.inspection.compare.keras_graph import Unit
from torch_kinit.inspection.compare.port_order import Item
from torch_kinit.inspection.compare.spatial import axes_of, transposed
from torch_kinit.inspection.compare.windows import compare_windows

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")
SIZES, WINDOWS, STRIDES = (5, 6, 7), (1, 2, 3, 4), (1, 2, 3)


def unit(class_name, size, **config):
    return Unit("layer", class_name, config, shape=(None, size, 1))


def verdict(layer, module, *before):
    item = Item("1", module, before=[Item("0", pad) for pad in before])
    return compare_windows(layer, item, certain=True)


def same_outputs(ours, theirs):
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-6)


def series(size):
    """Values of which no two windows have the same sum or greatest."""
    return torch.arange(1.0, size + 1).reshape(1, 1, size) ** 2


def by_keras(layer, x):
    with torch.no_grad():
        return layer(x.mT).mT


def ways(window):
    """Each way in which a port may pad: by the module, or by another before it."""
    for low, high in itertools.product(range(3), range(3)):
        yield (0, ((low, high),))
        if low == high and 2 * low <= window:
            yield (low, ())


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
def test_convolutions_agree_where_their_outputs_do(padding):
    """For sizes, windows, strides and dilations, the verdict on each way to pad is that of the outputs."""
    cases = [*itertools.product(SIZES, WINDOWS, STRIDES, [1]), *itertools.product(SIZES, (2, 3), [1], [2])]
    agreeing = 0
    for size, window, stride, dilation in cases:
        given = {"strides": stride, "padding": padding, "dilation_rate": dilation}
        real = keras.layers.Conv1D(1, window, kernel_initializer="ones", **given)
        expected = by_keras(real, x := series(size))
        for own, pads in ways(window):
            module, before = nn.Conv1d(1, 1, window, stride, own, dilation, bias=False), [nn.ZeroPad1d(p) for p in pads]
            nn.init.ones_(module.weight)
            if size + sum(map(sum, pads)) + 2 * own < dilation * (window - 1) + 1:
                continue
            with torch.no_grad():
                agrees = same_outputs(nn.Sequential(*before, module)(x), expected)
            layer = unit("Conv1D", size, kernel_size=[window], **given)
            assert (verdict(layer, module, *before) is None) == agrees, (size, window, stride, dilation, own, pads)
            agreeing += agrees
    assert agreeing >= len(cases)


POOLED = """
import keras, numpy as np
layer, result = getattr(keras.layers, name), []
for n, k, s in cases:
    x = np.arange(1.0, n + 1, dtype="float32").reshape(1, n, 1) ** 2
    result.append(np.array(layer(k, s, padding)(x)).transpose(0, 2, 1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kind", ["Max", "Average"])
def test_pools_agree_where_their_outputs_do(kind, padding):
    """Likewise of pooling on TensorFlow, whose padding counts for nothing, with and without ceil_mode."""
    agreeing, cases = 0, list(itertools.product(SIZES, (2, 3, 4), STRIDES))
    real = backend("tensorflow")(POOLED, cases=cases, name=f"{kind}Pooling1D", padding=padding)
    for (size, window, stride), expected in zip(cases, real, strict=True):
        for own, ceil in itertools.product(range(window // 2 + 1), (False, True)):
            if kind == "Max":
                module = nn.MaxPool1d(window, stride, own, ceil_mode=ceil)
            else:
                module = nn.AvgPool1d(window, stride, own, ceil_mode=ceil, count_include_pad=False)
            agrees = same_outputs(module(series(size)), expected)
            layer = unit(f"{kind}Pooling1D", size, pool_size=[window], strides=[stride], padding=padding)
            assert (verdict(layer, module) is None) == agrees, (size, window, stride, own, ceil)
            agreeing += agrees
    assert agreeing >= 20


def test_a_pad_of_zeros_before_a_max_pooling_differs():
    """Where Keras pads with nothing, zeros are the greatest of what is negative."""
    layer = unit("MaxPooling1D", 5, pool_size=[2], strides=[2], padding="same")
    assert verdict(layer, nn.MaxPool1d(2), nn.ConstantPad1d((0, 1), float("-inf"))) is None
    found = verdict(layer, nn.MaxPool1d(2), nn.ZeroPad1d((0, 1)))
    assert found.mend == "port[0] = nn.ConstantPad1d((0, 1), float('-inf'))"


def test_an_unknown_size_is_told_unless_it_does_not_matter():
    """At strides of one, and without padding, the size of the inputs is not asked for."""
    assert verdict(unit("Conv1D", None, kernel_size=[3], padding="same"), nn.Conv1d(1, 1, 3, padding=1)) is None
    assert verdict(unit("Conv1D", None, kernel_size=[3], strides=[2]), nn.Conv1d(1, 1, 3, 2)) is None
    strided = unit("Conv1D", None, kernel_size=[3], strides=[2], padding="same")
    found = verdict(strided, nn.Conv1d(1, 1, 3, 2, 1))
    assert found.unseen
    assert "not known" in found.mend
    assert not verdict(strided, nn.Conv1d(1, 1, 3, 2, 2)).unseen  # wrong for every size


TRANSPOSED = """
import keras, numpy as np
result = []
for n, k, s, padding in cases:
    layer = keras.layers.Conv1DTranspose(1, k, strides=s, padding=padding)
    layer.build((None, n, 1))
    layer.kernel.assign(np.arange(1.0, k + 1).reshape(k, 1, 1))
    result.append(np.array(layer(np.arange(1.0, n + 1, dtype="float32").reshape(1, n, 1)))[0, :, 0])
"""


@pytest.mark.slow
def test_transposed_convolutions_keep_the_part_that_keras_keeps():
    """The part of the whole that is said to be kept is TensorFlow's output, for both paddings."""
    cases = list(itertools.product([3], (1, 2, 3, 4, 5), (1, 2, 3), ("valid", "same")))
    real = backend("tensorflow")(TRANSPOSED, cases=cases)
    for (size, window, stride, padding), expected in zip(cases, real, strict=True):
        layer = unit("Conv1DTranspose", size, kernel_size=[window], strides=[stride], padding=padding)
        start, number = transposed(layer, *axes_of(layer))
        module = nn.ConvTranspose1d(1, 1, window, stride, bias=False, output_padding=max(stride - window, 0))
        with torch.no_grad():
            module.weight.copy_(torch.arange(1.0, window + 1).reshape(1, 1, window))
            whole = module(torch.arange(1.0, size + 1).reshape(1, 1, size))[0, 0]
        torch.testing.assert_close(whole[start : start + number], expected, msg=str((size, window, stride, padding)))


@pytest.mark.parametrize(
    ("window", "stride", "padding", "module", "after", "agrees"),
    [
        (4, 2, "same", {"padding": 1}, None, True),
        (3, 1, "same", {"padding": 1}, None, True),
        (3, 2, "same", {}, (0, -1), True),
        (3, 2, "same", {"padding": 1, "output_padding": 1}, None, False),
        (2, 3, "same", {"output_padding": 1}, None, True),
        (2, 3, "valid", {"output_padding": 1}, None, True),
        (3, 2, "valid", {}, None, True),
        (3, 2, "valid", {"padding": 1}, None, False),
    ],
)
def test_transposed_convolutions_are_compared_by_that_part(window, stride, padding, module, after, agrees):
    """A padding, an output_padding or a crop that keeps another part is a difference."""
    layer = unit("Conv1DTranspose", 4, kernel_size=[window], strides=[stride], padding=padding)
    crops = [Item("1", nn.ZeroPad1d(after))] if after else []
    item = Item("0", nn.ConvTranspose1d(1, 1, window, stride, **module), after=crops)
    assert (compare_windows(layer, item, certain=True) is None) == agrees


def test_the_mend_of_a_transposed_convolution_gives_its_size():
    """An odd rest is cropped by a module after it, an even one by the padding."""
    odd = unit("Conv1DTranspose", 4, kernel_size=[3], strides=[2], padding="same")
    found = compare_windows(odd, Item("0", nn.ConvTranspose1d(1, 1, 3, 2, 1, 1)), certain=True)
    assert found.mend == "nn.ZeroPad1d((0, -1)) after port[0], whose padding is then 0"
    even = unit("Conv1DTranspose", 4, kernel_size=[4], strides=[2], padding="same")
    found = compare_windows(even, Item("0", nn.ConvTranspose1d(1, 1, 4, 2)), certain=True)
    assert found.mend == "port[0].padding, port[0].output_padding = (1,), (0,)"
