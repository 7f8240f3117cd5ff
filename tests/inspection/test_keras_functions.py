"""What Keras' layers without weights compute, in torch: each against Keras itself."""

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from torch_kinit.inspection.activations import TABLE
from torch_kinit.inspection.outputs.keras_functions import computed
from torch_kinit.keras.recorded import recorded_in

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")
RNG = np.random.default_rng(0)
SERIES, IMAGES, VOLUMES = (
    RNG.normal(size=(2, *sizes)).astype("float32") for sizes in ((6, 4), (6, 6, 4), (4, 4, 4, 2))
)
LAYERS = [
    (IMAGES, kl.ZeroPadding2D(((1, 0), (2, 1)))),
    (IMAGES, kl.Cropping2D(((1, 0), (2, 1)))),
    (SERIES, kl.ZeroPadding1D((1, 2))),
    (SERIES, kl.Cropping1D(1)),
    (IMAGES, kl.AveragePooling2D(2, padding="same")),
    (IMAGES, kl.MaxPooling2D((3, 2), (2, 1), padding="same")),
    (SERIES, kl.MaxPooling1D(2, padding="same")),
    (VOLUMES, kl.AveragePooling3D(2)),
    (VOLUMES, kl.MaxPooling3D(3, 1, padding="same")),
    (IMAGES, kl.UpSampling2D((2, 3))),
    (IMAGES, kl.UpSampling2D(2, interpolation="bilinear")),
    (SERIES, kl.UpSampling1D(2)),
    (VOLUMES, kl.UpSampling3D(2)),
    (IMAGES, kl.Flatten()),
    (IMAGES, kl.Reshape((-1, 8))),
    (IMAGES, kl.Permute((3, 1, 2))),
    (IMAGES, kl.GlobalAveragePooling2D(keepdims=True)),
    (VOLUMES, kl.GlobalMaxPooling3D()),
    (SERIES, kl.GlobalAveragePooling1D()),
    (IMAGES, kl.LeakyReLU(0.1)),
    (IMAGES, kl.ReLU(6.0)),
    (IMAGES, kl.ReLU(max_value=2.0)),
    (IMAGES, kl.ReLU(max_value=2.0, negative_slope=0.1, threshold=0.5)),
    (IMAGES, kl.ReLU(threshold=0.5)),
    (IMAGES, kl.ELU(0.7)),
    (IMAGES, kl.Softmax(axis=1)),
    (IMAGES, kl.Rescaling(2.0, offset=-1.0)),
    ([SERIES, SERIES * 2, SERIES + 1], kl.Attention()),
    *[([SERIES, SERIES * 2], getattr(kl, name)()) for name in ("Add", "Multiply", "Subtract", "Average", "Maximum")],
    ([SERIES, SERIES * 2], kl.Minimum()),
    ([SERIES, SERIES * 2], kl.Concatenate(axis=1)),
    *[(SERIES, kl.Activation(name)) for name in TABLE],
    (SERIES, kl.Activation("swish")),
]


def recorded_call(layer, batch):
    """The call of a layer, and the arrays of the recording."""
    several = batch if isinstance(batch, list) else [batch]
    inputs = [keras.Input(x.shape[1:]) for x in several]
    model = keras.Model(inputs, layer(inputs if len(inputs) > 1 else inputs[0]))
    recorded = recorded_in(kinit.keras_config(model, inputs=several))
    return recorded.calls["eval"][0], recorded.arrays


@pytest.mark.parametrize(("batch", "layer"), LAYERS, ids=[f"{layer.name}" for _, layer in LAYERS])
def test_each_is_kerass_own(batch, layer):
    """From the inputs that Keras had come the outputs that Keras gave."""
    call, arrays = recorded_call(layer, batch)
    found = computed(call, [arrays[ref] for ref in call.inputs], {})
    torch.testing.assert_close(found, arrays[call.outputs[0]], rtol=1e-5, atol=1e-6)


def test_average_pooling_of_the_torch_backend():
    """Where Keras' own backends do not agree, the cause is said to be Keras'."""
    layers = [keras.Input((6, 6, 4)), kl.AveragePooling2D(3, 2, padding="same", name="mean")]
    config = kinit.keras_config(model := keras.Sequential([*layers, kl.Dense(2, name="head")]), inputs=IMAGES)

    class Port(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x, ones = (nn.functional.pad(t, (0, 1, 0, 1)) for t in (x, torch.ones_like(x)))
            x = nn.functional.avg_pool2d(x, 3, 2) / nn.functional.avg_pool2d(ones, 3, 2)
            return self.head(x.movedim(1, -1))

    kinit.from_keras(port := Port(), model)
    found = kinit.compare(config, port).outputs
    assert (found.first_off, found.mend) == ("mean", "record on JAX or TensorFlow")
