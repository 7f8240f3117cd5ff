"""Whole models: every weight has the values that its seed gives in Keras, in the order in which code draws seeds."""

import json
import random
import zipfile

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import initializers as ki
from keras import layers as kl

from tests.support.saved_keras import block, check_recovered, resnet, saved, spectral
from torch_kinit.keras.configs import load_config
from torch_kinit.keras.draws import seeds_of
from torch_kinit.keras.read import read_layer
from torch_kinit.keras.saved_model import Model

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


def sequential_parts():
    return [
        kl.Embedding(11, 6),
        kl.SeparableConv1D(6, 3, padding="same"),
        kl.Bidirectional(kl.LSTM(3, return_sequences=True)),
        kl.Dropout(0.1),
        spectral(5),
        kl.BatchNormalization(),
        kl.Dense(4, bias_initializer=None),
        kl.GaussianNoise(0.1),
        spectral(3),
    ]


def sequential():
    return keras.Sequential([keras.Input((7,)), *sequential_parts()])


def sequential_without_input():
    model = keras.Sequential(sequential_parts())
    model.build((None, 7))
    return model


def transformer():
    tokens = keras.Input((7,))
    x = kl.Embedding(11, 8)(tokens)
    for _ in range(2):
        y = kl.MultiHeadAttention(2, 4, dropout=0.1)(x, x)
        x = kl.LayerNormalization()(x + kl.Dropout(0.1)(y))
        y = kl.Dense(8)(kl.Dense(16, "relu")(x))
        x = kl.LayerNormalization()(kl.Add()([x, kl.Dropout(0.1)(y)]))
    return keras.Model(tokens, kl.GroupQueryAttention(4, 2, 1)(x, x)[:, 0])


def side_by_side():
    title, body, tags = keras.Input((7,)), keras.Input((9,)), keras.Input((5,))
    first, second = kl.Embedding(11, 4)(title), kl.Embedding(11, 4)(body)
    first, second = kl.LSTM(6)(first), kl.LSTM(3)(second)
    x = kl.Concatenate()([first, second, tags])
    return keras.Model([title, body, tags], {"a": kl.Dense(1)(x), "b": kl.Dense(2)(x)})


def shared():
    left, right = keras.Input((7,)), keras.Input((7,))
    embed, score = kl.Embedding(11, 4), spectral(4)
    a = score(embed(left))
    b = score(spectral(4)(embed(right)))
    a = score(kl.Dense(4)(a))
    return keras.Model([left, right], kl.Dense(1)(kl.Concatenate()([a, b])))


def transfer():
    image = keras.Input((8, 8, 3))
    x = kl.GlobalAveragePooling2D()(block(image, 4, True))
    base = keras.Model(image, spectral(5)(x))
    head = keras.Sequential([kl.Dropout(0.1), spectral(3), kl.Dense(2)])
    inputs = keras.Input((8, 8, 3))
    x = kl.RandomFlip()(inputs)
    x = kl.RandomZoom(0.1)(x)
    x = kl.Dense(4)(base(x))
    return keras.Model(inputs, head(x))


def adversarial():
    generator = keras.Sequential([keras.Input((4,)), kl.Dense(6), spectral(5)])
    critic = keras.Sequential([keras.Input((5,)), spectral(3), kl.Dropout(0.1), spectral(1)])
    return keras.Sequential([keras.Input((4,)), generator, critic])


def nested_without_inputs():
    encoder, decoder = keras.Sequential([spectral(5), kl.Dense(4)]), keras.Sequential([spectral(3), kl.Dense(2)])
    inputs = keras.Input((4,))
    x = encoder(inputs)
    x = kl.Dense(7)(x)
    return keras.Model(inputs, decoder(x))


def frames():
    frame = keras.Input((8, 8, 3))
    x = kl.Conv2D(4, 3)(frame)
    encoder = keras.Model(frame, kl.Dense(5)(kl.Flatten()(x)))
    return keras.Sequential([keras.Input((6, 8, 8, 3)), kl.TimeDistributed(encoder), kl.GRU(4), kl.Dense(2)])


def layers_in_two_models():
    inner = keras.Input((4,))
    common = kl.Dense(4)
    first = keras.Model(inner, kl.Dense(3)(common(inner)))
    second = keras.Model(inner, kl.Dense(2)(common(inner)))
    inputs = keras.Input((4,))
    return keras.Model(inputs, kl.Concatenate()([first(inputs), second(inputs)]))


MADE_IN_CODE = [
    *(sequential, sequential_without_input, resnet, transformer, shared, transfer, adversarial),
    *(nested_without_inputs, frames, layers_in_two_models),
]


@pytest.mark.parametrize("make", MADE_IN_CODE)
def test_a_model_draws_as_in_keras(make):
    """The order recovered from the config is that of the code, and gives each weight its seed."""
    check_recovered(make)


def test_branches_made_side_by_side_are_told():
    """Of a program that makes a layer of each branch in turn, another order is taken, and a doubt says so."""
    with pytest.raises(AssertionError):
        check_recovered(side_by_side)
    model = Model(load_config(side_by_side().to_json()))
    assert "the branches of a merge are made in the order of its arguments" in [d.assumed for d in model.schedule()[1]]


def test_drawing_again_draws_anew():
    """The same sources take the seeds that follow another seed; one that is given stays."""
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.Dense(2, kernel_initializer=ki.HeNormal(5))])
    sources, _ = Model(load_config(model.to_json())).schedule()
    seeds = [list(seeds_of(sources, seed).values()) for seed in (0, 1, 0)]
    assert seeds[0] == [random.Random(0).randint(1, 10**9), 5]
    assert seeds == [seeds[0], [random.Random(1).randint(1, 10**9), 5], seeds[0]]


PARTS = {
    "dense": lambda: kl.Dense(4, bias_initializer="normal"),
    "constant": lambda: kl.Dense(4, kernel_initializer="ones"),
    "seeded": lambda: kl.Dense(4, kernel_initializer=ki.HeNormal(3)),
    "spectral": lambda: spectral(4),
    "dropout": lambda: kl.Dropout(0.1),
    "no dropout": lambda: kl.Dropout(0.0),
    "noise": lambda: kl.GaussianNoise(0.1, seed=4),
    "prelu": lambda: kl.PReLU(None),
    "norm": lambda: kl.BatchNormalization(),
    "lora": lambda: kl.Dense(4, lora_rank=2),
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_any_stack_of_layers(kinds, seed):
    """Layers on top of each other draw as in Keras, in a Sequential and in a functional model."""
    check_recovered(lambda: keras.Sequential([keras.Input((4,)), *(PARTS[kind]() for kind in kinds)]), seed=seed)

    def functional():
        x = inputs = keras.Input((4,))
        for kind in kinds:
            x = PARTS[kind]()(x)
        return keras.Model(inputs, x)

    check_recovered(functional, seed=seed)


def test_every_form_of_a_config_is_read(tmp_path):
    """A dict, JSON, a .json file, a .keras file and what get_config() gives are the same model."""
    model = sequential()
    text = model.to_json()
    (tmp_path / "model.json").write_text(text, encoding="utf-8")
    model.save(tmp_path / "model.keras")
    forms = [json.loads(text), text, tmp_path / "model.json", str(tmp_path / "model.json"), tmp_path / "model.keras"]
    expected = [(found.name, [weight.shape for weight in found.weights]) for found in Model(load_config(text)).layers]
    for form in [*forms, json.loads(text)["config"]]:
        assert [(x.name, [weight.shape for weight in x.weights]) for x in Model(load_config(form)).layers] == expected


def test_configs_of_keras_2_are_read():
    """They have no module and no build_config, other inbound nodes, and once were a plain list."""
    dense = [{"class_name": "Dense", "config": {"name": name, "units": 3}} for name in ("a", "b")]
    calls = [{**dense[0], "inbound_nodes": [[["x", 0, 0, {}]]]}, {**dense[1], "inbound_nodes": [[["a", 0, 0, {}]]]}]
    entries = [{"class_name": "InputLayer", "config": {"name": "x"}, "name": "x", "inbound_nodes": []}, *calls[::-1]]
    functional = {"name": "model", "layers": entries, "input_layers": [["x", 0, 0]], "output_layers": [["b", 0, 0]]}
    model = Model(load_config({"class_name": "Model", "config": functional}))
    first, second = (
        model.schedule()[0][0],
        Model(load_config({"class_name": "Sequential", "config": dense})).schedule()[0][0],
    )
    assert first is model.layers[1].constructor[0]
    assert model.layers[1].name == "a"
    assert second.config == "glorot_uniform"


class Subclassed(keras.Model):
    """A model that is a class."""


class Unlisted(keras.Model):
    """A model that is a class, with an argument that it does not save."""

    def __init__(self, size):
        super().__init__()


def not_of_keras(path):
    with zipfile.ZipFile(path / "model.keras", "w") as archive:
        archive.writestr("weights.txt", "")
    return path / "model.keras"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: Subclassed().to_json(), ValueError, "The config of Subclassed does not list its layers.*`order`"),
        (lambda path: saved(kl.Dense(3)), ValueError, "The config of Dense does not list its layers"),
        (
            lambda path: Unlisted(object()),
            ValueError,
            "`keras_model` has no weights; build it",
        ),
        (lambda path: 3, TypeError, "must be a dict, JSON as model.to_json.* gives it, .* or the path .* got int"),
        (lambda path: "[1]", ValueError, "is read from a .json, .keras or .h5 file, got '\\[1\\]'"),
        (lambda path: "{1", ValueError, "`keras_config` is no JSON: Expecting"),
        (lambda path: path / "model.pt", ValueError, "is read from a .json, .keras or .h5 file.*model.save"),
        (not_of_keras, ValueError, "model.keras' is no model saved by Keras 3"),
    ],
)
def test_what_is_no_model_is_refused(make, error, message, tmp_path):
    """A sentence says what is accepted."""
    with pytest.raises(error, match=message):
        load_config(make(tmp_path))


class Own(kl.Layer):
    """A layer that is not Keras'."""


class Half(ki.RandomNormal):
    """An initializer that is not Keras'."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Own(name="mine"), "Layer 'mine' is of class Own, which is no layer of .*register_keras_layer..Own"),
        (
            lambda: kl.Dense(3, kernel_initializer=Half(), name="fc"),
            "kernel_initializer of layer 'fc' is of class Half, no initializer of Keras itself.*through `order`",
        ),
        (lambda: kl.Dense(3, dtype="int8_from_float32", name="fc"), "Layer 'fc' is quantized"),
    ],
)
def test_what_is_not_known_is_refused(make, message):
    """A layer or initializer that is not Keras' own, or a quantized one, is named together with the way out."""
    with pytest.raises(ValueError, match=message):
        read_layer(saved(make()))


def test_without_sizes_of_inputs():
    """A layer that was never built has None where a size is that of the input, and no fans."""
    sizes = {
        weight.name: (weight.shape, weight.fans) for weight in read_layer(saved(kl.MultiHeadAttention(3, 4))).weights
    }
    assert sizes["query/kernel"] == ((None, 3, 4), None)
    assert sizes["attention_output/kernel"] == ((3, 4, None), None)
    assert read_layer(saved(kl.EinsumDense("ab,bc->ac", 7))).weights[0].shape == (None, 7)
    assert read_layer(saved(kl.Conv2D(6, 3, groups=2))).weights[0].shape == (3, 3, None, 6)
    assert read_layer(saved(kl.LSTM(6))).weights[0].shape == (None, 24)
