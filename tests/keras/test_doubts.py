"""What a plain config does not tell is told: the layers, what was assumed, and the ways to settle it."""

import copy
import json
import re
import warnings

import keras
import pytest
import torch
from keras import initializers as ki
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.backends import same_bits
from tests.support.mechanical import Port

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


def dcgan():
    init = ki.RandomNormal(stddev=0.02)
    return sequential(*(kl.Dense(4, kernel_initializer=init, name=name) for name in "ab"))


def sequential(*layers, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *layers])


def functional(call):
    inputs = keras.Input((4,))
    return keras.Model(inputs, call(inputs))


def with_a_gap():
    inputs = keras.Input((4,))
    x = kl.Dense(4)(inputs)
    kl.Dense(3)(x)
    return keras.Model(inputs, kl.Dense(5)(x))


def second_of_two():
    sequential(kl.Dense(3))
    return sequential(kl.Dense(4), kl.Dense(3))


def made_then_called():
    inputs = keras.Input((5, 4))
    attention, dense = kl.MultiHeadAttention(2, 2), kl.Dense(3)
    return keras.Model(inputs, dense(attention(inputs, inputs)))


def added():
    model = keras.Sequential()
    model.add(keras.Input((4,)))
    model.add(kl.SpectralNormalization(kl.Dense(4)))
    model.add(kl.Dense(3))
    return model


def numbered_by_hand():
    inputs = keras.Input((4,))
    x = kl.Dense(5, name="dense_2")(inputs)
    x = kl.Dense(6, name="dense_1")(x)
    return keras.Model(inputs, kl.Dense(3, name="dense")(x))


def inline_model():
    inputs = keras.Input((4,))
    x = kl.PReLU("random_normal")(inputs)
    x = keras.Sequential([kl.Dense(4, name="inner")])(x)
    return keras.Model(inputs, kl.EinsumDense("bi,ij->bj", (3,))(x))


def in_list_order_not_made_so():
    last, first = kl.Dense(3), kl.Dense(4)
    return sequential(first, last)


def branches():
    def call(x):
        right = kl.Dense(5, name="right")(x)
        return kl.Add()([kl.Dense(5, name="left")(x), right])

    return functional(call)


HE = ki.HeUniform
WITH_ARGUMENTS = {"class_name": "RandomNormal", "config": {"stddev": 0.02}}
# Programs, the layers that are named, and what is said of them.
TOLD = {
    "one object with arguments in two layers": (dcgan, "b", "equal ones with arguments may be one object"),
    "a gap in the names": (with_a_gap, "dense_1", "layers that had these names, and which the config does not have"),
    "a model before it": (second_of_two, "dense", "drew nothing after set_random_seed"),
    "an object beside a default": (
        lambda: sequential(kl.Dense(3, bias_initializer=HE(), name="d")), "d", "given by name, not as objects"),
    "an object behind a SeedGenerator": (
        lambda: sequential(kl.SimpleRNN(3, kernel_initializer=HE(), name="r"), shape=(5, 4)), "r", "given by name, n"),
    "a dict with arguments": (
        lambda: sequential(kl.SeparableConv1D(3, 2, pointwise_initializer=copy.deepcopy(WITH_ARGUMENTS), name="s"),
                           shape=(5, 4)), "s", "given by name, not as objects|right before the layer"),
    "a seed that the config loses": (
        lambda: sequential(kl.SimpleRNN(3, seed=4, name="r"), shape=(5, 4)), "r", "no `seed` was given, which the con"),
    "nested calls": (
        lambda: functional(lambda x: kl.Dense(4)(kl.Dropout(0.2)(kl.Dense(5)(x)))), "dense", "are Keras' own"),
    "nested calls of different classes": (
        lambda: functional(lambda x: kl.Dropout(0.2)(kl.Dense(5)(x))), "dropout", "each layer is called where it is"),
    "names numbered by hand": (numbered_by_hand, "dense_2", "names that look automatic"),
    "layers made before they are called": (made_then_called, "multi_head_attention", "`build` says which"),
    "layers added one by one": (added, "spectral_normalization", "`build` says which"),
    "a model made where it is called": (inline_model, "inner|sequential", "a model inside is made before the layers"),
    "a list of layers made in another order": (in_list_order_not_made_so, "dense", "names that look automatic"),
    "branches": (branches, "left", "in the order of its arguments"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_an_assumption_is_told(case):
    """A warning names the layers and what was taken for granted of them, and how to settle it."""
    make, name, assumed = TOLD[case]
    with pytest.warns(UserWarning, match=assumed) as caught:
        replay(make)
    (text,) = [str(warning.message) for warning in caught]
    (said,) = [part for part in re.split(r"; |: |\. ", text) if re.search(assumed, part)]
    assert re.search(rf"'(.*[ /])?({name})([ /].*)?'", said), said
    assert "kinit.keras_config(keras_model)" in text
    assert "`order`" in text


def replay(make, **arguments):
    """Replay a program from its plain config over a mechanical port; the weights that differ."""
    keras.backend.clear_session(free_memory=False)  # so that automatic names start anew, as in a program
    keras.utils.set_random_seed(1)
    model = make()
    port = Port(described(model))
    kinit.replay_keras(port.model, 1, backend="torch", keras_config=model.to_json(), **arguments)
    return port.differing([weight.value.detach() for weight in model.weights], "torch")


def described(model):
    """What a mechanical port needs to know of a model."""
    from tests.support.mechanical import DESCRIBED

    names = {"keras": keras, "kl": kl, "ki": ki}
    exec(DESCRIBED, names)
    return names["described"](model)


def adversarial():
    generator = sequential(kl.Dense(6), kl.Dropout(0.1))
    critic = sequential(kl.Dense(5), kl.Dropout(0.1), kl.Dense(1))
    assert generator
    return critic


def pruned():
    inputs = keras.Input((4,))
    x = kl.Dense(4)(inputs)
    kl.LSTM(3)(kl.Reshape((2, 2))(x))
    return keras.Model(inputs, kl.Dense(5)(x))


def branches_second_first():
    return branches()


SETTLED = {
    "draws before the model": (adversarial, {"order": [2]}),
    "layers before the model": (adversarial, {"order": [kinit.twin("Dense"), kinit.twin("Dropout", rate=0.1)]}),
    "a layer that is not part of it": (pruned, {"order": ["dense", kinit.twin("LSTM"), "dense_1"]}),
    "branches": (branches, {"order": ["right", "left"]}),
    "made, then called": (made_then_called, {"build": "sequential"}),
    "added": (added, {"build": "functional"}),
    "the program": (lambda: sequential(kl.Dense(3, bias_initializer="he_uniform")), {"made": "program"}),
}


@pytest.mark.parametrize("case", SETTLED)
def test_it_is_settled_by_hand(case):
    """With what settles it there is no warning, and the weights are Keras' own."""
    make, arguments = SETTLED[case]
    assert replay(make, **arguments) == []


# --- models that Keras makes from a config ----------------------------------------------------------------------------


def original():
    inputs = keras.Input((4,))
    shared = ki.RandomNormal(stddev=0.02)
    x = kl.Dense(5, bias_initializer=HE(), kernel_initializer=shared)(inputs)
    y = kl.SpectralNormalization(kl.Dense(5, kernel_initializer=shared))(kl.Dropout(0.1)(inputs))
    inner = keras.Sequential([keras.Input((5,)), kl.SpectralNormalization(kl.Dense(4)), kl.Dense(3)])
    x = inner(kl.Add()([x, y]))
    x = kl.Reshape((3, 1))(x)
    return keras.Model(inputs, kl.Bidirectional(kl.LSTM(2, recurrent_initializer=ki.HeNormal()))(x))


def stack():
    return sequential(
        kl.SpectralNormalization(kl.Dense(4)), kl.Dense(3, bias_initializer=HE()), kl.Dropout(0.1), kl.Dense(2)
    )


FROM_CONFIG = {
    "model_from_json": lambda model: keras.models.model_from_json(model.to_json()),
    "clone_model": keras.models.clone_model,
}


@pytest.mark.parametrize("original", [original, stack])
@pytest.mark.parametrize("made", FROM_CONFIG)
def test_a_model_made_from_a_config(made, original):
    """Each layer is made from its config, with its initializers in the order of its constructor; nothing is guessed."""
    model = original()
    assert replay(lambda: FROM_CONFIG[made](model), made=made) == []
    with pytest.warns(UserWarning, match="Taken for granted"):
        replay(lambda: FROM_CONFIG[made](model))


# --- dtypes, builds without a config, versions ------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "port", "told"), [
    ("float32", torch.float32, None), ("mixed_bfloat16", torch.float32, None), ("bfloat16", torch.bfloat16, None),
    ("bfloat16", torch.float32, "Keras draws 0.weight in bfloat16, and the port has float32, and 1 more"),
    ("mixed_bfloat16", torch.bfloat16, "Keras draws 0.weight in float32, and the port has bfloat16, and 1 more"),
])  # fmt: skip
@pytest.mark.parametrize("captured", [False, True])
def test_a_port_of_another_dtype_is_told(policy, port, told, captured):
    """A warning names the weight and both dtypes; of Keras' own variable dtype there is none."""
    keras.utils.set_random_seed(1)
    keras.backend.clear_session(free_memory=False)
    model = sequential(kl.Dense(3, dtype=policy), kl.Dense(2, dtype=policy))
    twin = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(port)
    config = {"keras_config": kinit.keras_config(model)} if captured else {"keras_config": model.to_json(), "seed": 1}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        kinit.replay_keras(twin, backend="torch", **config)
    assert [str(w.message).partition(":")[0] for w in caught] == ([told] if told else [])
    real = [weight.value.detach() for weight in model.weights if weight.name == "kernel"]
    assert all(same_bits(ours.weight.detach().T, theirs) for ours, theirs in zip(twin, real, strict=True)) == (
        told is None
    )


def test_without_a_config_the_build_is_told_where_it_matters():
    """A port with attention is warned of; one of which both builds draw the same is not."""
    attention = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 3))
    with pytest.warns(UserWarning, match="as `build` was not given.* from '1' and '0' on|from '0' and '1' on"):
        kinit.replay_keras(attention, 0, backend="torch")
    for build in ("sequential", "functional"):
        kinit.replay_keras(attention, 0, backend="torch", build=build)
    kinit.replay_keras(nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2), nn.Linear(2, 1)), 0, backend="torch")


def test_a_config_of_another_version_is_told():
    """Configs of Keras before 3.15 have initializers without `input_axes`, and its attention had other fans."""
    keras.utils.set_random_seed(1)
    keras.backend.clear_session(free_memory=False)
    config = json.loads(sequential(kl.EinsumDense("abc,cde->abde", (5, 2, 2), name="e"), shape=(5, 4)).to_json())
    port = nn.Sequential(nn.Linear(4, 4, bias=False))
    kinit.rules_from_keras(config, port)
    with pytest.warns(UserWarning, match="fans are those of `convention`='keras-3.14'.*'e'"):
        kinit.rules_from_keras(config, port, convention="keras-3.14")
    old = json.loads(re.sub(r'"(in|out)put_axes": null,? ?', "", json.dumps(config)).replace(", }", "}"))
    kinit.rules_from_keras(old, port, convention="keras-3.14")
    with pytest.warns(UserWarning, match="fans are those of `convention`='keras-3.15'.*'e'"):
        kinit.replay_keras(port, 1, backend="torch", keras_config=old)
