"""A replayed torch model has the weights of the real Keras model, on each backend, whatever tells its draws."""

from functools import partial

import pytest
from torch import nn
from torch.nn.utils import parametrize

import torch_kinit as kinit
from tests.support.backends import NAMES, same_bits
from tests.support.port_models import PORTS, Port, check_output, check_state, conv, real, spread

on_each_backend = pytest.mark.parametrize("name", NAMES)
SEEDS = (0, 1337, 2**32 - 1)


def check(port, name, seed=1, **told):
    """Replay `port` over a model of other weights, and compare it with real Keras."""
    model, expected = port.make(), port.expected(real(name, port, seed)["weights"])
    with pytest.raises(AssertionError):
        check_state(model, expected, name, port.orthogonal)
    kinit.replay_keras(model, seed, backend=name, **told)
    check_state(model, expected, name, port.orthogonal)


def _block(path):
    parts = ("attention.query", "attention.key", "attention.value", 1, "attention.output")  # 1: attention's dropout
    return [1, *(f"{path}.{p}" if isinstance(p, str) else p for p in (*parts, "drop", "wide", "narrow", "drop_last"))]


TOLD = {
    "image": {},
    "attention": {"build": "functional"},
    "hand-written attention": {
        "build": "functional",
        "order": ["words", *_block("blocks.0"), *_block("blocks.1"), "head"],
    },
    "recurrent": {},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", PORTS)
@on_each_backend
def test_a_whole_model_is_replayed_from_its_modules(name, case, seed):
    """The torch modules, in the order in which Keras makes its layers, give each weight the bits of Keras'."""
    check(PORTS[case], name, seed, **TOLD[case])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", PORTS)
@on_each_backend
def test_a_whole_model_is_replayed_from_its_config(name, case, seed):
    """The saved config alone gives each weight the bits of Keras'."""
    check(PORTS[case], name, seed, keras_config=real(name, PORTS[case], seed)["config"])


@pytest.mark.parametrize("case", PORTS)
def test_a_replayed_model_computes_what_keras_does(case):
    """Outputs are equal to rounding, so the weights are where Keras has them."""
    port, model = PORTS[case], PORTS[case].make()
    kinit.replay_keras(model, 1, backend="torch", **TOLD[case])
    check_output(model, port.inputs, real("torch", port, output=True)["output"])


def stack(twins, *modules, shape=(5,), dtype="float32", **kwargs):
    """A Sequential of these layers, and of these modules."""
    source = f'def make():\n    return keras.Sequential([keras.Input({shape}, dtype="{dtype}"), {twins}])'
    return Port(source, lambda: nn.Sequential(*[getattr(nn, cls)(*sizes) for cls, *sizes in modules]), **kwargs)


def program(source, make, layers=()):
    """Keras code of several statements, which returns the model."""
    return Port("def make():\n" + source, make, layers)


def lookup(tie):
    model = nn.ModuleDict({"words": nn.Embedding(11, 5), "mid": nn.Linear(5, 5), "out": nn.Linear(5, 11, bias=False)})
    if tie:
        model["out"].weight = model["words"].weight
    return model


def reversible(tie, *layers):
    return program(
        f"""
    words = kl.ReversibleEmbedding(11, 5, tie_weights={tie})
    x = keras.Input((7,), dtype="int32")
    y = kl.Dense(5, name="mid")(words(x))
    return keras.Model(x, words(y, reverse=True))
""",
        partial(lookup, tie),
        layers,
    )


TIED = reversible(True, ("", lambda table: {"words.weight": table, "out.weight": table}, 1), "mid")
TWO, THREE = (("Linear", 5, 4), ("Linear", 4, 3)), (("Linear", 5, 4), ("Linear", 4, 3), ("Linear", 3, 2))
SEPARABLE = stack(
    'kl.Dropout(0.1), kl.SeparableConv1D(4, 3, bias_initializer="random_normal"), kl.Dense(2)',
    *(("Conv1d", 5, 5, 3, 1, 0, 1, 5, False), ("Conv1d", 5, 4, 1), ("Linear", 4, 2)),
    shape=(8, 5),
)
RANDOM_BIASES = stack(
    'kl.LSTM(4, bias_initializer="random_normal", return_sequences=True),'
    'kl.LSTM(4, bias_initializer="random_normal", unit_forget_bias=False, return_sequences=True),'
    'kl.GRU(4, bias_initializer="random_normal", recurrent_initializer="he_normal"), kl.Dense(2)',
    *(("LSTM", 5, 4), ("LSTM", 4, 4), ("GRU", 4, 4), ("Linear", 4, 2)),
    shape=(7, 5),
)
LAWS = stack(
    'kl.Conv2D(4, 3, kernel_initializer="he_normal", bias_initializer="truncated_normal"),'
    'kl.DepthwiseConv2D(3, depthwise_initializer="lecun_normal"), kl.Dense(6, kernel_initializer="random_uniform"),'
    'kl.Dense(5, kernel_initializer="orthogonal")',
    *(("Conv2d", 3, 4, 3), ("Conv2d", 4, 4, 3, 1, 0, 1, 4), ("Linear", 4, 6), ("Linear", 6, 5)),
    shape=(8, 8, 3),
    orthogonal="3.weight",
)
NONES = stack("kl.Dense(4, bias_initializer=None), kl.Dense(3, bias_initializer=None)", *TWO)
ATTENTION = program(
    """
    layers = [kl.MultiHeadAttention(2, 3), kl.Dense(4)]
    x = keras.Input((7, 6))
    return keras.Model(x, layers[1](layers[0](x, x)))
""",
    lambda: nn.Sequential(nn.MultiheadAttention(6, 2), nn.Linear(6, 4)),
)
_HAND = [("query", "key", "value", "output"), ("drop", "wide", "narrow", "drop_last")]
WITHOUT_CONFIG = {
    "twin of two modules": (SEPARABLE, {"order": [1, kinit.twin("SeparableConv1D", "0", "1"), "2"],
                                        "rules": {"1.bias": "random_normal"}}),
    "twin of four modules": (PORTS["hand-written attention"], {"build": "functional", "order": [
        *("words", kinit.twin("MultiHeadAttention", *(f"blocks.0.attention.{p}" for p in _HAND[0]), dropout=0.1)),
        *(f"blocks.0.{part}" for part in _HAND[1]),
        kinit.twin("MultiHeadAttention", *(f"blocks.1.attention.{p}" for p in _HAND[0]), dropout=0.1),
        *(*(f"blocks.1.{part}" for part in _HAND[1]), "head")]}),
    "twin of a wrapper": (
        stack("kl.Bidirectional(kl.LSTM(3, dropout=0.1, seed=8)), kl.Dense(2)",
              ("LSTM", 5, 3, 1, True, False, 0.0, True), ("Linear", 6, 2), shape=(7, 5)),
        {"order": [kinit.twin("Bidirectional", "0", layer=kinit.twin("LSTM", seed=8)), "1"]}),
    "twins that only draw": (
        stack("kl.RandomCrop(4, 4), kl.GaussianNoise(0.1), kl.Flatten(), kl.Dense(3)", ("Linear", 16, 3),
              shape=(6, 6, 1)),
        {"order": [kinit.twin("RandomCrop"), kinit.twin("GaussianNoise"), ""]}),
    "twins with seeds, which do not draw": (
        stack("kl.Dropout(0.1, seed=3), kl.GaussianNoise(0.5, seed=5), kl.Dense(3)", ("Linear", 5, 3)),
        {"order": [kinit.twin("Dropout", seed=3), kinit.twin("GaussianNoise", seed=5), "0"]}),
    "twins with initializers": (
        stack("kl.Dense(4, kernel_initializer='he_normal'), kl.Dense(3, bias_initializer='random_normal')", *TWO),
        {"order": [kinit.twin("Dense", "0", kernel_initializer="he_normal"),
                   kinit.twin("Dense", "1", bias_initializer="random_normal")]}),
    "twins of biases that are None": (NONES, {"order": [
        kinit.twin("Dense", "0", bias_initializer=None), kinit.twin("Dense", "1", bias_initializer=None)]}),
    "SimpleRNN's order of draws": (
        stack("kl.SimpleRNN(3), kl.Dense(2)", ("RNN", 5, 3), ("Linear", 3, 2), shape=(7, 5)), {}),
    "bare draws": (program("""
    kl.Dropout(0.1), kl.GRU(3)
    return keras.Sequential([keras.Input((5,)), kl.Dense(4), kl.Dense(3)])
""", lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))), {"order": [1, 0, 3, "0", "1"]}),
    "a Dropout that never drops": (
        stack("kl.Dropout(0), kl.Dense(4), kl.Dropout(0.2), kl.Dense(3)",
              ("Dropout", 0), TWO[0], ("Dropout", 0.2), TWO[1]), {}),
    "a Dropout that Keras has not": (
        stack("kl.Dense(4), kl.Dense(3)", ("Dropout", 0.1), *TWO), {"order": ["1", "2"]}),
    "random biases": (RANDOM_BIASES, {"rules": {
        "0": {"bias": partial(kinit.unit_forget_bias_, others=kinit.random_normal_)}, "1": {"bias": "random_normal"},
        "2": {"bias": "random_normal", "recurrent_kernel": "he_normal"}}}),
    "other laws": (LAWS, {"rules": {"0": {"kernel": "he_normal", "bias": "truncated_normal"}, "1": "lecun_normal",
                                    "2": "random_uniform", "3": "orthogonal"}}),
    "seeds of its own": (
        stack("kl.Dense(4, kernel_initializer=ki.HeNormal(7)), kl.Dense(3)", *TWO),
        {"rules": lambda name: {"0.weight": partial(kinit.he_normal_, generator=kinit.KerasSeed(7, name))}}),
    "all made, then all built": (ATTENTION, {"build": "sequential"}),
    "a tied tensor": (TIED, {}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), spread(WITHOUT_CONFIG))
def test_order_rules_and_build_tell_what_modules_do_not(name, case):
    """Twins, ints, left-out modules, laws and ways to build give the draws of the Keras program."""
    port, told = WITHOUT_CONFIG[case]
    check(port, name, **{key: value(name) if callable(value) else value for key, value in told.items()})


WITH_CONFIG = {
    "random biases": (RANDOM_BIASES, {}),
    "other laws": (LAWS, {}),
    "one separable layer for two modules": (SEPARABLE, {}),
    "biases that are None": (NONES, {}),
    "initializers made before their layers": (
        stack("kl.Dense(4, kernel_initializer=ki.RandomNormal(stddev=0.02)), kl.Dropout(0.1),"
              "kl.Dense(3, kernel_initializer='he_normal', bias_initializer=ki.RandomUniform(-0.1, 0.1)),"
              "kl.Dense(2, kernel_initializer=ki.VarianceScaling(2.0, 'fan_out', 'untruncated_normal'))", *THREE), {}),
    "seeds of its own": (
        stack("kl.Dense(4, kernel_initializer=ki.HeNormal(7)), kl.Dropout(0.1, seed=3), kl.Dense(3),"
              "kl.Dense(2, kernel_initializer=ki.Orthogonal(0.5, keras.random.SeedGenerator(2**31 - 1)),"
              "bias_initializer=ki.RandomNormal(seed=0))", *THREE, orthogonal="2.weight"), {}),
    "initializers without chance": (
        stack("kl.Dense(4, kernel_initializer=ki.Constant(0.25)), kl.Dense(3, kernel_initializer='identity',"
              "bias_initializer='ones'), kl.Dense(2)", *THREE), {}),
    "modules in another order": (
        Port(stack("kl.Dense(4, name='a'), kl.Dense(4, name='b'), kl.BatchNormalization(name='c'), kl.Dense(3)").source,
             lambda: nn.ModuleDict({"z": nn.Linear(4, 4), "y": nn.Linear(5, 4), "x": nn.Linear(4, 3)}),
             ("y", "z", ("", lambda *_: {}, 4), "x")), {"modules": {"b": "z", "a": ["y"], "c": None}}),
    "a nested model": (program("""
    inner = [keras.Input((5,)), kl.Dense(4, name="in"), kl.Dropout(0.1), kl.Dense(3, name="out")]
    encoder = keras.Sequential(inner, name="encoder")
    x = keras.Input((5,))
    return keras.Model(x, kl.Dense(2)(encoder(x)))
""", lambda: nn.ModuleDict({"c": nn.Linear(3, 2), "b": nn.Linear(4, 3), "a": nn.Linear(5, 4)}), ("a", "b", "c")),
        {"modules": {"encoder/in": "a", "encoder/out": "b"}}),
    "a layer made before what it is called on": (program("""
    x = keras.Input((5,))
    y = kl.Dropout(0.1, name="drop")(kl.Dense(4, name="a")(x))
    return keras.Model(x, kl.Dense(3, name="b")(y))
""", lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))), {"order": ["drop", "a", "b"]}),
    "layers that are added": (program("""
    model = keras.Sequential()
    model.add(keras.Input((5,)))
    model.add(kl.Dense(4, bias_initializer=None))
    model.add(kl.Dense(3))
    return model
""", lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))), {"build": "functional"}),
    "tied embeddings": (TIED, {}),
    "untied embeddings": (reversible(False, "words", "out", "mid"), {"modules": {"mid": "mid"}}),
    "convolutions in groups": (
        stack("kl.Conv2D(6, 3, groups=3, kernel_initializer='he_normal')", ("Conv2d", 3, 6, 3, 1, 0, 1, 3),
              shape=(8, 8, 3), layers=(("0", conv, 2),)), {"depthwise": False}),
    "convolutions in groups, here depthwise": (
        stack("kl.Conv2D(6, 3, groups=3, kernel_initializer='he_normal')", ("Conv2d", 3, 6, 3, 1, 0, 1, 3),
              shape=(8, 8, 3), layers=(("0", conv, 2),)), {}),
    "depthwise, here convolutions in groups": (
        stack("kl.DepthwiseConv2D(3, depth_multiplier=2, depthwise_initializer='he_normal')",
              ("Conv2d", 3, 6, 3, 1, 0, 1, 3), shape=(8, 8, 3)), {"depthwise": False}),
    "all made, then all built": (ATTENTION, {"build": "sequential"}),
    "attention over other sizes": (program("""
    x, y = keras.Input((7, 6)), keras.Input((5, 4))
    return keras.Model([x, y], kl.MultiHeadAttention(2, 3, dropout=0.1)(x, y))
""", lambda: nn.Sequential(nn.MultiheadAttention(6, 2, 0.1, kdim=4, vdim=4))), {}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), spread(WITH_CONFIG))
def test_a_config_settles_laws_seeds_and_draws(name, case):
    """What the saved model says, with `modules`, `order` and `build` where it cannot, gives Keras' own weights."""
    port, told = WITH_CONFIG[case]
    check(port, name, keras_config=real(name, port)["config"], **told)


@pytest.mark.parametrize("suffix", [".keras", ".json"])
def test_a_saved_model_is_read_from_its_file(tmp_path, suffix):
    """`keras_config` takes the path, as text or as a Path, of what Keras saved."""
    path, port = tmp_path / f"model{suffix}", PORTS["recurrent"]
    save = f"model.save({str(path)!r})" if suffix == ".keras" else f"open({str(path)!r}, 'w').write(model.to_json())"
    other = Port(port.source.replace("def make", "def build") + f"""
def make():
    model = build()
    {save}
    return model
""", port.make)  # fmt: skip
    real("torch", other)
    for given in (path, str(path)):
        check(other, "torch", keras_config=given)


@pytest.mark.parametrize("config", [True, False])
@on_each_backend
def test_bfloat16_weights_are_keras_own(name, config):
    """A model under the pure bfloat16 policy draws in bfloat16, and so does its port."""
    port = stack("kl.Dense(40, kernel_initializer='he_normal', dtype='bfloat16'), kl.Dense(3, dtype='bfloat16')",
                 ("Linear", 5, 40), ("Linear", 40, 3))  # fmt: skip
    found, model = real(name, port), port.make().bfloat16()
    told = {"keras_config": found["config"]} if config else {"rules": {"0.weight": "he_normal"}}
    kinit.replay_keras(model, 1, backend=name, **told)
    for key, value in port.expected(found["weights"]).items():
        assert same_bits(model.state_dict()[key], value.bfloat16()), key  # Keras gives torch's as float32


class Twice(nn.Module):
    """A parametrization that loses no bit, and has a way back."""

    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


@on_each_backend
def test_a_parametrized_weight_is_set_through_its_parametrization(name):
    """What the module computes with is Keras' weight."""
    port = stack("kl.Dense(4), kl.Dropout(0.1), kl.Dense(3)", *TWO)
    model, expected = port.make(), port.expected(real(name, port)["weights"])
    parametrize.register_parametrization(model[0], "weight", Twice())
    kinit.replay_keras(model, 1, backend=name, keras_config=real(name, port)["config"])
    assert same_bits(model[0].weight.detach(), expected["0.weight"])
    assert same_bits(model[1].weight.detach(), expected["1.weight"])
