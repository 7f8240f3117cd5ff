"""Models of Keras 3 and of tf_keras, made by the same code; run as a program, it saves those of tf_keras.

`python -m tests.support.keras_files DIRECTORY` writes each model as .keras, .h5, .weights.h5 and as the .h5 of weights
alone, and the arrays that it should be read as in an .npz.
"""

import sys
import zipfile

import numpy as np

FORMS = (".keras", ".h5", ".weights.h5")


def swapped(k):
    """Two layers of equal shapes, whose names stand in the other order."""
    kl = k.layers
    layers = [kl.Dense(8, name="zed"), kl.Dense(8, name="abc"), kl.Dropout(0.1), kl.BatchNormalization()]
    return k.Sequential([k.Input((8,)), *layers])


def branches(k):
    kl = k.layers
    left, right = k.Input((7,), name="l"), k.Input((5,), name="r")
    x, y = kl.Dense(6)(kl.Embedding(11, 4)(left)), kl.Dense(6, use_bias=False)(right)
    x = kl.Add()([kl.GlobalAveragePooling1D()(x), kl.LayerNormalization()(y)])
    return k.Model([left, right], kl.Dense(2)(x))


def nested(k):
    """Models in a model, in which some layers are not trained."""
    kl = k.layers
    inputs = k.Input((8,))
    inner = k.Model(inputs, kl.Dense(8, name="b")(kl.BatchNormalization()(kl.Dense(8, name="c")(inputs))))
    inner.get_layer("c").trainable = False
    middle = k.Sequential([k.Input((8,)), inner, kl.Dense(8, name="a")])
    return k.Sequential([k.Input((8,)), kl.Dense(8, name="z"), middle, kl.Dense(8, name="b")])


def recurrent(k):
    kl = k.layers
    inputs = k.Input((5, 8))
    x = kl.Bidirectional(kl.LSTM(4, return_sequences=True, dropout=0.1))(inputs)
    x = kl.RNN(kl.StackedRNNCells([kl.LSTMCell(8), kl.GRUCell(8), kl.LSTMCell(8)]), return_sequences=True)(x)
    return k.Model(inputs, kl.GRU(8)(x))


def attention(k):
    kl = k.layers
    inputs = k.Input((5, 8))
    x = kl.MultiHeadAttention(2, 4, dropout=0.1)(inputs, inputs)
    x = kl.LayerNormalization()(kl.Add()([x, inputs]))
    return k.Model(inputs, kl.Dense(3)(kl.Dense(16)(x)))


def separable(k):
    kl = k.layers
    layers = [kl.SeparableConv1D(4, 3), kl.BatchNormalization(), kl.TimeDistributed(kl.Dense(4))]
    return k.Sequential([k.Input((9, 3)), *layers, kl.SeparableConv1D(2, 2, use_bias=False)])


def distributed(k):
    """A model in TimeDistributed, whose moving statistics tf_keras has last."""
    kl = k.layers
    inner = k.Sequential([kl.BatchNormalization(), kl.Dense(8), kl.BatchNormalization()])
    return k.Sequential([k.Input((9, 8)), kl.TimeDistributed(inner), kl.Dense(8)])


MODELS = {f.__name__: f for f in (swapped, branches, nested, recurrent, attention, separable, distributed)}


def port(layer):
    """The torch modules that hold the weights of a Keras layer, in its order."""
    from torch import nn

    inner = [getattr(layer, name, None) for name in ("forward_layer", "layer", "cell")]
    parts = getattr(layer, "layers", None) or getattr(layer, "cells", None)
    kind, shapes = type(layer).__name__, [tuple(w.shape) for w in layer.weights]
    if parts:
        return nn.ModuleList([port(part) for part in parts])
    if kind == "MultiHeadAttention":
        return nn.MultiheadAttention(shapes[0][0], shapes[0][1])
    if kind == "Bidirectional":
        return nn.LSTM(shapes[0][0], shapes[1][0], bidirectional=True)
    if kind in ("TimeDistributed", "RNN"):
        return port(next(part for part in inner if part))
    if kind in ("GRU", "LSTM", "LSTMCell", "GRUCell"):
        return getattr(nn, kind)(shapes[0][0], shapes[1][0])
    if kind == "SeparableConv1D":
        size, channels, _ = shapes[0]
        depthwise = nn.Conv1d(channels, channels, size, groups=channels, bias=False)
        return nn.Sequential(depthwise, nn.Conv1d(channels, shapes[1][2], 1, bias=len(shapes) == 3))
    if kind == "Conv1D":
        return nn.Conv1d(*shapes[0][1:], shapes[0][0])
    if kind in ("Dense", "Embedding"):
        return nn.Linear(*shapes[0], bias=len(shapes) == 2) if kind == "Dense" else nn.Embedding(*shapes[0])
    others = {"BatchNormalization": nn.BatchNorm1d, "LayerNormalization": nn.LayerNorm}
    return others.get(kind, nn.Identity)(*(shape[0] for shape in shapes[:1]))


def randomized(model):
    """The model with other numbers in each weight; those that are variances, positive."""
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, array.shape).astype(array.dtype) for array in model.get_weights()])
    return model


def made(name):
    """A model of Keras 3."""
    import keras

    keras.backend.clear_session(free_memory=False)
    return randomized(MODELS[name](keras))


def save(model, path):
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def check(module, expected):
    """Raise AssertionError unless the port holds these very numbers."""
    import torch_kinit as kinit

    found = kinit.to_keras(module)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.reshape(b.shape), b)


def layerwise(layer):
    """The weights layer by layer, also in TimeDistributed."""
    inner = getattr(layer, "layer", None)
    layers = getattr(layer, "layers", None) or getattr(inner, "layers", None)
    return [array for part in layers for array in layerwise(part)] if layers else layer.get_weights()


def ambiguous():
    """Two layers of one shape and of different classes."""
    import keras
    from keras import layers as kl

    return randomized(keras.Sequential([keras.Input((3, 8)), kl.PReLU(shared_axes=[1]), kl.RMSNormalization()]))


def archive(path, **members):
    """A zip file with these members, `__` for a dot."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "."), data)
    return path


def nested_models(levels):
    """The config of a Dense in so many models."""
    entry = {"class_name": "Dense", "config": {"name": "d", "units": 2}}
    for i in range(levels):
        entry = {"class_name": "Sequential", "config": {"name": f"s{i}", "layers": [entry]}}
    return entry


def save_with_tf_keras(directory):
    import tf_keras

    for name, make in MODELS.items():
        tf_keras.backend.clear_session()
        model = randomized(make(tf_keras))
        for form in (".keras", ".h5"):
            model.save(f"{directory}/{name}{form}")
        for form in (".weights.h5", ".only.h5"):
            model.save_weights(f"{directory}/{name}{form}")
        np.savez(f"{directory}/{name}.npz", *layerwise(model))


if __name__ == "__main__":
    save_with_tf_keras(sys.argv[1])
