"""Layers and modules of one name belong together; where names and order disagree, both readings are told."""

import json
import re

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl
from torch import nn

import torch_kinit as kinit

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


def line(*names, sizes=None, kind=kl.Dense):
    """A Keras model of layers one after the other, by name; None for an automatic one."""
    sizes = sizes or [4] * len(names)
    keras.backend.clear_session()
    layers = [kind(size, **({"name": name} if name else {})) for name, size in zip(names, sizes, strict=True)]
    return keras.Sequential([keras.Input((4,)), *layers])


def port(**sizes):
    """Linears by name; an int n stands for (n, n)."""
    made = {name: nn.Linear(*(size if isinstance(size, tuple) else (size, size))) for name, size in sizes.items()}
    return nn.ModuleDict(made)


def matched(model, module, **told):
    """From the parameters of the port to the Keras layers they are matched with, as the plan tells."""
    plan = kinit.replay_keras(module, 0, backend="torch", keras_config=model.to_json(), **told)
    return {step.name.removesuffix(".weight"): step.rule for step in plan if step.name.endswith("weight")}


def of(**layers):
    return {name: f"Keras' {layer}" for name, layer in layers.items()}


EVERY = {
    "rules_from_keras": lambda model, module, **told: kinit.rules_from_keras(model.to_json(), module, **told),
    "replay_keras": lambda model, module, **told: matched(model, module, **told),
    "from_keras": lambda model, module, **told: kinit.from_keras(
        module, model.get_weights(), keras_config=model.to_json(), **told
    ),
    "from_keras of a live model": lambda model, module, **told: kinit.from_keras(module, model, **told),
    "to_keras": lambda model, module, **told: kinit.to_keras(module, keras_config=model.to_json(), **told),
}


@pytest.mark.parametrize("call", EVERY.values(), ids=EVERY)
def test_swapped_names_are_told_with_both_ways_out(call):
    """Each function names both readings, and takes each as it stands in the message."""
    model, module = line("query", "value", "out"), port(value=4, query=4, out=4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(
        ValueError, match="Keras' layer 'query' is query of the torch model by its name, and value"
    ) as e:
        call(model, module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    by_name, by_order = (eval(text) for text in re.findall(r"`modules=(\{.*?\})`", str(e.value)))
    assert by_name == {"query": "query", "value": "value"}
    assert by_order == {"query": "value", "value": "query"}
    for modules in (by_name, by_order):
        call(model, module, modules=modules)


@torch.no_grad()
def test_weights_go_where_the_names_say():
    """With the line from the message the port computes what Keras does."""
    model, module, x = line("first", "second"), port(second=4, first=4), torch.randn(3, 4)
    kinit.from_keras(module, model, modules={"first": "first", "second": "second"})
    torch.testing.assert_close(module["second"](module["first"](x)), model(x), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        kinit.to_keras(module, keras_config=model, modules={"first": "first", "second": "second"}),
        model.get_weights(), strict=True,
    ):  # fmt: skip
        assert np.array_equal(mine, theirs)


SETTLED = {
    "names that agree with the order": (
        line("query", "value"), port(query=4, value=4), of(query="query", value="value")),
    "names where the order does not fit": (
        line("wide", "narrow", sizes=[8, 4]), port(narrow=(8, 4), wide=(4, 8)), of(narrow="narrow", wide="wide")),
    "others in order about them": (
        line("wide", None, "narrow", sizes=[8, 8, 4]), port(narrow=(8, 4), wide=(4, 8), other=8),
        of(narrow="narrow", wide="wide", other="dense")),
    "automatic names": (line(None, None), port(dense_1=4, dense=4), of(dense_1="dense", dense="dense_1")),
    "a name for another shape": (
        line("proj", "out", sizes=[4, 8]), port(out=4, last=(4, 8)), of(out="proj", last="out")),
    "numbers of a Sequential": (line("1", "0"), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
                                {"0": "Keras' 1", "1": "Keras' 0"}),
    "a name that comes twice": (
        line("fc", "out"), nn.ModuleDict({"out": port(a=4), "b": port(fc=4, out=4)})["b"], of(fc="fc", out="out")),
    "no equal names": (line("a", "b"), port(x=4, y=4), of(x="a", y="b")),
}  # fmt: skip


@pytest.mark.parametrize(("model", "module", "expected"), SETTLED.values(), ids=SETTLED)
def test_what_is_no_conflict(model, module, expected):
    """Names decide where the order fits no shapes; automatic ones, and those of other shapes, say nothing."""
    assert matched(model, module) == expected


def test_modules_has_the_last_word():
    """What it gives away is no longer looked for by name."""
    model, module = line("query", "value"), port(value=4, query=4)
    assert matched(model, module, modules={"query": "value"}) == of(value="query", query="value")
    assert matched(model, module, modules={"value": "query"}) == of(value="query", query="value")
    assert matched(model, module, modules={"value": "value"}) == of(value="value", query="query")


def nested():
    """Two models with layers of the same names."""
    keras.backend.clear_session()

    def part(name):
        return keras.Sequential([keras.Input((4,)), kl.Dense(4, name="query"), kl.Dense(4, name="value")], name=name)

    return keras.Sequential([keras.Input((4,)), part("encoder"), part("decoder")])


def test_nested_paths():
    """The same last part on both sides twice is told apart by the part before it."""
    module = nn.ModuleDict({"encoder": port(query=4, value=4), "decoder": port(query=4, value=4)})
    assert matched(nested(), module)["decoder.value"] == "Keras' decoder/value"
    other = nn.ModuleDict({"decoder": port(query=4, value=4), "encoder": port(query=4, value=4)})
    with pytest.raises(ValueError, match=r"'encoder/query' is encoder.query of the torch model by its name"):
        matched(nested(), other)


def attention(**config):
    keras.backend.clear_session()
    x = keras.Input((5, 4))
    return keras.Model(x, kl.MultiHeadAttention(2, 2, **config)(x, x))


@torch.no_grad()
def test_parts_of_a_layer():
    """Four Linears, registered in another order than that of Keras' query, key, value, attention_output."""
    module = port(value=4, query=4, key=4, output=4)
    with pytest.raises(
        ValueError, match=r"'multi_head_attention' is query, key, value, output of the torch .*name"
    ) as e:
        matched(attention(), module)
    by_name = eval(re.findall(r"`modules=(\{.*?\})`", str(e.value))[0])
    assert by_name == {"multi_head_attention": ["query", "key", "value", "output"]}
    assert matched(attention(), module, modules=by_name)
    assert matched(attention(), port(query=4, key=4, value=4, output=4))
    assert matched(attention(), nn.MultiheadAttention(4, 2))
    named = nn.ModuleDict({"attention": module, "last": nn.Linear(4, 4)})
    model = keras.Sequential([attention(name="attention"), kl.Dense(4)])
    with pytest.raises(ValueError, match=r"attention\.query, attention\.key"):
        matched(model, named)


def test_directions():
    """The parts of a Bidirectional, too."""
    keras.backend.clear_session()
    model = keras.Sequential([keras.Input((5, 4)), kl.Bidirectional(kl.LSTM(3))])
    with pytest.raises(ValueError, match=r"'bidirectional': \['first', 'backward'\]"):
        matched(model, nn.ModuleDict({"backward": nn.LSTM(4, 3), "first": nn.LSTM(4, 3)}))
    assert kinit.rules_from_keras(model, nn.ModuleDict({"a": nn.LSTM(4, 3), "b": nn.LSTM(4, 3)}))


def test_a_container_for_a_layer_of_two_modules():
    """A SeparableConv2D goes by the name of the Sequential that holds its two convolutions."""
    keras.backend.clear_session()
    layers = [kl.SeparableConv2D(4, 1, use_bias=False, name=name) for name in ("down", "up")]
    model = keras.Sequential([keras.Input((8, 8, 4)), *layers])

    def pair():
        return nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.Conv2d(4, 4, 1, bias=False))

    with pytest.raises(ValueError, match=r"'down' is down\.0, down\.1 of the torch .*, and up\.0, up\.1 by"):
        matched(model, nn.ModuleDict({"up": pair(), "down": pair()}))
    assert matched(model, nn.ModuleDict({"down": pair(), "up": pair()}))["up.1"] == "Keras' up"


def test_the_plan_names_the_keras_layers():
    """In its rule column; of a tied or packed tensor all of them; what torch adds is not Keras'."""
    keras.backend.clear_session()
    model = keras.Sequential([keras.Input((5, 4)), kl.LSTM(3), kl.Dense(2)])
    module = nn.Sequential(nn.LSTM(4, 3), nn.Linear(3, 2))
    done = kinit.replay_keras(module, 0, backend="jax", keras_config=model.to_json())
    assert {step.name: step.rule for step in done} == {
        "0.weight_ih_l0": "Keras' lstm", "0.weight_hh_l0": "Keras' lstm", "0.bias_ih_l0": "Keras' lstm",
        "0.bias_hh_l0": "Keras default", "1.weight": "Keras' dense", "1.bias": "Keras' dense",
    }  # fmt: skip
    assert "Keras' dense" in str(done)
    assert kinit.Plan.from_dict(json.loads(json.dumps(done.to_dict()))) == done
