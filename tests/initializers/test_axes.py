"""The fans of a shape, a weight or a choice of axes are those that Keras computes."""

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.src.initializers.random_initializers import compute_fans

import torch_kinit as kinit
from torch_kinit.initializers.scaled import resolve_fans

SHAPES = st.lists(st.integers(0, 7), max_size=5).map(tuple)


@given(SHAPES)
@settings(deadline=None)
def test_fans_are_those_of_keras(shape):
    """A Keras-layout shape of any rank has the fans that Keras computes; so has the same weight as torch stores it."""
    assert kinit.fans(shape, layout="keras") == compute_fans(shape)
    stored = np.moveaxis(np.broadcast_to(0.0, shape), (-1, -2), (0, 1)) if len(shape) > 1 else np.empty(shape)
    assert kinit.fans(stored.shape) == compute_fans(shape)
    assert kinit.fans(torch.empty(stored.shape, device="meta")) == compute_fans(shape)


@pytest.mark.parametrize(
    ("module", "layer", "inputs"),
    [
        (torch.nn.Linear(3, 7), keras.layers.Dense(7), (1, 3)),
        (torch.nn.Conv1d(4, 6, 5), keras.layers.Conv1D(6, 5), (1, 9, 4)),
        (torch.nn.Conv2d(4, 6, (2, 3)), keras.layers.Conv2D(6, (2, 3)), (1, 9, 9, 4)),
        (torch.nn.Conv2d(4, 6, (2, 3), groups=2), keras.layers.Conv2D(6, (2, 3), groups=2), (1, 9, 9, 4)),
        (torch.nn.ConvTranspose2d(4, 6, 3), keras.layers.Conv2DTranspose(6, 3), (1, 9, 9, 4)),
        (torch.nn.Conv3d(2, 5, (1, 2, 3)), keras.layers.Conv3D(5, (1, 2, 3)), (1, 4, 4, 4, 2)),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, torch.nn.Module) else None,
)
def test_a_torch_weight_has_the_fans_of_its_keras_twin(module, layer, inputs):
    """A layer's weight as torch stores it has the fans that Keras computes for the twin layer's kernel."""
    layer.build(inputs)
    assert kinit.fans(module.weight) == compute_fans(layer.kernel.shape)


def test_fans_are_exact_integers():
    """Fans beyond the integers that a float can hold are exact, and come from any sequence of integers."""
    assert kinit.fans((2**40 + 1, 2**30 + 1, 3)) == compute_fans((3, 2**30 + 1, 2**40 + 1))
    for shape in ([7, 3], torch.Size([7, 3]), np.array([7, 3]).tolist(), (np.int64(7), np.int32(3))):
        assert kinit.fans(shape) == (3, 7)
        assert {type(n) for n in kinit.fans(shape)} == {int}


@st.composite
def shapes_and_axes(draw):
    shape = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple))
    axes = st.lists(st.integers(-len(shape), len(shape) - 1), max_size=4).map(tuple)
    return shape, draw(axes), draw(axes)


@given(shapes_and_axes())
@settings(deadline=None)
def test_fans_by_axes_are_those_of_keras(given_axes):
    """`fans` as two tuples of axes, negative, repeated, overlapping or empty, are what Keras 3.15 makes of them."""
    shape, inputs, outputs = given_axes
    assert resolve_fans((inputs, outputs), shape) == compute_fans(shape, inputs, outputs)


@pytest.mark.parametrize(
    ("fans", "shape", "layout"),
    [
        (((0,), (1, 2)), (5, 2, 3), "keras"),  # the query kernel of Keras' MultiHeadAttention
        (((0, 1), (2,)), (2, 3, 5), "keras"),  # and its output kernel
        (((0, 1, 2), (3,)), (7, 4, 2, 3), "torch"),  # axes count in Keras' layout, here (2, 3, 4, 7)
    ],
)
def test_a_draw_uses_the_fans_of_its_axes(fans, shape, layout):
    """A weight drawn with axes is the one drawn with the fans that Keras computes from them."""
    keras_shape = shape if layout == "keras" else (*shape[2:], shape[1], shape[0])
    drawn = [
        kinit.glorot_uniform_(torch.empty(shape), fans=f, layout=layout, generator=torch.Generator().manual_seed(2))
        for f in (fans, compute_fans(keras_shape, *fans), (1, 1))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


BAD_SHAPES = {
    "a number": (3, TypeError, "got 3"),
    "a word": ("ab", TypeError, "got 'ab'"),
    "None": (None, TypeError, "got None"),
    "floats": ((3.0, 2), TypeError, r"got \(3.0, 2\)"),
    "nested": ([[1, 2]], TypeError, r"got \[\[1, 2\]\]"),
    "negative": ((-1, 2), ValueError, r"negative.*\(-1, 2\)"),
    "lazy": (torch.nn.LazyLinear(3).weight, (TypeError, ValueError), "lazy"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(("shape", "error", "says"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_what_has_no_fans_is_refused(shape, error, says):
    """Anything but a tensor of known shape or a sequence of sizes is an error that shows it."""
    with pytest.raises(error, match=says):
        kinit.fans(shape)


@pytest.mark.parametrize("layout", ["tf", "Torch", None, 1])
def test_an_unknown_layout_is_refused(layout):
    """A layout other than the two is a ValueError that names them."""
    with pytest.raises(ValueError, match=f"`layout` must be 'torch' or 'keras', got {layout!r}"):
        kinit.fans((2, 3), layout=layout)


BAD_FANS = [
    *(3, (3,), (3, 4, 5), "ab", (-1, 2), (2.0, 3.0)),
    *((3, (1,)), ((0,), None), ((0,), (2,)), ((0,), (-3,)), ((0.0,), (1,))),
]


@pytest.mark.parametrize("fans", BAD_FANS, ids=repr)
def test_wrong_fans_are_refused(fans):
    """`fans` that are neither two sizes nor two tuples of axes there are a ValueError; the tensor keeps its values."""
    tensor = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"`fans` must be \(fan_in, fan_out\).*Keras-layout shape \(3, 4\); got"):
        kinit.he_normal_(tensor, fans=fans)
    assert torch.equal(tensor, torch.ones(4, 3))
