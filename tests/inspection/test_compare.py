"""compare: nothing is found in six ports made with care, and every planted difference in six made without."""

import json
import re

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.backends import backend
from tests.support.compared_keras import MODELS
from tests.support.compared_ports import CAREFUL, CARELESS
from torch_kinit.inspection.compare.differences import MEASURED

# What is wrong with each port made without care: Keras' layer, the argument, and the measured cause.
PLANTED = {
    "mnist": {
        ("conv", "padding", "padding"),
        ("conv", "order of activation", "norm_and_activation"),
        ("norm", "epsilon", "batch_norm_epsilon"),
        ("norm", "momentum", "momentum"),
        ("pool", "padding", "max_pool"),
        ("drop", "rate", "dropout"),
        ("hidden", "Flatten", "flatten"),
        ("hidden", "activation", "function"),
        ("drop_2", "dropout", "dropout"),
        ("head", "activation", "sigmoid"),
    },
    "lstm": {
        ("words", "mask_zero", "none"),
        ("first", "batch_first", "function"),
        ("first", "second bias", "second_bias"),
        ("second", "second bias", "second_bias"),
        ("drop", "rate", "dropout"),
    },
    "gru": {
        ("drop", "dropout", "dropout"),
        ("rnn", "activation", "function"),
        ("rnn", "second bias", "second_bias"),
        ("mean", "pooling", "function"),
    },
    "transformer": {
        ("conv", "padding", "padding"),
        ("conv", "dilation_rate", "function"),
        ("attention", "batch_first", "function"),
        ("attention", "add_zero_attn", "function"),
        ("attention", "dropout", "dropout"),
        ("norm_1", "epsilon", "norm_epsilon"),
        ("norm_2", "epsilon", "norm_epsilon"),
        ("norm_3", "epsilon", "norm_epsilon"),
        ("up", "activation", "gelu"),
        ("drop", "dropout", "dropout"),
        ("(no layer)", "Dropout", "dropout"),
    },
    "unet": {
        ("norm", "momentum", "momentum"),
        ("clip", "activation", "function"),
        ("pool_1", "strides", "function"),
        ("middle", "activation", "function"),
        ("pool_2", "padding", "max_pool"),
        ("pool_2", "count_include_pad", "max_pool"),
        ("deep", "dilation_rate", "function"),
        ("deep", "padding", "padding"),
        ("groups", "epsilon", "norm_epsilon"),
        ("groups", "groups", "function"),
        ("up_1", "padding", "conv_transpose"),
        ("fuse", "activation", "function"),
        ("up_2", "interpolation", "align_corners"),
        ("separable", "padding_mode", "padding"),
        ("separable", "padding", "padding"),
    },
    "discriminator": {
        ("conv_1", "padding", "padding"),
        ("leaky", "activation", "leaky_relu"),
        ("drop", "dropout", "dropout"),
        ("conv_2", "power_iterations", "unmeasured"),
        ("conv_2", "activation", "leaky_relu"),
        ("frozen", "trainable", "trained"),
        ("frozen", "trainable", "frozen_norm"),
        ("depthwise", "strides", "function"),
        ("max", "pooling", "function"),
    },
}


@pytest.fixture(scope="module")
def configs():
    """Each model's config, as to_json() gives it."""
    return {name: made().to_json() for name, made in MODELS.items()}


def found_in(comparison):
    return {(d.layer, d.what, d.weight) for d in comparison.differences}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_found_in_a_careful_port(name, configs):
    """A port that computes and trains as Keras does has no differences."""
    found = kinit.compare(configs[name], CAREFUL[name]())
    assert found.ok
    assert found.differences == ()


@pytest.mark.parametrize("name", MODELS)
def test_every_planted_difference_is_found(name, configs):
    """Each is named by layer, argument and measured cause, what matters most first, and nothing else is."""
    found = kinit.compare(configs[name], CARELESS[name]())
    assert not found.ok
    assert found_in(found) == {(layer, what, MEASURED[cause]) for layer, what, cause in PLANTED[name]}
    sizes = [d.weight.size for d in found.differences]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_mend_that_is_a_statement_mends(name, configs):
    """Each line that can be pasted takes its difference away, and brings no other."""
    port = CARELESS[name]()
    found = kinit.compare(configs[name], port)
    mends = [
        d
        for d in found.differences
        if re.match(r"port\S* = |port\S*\.(eval|requires_grad_)\(|nn\.init|kinit\.", d.mend)
    ]
    assert len(mends) >= len(found.differences) / 2
    for difference in mends:
        exec(difference.mend, {"port": port, "nn": nn, "kinit": kinit})
    left = found_in(kinit.compare(configs[name], port))
    assert left == found_in(found) - {(d.layer, d.what, d.weight) for d in mends}


# What Keras makes, with weights that are not those of the start, so that no bias, mean or gamma hides a fault.
REAL = """
import sys, numpy as np
sys.path.insert(0, support)
import keras
from compared_keras import MODELS
rng, result = np.random.default_rng(0), {}
for name, made in MODELS.items():
    model = made()
    model.set_weights([np.abs(w) + rng.uniform(0, 0.3, w.shape) for w in model.get_weights()])
    for layer in (layer for layer in model.layers if isinstance(layer, keras.layers.SpectralNormalization)):
        for _ in range(20):  # Keras' kernel stays as it is in inference, torch's is divided by its norm: here 1
            u, kernel = layer.normalized_weights()
            layer.vector_u.assign(u)
            layer.kernel.assign(kernel)
    shape = (4, *model.inputs[0].shape[1:])
    x = rng.integers(1, 20, shape) if model.inputs[0].dtype == "int32" else rng.standard_normal(shape, "float32")
    result[name] = [model.get_weights(), x, keras.ops.convert_to_numpy(model(x))]
"""


@pytest.fixture(scope="module")
def real():
    """Of each model on TensorFlow: its weights, a batch, and the outputs."""
    from pathlib import Path

    return backend("tensorflow")(REAL, support=str(Path(__file__).parents[1] / "support"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_careful_ports_are_keras_own_models(name, configs, real):
    """With Keras' weights they give Keras' outputs, so that nothing found is nothing missed."""
    weights, inputs, expected = real[name]
    port = CAREFUL[name]()
    kinit.from_keras(port, weights, keras_config=configs[name])
    for module in port.modules():
        for _ in range(20 * hasattr(module, "parametrizations")):
            assert module.weight.norm()  # an iteration of the power method
    images = inputs.ndim == 4
    with torch.no_grad():
        got = port.eval()(inputs.permute(0, 3, 1, 2) if images else inputs)
    torch.testing.assert_close(got.permute(0, 2, 3, 1) if got.ndim == 4 else got, expected, rtol=1e-5, atol=1e-5)


def test_a_report_says_the_same_in_each_form(configs):
    """Text, HTML and JSON name each difference and note."""
    found = kinit.compare(configs["mnist"], CARELESS["mnist"]())
    data = json.loads(json.dumps(found.to_dict()))
    assert data["ok"] is False
    assert [d["mend"] for d in data["differences"]] == [d.mend for d in found.differences]
    assert data["layers"]["hidden"] == "6"
    assert data["laws"]["6.weight"] == "he_normal"
    html = found._repr_html_()
    assert html.count("<tr>") == len(found.differences) + len(found.notes) + 2
    assert all(note.what in str(found) for note in found.notes)
    assert str(found).splitlines()[1].split()[:3] == ["layer", "module", "what"]
    narrow = found.to_text(60).splitlines()
    assert all(f"{f'{i}.':<3} {d.mend}" in narrow for i, d in enumerate(found.differences, 1))  # whole, to be pasted
