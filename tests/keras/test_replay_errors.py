"""What cannot be replayed is refused, by name, with nothing changed; and a replay changes nothing but the model."""

import json
import random
import re
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.port_models import PORTS, check_state


def linears():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def layer(class_name, name, shape=None, **config):
    built = {"build_config": {"input_shape": shape}} if shape else {}
    return {"class_name": class_name, "config": {"name": name, **config}, **built}


def dense(units, name=None, **config):
    return layer("Dense", name or f"dense{units}", units=units, **config)


def saved(*layers):
    """A config as Keras saves it, but for what is not read."""
    return {"class_name": "Sequential", "config": {"layers": list(layers)}}


CONFIG = saved(dense(4), dense(2))
PROJECTIONS = [
    layer("EinsumDense", f"e{i}", [None, 5, 4], equation="abc,cde->abde", output_shape=[None, 2, 2], bias_axes="de",
          kernel_initializer=law)
    for i, law in enumerate(("he_normal", "he_normal", "lecun_normal"))
]  # fmt: skip
OUTPUT = layer("Dense", "output", [None, 5, 4], units=4)
UNSAVED = layer("Dense", "dense4", units=4, kernel_initializer={"module": "mine", "class_name": "Mine",
                                                               "config": {"seed": None}})  # fmt: skip
QUANTIZED = dense(4, dtype={"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}})
NEGATIVE = saved(dense(4, kernel_initializer={"class_name": "HeNormal", "config": {"seed": -1}}), dense(2))
ATTENTION = layer("MultiHeadAttention", "mha", num_heads=2, key_dim=2, kernel_initializer="orthogonal") | {
    "build_config": {"shapes_dict": {"query_shape": [None, 5, 4], "value_shape": [None, 5, 4]}}
}
one = nn.Sequential

ARGUMENTS = {
    "model": ({"model": "net"}, TypeError, "`model` must be a torch.nn.Module, got 'net' of type str"),
    "model with a config": ({"model": 3, "keras_config": CONFIG}, TypeError, "must be a torch.nn.Module, got 3"),
    "seed of another type": ({"seed": 1.0}, TypeError, "`seed` must be an int, got 1.0 of type float"),
    "seed True": ({"seed": True}, TypeError, "`seed` must be an int, got True of type bool"),
    "seed None": ({"seed": None}, ValueError, "`seed` must be given"),
    "seed below": ({"seed": -1}, ValueError, "`seed` must be from 0 to 2**32 - 1, as for keras.utils.set_random_seed"),
    "seed above": ({"seed": 2**32}, ValueError, "set_random_seed, got 4294967296"),
    "backend": ({"backend": "tensorflo"}, ValueError, "`backend` must be one of 'jax', 'tensorflow', 'torch', got"),
    "build": ({"build": "Functional"}, ValueError, "`build` must be one of 'sequential', 'functional'"),
    "convention": ({"convention": "keras-3"}, ValueError, "`convention` must be one of 'keras-3.15', 'keras-3.14'"),
    "convention with a config": ({"convention": 3, "keras_config": CONFIG}, ValueError, "`convention` must be one of"),
    "depthwise": ({"depthwise": 1}, TypeError, "`depthwise` must be True or False, got 1"),
    "modules alone": ({"modules": {}}, ValueError, "`modules` maps the layers of a `keras_config`, and none is given"),
    "rules with a config": ({"rules": {}, "keras_config": CONFIG}, ValueError, "`rules` and `keras_config` exclude"),
    "rules": ({"rules": {"2": "zeros"}}, ValueError, "'2' matches nothing"),
    "order not a list": ({"order": 5}, TypeError, "`order` "),
    "order of nothing known": ({"order": ["0", "1", None]}, TypeError, "twins and numbers of draws, got None"),
    "order of bools": ({"order": ["0", "1", True]}, TypeError, "twins and numbers of draws, got True"),
    "order of negative draws": ({"order": [-1, "0", "1"]}, TypeError, "twins and numbers of draws, got -1"),
    "order of a wrong path": ({"order": ["0", "2"]}, ValueError, "`order` has '2', which is no module of the model"),
    "order without a module": ({"order": ["0"]}, ValueError, "No Keras layer draws 1.weight of Linear"),
    "order with a module twice": ({"order": ["0", "1", "0"]}, ValueError, "twice"),
    "order with a module and its container": ({"order": ["", "1"]}, ValueError, "twice"),
    "twin of a wrong path": ({"order": [kinit.twin("Dense", "zero"), "1"]}, ValueError, "'zero', which"),
    "twin of too many modules": ({"order": [kinit.twin("Dense", "0", "1")]}, ValueError, "no weight for 1.weight"),
    "twin of too few": ({"order": [kinit.twin("SeparableConv1D", "0"), "1"]}, ValueError, "SeparableConv1D"),
    "twin of another class": ({"order": [kinit.twin("Embedding", "0"), "1"]}, ValueError, "'0' (Embedding) has embed"),
    "Keras has no such layer": ({"model": one(nn.Bilinear(3, 3, 2))}, ValueError, "draws 0.weight of Bilinear"),
    "a projection": ({"model": one(nn.LSTM(3, 4, proj_size=2))}, ValueError, "Keras' LSTM has no projection"),
    "groups transposed": ({"model": one(nn.ConvTranspose1d(4, 4, 3, groups=2))}, ValueError, "convolutions have no gr"),
    "depthwise in 3d": ({"model": one(nn.Conv3d(4, 4, 3, groups=4))}, ValueError, "Keras has no DepthwiseConv3D"),
    "foreign initializer": ({"rules": {"0": nn.init.xavier_uniform_}}, ValueError, "xavier_uniform_ is none of Keras'"),
    "layout": ({"model": one(nn.MultiheadAttention(4, 2)), "rules": {
        "*in_proj_weight": partial(kinit.he_normal_, layout="torch")}}, ValueError, "Keras draws 3 variables for it"),
    "packed as one in the config, apart in torch": (
        {"model": one(*(nn.Linear(4, 4) for _ in range(4))), "keras_config": saved(ATTENTION)}, ValueError,
        "Keras' layer 'mha' has an orthogonal query/kernel of shape (4, 2, 2), which is another law on 0.weight"),
    "packed from unlike layers": (
        {"model": one(nn.MultiheadAttention(4, 2)), "keras_config": saved(*PROJECTIONS, OUTPUT)}, ValueError,
        "0.in_proj_weight packs weights of Keras' that have different initializers"),
    "another shape": ({"keras_config": saved(dense(4), dense(3))}, ValueError,
                      "Keras' layer 'dense3' (Dense) has kernel (None, 3), and the torch model in its place 1.weight"),
    "another kind": ({"keras_config": saved(layer("Embedding", "e", input_dim=3, output_dim=4), dense(2))}, ValueError,
                     "'e' (Embedding) has embeddings (3, 4), and the torch model in its place 0.weight (Linear's kern"),
    "a layer less": ({"keras_config": saved(dense(4))}, ValueError, "The Keras model has no weight for 1.weight"),
    "a layer more": ({"keras_config": saved(dense(4), dense(2), dense(1))}, ValueError,
                     "'dense1' (Dense) has kernel (None, 1), for which the torch model has no tensor left"),
    "order of a list": ({"keras_config": CONFIG, "order": [["dense4"]]}, TypeError, "lists names of its layers, twins"),
    "order of a twin with modules": ({"keras_config": CONFIG, "order": [kinit.twin("Dense", "0")]}, ValueError,
                                     "twin('Dense') takes no modules"),
    "order of a layer and a number": ({"keras_config": CONFIG, "order": [1, "dense4"]}, ValueError, "seeds: 'dense2'"),
    "made": ({"keras_config": CONFIG, "made": "clone"}, ValueError, "`made` must be one of 'program', 'model_from_j"),
    "made without a config": ({"made": "program"}, ValueError, "`made` says how the model of a `keras_config` was"),
    "made from a config, in another order": (
        {"keras_config": CONFIG, "made": "clone_model", "order": ["dense2", "dense4"]},
        ValueError, "so `order` cannot tell another"),
    "made from a config, built otherwise": ({"keras_config": CONFIG, "made": "clone_model", "build": "functional"},
                                            ValueError, "so `build` cannot tell another"),
    "order of a wrong name": ({"keras_config": CONFIG, "order": ["dens4"]}, ValueError, "`order` has 'dens4', which"),
    "order without a layer": ({"keras_config": CONFIG, "order": ["dense4"]}, ValueError, "seeds: 'dense2'"),
    "order with a layer twice": ({"keras_config": CONFIG, "order": ["dense4"] * 2}, ValueError, "'dense4' twice"),
    "modules not a dict": ({"keras_config": CONFIG, "modules": ["0"]}, TypeError, "`modules` "),
    "modules of a wrong type": ({"keras_config": CONFIG, "modules": {"dense4": 3}}, TypeError, "`modules` "),
    "modules of a wrong name": ({"keras_config": CONFIG, "modules": {"dens4": "0"}}, ValueError, "speaks of 'dens4'"),
    "modules of a wrong path": ({"keras_config": CONFIG, "modules": {"dense4": "2"}}, ValueError,
                                "`modules` gives Keras' layer 'dense4' the path '2', which holds no weights"),
    "modules of too many": ({"keras_config": CONFIG, "modules": {"dense4": ["0", "1"]}}, ValueError,
                            "Keras' layer 'dense4' (Dense) has no weight for 1.weight"),
    "modules of one for two": ({"model": one(nn.Linear(4, 4)), "modules": {"a": "0", "b": "0"},
                                "keras_config": saved(dense(4, "a"), dense(4, "b"))}, ValueError, "'0'"),
    "a seed beyond the backend's": ({"keras_config": NEGATIVE}, ValueError, "0 to 4294967295 for Keras on jax, got -1"),
    "an unknown initializer": ({"keras_config": saved(dense(4, kernel_initializer="xavier"), dense(2))}, ValueError,
                               "Unknown initializer 'xavier'"),
    "an initializer of one's own": ({"keras_config": saved(UNSAVED, dense(2))}, ValueError, "Mine"),
    "a layer of one's own": ({"keras_config": saved(layer("Mine", "m") | {"module": "mine"}, dense(4), dense(2))},
                             ValueError, "no layer of Keras itself: what it holds and draws is not known"),
    "quantized": ({"keras_config": saved(QUANTIZED, dense(2))}, ValueError, "'dense4' is quantized"),
    "subclassed": ({"keras_config": {"class_name": "Mine", "config": {}}}, ValueError, "The config of Mine does not"),
    "no config": ({"keras_config": 3}, TypeError, "`keras_config` must be a dict, JSON as model.to_json() gives it"),
    "no JSON": ({"keras_config": "{"}, ValueError, "`keras_config` is no JSON"),
    "another file": ({"keras_config": "net.npz"}, ValueError, "is read from a .json, .keras or .h5 file, got"),
    "no such file": ({"keras_config": "none.keras"}, FileNotFoundError, "none.keras"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_what_cannot_be_replayed_is_refused_and_nothing_changes(case):
    """The error has the argument, or the names on both sides, and every tensor its old bits."""
    told, error, message = ARGUMENTS[case]
    arguments = {"model": linears(), "seed": 0, "backend": "jax", **told}
    model = arguments.pop("model")
    before = {key: value.clone() for key, value in model.state_dict().items()} if isinstance(model, nn.Module) else {}
    with pytest.raises(error, match=re.escape(message)):
        kinit.replay_keras(model, arguments.pop("seed"), **arguments)
    if before:
        check_state(model, before, "torch")


OF_DRAWS = {"rules", "order", "made", "build"}
# What is about the layers, and not about their draws.
SHARED = [
    case
    for case, (told, *_) in ARGUMENTS.items()
    if "keras_config" in told
    and not {"rules", "order", "made", "build"} & told.keys()
    and told["keras_config"] is not NEGATIVE
]


@pytest.mark.parametrize("case", SHARED)
def test_rules_from_keras_refuses_the_same_configs(case):
    """It names what replay_keras names."""
    told, error, message = ARGUMENTS[case]
    arguments = {"model": linears(), **told}
    with pytest.raises(error, match=re.escape(message)):
        kinit.rules_from_keras(arguments.pop("keras_config"), arguments.pop("model"), **arguments)


TWINS = {
    "class": (lambda: kinit.twin("Dens"), ValueError, "no layer of Keras itself"),
    "model": (lambda: kinit.twin("Sequential"), ValueError, "no layer of Keras itself"),
    "no string": (lambda: kinit.twin(nn.Linear), (TypeError, ValueError), "Linear"),
    "no equation": (lambda: kinit.twin("EinsumDense"), ValueError, "(EinsumDense) lacks 'equation'"),
    "no layer": (lambda: kinit.twin("Bidirectional"), ValueError, "(Bidirectional) lacks 'layer'"),
    "nothing to stack": (lambda: kinit.twin("Pipeline"), ValueError, "(Pipeline) lacks 'layers'"),
    "no length": (lambda: kinit.twin("STFTSpectrogram"), ValueError, "(STFTSpectrogram) lacks 'frame_length'"),
    "an inner one": (lambda: kinit.twin("Bidirectional", layer=kinit.twin("Mine")), ValueError, "Mine"),
}


@pytest.mark.parametrize("case", TWINS)
def test_twin_refuses_what_keras_has_not(case):
    """A class of Keras', with the arguments that decide its draws."""
    make, error, message = TWINS[case]
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize("content", ["no zip", None], ids=["no zip", "zip without a config"])
def test_a_file_that_keras_did_not_save_is_refused(tmp_path, content):
    """The path is named."""
    path = tmp_path / "model.keras"
    if content is None:
        zipfile.ZipFile(path, "w").close()
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"model.keras' is no model saved by Keras 3"):
        kinit.replay_keras(linears(), 0, backend="jax", keras_config=path)


def test_a_guessed_order_is_told():
    """Where two layers may have been made in either order, a warning names them and the way out."""
    inputs = [layer("InputLayer", name) | {"name": name, "inbound_nodes": []} for name in ("x", "y")]
    branches = [
        dense(4, f"{name}_dense") | {"name": f"{name}_dense", "inbound_nodes": [[[name, 0, 0, {}]]]} for name in "xy"
    ]
    config = {
        "layers": [*inputs, *branches],
        "input_layers": [["x", 0, 0], ["y", 0, 0]],
        "output_layers": [["x_dense", 0, 0], ["y_dense", 0, 0]],
    }
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4))
    told = {"backend": "jax", "keras_config": {"class_name": "Functional", "config": config}}
    with pytest.warns(UserWarning, match=r"in the order of its arguments \('x_dense', 'y_dense'\).*`order`"):
        first = kinit.replay_keras(model, 0, **told)
    same = kinit.replay_keras(model, 0, **told, order=["x_dense", "y_dense"])
    other = kinit.replay_keras(model, 0, **told, order=["y_dense", "x_dense"])
    assert same["0.weight"].seeds == first["0.weight"].seeds == other["1.weight"].seeds != same["1.weight"].seeds


def test_the_plan_has_the_seeds_and_gives_another_copy_the_same_weights():
    """It prints Keras' seeds, survives JSON, and can be applied again."""
    port = PORTS["attention"]
    model, other = port.make(), port.make()
    done = kinit.replay_keras(model, 0, backend="jax", build="functional")
    draws = random.Random(0)
    seeds = [draws.randint(1, 10**9) for _ in range(7)]  # embedding, template, query, key, value, dropout, output
    assert [s.seed for s in done["words.weight"].seeds] == seeds[:1]
    assert [s.seed for s in done["blocks.0.attention.in_proj_weight"].seeds] == seeds[2:5]
    assert done["blocks.0.attention.out_proj.weight"].seeds == (kinit.KerasSeed(seeds[6], "jax"),)
    assert done["blocks.0.norm.weight"].seeds == ()
    assert str(seeds[0]) in str(done)
    assert str(seeds[6]) in str(done)
    copy = kinit.Plan.from_dict(json.loads(json.dumps(done.to_dict())))
    assert copy == done
    copy.apply(other)
    check_state(other, model.state_dict(), "torch")


def test_nothing_else_is_drawn_from_or_into():
    """Python's and torch's own generators are where they were; a NumPy int is a seed."""
    port = PORTS["image"]
    first, second = port.make(), port.make()
    before = random.getstate(), torch.get_rng_state()
    kinit.replay_keras(first, np.int64(3), backend="torch")
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    kinit.replay_keras(second, 3, backend="torch")
    check_state(second, {k: v for k, v in first.state_dict().items() if "batches" not in k}, "torch")
