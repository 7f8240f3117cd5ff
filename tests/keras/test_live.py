"""keras_config: what it finds on live models, and that a replay from it is Keras' own, whatever the program was."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from keras import initializers as ki
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.backends import backend, same_bits

GUIDE = (Path(__file__).parents[2] / "docs/porting.md").read_text(encoding="utf-8")
RECIPE = next(block for block in GUIDE.split("```python\n") if block.startswith("def keras_config")).partition("```")[0]
pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


def captured(model):
    """What keras_config makes, through JSON."""
    return json.loads(json.dumps(kinit.keras_config(model)))


def check_replay(model, port, name="torch", weights=None, config=None, **arguments):
    """Raise AssertionError unless the port gets the model's own weights, bit for bit and without a warning."""
    kinit.replay_keras(port, keras_config=config or captured(model), backend=name, **arguments)
    real = weights or [weight.value.detach() for weight in model.weights if weight.name != "vector_u"]
    for i, (ours, theirs) in enumerate(zip(kinit.to_keras(port), real, strict=True)):
        assert same_bits(torch.from_numpy(ours).reshape(-1), torch.as_tensor(theirs).reshape(-1)), i


class Twice(keras.Model):
    """A subclassed model, whose layers are called in another order than they were made, and one twice."""

    def __init__(self):
        super().__init__()
        self.head = kl.Dense(3, bias_initializer=ki.RandomNormal(stddev=0.02))
        self.blocks = [kl.Dense(4, kernel_initializer="he_normal", name=f"block_{i}") for i in (1, 0)]

    def call(self, x):
        for block in (*self.blocks, self.blocks[0]):
            x = block(x)
        return self.head(x)


def subclassed():
    model = Twice()
    model(np.zeros((1, 4), np.float32))
    return model, nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 4), nn.Linear(4, 4))


def one_object():
    init = ki.RandomNormal(stddev=0.02)
    layers = [kl.Dense(4, kernel_initializer=init), kl.Dropout(0.1), kl.Dense(3, kernel_initializer=init)]
    return keras.Sequential([keras.Input((4,)), *layers]), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))


def objects_in_any_order():
    late, unused = kl.Dense(3, bias_initializer=ki.HeUniform()), kl.Dense(9)
    inputs = keras.Input((4,))
    x = kl.Dense(5, name="dense_999")(kl.Dropout(0.1)(kl.Dense(6)(inputs)))
    unused(x)
    return keras.Model(inputs, late(x)), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3))


def attention():
    inputs = keras.Input((5, 8))
    x = kl.MultiHeadAttention(2, 4, dropout=0.1, kernel_initializer=ki.HeNormal())(inputs, inputs)
    x = kl.Dense(3)(kl.LayerNormalization()(x))
    port = nn.Sequential(nn.MultiheadAttention(8, 2, dropout=0.1), nn.LayerNorm(8), nn.Linear(8, 3))
    return keras.Model(inputs, x), port


def spectral():
    model = keras.Sequential([keras.Input((4,)), kl.SpectralNormalization(kl.Dense(3)), kl.Dense(2)])
    return model, nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def recurrent():
    cells = [kl.LSTMCell(3, bias_initializer="random_normal"), kl.GRUCell(2)]
    layers = [kl.SimpleRNN(5, seed=4, return_sequences=True), kl.Bidirectional(kl.LSTM(4, return_sequences=True))]
    model = keras.Sequential([keras.Input((6, 4)), *layers, kl.RNN(cells)])
    port = nn.Sequential(nn.RNN(4, 5), nn.LSTM(5, 4, bidirectional=True), nn.LSTM(8, 3), nn.GRU(3, 2))
    return model, port


def nested():
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(5), kl.BatchNormalization()], name="inner")
    inputs = keras.Input((3, 4))
    x = kl.TimeDistributed(keras.Sequential([kl.Dense(4), kl.PReLU("random_normal")]))(inputs)
    outputs = kl.GRU(2)(kl.TimeDistributed(inner)(x))
    port = nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.GRU(5, 2))
    return keras.Model(inputs, outputs), port


def generators():
    seeded = ki.HeNormal(keras.random.SeedGenerator(7))
    layers = [
        kl.Dense(4, kernel_initializer=seeded),
        kl.Dense(3, kernel_initializer=ki.HeNormal(keras.random.SeedGenerator())),
    ]
    return keras.Sequential([keras.Input((4,)), *layers]), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))


def clones():
    inputs = keras.Input((5, 8))
    seeded, generated = ki.HeNormal(2**31 + 5), ki.RandomNormal(seed=keras.random.SeedGenerator(11))
    x = kl.MultiHeadAttention(2, 4, kernel_initializer=seeded)(inputs, inputs)
    outputs = kl.Bidirectional(kl.GRU(3, kernel_initializer=generated))(
        kl.MultiHeadAttention(2, 4, kernel_initializer=generated, use_bias=False)(x, x)
    )
    attentions = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, bias=False)
    return keras.Model(inputs, outputs), nn.Sequential(*attentions, nn.GRU(8, 3, bidirectional=True))


MODELS = [clones, subclassed, one_object, objects_in_any_order, attention, spectral, recurrent, nested, generators]


@pytest.mark.parametrize("make", MODELS)
def test_a_replay_is_exact_whatever_the_program_was(make):
    """Subclassed, shared, unused, nested and seeded in all ways: every weight is Keras' own, and nothing is said."""
    keras.utils.set_random_seed(3)
    model, port = make()
    assert [entry["path"] for entry in captured(model)["weights"]] == [weight.path for weight in model.weights]
    check_replay(model, port)


@pytest.mark.filterwarnings("ignore:The config does not tell all that the program drew")
def test_the_clones_of_a_seeded_initializer_have_its_seed():
    """The projections of attention and both directions of a Bidirectional start alike, from a plain config, too."""
    keras.utils.set_random_seed(3)
    model, port = clones()
    kinit.replay_keras(port, 3, backend="torch", keras_config=model.to_json())
    for i, (ours, theirs) in enumerate(zip(kinit.to_keras(port), model.weights, strict=True)):
        assert same_bits(torch.from_numpy(ours).reshape(-1), theirs.value.detach().reshape(-1)), i


def test_the_live_model_itself_is_taken():
    """replay_keras and rules_from_keras take it for a config."""
    model, port = one_object()
    check_replay(model, port, config=model)
    rules = kinit.rules_from_keras(model, port)
    assert rules["0.weight"] == {"class_name": "RandomNormal", "config": {"mean": 0.0, "stddev": 0.02}}


def test_training_changes_nothing_of_it():
    """The seeds are those of the start, however the weights are now."""
    model, port = one_object()
    start, before = model.get_weights(), captured(model)
    model.set_weights([weight + 1 for weight in start])
    assert captured(model) == before
    check_replay(model, port, weights=start)


TF_KERAS = """
import random
import tf_keras as keras
from tf_keras import layers as kl
from tf_keras import initializers as ki
from torch_kinit import keras_config
keras.backend.clear_session()
keras.utils.set_random_seed(5)
i = keras.Input((5, 8))
x = kl.MultiHeadAttention(2, 4, kernel_initializer=ki.HeNormal())(i, i)
x = kl.Bidirectional(kl.LSTM(3, return_sequences=True, recurrent_initializer="glorot_uniform"))(x)
x = kl.TimeDistributed(keras.Sequential([kl.Dense(4), kl.BatchNormalization(), kl.Dense(2)]))(x)
x = kl.SeparableConv1D(3, 2, bias_initializer=ki.RandomNormal(stddev=0.02))(x)
model = keras.Model(i, x)
result = {"weights": [w.numpy() for w in model.weights], "config": keras_config(model)}
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("tf_keras"), reason="pip install --no-deps tf_keras==2.21.0")
def test_models_of_tf_keras_too():
    """tf.keras draws the seed of an unseeded initializer when it is first called, and keeps it elsewhere."""
    made = backend("tensorflow")(TF_KERAS)
    port = nn.ModuleDict({
        "attention": nn.MultiheadAttention(8, 2), "lstm": nn.LSTM(8, 3, bidirectional=True), "first": nn.Linear(6, 4),
        "norm": nn.BatchNorm1d(4), "second": nn.Linear(4, 2),
        "conv": nn.Sequential(nn.Conv1d(2, 2, 2, groups=2, bias=False), nn.Conv1d(2, 3, 1)),
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"of a model with the fans of keras-3\.14"):
        kinit.replay_keras(port, backend="tensorflow", keras_config=made["config"])
    kinit.replay_keras(port, backend="tensorflow", keras_config=made["config"], convention="keras-3.14")
    ours = kinit.to_keras(port)
    by_path = {e["path"]: w.reshape(-1) for e, w in zip(made["config"]["weights"], made["weights"], strict=True)}
    grouped = {entry["layer"]: [] for entry in made["config"]["weights"]}
    for entry in made["config"]["weights"]:
        grouped[entry["layer"]].append(by_path[entry["path"]])
    real = [weight for own in grouped.values() for weight in own]
    for i, (a, b) in enumerate(zip(ours, real, strict=True)):
        assert same_bits(torch.from_numpy(a).reshape(-1), b), i


# --- what it refuses --------------------------------------------------------------------------------------------------


class Inline(kl.Layer):
    """Keeps no initializer."""

    def build(self, shape):
        self.mix = self.add_weight((shape[-1],), initializer="glorot_uniform", name="mix")

    def call(self, x):
        return x * self.mix


class HeNormal(ki.Initializer):
    """Somebody's own, of the name of one of Keras'."""

    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, dtype=dtype)


def built(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


def shared_generator():
    generator = keras.random.SeedGenerator(3)
    return built(*(kl.Dense(4, kernel_initializer=ki.HeNormal(generator)) for _ in range(2)))


REFUSED = {
    "no model": (lambda: 3, TypeError, "`keras_model` must be a live Keras model, got int"),
    "a config": (lambda: {"class_name": "Sequential"}, TypeError, "got dict; a saved one goes to replay_keras as it"),
    "not built": (lambda: keras.Sequential([kl.Dense(3)]), ValueError, "has no weights; build it, or call it"),
    "inline": (lambda: built(Inline(name="scale")), ValueError, "their seeds, of .*scale/mix. A layer keeps one as an"),
    "None": (lambda: built(kl.Dense(3, bias_initializer=None, name="d")), ValueError, "their seeds, of .*d/bias"),
    "additive": (lambda: additive(), ValueError, "their seeds, of .*aa/scale"),
    "a function": (lambda: built(kl.Dense(3, kernel_initializer=lambda shape, dtype: keras.ops.ones(shape), name="f")),
                   ValueError, "their seeds, of .*f/kernel"),
    "a class of one's own": (
        lambda: built(kl.Dense(3, kernel_initializer=HeNormal(), name="o")), ValueError, "of .*o/kernel"),
    "one generator for two": (shared_generator, ValueError, "their seeds, of .*dense.*/kernel"),
    "drawn from twice": (lambda: drawn_from_twice(), ValueError, "their seeds, of .*l/lstm_cell/bias"),
}  # fmt: skip


def drawn_from_twice():
    init = ki.HeNormal(keras.random.SeedGenerator(1))
    return built(kl.Reshape((1, 4)), kl.LSTM(3, bias_initializer=init, name="l"))


def additive():
    a, b = keras.Input((5, 4)), keras.Input((6, 4))
    return keras.Model([a, b], kl.AdditiveAttention(name="aa")([a, b]))


@pytest.mark.parametrize("case", REFUSED)
def test_a_seed_that_is_not_kept_is_an_error(case):
    """The weights are named, and what to do."""
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        kinit.keras_config(make())


def test_laws_are_read_where_seeds_are_not_kept():
    """rules_from_keras needs no seed of a live model."""
    rules = kinit.rules_from_keras(built(kl.Dense(3, bias_initializer=None)), nn.Sequential(nn.Linear(4, 3)))
    assert rules == {"0.weight": "glorot_uniform", "0.bias": "glorot_uniform"}


@pytest.mark.parametrize("argument", [{"seed": 1}, {"order": []}, {"build": "functional"}, {"made": "program"}])
def test_what_speaks_of_draws_is_not_given_beside_seeds(argument):
    """There is nothing left to say."""
    model, port = one_object()
    with pytest.raises(
        ValueError, match=f"`{next(iter(argument))}` is not to be given: this `keras_config` has the seed"
    ):
        kinit.replay_keras(port, backend="torch", keras_config=captured(model), **argument)


def broken(config, **change):
    weights = [{**config["weights"][0], **change}, *config["weights"][1:]]
    return {**config, "weights": weights}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": []}, "Weight 0 of `keras_config` is not as kinit.keras_config makes it"),
        ({"shape": 4}, "Weight 0 of `keras_config` is not as kinit.keras_config makes it"),
        ({"shape": [4, 9]}, "has kernel \\(4, 9\\), and the torch model in its place 0.weight"),
        (
            {"initializer": {"class_name": "HeNormal", "config": {}}},
            "A kernel of `keras_config` has a random initializer",
        ),
    ],
)
def test_a_damaged_config_is_refused(change, message):
    """The error says which weight."""
    model, port = one_object()
    with pytest.raises(ValueError, match=message):
        kinit.replay_keras(port, backend="torch", keras_config=broken(captured(model), **change))


# --- the recipe for those who cannot install this package beside Keras ------------------------------------------------


def test_what_an_older_keras_gave_is_told():
    """The recipe has no convention; initializers without `input_axes` are of Keras before 3.15."""
    names = {}
    exec(RECIPE, names)
    model, port = attention()
    config = names["keras_config"](model)
    for entry in config["weights"]:
        entry["initializer"]["config"].pop("input_axes", None)
    with pytest.warns(UserWarning, match="though the config was saved by another version"):
        kinit.replay_keras(port, keras_config=config, backend="torch")
    kinit.replay_keras(port, keras_config=config, backend="torch", convention="keras-3.14")


@pytest.mark.parametrize("make", [subclassed, one_object, objects_in_any_order, attention, recurrent, nested])
def test_the_recipe_of_the_guide_does_the_same(make):
    """Its fifteen lines give what keras_config does, as far as the replay reads it."""
    assert len([line for line in RECIPE.splitlines() if line.strip()]) <= 15
    names = {}
    exec(RECIPE, names)
    keras.utils.set_random_seed(3)
    model, port = make()
    check_replay(model, port, config=json.loads(json.dumps(names["keras_config"](model))))
