"""Keras layers of somebody else's: told in one line, they are read, replayed and captured as Keras' own are."""

import json
import random
import re

import keras
import numpy as np
import pytest
from keras import initializers as ki
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.backends import same_bits
from tests.support.saved_keras import saved, values
from torch_kinit import twin
from torch_kinit.keras.draws import Source, seeds_of
from torch_kinit.keras.read import read_layer

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")
STD = {"stddev": 0.3}


# --- layers as people write them --------------------------------------------------------------------------------------


class Plain(kl.Layer):
    def call(self, x):
        return x


class Sampling(kl.Layer):
    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)


class Scale(kl.Layer):
    def build(self, shape):
        self.gamma = self.add_weight((shape[-1],), initializer="ones", name="gamma")
        self.shift = self.add_weight((shape[-1],), initializer=ki.Constant(0.5))

    def call(self, x):
        return x * self.gamma + self.shift


class Mixed(kl.Layer):
    """Initializers of three kinds: in the config, made in the constructor, made in `build`."""

    def __init__(self, kernel_initializer="he_normal", seed=None, **kwargs):
        super().__init__(**kwargs)
        self.generators = [keras.random.SeedGenerator(seed), keras.random.SeedGenerator(seed)]
        self.gate_initializer = ki.RandomUniform()
        self.kernel_initializer = ki.get(kernel_initializer)

    def get_config(self):
        kernel = ki.serialize(self.kernel_initializer) if self.kernel_initializer else None
        return {**super().get_config(), "kernel_initializer": kernel}

    def build(self, shape):
        self.mix = self.add_weight((shape[-1], 3), initializer="lecun_normal", name="mix")
        self.kernel = self.add_weight((shape[-1], 4), initializer=self.kernel_initializer, name="kernel")
        self.gate = self.add_weight((4,), initializer=self.gate_initializer, name="gate")

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)

    def call(self, x):
        return x @ self.kernel * self.gate


class FromTheStart(kl.Layer):
    """Makes its weight in the constructor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator()
        self.table = self.add_weight((5, 4), initializer="uniform", name="table")

    def call(self, x):
        return x


class Block(kl.Layer):
    """A transformer block, as in Keras' examples."""

    def __init__(self, width, heads, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads, self.rate = width, heads, rate
        self.att = kl.MultiHeadAttention(heads, width // heads, dropout=rate)
        self.ffn = keras.Sequential([kl.Dense(2 * width, "relu"), kl.Dense(width)])
        self.norms = [kl.LayerNormalization(), kl.LayerNormalization()]
        self.dropout = kl.Dropout(rate)

    def get_config(self):
        return {**super().get_config(), "width": self.width, "heads": self.heads, "rate": self.rate}

    def call(self, x):
        x = self.norms[0](x + self.dropout(self.att(x, x)))
        return self.norms[1](x + self.dropout(self.ffn(x)))


def block_layers(config):
    width, heads, rate = config["width"], config["heads"], config["rate"]
    return [
        twin("MultiHeadAttention", num_heads=heads, key_dim=width // heads, dropout=rate),
        *[twin("Dense"), twin("Dense"), twin("LayerNormalization"), twin("LayerNormalization")],
        twin("Dropout", rate=rate),
    ]


class Places(kl.Layer):
    """A positional embedding, whose table is a layer made in `build`."""

    def build(self, shape):
        self.table = kl.Embedding(shape[1], shape[2], embeddings_initializer=ki.RandomNormal(**STD))
        self.table.build(())
        self.bias = self.add_weight((shape[2],), initializer="random_normal", name="bias")

    def call(self, x):
        return x + self.table(keras.ops.arange(x.shape[1])) + self.bias


class Residual(kl.Layer):
    """Holds a layer that it is given."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def get_config(self):
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    def call(self, x):
        return x + self.layer(x)


class MyDense(kl.Dense):
    """A subclass of a layer of Keras'."""


class MyCell(kl.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.kernel_initializer = ki.get("orthogonal")

    def get_config(self):
        return {**super().get_config(), "units": self.units, "kernel_initializer": "orthogonal"}

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], self.units), initializer=self.kernel_initializer, name="kernel")

    def call(self, x, states):
        return x @ self.kernel, states


MIXED = {
    "weights": {"mix": "lecun_normal", "kernel": "he_normal", "gate": "uniform"},
    "constructor": [2, "gate", "kernel"],
}
CASES = {
    "nothing": (Plain, {}, lambda: Plain()),
    "a SeedGenerator": (Sampling, {"seed_generators": 1}, lambda: Sampling()),
    "a seeded one": (Sampling, {"seed_generators": 1}, lambda: Sampling(seed=4)),
    "constants": (Scale, {"weights": {"gamma": "ones", "variable": 0.5}}, lambda: Scale()),
    "an order": (Mixed, MIXED, lambda: Mixed()),
    "another initializer": (Mixed, MIXED, lambda: Mixed("orthogonal")),
    "an object": (Mixed, MIXED, lambda: Mixed(ki.RandomNormal(**STD))),
    "a seeded object": (Mixed, MIXED, lambda: Mixed(ki.RandomNormal(seed=3))),
    "no initializer": (Mixed, {**MIXED, "constructor": [2, "gate"]}, lambda: Mixed(None)),
    "made at once": (
        FromTheStart,
        {"weights": {"table": "uniform"}, "constructor": [1, "table"]},
        lambda: FromTheStart(),
    ),
    "layers": (Block, {"constructor": block_layers}, lambda: Block(4, 2)),
    "layers without dropout": (Block, {"constructor": block_layers}, lambda: Block(4, 2, 0.0)),
    "a layer in build": (
        Places,
        {
            "weights": {"bias": "normal"},
            "build": [twin("Embedding", embeddings_initializer=ki.RandomNormal(**STD)), "bias"],
        },
        lambda: Places(),
    ),
    "a layer given": (Residual, {"constructor": lambda config: [config["layer"]]}, lambda: Residual(kl.Dense(4))),
    "a subclass": (
        MyDense,
        {"constructor": lambda config: [twin("Dense", **config)]},
        lambda: MyDense(3, None, False, "normal"),
    ),
    "a cell in RNN": (MyCell, {"weights": {"kernel": "orthogonal"}}, lambda: kl.RNN(MyCell(4))),
    "wrapped": (Mixed, MIXED, lambda: kl.TimeDistributed(Mixed(ki.RandomNormal(**STD)))),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_and_seeds_are_those_of_keras(case, register_keras):
    """Each weight of a layer that was told has Keras' values, and as many seeds are drawn."""
    cls, told, make = CASES[case]
    register_keras(cls.__name__, **told)
    keras.utils.set_random_seed(1)
    real = make()
    real(keras.Input((7, 4)))
    following = random.randint(1, 10**9)
    found, last = read_layer(saved(real)), Source(None)
    seeds = seeds_of([*found.constructor, *found.build, last], 1)
    assert seeds[last] == following
    names = [re.sub(r"variable_\d+", "variable", weight.name) for weight in real.weights]
    assert [weight.name.rpartition("/")[2] for weight in found.weights] == names
    for weight, expected in zip(found.weights, real.weights, strict=True):
        weight.shape = tuple(expected.shape)
        assert same_bits(values(weight, seeds), expected.value.detach()), weight.name


def test_from_a_config_objects_are_made_in_their_place(register_keras):
    """model_from_json makes the initializers of a layer when it makes the layer, also those with arguments."""
    register_keras("Mixed", **MIXED)
    inputs = keras.Input((4,))
    text = keras.Model(inputs, Mixed(ki.RandomNormal(**STD))(inputs)).to_json()
    keras.utils.set_random_seed(1)
    real = keras.models.model_from_json(text, custom_objects={"Mixed": Mixed})
    port = holder(mix=(4, 3), kernel=(4, 4), gate=(4,))
    kinit.replay_keras(port, 1, backend="torch", keras_config=text, made="model_from_json")
    check_equal(port, real)


# --- whole models -----------------------------------------------------------------------------------------------------


def holder(**shapes):
    """A module with the layout of a Keras layer that torch does not have."""
    import torch

    module = type("Holder", (nn.Module,), {})()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    kinit.register_layout(type(module), lambda m: [kinit.Variable(name, name, "keras") for name in shapes])
    return module


def check_equal(port, real):
    for i, (ours, theirs) in enumerate(zip(kinit.to_keras(port), real.get_weights(), strict=True)):
        assert np.array_equal(ours.reshape(-1), theirs.reshape(-1)), i


def vae():
    """A functional model through two classes that Keras does not have."""
    inputs = keras.Input((8,))
    x = kl.Dense(6, activation="relu", name="hidden")(inputs)
    x = kl.Dense(2, name="mean")(x)
    x = Plain()(Sampling()(x))
    x = kl.Dense(6, name="decoder")(x)
    return keras.Model(inputs, kl.Dense(8, name="pixels")(x))


def vae_port():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2), nn.Linear(2, 6), nn.Linear(6, 8))


@pytest.mark.filterwarnings("ignore:The config does not tell")
def test_a_replay_passes_by_layers_that_were_told(register_keras):
    """The seed that the sampling draws is passed over: every later layer has Keras' own numbers."""
    register_keras("Sampling", seed_generators=1)
    register_keras("Plain")
    keras.utils.set_random_seed(1)
    real, port = vae(), vae_port()
    kinit.replay_keras(port, 1, backend="torch", keras_config=real.to_json())
    check_equal(port, real)
    assert set(kinit.rules_from_keras(real.to_json(), port)) == {name for name, _ in port.named_parameters()}


def test_the_error_has_the_line_that_helps(register_keras):
    """The line that it proposes, run as it is, makes the config readable; so for each class in turn."""
    config, port = vae().to_json(), vae_port()
    for cls in ("Sampling", "Plain"):
        with pytest.raises(ValueError, match=rf"is of class {cls}, .*kinit\.keras_config\(keras_model\)") as caught:
            kinit.rules_from_keras(config, port)
        exec(re.search(r"kinit\.register_keras_layer\([^)]*\)", str(caught.value))[0])
    assert len(kinit.rules_from_keras(config, port)) == 8


@keras.saving.register_keras_serializable("package")
class Packaged(kl.Layer):
    call = Plain.call


Packaged.__name__ = "Attention"  # a name of Keras' own


class Own(kl.Layer):
    call = Plain.call


Own.__name__ = "Dropout"


@pytest.mark.parametrize(
    ("made", "change", "full", "name"),
    [
        (Own, {}, f"{__name__}.Dropout", f"{__name__}.Dropout"),
        (Own, {"module": None}, "__main__.Dropout", "__main__.Dropout"),  # as Keras saves a class of the program
        (Packaged, {"registered_name": "package>Attention"}, f"{__name__}.Attention", "package>Attention"),
    ],
)
def test_a_class_with_a_name_of_keras_is_not_taken_for_it(made, change, full, name, register_keras):
    """A class of one's own named as one of Keras' is unknown until told, with its module or the name it is saved by."""
    entry = {**saved(made()), **change}
    with pytest.raises(ValueError, match=re.escape(f"kinit.register_keras_layer({full!r})")):
        read_layer(entry)
    register_keras(name, weights={"w": "ones"})
    assert [weight.name for weight in read_layer(entry).weights] == ["w"]
    assert [weight.name for weight in read_layer(saved(kl.Attention(use_scale=True))).weights] == ["scale"]


@pytest.mark.parametrize("class_name", ["Sampling", "package>Sampling"])
def test_files_of_keras_2_are_read(class_name, register_keras):
    """Their entries have neither module nor registered name, but may have the package in the class' name."""
    register_keras("Sampling", seed_generators=1)
    assert len(read_layer({"class_name": class_name, "config": {"name": "s"}}).constructor) == 1


def test_a_layer_scale_of_ones_own(register_keras):
    """A name of keras.applications can be told, which leaves that of keras.applications as it is."""
    register_keras("LayerScale", weights={"scale": "ones"})
    config = {"init_values": 0.5, "projection_dim": 3}
    own = {"class_name": "LayerScale", "module": "my.layers", "config": config}
    theirs = {**own, "module": "keras.src.applications.convnext"}
    assert [[w.name for w in read_layer(entry).weights] for entry in (own, theirs)] == [["scale"], ["gamma"]]


def test_registering_again_replaces(register_keras):
    """The last word counts."""
    register_keras("Sampling", seed_generators=1)
    register_keras("Sampling")
    assert read_layer({"class_name": "Sampling", "module": "m", "config": {}}).constructor == []


def test_a_twin_can_be_of_a_class_that_was_told(register_keras):
    """In `order`, beside ints and names."""
    with pytest.raises(ValueError, match="register_keras_layer"):
        twin("Sampling")
    register_keras("Sampling", seed_generators=1)
    port = nn.Sequential(nn.Linear(3, 2))
    done = kinit.replay_keras(port, 0, backend="jax", order=[twin("Sampling"), "0"])
    again = kinit.replay_keras(port, 0, backend="jax", order=[1, "0"])
    assert done["0.weight"].seeds == again["0.weight"].seeds


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(4, 4), nn.Linear(4, 4)


def test_names_of_twins_inside_are_names_of_modules(register_keras):
    """A port that registers modules of those names in another order is refused, until `modules` says which is which."""
    laws = {"value": "he_normal", "query": "lecun_normal"}
    register_keras("Pair", constructor=[twin("Dense", name=n, kernel_initializer=law) for n, law in laws.items()])
    config = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Pair", "config": {"name": "pair"}}]}}
    with pytest.raises(ValueError, match=r"both fit\. Say which is meant"):
        kinit.rules_from_keras(config, Pair())
    rules = kinit.rules_from_keras(config, Pair(), modules={"pair": ["value", "query"]})
    assert {name: rules[f"{name}.weight"] for name in laws} == laws


def test_weights_of_a_file_pass_by_layers_that_were_told(register_keras, tmp_path):
    """from_keras reads a .keras file with such layers."""
    real, port = vae(), vae_port()
    real.save(tmp_path / "vae.keras")
    register_keras("Sampling", seed_generators=1)
    register_keras("Plain")
    kinit.from_keras(port, tmp_path / "vae.keras")
    check_equal(port, real)


@pytest.mark.parametrize("initializer", [ki.RandomNormal(**STD), ki.HeNormal(seed=3), kinit.he_normal_])
@pytest.mark.filterwarnings("ignore:The seed in the config")
def test_a_twin_takes_initializers_as_objects(initializer):
    """They draw as those that a config names: one seed, or none if they have one."""
    (kernel, _) = read_layer(twin("Dense", kernel_initializer=initializer).entry()).constructor
    assert kernel.random
    assert kernel.draws == (getattr(initializer, "_init_seed", None) is None)


# --- live models ------------------------------------------------------------------------------------------------------


def captured(*layers, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *layers])


def test_constants_are_found_on_a_live_model(register_keras):
    """keras_config takes from what was told the constants that a layer does not keep, of weights without names too."""
    model, port = captured(Scale(), kl.Dense(3)), nn.Sequential(holder(gamma=4, variable=4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="does not keep the initializers"):
        kinit.keras_config(model)
    register_keras("Scale", weights={"gamma": "ones", "variable": 0.5})
    config = json.loads(json.dumps(kinit.keras_config(model)))
    kinit.replay_keras(port, backend="torch", keras_config=config)
    check_equal(port, model)


@keras.saving.register_keras_serializable("package")
class Named(Scale):
    """Registered in Keras, too."""


@pytest.mark.parametrize("name", ["Named", "package>Named", f"{__name__}.Named"])
def test_a_live_layer_is_found_by_each_of_its_names(name, register_keras):
    """Its class' name, alone, with the package or with the module."""
    register_keras(name, weights={"gamma": "ones", "variable": 0.5})
    assert len(kinit.keras_config(captured(Named()))["weights"]) == 2


def test_layers_inside_are_found_on_a_live_model(register_keras):
    """A block that was told is one layer, whose parts give their own seeds; told or not, the replay is exact."""
    model = captured(Block(4, 2), kl.Dense(3), shape=(7, 4))
    inside = [nn.MultiheadAttention(4, 2), nn.Linear(4, 8), nn.Linear(8, 4), nn.LayerNorm(4), nn.LayerNorm(4)]
    for told in (False, True):
        if told:
            register_keras("Block", constructor=block_layers)
        port = nn.Sequential(*inside, nn.Linear(4, 3))
        kinit.replay_keras(port, backend="torch", keras_config=kinit.keras_config(model))
        check_equal(port, model)


def test_a_draw_inside_build_is_lost_all_the_same(register_keras):
    """No word of a class tells the seed that it drew and threw away."""
    register_keras("Mixed", **MIXED)
    with pytest.raises(ValueError, match=r"their seeds, of \S*mixed\S*/mix\."):
        kinit.keras_config(captured(Mixed()))


# --- what it refuses --------------------------------------------------------------------------------------------------

REFUSED = {
    "no name": (["X", {"weights": 3}], TypeError, "`weights` must be a dict from names to initializers, got 3"),
    "a class": ([Plain, {}], TypeError, "`class_name` must be the name of a Keras class, got <class"),
    "empty": (["", {}], ValueError, "`class_name` must be the name of a Keras class, got ''"),
    "Keras' own": (["Dense", {}], ValueError, "'Dense' is a class of Keras' own.*'my.module.Dense'"),
    "a model": (["Sequential", {}], ValueError, "'Sequential' is a class of Keras' own"),
    "a wrapper": (["RNN", {}], ValueError, "'RNN' is a class of Keras' own"),
    "Keras' module": (["keras.layers.Foo", {}], ValueError, "must be no class of Keras' own, got 'keras.layers.Foo'"),
    "a key": (["X", {"weights": {1: "ones"}}], TypeError, "got the key 1"),
    "an initializer": (["X", {"weights": {"w": "on"}}], ValueError, "`weights`, 'w': Unknown initializer 'on'"),
    "a function": (["X", {"weights": {"w": abs}}], TypeError, "`weights` gives 'w' <built-in.*; it takes a Keras name"),
    "truth": (["X", {"weights": {"w": True}}], TypeError, "`weights` gives 'w' True"),
    "infinity": (["X", {"weights": {"w": float("inf")}}], ValueError, "finite"),
    "a count": (["X", {"seed_generators": "1"}], TypeError, "`seed_generators` must be an int, got '1'"),
    "below zero": (["X", {"seed_generators": -1}], ValueError, "`seed_generators` must not be negative, got -1"),
    "both": (
        ["X", {"seed_generators": 1, "constructor": [1]}], ValueError, "so `seed_generators` goes into it, as an int"
    ),
    "made of text": (
        ["X", {"constructor": "Dense"}], TypeError, "`constructor` must be a list of names .*, got 'Dense'"
    ),
    "made of what": (
        ["X", {"constructor": [2.5]}], TypeError, "`constructor` lists names of weights, ints .*, got 2.5"
    ),
    "made of less": (["X", {"constructor": [-1]}], TypeError, "`constructor` lists names of weights, ints .*, got -1"),
    "no weight": (["X", {"weights": {"gamma": 1}, "build": ["gama"]}], ValueError, "Did you mean 'gamma'"),
    "twice": (["X", {"weights": {"a": 1}, "constructor": ["a", "a"]}], ValueError, "`constructor` has 'a' twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_told_wrongly_is_refused_at_once(case, register_keras):
    """The argument, what came and what it takes."""
    (name, told), error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        register_keras(name, **told)


WRONG_LATER = {
    "weights": ({"weights": lambda config: ["a"]}, TypeError, "told of X: `weights` must be a dict"),
    "constructor": ({"constructor": lambda config: None}, TypeError, "told of X: `constructor` must be a list"),
    "unknown": (
        {"constructor": lambda config: ["w"]},
        ValueError,
        "told of X: `constructor` has 'w', which is not in `weights`",
    ),
    "config": ({"constructor": lambda config: [config["n"]]}, ValueError, r"The config of layer 'x' \(X\) lacks 'n'"),
    "missing": (
        {"weights": {"a": 1, "b": 2}, "build": ["b"]},
        ValueError,
        "told of X: `constructor` and `build` lack 'a'",
    ),
}


@pytest.mark.parametrize("case", WRONG_LATER)
def test_what_a_function_tells_wrongly_is_refused(case, register_keras):
    """When a config is read, with the class and the layer."""
    told, error, message = WRONG_LATER[case]
    register_keras("X", **told)
    with pytest.raises(error, match=message):
        read_layer({"class_name": "X", "module": "m", "config": {"name": "x"}})
