"""The rules of a saved Keras model draw each parameter of a torch port from the law that its Keras twin names."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torch_kinit as kinit
from tests.support.backends import backend
from tests.support.port_models import PORTS, check_state, real, spread
from tests.support.small_ports import RANDOM_BIASES, WITH_CONFIG, stack

pytestmark = pytest.mark.slow  # asks processes of Keras

ALL = {**{case: (port, {}) for case, port in PORTS.items()}, **WITH_CONFIG}
# Where the config has no initializer, and so no place for a seed.
del ALL["biases that are None"], ALL["layers that are added"]


def reseeded(config, seed=5):
    """The config with this seed wherever it has one."""
    if isinstance(config, list):
        return [reseeded(value, seed) for value in config]
    if not isinstance(config, dict):
        return config
    return {key: seed if key == "seed" else reseeded(value, seed) for key, value in config.items()}


def same_seeds(name, port):
    """Keras' own weights where every initializer has the seed 5, as the state of the port."""
    config = json.dumps(reseeded(json.loads(real(name, port)["config"])))
    code = "import keras; result = keras.models.model_from_json(config).get_weights()"
    return port.expected(backend(name)(code, config=config))


def rules_of(name, port, told):
    known = {key: value for key, value in told.items() if key in ("modules", "depthwise")}
    model = port.make()
    return model, kinit.rules_from_keras(real(name, port)["config"], model, **known), known.get("depthwise", True)


@pytest.mark.parametrize(("name", "case"), spread(ALL))
def test_each_law_is_that_of_the_keras_layer(name, case):
    """With one seed for all, on both sides, every weight is Keras' own: so laws, fans and arguments are."""
    port, told = ALL[case]
    model, rules, depthwise = rules_of(name, port, told)
    kinit.apply(model, rules, generator=kinit.KerasSeed(5, name), depthwise=depthwise)
    check_state(model, same_seeds(name, port), name, port.orthogonal)


def test_the_laws_need_no_seed():
    """The seeds in a config are left out: two generators give other weights of the same law."""
    port, told = ALL["seeds of its own"]
    first, rules, _ = rules_of("torch", port, told)
    second = port.make()
    plans = [
        kinit.apply(model, rules, generator=torch.Generator().manual_seed(i)) for i, model in enumerate((first, second))
    ]
    assert not torch.equal(first[0].weight, second[0].weight)
    assert plans[0] == plans[1]
    assert all(step.seeds == () for step in plans[0])


# The rules that are functions, which JSON cannot hold: a bias beside the ones of an LSTM, and fans of another layer's.
FUNCTIONS = {
    "random biases": ["0.bias_ih_l0"],
    "convolutions in groups, here depthwise": ["0.weight"],
    "depthwise, here convolutions in groups": ["0.weight"],
}


@pytest.mark.parametrize("case", ALL)
def test_rules_are_plain_data_where_a_law_has_a_name(case):
    """They survive JSON, and then plan the same."""
    port, told = ALL[case]
    model, rules, depthwise = rules_of("torch", port, told)
    functions = [name for name, value in rules.items() if callable(value)]
    assert functions == FUNCTIONS.get(case, [])
    plain = {name: value for name, value in rules.items() if name not in functions}
    again = {**json.loads(json.dumps(plain)), **{name: rules[name] for name in functions}}
    assert kinit.plan(model, again, depthwise=depthwise) == kinit.plan(model, rules, depthwise=depthwise)


def test_rules_are_written_as_briefly_as_can_be():
    """A name where Keras' defaults hold, a config where they do not, no entry for what torch adds."""
    port = WITH_CONFIG["initializers made before their layers"][0]
    _, rules, _ = rules_of("torch", port, {})
    assert rules == {
        "0.weight": {"class_name": "RandomNormal", "config": {"mean": 0.0, "stddev": 0.02}},
        "0.bias": "zeros",
        "1.weight": "he_normal",
        "1.bias": {"class_name": "RandomUniform", "config": {"minval": -0.1, "maxval": 0.1}},
        "2.weight": {
            "class_name": "VarianceScaling",
            "config": {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"},
        },
        "2.bias": "zeros",
    }
    _, rules, _ = rules_of("torch", RANDOM_BIASES, {})
    assert "0.bias_hh_l0" not in rules
    assert rules["2.bias_ih_l0"] == rules["2.bias_hh_l0"] == "random_normal"


@pytest.mark.parametrize("case", ["attention", "hand-written attention"])
@pytest.mark.parametrize("law", ["glorot_uniform", "he_normal", "lecun_uniform"])
def test_the_fans_are_those_of_the_convention(case, law):
    """Attention's fans are Keras 3.15's by axes; or, before it, those of the shape, as Keras still has in a call."""
    port = PORTS[case]
    config = json.loads(real("torch", port)["config"])
    for entry in config["config"]["layers"]:
        if entry["class_name"] == "MultiHeadAttention":
            entry["config"]["kernel_initializer"] = law
    code = (
        "import keras; result = [keras.initializers.get({'class_name': law, 'config': {'seed': 5}})(s) for s in shapes]"
    )
    q, o = backend("torch")(code, law=law, shapes=[(12, 3, 4), (3, 4, 12)])
    model = port.make()
    rules = kinit.rules_from_keras(config, model, convention="keras-3.14")
    kinit.apply(model, rules, generator=kinit.KerasSeed(5, "torch"), convention="keras-3.14")
    attention = model.blocks[0].attention
    packed = isinstance(attention, nn.MultiheadAttention)
    query = attention.in_proj_weight[:12] if packed else attention.query.weight
    assert torch.equal(query, q.flatten(1).t())
    assert torch.equal((attention.out_proj if packed else attention.output).weight, o.flatten(0, 1).t())
    later = kinit.plan(model, kinit.rules_from_keras(config, model))
    assert later[f"blocks.0.attention.{'in_proj_weight' if packed else 'query.weight'}"].fans == (12, 12)


LAWS = st.sampled_from(
    [
        *("glorot_uniform", "glorot_normal", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform", "zeros"),
        *("random_normal", "truncated_normal", "uniform", "ones"),
        *("ki.RandomNormal(0.1, 0.3)", "ki.TruncatedNormal(stddev=0.5)", "ki.RandomUniform(-1, 0.5)"),
        *("ki.VarianceScaling(3.0, 'fan_out', 'uniform')", "ki.VarianceScaling(0.5, 'fan_avg')", "ki.Constant(0.3)"),
    ]
).map(lambda law: law if law.startswith("ki.") else repr(law))
SIZES = st.integers(1, 7)
RECURRENT = {"SimpleRNN": "RNN", "LSTM": "LSTM", "GRU": "GRU"}


@st.composite
def layers(draw, inputs):
    """A Keras layer on (time, inputs), its torch modules, and its outputs."""
    kind = draw(st.sampled_from(["Dense", "Conv1D", "SeparableConv1D", *RECURRENT, "both ways", "norm", "Dropout"]))
    size, law, other, biased = draw(SIZES), draw(LAWS), draw(LAWS), draw(st.booleans())
    bias = f"use_bias={biased}, bias_initializer={other}"
    if kind == "Dense":
        return f"kl.Dense({size}, kernel_initializer={law}, {bias})", [("Linear", inputs, size, biased)], size
    if kind == "Conv1D":
        keras = f"kl.Conv1D({size}, 3, padding='same', kernel_initializer={law}, {bias})"
        return keras, [("Conv1d", inputs, size, 3, 1, 1, 1, 1, biased)], size
    if kind == "SeparableConv1D":
        keras = (
            f"kl.SeparableConv1D({size}, 3, padding='same', depth_multiplier=2, pointwise_initializer={law}, {bias})"
        )
        first = ("Conv1d", inputs, 2 * inputs, 3, 1, 1, 1, inputs, False)
        return keras, [first, ("Conv1d", 2 * inputs, size, 1, 1, 0, 1, 1, biased)], size
    if kind == "both ways":
        keras = f"kl.Bidirectional(kl.LSTM({size}, kernel_initializer={law}, return_sequences=True))"
        return keras, [("LSTM", inputs, size, 1, True, False, 0.0, True)], 2 * size
    if kind in RECURRENT:
        keras = f"kl.{kind}({size}, kernel_initializer={law}, bias_initializer={other}, return_sequences=True)"
        return keras, [(RECURRENT[kind], inputs, size)], size
    if kind == "norm":
        return f"kl.LayerNormalization(gamma_initializer={law})", [("LayerNorm", inputs)], inputs
    return f"kl.Dropout({size / 10})", [("Dropout", size / 10)], inputs


@st.composite
def stacks(draw):
    """Up to five layers."""
    size = first = draw(SIZES)
    texts, modules = [], []
    for _ in range(draw(st.integers(1, 5))):
        text, made, size = draw(layers(size))
        texts.append(text)
        modules += made
    return stack(", ".join(texts), *modules, shape=(6, first))


@pytest.mark.filterwarnings("ignore:The config does not tell all that the program drew")
@settings(max_examples=12, deadline=None, database=None)
@given(stacks(), st.integers(0, 2**32 - 1))
def test_any_stack_is_replayed_and_its_laws_are_read(port, seed):
    """Of random layers and initializers, both the draws of set_random_seed and the laws are Keras' own."""
    model, found = port.make(), real.__wrapped__("torch", port, seed)
    kinit.replay_keras(model, seed, backend="torch", keras_config=found["config"])
    check_state(model, port.expected(found["weights"]), "torch")
    kinit.apply(model, kinit.rules_from_keras(found["config"], model), generator=kinit.KerasSeed(5, "torch"))
    check_state(model, same_seeds("torch", port), "torch")
