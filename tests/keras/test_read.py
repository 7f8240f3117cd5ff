"""What a layer's saved config says is what Keras does: weights and their values, seeds and their number."""

import inspect
import random
import re

import keras
import pytest
import torch
from keras import initializers as ki
from keras import layers as kl
from keras.src.applications import convnext
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from keras.src.initializers import ALL_OBJECTS_DICT
from keras.src.initializers.random_initializers import RandomInitializer
from keras.src.utils.naming import to_snake_case
from torch import nn

import torch_kinit as kinit
from tests.support.backends import backend
from tests.support.saved_keras import check_weights, saved, values
from torch_kinit.keras.configs import load_config
from torch_kinit.keras.draws import Source, seeds_of, snake_case
from torch_kinit.keras.read import read_layer
from torch_kinit.keras.saved_model import Model
from torch_kinit.keras.slots import fits

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


def check_read(make, call, seed=1):
    """Build a layer of Keras, read its config, and compare."""
    keras.utils.set_random_seed(seed)
    real = make()
    call(real)
    following = random.randint(1, 10**9)
    found, last = read_layer(saved(real)), Source(None)
    seeds = seeds_of([*found.constructor, *found.build, last], seed)
    assert seeds[last] == following
    check_weights(found.weights, seeds, real.weights)


def on(*shapes, **kwargs):
    """A call with inputs of the shapes."""
    return lambda made: made(*[keras.Input(shape, batch_size=2) for shape in shapes], **kwargs)


def on_list(*shapes):
    return lambda made: made([keras.Input(shape) for shape in shapes])


def in_cell(made):
    made.build((2, 4))


DENSE, SEQUENCE, SIGNAL, IMAGE, VIDEO = on((5,)), on((7, 4)), on((9, 4)), on((9, 8, 4)), on((3, 9, 8, 4))
VOLUME, FIRST = on((5, 6, 7, 4)), on((4, 9, 8))
STD = {"stddev": 0.3}  # what no name has, so an object
CASES = {
    "Dense": (lambda: kl.Dense(7), DENSE),
    "Dense no bias": (lambda: kl.Dense(7, use_bias=False, bias_initializer="uniform"), DENSE),
    "Dense random": (lambda: kl.Dense(7, kernel_initializer="HeNormal", bias_initializer="normal"), DENSE),
    "Dense bias an object": (lambda: kl.Dense(7, bias_initializer=ki.RandomNormal(**STD)), DENSE),
    "Dense None": (lambda: kl.Dense(7, kernel_initializer=None, bias_initializer=None), SEQUENCE),
    "Dense seeded": (lambda: kl.Dense(7, kernel_initializer=ki.Orthogonal(2.0, seed=3)), DENSE),
    "Dense SeedGenerator": (
        lambda: kl.Dense(7, kernel_initializer=ki.HeUniform(seed=keras.random.SeedGenerator(7))),
        DENSE,
    ),
    "Dense SeedGenerator unseeded": (
        lambda: kl.Dense(7, "relu", True, ki.HeUniform(seed=keras.random.SeedGenerator()), "normal"),
        DENSE,
    ),
    "Dense axes": (lambda: kl.Dense(7, kernel_initializer=ki.HeNormal(input_axes=[1], output_axes=[0])), DENSE),
    "Dense one axis": (lambda: kl.Dense(7, kernel_initializer=ki.HeNormal(input_axes=[1])), DENSE),
    "Dense lora": (lambda: kl.Dense(7, lora_rank=2), DENSE),
    "Dense frozen": (lambda: kl.Dense(7, trainable=False), DENSE),
    "EinsumDense": (lambda: kl.EinsumDense("ab,bc->ac", 7, bias_axes="c"), DENSE),
    "EinsumDense kernel of three": (lambda: kl.EinsumDense("abc,cde->abde", (None, 3, 5), bias_axes="e"), SEQUENCE),
    "EinsumDense reduced": (lambda: kl.EinsumDense("abcd,cde->abe", (7, 5), bias_axes="be"), on((7, 3, 4))),
    "EinsumDense shared letter": (lambda: kl.EinsumDense("bnd,ndh->bnh", (3, 7)), on((3, 5))),
    "EinsumDense left": (lambda: kl.EinsumDense("...x,xy->...y", 6, bias_axes="y"), IMAGE),
    "EinsumDense right": (lambda: kl.EinsumDense("abc...,cd->abd...", (7, 6), bias_axes="d"), on((7, 4, 3))),
    "EinsumDense lora": (lambda: kl.EinsumDense("abc,cde->abde", (None, 3, 5), lora_rank=2), SEQUENCE),
    "EinsumDense orthogonal": (lambda: kl.EinsumDense("abc,cd->abd", (7, 3), None, None, "orthogonal"), SEQUENCE),
    "EinsumDense None": (lambda: kl.EinsumDense("abc,cde->abde", (None, 3, 5), kernel_initializer=None), SEQUENCE),
    "EinsumDense axes": (
        lambda: kl.EinsumDense("ab,bc->ac", 7, kernel_initializer=ki.LecunNormal(input_axes=[1], output_axes=[0])),
        DENSE,
    ),
    "Embedding": (lambda: kl.Embedding(11, 4), DENSE),
    "Embedding lora": (lambda: kl.Embedding(11, 4, "he_normal", lora_rank=2), DENSE),
    "ReversibleEmbedding tied": (lambda: kl.ReversibleEmbedding(11, 4), DENSE),
    "ReversibleEmbedding": (lambda: kl.ReversibleEmbedding(11, 4, tie_weights=False), DENSE),
    "Conv1D causal": (lambda: kl.Conv1D(6, 3, padding="causal"), SIGNAL),
    "Conv2D": (lambda: kl.Conv2D(6, (3, 5), groups=2, bias_initializer="glorot_normal"), IMAGE),
    "Conv2D channels first": (lambda: kl.Conv2D(6, (3, 5), use_bias=False, data_format="channels_first"), FIRST),
    "Conv2D lora": (lambda: kl.Conv2D(6, 3, groups=2, lora_rank=2), IMAGE),
    "Conv3D": (lambda: kl.Conv3D(6, (3, 2, 1), kernel_initializer=None), VOLUME),
    "Conv1DTranspose": (lambda: kl.Conv1DTranspose(6, 3), SIGNAL),
    "Conv2DTranspose": (lambda: kl.Conv2DTranspose(6, (3, 5), data_format="channels_first"), FIRST),
    "Conv3DTranspose": (lambda: kl.Conv3DTranspose(6, 2, use_bias=False), VOLUME),
    "DepthwiseConv1D": (lambda: kl.DepthwiseConv1D(3, depth_multiplier=2), SIGNAL),
    "DepthwiseConv2D": (lambda: kl.DepthwiseConv2D((3, 5), depthwise_initializer="he_normal"), IMAGE),
    "SeparableConv1D": (lambda: kl.SeparableConv1D(6, 3, depth_multiplier=2), SIGNAL),
    "SeparableConv2D": (lambda: kl.SeparableConv2D(6, (3, 5), use_bias=False), IMAGE),
    "SeparableConv2D second an object": (
        lambda: kl.SeparableConv2D(6, 3, pointwise_initializer=ki.TruncatedNormal(**STD)),
        IMAGE,
    ),
    **{
        f"{cls.__name__} {name}": (lambda cls=cls, kwargs=kwargs: cls(3, **kwargs), call)
        for cls, call in (
            *((cls, SEQUENCE) for cls in (kl.SimpleRNN, kl.LSTM, kl.GRU)),
            *((cls, in_cell) for cls in (kl.SimpleRNNCell, kl.LSTMCell, kl.GRUCell)),
        )
        for name, kwargs in {
            "": {},
            "no bias": {"use_bias": False},
            "dropout": {"dropout": 0.1, "recurrent_dropout": 0.2},
            "random": {"bias_initializer": "he_normal"},
            "None": {"kernel_initializer": None, "recurrent_initializer": None},
        }.items()
    },
    "LSTM seeded": (lambda: kl.LSTM(3, dropout=0.1, seed=5), SEQUENCE),
    "GRU seeded": (lambda: kl.GRU(3, seed=5, kernel_initializer=ki.HeNormal(4)), SEQUENCE),
    "SimpleRNNCell seeded": (lambda: kl.SimpleRNNCell(3, seed=5), in_cell),
    "LSTM no unit_forget_bias": (lambda: kl.LSTM(3, unit_forget_bias=False, bias_initializer=None), SEQUENCE),
    "LSTM recurrent an object": (lambda: kl.LSTM(3, recurrent_initializer=ki.Orthogonal(2.0)), SEQUENCE),
    "SimpleRNN recurrent an object": (lambda: kl.SimpleRNN(3, recurrent_initializer=ki.Orthogonal(2.0)), SEQUENCE),
    "LSTM from states": (lambda: kl.LSTM(3), lambda made: made(keras.Input((7, 4)), [keras.Input((3,))] * 2)),
    "GRU reset before": (lambda: kl.GRU(3, reset_after=False, bias_initializer="uniform"), SEQUENCE),
    "RNN of a cell": (lambda: kl.RNN(kl.GRUCell(3)), SEQUENCE),
    "RNN of cells": (
        lambda: kl.RNN([kl.LSTMCell(3, recurrent_initializer=ki.Orthogonal(2.0)), kl.SimpleRNNCell(5)]),
        SEQUENCE,
    ),
    "ConvLSTM1D": (lambda: kl.ConvLSTM1D(3, 2), on((3, 9, 4))),
    "ConvLSTM2D": (lambda: kl.ConvLSTM2D(3, (2, 3), use_bias=False, seed=3), VIDEO),
    "ConvLSTM2D channels first": (
        lambda: kl.ConvLSTM2D(3, 2, data_format="channels_first", bias_initializer="normal"),
        on((3, 4, 9, 8)),
    ),
    "ConvLSTM3D": (lambda: kl.ConvLSTM3D(3, 2, unit_forget_bias=False), on((2, 5, 4, 3, 4))),
    "Bidirectional": (lambda: kl.Bidirectional(kl.LSTM(3)), SEQUENCE),
    "Bidirectional named": (lambda: kl.Bidirectional(kl.GRU(3, name="backward_x"), name="b"), SEQUENCE),
    "Bidirectional seeded": (lambda: kl.Bidirectional(kl.GRU(3, kernel_initializer=ki.HeNormal(5), seed=3)), SEQUENCE),
    "Bidirectional of an object": (
        lambda: kl.Bidirectional(kl.SimpleRNN(3, recurrent_initializer=ki.Orthogonal(2.0))),
        SEQUENCE,
    ),
    "Bidirectional of two": (
        lambda: kl.Bidirectional(kl.LSTM(3), backward_layer=kl.GRU(3, go_backwards=True)),
        SEQUENCE,
    ),
    "Bidirectional of an RNN": (
        lambda: kl.Bidirectional(kl.RNN(kl.GRUCell(3, recurrent_initializer=ki.Orthogonal(2.0)))),
        SEQUENCE,
    ),
    "TimeDistributed": (lambda: kl.TimeDistributed(kl.Conv2D(6, 3)), VIDEO),
    "SpectralNormalization of Dense": (lambda: kl.SpectralNormalization(kl.Dense(7)), DENSE),
    "SpectralNormalization of Conv2D": (lambda: kl.SpectralNormalization(kl.Conv2D(6, 3)), IMAGE),
    "SpectralNormalization of Embedding": (lambda: kl.SpectralNormalization(kl.Embedding(11, 4)), DENSE),
    "MultiHeadAttention": (lambda: kl.MultiHeadAttention(3, 4), on((7, 10), (7, 10))),
    "MultiHeadAttention of three": (
        lambda: kl.MultiHeadAttention(3, 4, value_dim=5, dropout=0.1, output_shape=(7, 2), use_gate=True),
        on((7, 10), (6, 8), (6, 9)),
    ),
    "MultiHeadAttention random": (
        lambda: kl.MultiHeadAttention(3, 4, kernel_initializer=ki.HeNormal(3), bias_initializer="normal", dropout=0.1),
        on((2, 7, 10), (2, 6, 8)),
    ),
    "MultiHeadAttention no bias": (
        lambda: kl.MultiHeadAttention(3, 4, kernel_initializer="orthogonal", use_bias=False, bias_initializer="normal"),
        on((7, 10), (7, 10)),
    ),
    "MultiHeadAttention seeded": (lambda: kl.MultiHeadAttention(3, 4, dropout=0.1, seed=3), on((7, 10), (7, 10))),
    "MultiHeadAttention SeedGenerator": (
        lambda: kl.MultiHeadAttention(3, 4, kernel_initializer=ki.HeNormal(keras.random.SeedGenerator())),
        on((7, 10), (7, 10)),
    ),
    "GroupQueryAttention": (lambda: kl.GroupQueryAttention(4, 6, 2, dropout=0.1), on((7, 10), (7, 10))),
    "GroupQueryAttention gate": (
        lambda: kl.GroupQueryAttention(4, 6, 3, use_gate=True, use_bias=False, kernel_initializer="normal"),
        on((7, 10), (7, 10)),
    ),
    "Attention": (lambda: kl.Attention(True, "concat", dropout=0.1), on_list((7, 10), (6, 10))),
    "Attention plain": (lambda: kl.Attention(seed=3), on_list((7, 10), (6, 10))),
    "AdditiveAttention": (lambda: kl.AdditiveAttention(dropout=0.1), on_list((7, 10), (6, 10))),
    "AdditiveAttention seeded": (lambda: kl.AdditiveAttention(False, dropout=0.1, seed=3), on_list((7, 10), (6, 10))),
    "BatchNormalization": (kl.BatchNormalization, IMAGE),
    "BatchNormalization random": (
        lambda: kl.BatchNormalization(1, beta_initializer="normal", gamma_initializer=ki.RandomUniform(0.5, 1.5)),
        IMAGE,
    ),
    "BatchNormalization renorm": (
        lambda: kl.BatchNormalization(
            center=False,
            renorm=True,
            gamma_initializer=None,
            moving_mean_initializer="normal",
            moving_variance_initializer=ki.RandomUniform(0.5, 1.5),
        ),
        DENSE,
    ),
    "LayerNormalization": (lambda: kl.LayerNormalization([2, 1], gamma_initializer=None), IMAGE),
    "GroupNormalization": (lambda: kl.GroupNormalization(-1, axis=1, beta_initializer="normal"), IMAGE),
    "RMSNormalization": (lambda: kl.RMSNormalization([1, 2]), IMAGE),
    "PReLU": (lambda: kl.PReLU("he_normal", shared_axes=[1]), IMAGE),
    "PReLU None": (lambda: kl.PReLU(None), DENSE),
    "STFTSpectrogram": (lambda: kl.STFTSpectrogram(frame_length=48, window="hamming"), on((90, 1))),
    "STFTSpectrogram real": (lambda: kl.STFTSpectrogram("real", 32, fft_length=64), on((90, 1))),
    "Normalization": (lambda: kl.Normalization((1, -1)), IMAGE),
    "Normalization given": (lambda: kl.Normalization(mean=1.0, variance=2.0), IMAGE),
    "Pipeline": (lambda: kl.Pipeline([kl.RandomFlip(), kl.RandomZoom(0.1, seed=3), kl.Dropout(0.1)]), IMAGE),
    "AugMix": (kl.AugMix, IMAGE),
    "AugMix few": (lambda: kl.AugMix(all_ops=False), IMAGE),
    "RandAugment seeded": (lambda: kl.RandAugment(seed=3), IMAGE),
    "RandomColorJitter": (lambda: kl.RandomColorJitter(brightness_factor=0.1, hue_factor=0.1), IMAGE),
    "RandomCrop": (lambda: kl.RandomCrop(4, 3), IMAGE),
    "RandomCrop seeded": (lambda: kl.RandomCrop(4, 3, seed=3), IMAGE),
    "SpatialDropout2D seeded": (lambda: kl.SpatialDropout2D(0.1, seed=3), IMAGE),
    "RandomErasing seeded": (lambda: kl.RandomErasing(seed=3), IMAGE),
}


@pytest.mark.parametrize(("make", "call"), CASES.values(), ids=CASES)
def test_weights_and_seeds_are_those_of_keras(make, call):
    """Each weight of the built layer has the values that its source gives, and the next seed follows."""
    check_read(make, call)


# Arguments of those that have no defaults for them, and layers that make nothing of a config alone.
ARGUMENTS = {
    **dict.fromkeys(("Dropout", "GaussianDropout", "AlphaDropout", "GaussianNoise"), (0.1,)),
    **{f"SpatialDropout{n}D": (0.1,) for n in (1, 2, 3)},
    **{f"{kind}Pooling{n}D": (2,) for kind in ("Average", "Max") for n in (1, 2, 3)},
    **{f"Adaptive{kind}Pooling{n}D": (3,) for kind in ("Average", "Max") for n in (1, 2, 3)},
    **{"Activation": ("relu",), "CategoryEncoding": (3,), "CenterCrop": (3, 3), "Discretization": ([0.0, 1.0],)},
    **{"Dot": (1,), "HashedCrossing": (3,), "Hashing": (3,), "Lambda": (abs,), "MaxNumBoundingBoxes": (3,)},
    **{"Permute": ((1,),), "RandomBrightness": (0.1,), "RandomColorDegeneration": (0.1,), "RandomContrast": (0.1,)},
    **{"RandomCrop": (3, 3), "RandomHue": (0.1,), "RandomPosterization": (4,), "RandomRotation": (0.1,)},
    **{"RandomSaturation": (0.1,), "RandomSharpness": (0.1,), "RandomTranslation": (0.1, 0.1), "RandomZoom": (0.1,)},
    **{"RepeatVector": (3,), "Rescaling": (0.5,), "Reshape": ((1,),), "Resizing": (3, 3)},
}
FOREIGN = {"Layer", "Wrapper", "InputSpec", "FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper", "InputLayer"}
EXPORTED = {cls.__name__: cls for name in dir(kl) if isinstance(cls := getattr(kl, name), type)}
COVERED = {case.partition(" ")[0] for case in CASES} | {"GroupedQueryAttention", "StackedRNNCells"}


OTHERS = sorted((EXPORTED.keys() - COVERED - FOREIGN) | {"RandomCrop"})
SEEDED = [x for x in OTHERS if "seed" in inspect.signature(EXPORTED[x]).parameters and x != "RandomGrayscale"]


@pytest.mark.parametrize(("name", "kwargs"), [*((x, {}) for x in OTHERS), *((x, {"seed": 3}) for x in SEEDED)])
def test_every_other_layer_is_known(name, kwargs):
    """A layer of Keras' that is not in the table above has no weights, and the seeds it draws are as many."""
    check_read(lambda: EXPORTED[name](*ARGUMENTS.get(name, ()), **kwargs), lambda made: None)


@pytest.mark.parametrize("make", [lambda seed: kl.SimpleRNN(3, seed=seed), lambda seed: kl.RandomGrayscale(seed=seed)])
def test_a_seed_that_keras_does_not_save_counts_as_none(make):
    """The configs of two layers are the same with a seed and without."""
    with_seed, without = saved(make(3)), saved(make(None))
    assert {**with_seed["config"], "name": ""} == {**without["config"], "name": ""}
    assert len(read_layer(with_seed).constructor) == len(read_layer(without).constructor)


@pytest.mark.parametrize("name", sorted(ALL_OBJECTS_DICT))
def test_every_initializer_is_random_or_not(name):
    """Every name that keras.initializers.get takes is random if its class is one of Keras' RandomInitializers."""
    assert Source(name).random == issubclass(ALL_OBJECTS_DICT[name], RandomInitializer)
    assert Source({"class_name": name, "config": None}).random == Source(name).random


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_names_are_made_as_keras_makes_them(name):
    """snake_case is Keras' to_snake_case."""
    assert snake_case(name) == to_snake_case(name)


# --- keras.applications, and layers that only tf.keras has ------------------------------------------------------------


def test_layers_of_keras_applications_are_known():
    """LayerScale has its constant, which Keras gives no name; the two others hold nothing."""
    check_read(lambda: convnext.StochasticDepth(0.1), IMAGE)
    check_read(lambda: CustomScaleLayer(0.5), on_list((9, 8, 4), (9, 8, 4)))
    real = convnext.LayerScale(0.25, 4)
    IMAGE(real)
    (gamma,) = read_layer(saved(real)).weights
    assert (gamma.name, gamma.shape) == ("gamma", (4,))
    assert torch.equal(values(gamma, {}), real.weights[0].value.detach())


TF_KERAS = """
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers as kl
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM
result = []
for code in codes:
    inputs = keras.Input(shape)
    model = keras.Model(inputs, eval(code)(inputs))
    weights = [(w.name.rpartition("/")[2].partition(":")[0], w.numpy()) for w in model.weights]
    result.append({"config": model.to_json(), "weights": weights})
"""
LINES = [
    "keras.layers.experimental.SyncBatchNormalization(gamma_initializer='zeros')",
    *(f"kl.LocallyConnected1D(5, 3, strides=2{more})" for more in ("", ", use_bias=False", ", implementation=2")),
    "kl.LocallyConnected1D(5, 3, padding='same', implementation=3)",
    "kl.LocallyConnected1D(5, 3, padding='same', strides=2, implementation=2, data_format='channels_first')",
    "CuDNNLSTM(3)",
    "CuDNNLSTM(3, unit_forget_bias=False, bias_initializer='ones')",
    "CuDNNGRU(3)",
    "(lambda x: tf.reshape(x[:, 0] * 2.0, (-1, 2, 2)))",
]
PICTURES = [
    f"kl.LocallyConnected2D(5, (3, 2){more})" for more in ("", ", strides=(2, 1)", ", (1, 2), 'same', implementation=2")
] + ["kl.LocallyConnected2D(5, 2, padding='same', data_format='channels_first', implementation=2)"]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "codes"), [((8, 4), LINES), ((8, 6, 4), PICTURES)])
def test_layers_of_tf_keras_are_read(shape, codes):
    """The names and shapes are those of the real layers, and the values where nothing is random."""
    for code, made in zip(codes, backend("tensorflow")(TF_KERAS, shape=shape, codes=codes), strict=True):
        layers = Model(load_config(made["config"])).layers
        weights = [weight for layer in layers for weight in layer.weights]
        assert [weight.name for weight in weights] == [name for name, _ in made["weights"]], code
        for weight, (name, real) in zip(weights, made["weights"], strict=True):
            assert fits(weight.shape, tuple(real.shape)), (code, name)
            if not weight.source.random:
                weight.shape = tuple(real.shape)
                assert torch.equal(values(weight, {}), real), (code, name)


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_early_names_of_tf_keras_are_known(version):
    """TensorFlow 1 and 2.0 saved BatchNormalization so, whose axis was a list."""
    entry = {"class_name": f"BatchNormalization{version}", "config": {"axis": [3], "name": "n"}}
    assert [w.name for w in read_layer(entry).weights] == ["gamma", "beta", "moving_mean", "moving_variance"]


@pytest.mark.parametrize("name", ["TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "InstanceMethod"])
def test_operators_of_tf_keras_hold_nothing(name):
    """Functions of tensors in a functional model."""
    found = read_layer({"class_name": name, "config": {"name": "tf.math.add", "function": "math.add"}})
    assert (found.weights, found.sources()) == ([], [])


def test_a_bias_of_cudnn_that_no_initializer_gives_is_refused():
    """Its ones stand among random numbers."""
    config = {"name": "l", "units": 3, "bias_initializer": "he_normal"}
    with pytest.raises(ValueError, match=r"'l' \(CuDNNLSTM\) has unit_forget_bias=True and a bias_initializer other"):
        read_layer({"class_name": "CuDNNLSTM", "config": config})


# --- layers without a twin in torch -----------------------------------------------------------------------------------

UNITS = {"name": "x", "units": 3}
LOCAL = {"name": "x", "filters": 3, "kernel_size": [2], "strides": [1], "kernel_initializer": "he_normal"}
ONE_GRU = {"class_name": "GRU", "config": {**UNITS, "reset_after": False}}
NO_BIAS = {"class_name": "GRU", "config": {**UNITS, "reset_after": False, "use_bias": False}}
WITHOUT_TWIN = {
    "a GRU with reset_after=False": (ONE_GRU, nn.GRU(4, 3)),
    "a GRU with reset_after=False in two ways": (
        {"class_name": "Bidirectional", "config": {"name": "x", "layer": ONE_GRU}},
        nn.GRU(4, 3, bidirectional=True),
    ),
    "a GRU with reset_after=False and no bias": (NO_BIAS, nn.GRU(4, 3, bias=False)),
    "a Normalization": ({"class_name": "Normalization", "config": {"name": "x"}}, nn.BatchNorm1d(4)),
    "a ConvLSTM1D": ({"class_name": "ConvLSTM1D", "config": LOCAL}, nn.LSTM(4, 3)),
    "a CuDNNGRU": ({"class_name": "CuDNNGRU", "config": UNITS}, nn.GRU(4, 3)),
    "a CuDNNLSTM": ({"class_name": "CuDNNLSTM", "config": UNITS}, nn.LSTM(4, 3)),
    "a LocallyConnected1D": (
        {"class_name": "LocallyConnected1D", "config": LOCAL, "build_config": {"input_shape": [None, 8, 4]}},
        nn.Conv1d(4, 3, 2),
    ),
}


@pytest.mark.parametrize("what", WITHOUT_TWIN)
def test_what_torch_has_no_layer_for_is_said_and_can_be_left_out(what):
    """The error names the cause, not a shape; with None in `modules` the rest of the model has its rules."""
    entry, module = WITHOUT_TWIN[what]
    dense = {"class_name": "Dense", "config": {"name": "d", "units": 2}}
    config = {"class_name": "Sequential", "config": {"layers": [entry, dense]}}
    message = f"Keras' layer 'x' is {re.split(' in two| and no', what)[0]}.*for which torch has no twin.*{{'x': None}}"
    for port in (nn.Sequential(module, nn.Linear(3, 2)), nn.Linear(3, 2)):
        with pytest.raises(ValueError, match=message):
            kinit.rules_from_keras(config, port)
    rules = kinit.rules_from_keras(config, nn.Linear(3, 2), modules={"x": None})
    assert rules == {"weight": "glorot_uniform", "bias": "zeros"}


def test_a_live_layer_without_a_twin_is_named_too():
    """What keras_config captures of it says so."""
    config = kinit.keras_config(keras.Sequential([keras.Input((7, 4)), kl.GRU(3, reset_after=False, name="x")]))
    with pytest.raises(ValueError, match="'x' is a GRU with reset_after=False, for which torch has no twin"):
        kinit.replay_keras(nn.GRU(4, 3), backend="torch", keras_config=config)
