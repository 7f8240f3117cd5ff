"""A replayed torch model has the weights of the real Keras model, on each backend, whatever tells its draws."""

from functools import partial

import pytest
from torch import nn
from torch.nn.utils import parametrize

import torch_kinit as kinit
from tests.support.backends import NAMES, same_bits
from tests.support.models import Twice
from tests.support.port_models import PORTS, Port, check_output, check_state, real, spread
from tests.support.small_ports import (
    ATTENTION,
    LAWS,
    NONES,
    RANDOM_BIASES,
    SEPARABLE,
    TIED,
    TWO,
    WITH_CONFIG,
    program,
    stack,
)

pytestmark = pytest.mark.slow  # asks processes of Keras

# Of whether there is a warning, and of what, tests/keras/test_doubts.py has tests.
told_or_not = pytest.mark.filterwarnings("ignore:The config does not tell all that the program drew")
on_each_backend = pytest.mark.parametrize("name", NAMES)
SEEDS = (0, 1337, 2**32 - 1)


def check_replayed(port, name, seed=1, **told):
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
    check_replayed(PORTS[case], name, seed, **TOLD[case])


@told_or_not
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", PORTS)
@on_each_backend
def test_a_whole_model_is_replayed_from_its_config(name, case, seed):
    """The saved config alone gives each weight the bits of Keras'."""
    check_replayed(PORTS[case], name, seed, keras_config=real(name, PORTS[case], seed)["config"])


@pytest.mark.parametrize("case", PORTS)
def test_a_replayed_model_computes_what_keras_does(case):
    """Outputs are equal to rounding, so the weights are where Keras has them."""
    port, model = PORTS[case], PORTS[case].make()
    kinit.replay_keras(model, 1, backend="torch", **TOLD[case])
    check_output(model, port.inputs, real("torch", port, output=True)["output"])


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
        kinit.twin("Dense", "0", bias_initializer=None), kinit.twin("Dense", "1", bias_initializer=None)],
        "build": "sequential"}),
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
    check_replayed(port, name, **{key: value(name) if callable(value) else value for key, value in told.items()})


@told_or_not
@pytest.mark.parametrize(("name", "case"), spread(WITH_CONFIG))
def test_a_config_settles_laws_seeds_and_draws(name, case):
    """What the saved model says, with `modules`, `order` and `build` where it cannot, gives Keras' own weights."""
    port, told = WITH_CONFIG[case]
    check_replayed(port, name, keras_config=real(name, port)["config"], **told)


@told_or_not
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
        check_replayed(other, "torch", keras_config=given)


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


@on_each_backend
def test_a_parametrized_weight_is_set_through_its_parametrization(name):
    """What the module computes with is Keras' weight."""
    port = stack("kl.Dense(4), kl.Dropout(0.1), kl.Dense(3)", *TWO)
    model, expected = port.make(), port.expected(real(name, port)["weights"])
    parametrize.register_parametrization(model[0], "weight", Twice())
    kinit.replay_keras(model, 1, backend=name, keras_config=real(name, port)["config"])
    assert same_bits(model[0].weight.detach(), expected["0.weight"])
    assert same_bits(model[1].weight.detach(), expected["1.weight"])
