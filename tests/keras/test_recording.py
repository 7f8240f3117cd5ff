"""keras_config(model, inputs=...): the outputs are Keras' own on each backend, and the model is as it was."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl

import torch_kinit as kinit
from tests.support.backends import backend
from torch_kinit.keras.arrays import decoded, encoded, read_npz
from torch_kinit.keras.recorded import recorded_in

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")

# A model with what is hard to record: masks, a layer called twice, models in models, dropout of each kind.
MODEL = """
import keras, numpy as np
from keras import layers as kl
from torch_kinit.keras.recorded import recorded_in
import torch_kinit as kinit

keras.utils.set_random_seed(0)
inner = keras.Sequential([keras.Input((5, 6)), kl.Dense(6, activation="relu", name="dense"),
                          kl.BatchNormalization(name="norm")], name="inner")
tokens = keras.Input((5,), dtype="int32")
x = kl.Embedding(9, 6, mask_zero=True, name="words")(tokens)
x = kl.Bidirectional(kl.LSTM(3, return_sequences=True, dropout=rate, recurrent_dropout=rate), name="both")(x)
x = kl.MultiHeadAttention(2, 3, dropout=rate, name="heads")(x, x)
x = inner(kl.Dropout(rate, name="drop")(kl.GaussianNoise(rate, name="noise")(x)))
shared = kl.Dense(6, activation="gelu", name="shared")
x = kl.TimeDistributed(keras.Sequential([kl.Dense(6), kl.Dropout(rate)]), name="timed")(shared(shared(x)) + x)
model = keras.Model(tokens, kl.Dense(2, name="head")(kl.GlobalAveragePooling1D(name="mean")(x)))
rng = np.random.default_rng(0)
signs = [1 if "variance" in w.path else -1 for w in model.weights]
model.set_weights([rng.uniform(0.3 * s, 0.6, w.shape).astype("float32") for s, w in zip(signs, model.weights)])
batch = np.array([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]], "int32")
"""
RECORD = """
def state():
    return [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]
def attributes():
    return {name: sorted(vars(layer)) for layer in model._flatten_layers() for name in [id(layer)]}
before, held = state(), attributes()
config = kinit.keras_config(model, inputs=batch)
untouched = all((a == b).all() for a, b in zip(before, state(), strict=True)) and held == attributes()
recorded = recorded_in(config)
result = {
    "untouched": untouched, "left_out": dict(recorded.left_out), "arrays": recorded.arrays,
    "calls": {mode: [(c.layer, c.outputs) for c in own] for mode, own in recorded.calls.items()},
    "own": [np.array(keras.ops.convert_to_numpy(model(batch, training=mode))) for mode in (False, True)],
}
"""
NAMES = ["words", "both", "heads", "noise", "drop", "inner/dense", "inner/norm", "inner", "shared", "shared", "timed"]
NAMES += ["mean", "head", ""]


@pytest.fixture(scope="module")
def by_backend():
    return {name: backend(name)(MODEL + RECORD, rate=0.5) for name in ("jax", "tensorflow", "torch")}


def outputs(found, mode, which):
    """The first output of each call of this layer."""
    return [found["arrays"][out[0]] for name, out in found["calls"][mode] if name == which]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "tensorflow", "torch"])
def test_each_call_of_each_layer_is_recorded_and_the_model_left_alone(by_backend, name):
    """Layers of models inside and each of two calls come in order; weights, statistics and generators stay."""
    found = by_backend[name]
    assert found["untouched"]
    assert found["left_out"] == {}
    assert [call[0] for call in found["calls"]["eval"]] == NAMES
    assert [call[0] for call in found["calls"]["train"]] == NAMES
    torch.testing.assert_close(outputs(found, "eval", "")[0], found["own"][0])


@pytest.mark.slow
def test_backends_agree(by_backend):
    """The three backends record the same numbers for the same weights, in both modes."""
    for mode in ("eval", "train"):
        for which in dict.fromkeys(NAMES):
            ours = [outputs(found, mode, which) for found in by_backend.values()]
            for a, b, c in zip(*ours, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_is_without_dropout(by_backend):
    """What is recorded in training mode is what the same model gives whose rates are all zero."""
    without = backend("torch")(MODEL + RECORD, rate=0.0)["own"]
    ours = outputs(by_backend["torch"], "train", "")[0]
    # The first sample: at masked steps Keras' LSTM gives other values with rates than without.
    torch.testing.assert_close(ours[0], without[1][0], rtol=1e-4, atol=1e-5)
    assert (without[0] - without[1])[0].abs().max() > 0.01  # the statistics of the batch tell


class Sampling(kl.Layer):
    """A layer of the user's that draws in both modes."""

    def __init__(self):
        super().__init__(name="sampling")
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(x.shape, seed=self.seed_generator)


def dense(*more):
    return keras.Sequential([keras.Input((4,)), kl.Dense(3, name="dense"), *more])


BATCH = np.ones((2, 4), "float32")


def test_a_layer_that_draws_says_so():
    """A call that moved a generator of the layer is marked, and the generator put back."""
    layer = Sampling()
    model = dense(layer)
    before = layer.seed_generator.state.numpy().copy()
    calls = recorded_in(kinit.keras_config(model, inputs=BATCH)).calls["eval"]
    assert [(call.layer, call.draws) for call in calls] == [("dense", False), ("sampling", True), ("", False)]
    assert (layer.seed_generator.state.numpy() == before).all()


def test_an_npz_beside_the_config(tmp_path):
    """With `file` the arrays are in an .npz, which is found beside the config and read without NumPy."""
    model = dense(kl.ReLU(name="relu"))
    config = json.loads(json.dumps(kinit.keras_config(model, inputs=BATCH, file=tmp_path / "outputs.npz")))
    inside = kinit.keras_config(model, inputs=BATCH)
    assert len(json.dumps(config)) < len(json.dumps(inside))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "outputs.npz").rename(tmp_path / "elsewhere" / "outputs.npz")
    for a, b in zip(recorded_in(config, tmp_path / "elsewhere").arrays, recorded_in(inside).arrays, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FileNotFoundError, match="neither there nor beside the config"):
        recorded_in(config, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2)], ids=str)
def test_arrays_come_back(dtype, shape):
    """Plain data keeps the dtype, the shape and each bit."""
    value = torch.arange(6)[: np.prod(shape, dtype=int)].reshape(shape).to(dtype)
    again = decoded(json.loads(json.dumps(encoded(value))), "x")
    assert again.dtype == dtype
    assert torch.equal(again, value)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_of_numpy(tmp_path, order):
    """An .npz is read as NumPy has it, also one whose arrays are stored column by column."""
    values = [np.arange(6, dtype="int32").reshape(2, 3), np.array(2.5), np.zeros((2, 0), "float16"), np.array([True])]
    np.savez(tmp_path / "x.npz", **{f"array_{i}": np.asarray(v, order=order) for i, v in enumerate(values)})
    for value, found in zip(values, read_npz(tmp_path / "x.npz", len(values)), strict=True):
        np.testing.assert_array_equal(found.numpy(), value)


BROKEN = {
    "no base64": (lambda o: o["arrays"][0].update(base64="!"), "Array 0 of the outputs in `keras_config` is no array"),
    "other shape": (lambda o: o["arrays"][0].update(shape=[9]), "bytes for shape"),
    "other number": (lambda o: o["eval"][0].update(inputs=[99]), "there is no array 99"),
    "no layer": (lambda o: o["layers"].clear(), "not as kinit.keras_config records them"),
    "fewer arrays": (lambda o: o["arrays"].pop(), "arrays where"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_damaged_outputs_are_refused(change, message):
    """Recorded outputs that are not as they were written are an error that says so."""
    config = kinit.keras_config(dense(), inputs=BATCH)
    change(config["outputs"])
    with pytest.raises(ValueError, match=message):
        recorded_in(config)


def test_no_npz(tmp_path):
    """A file that is no .npz is an error, and so is one without outputs to write."""
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"is not the \.npz that kinit\.keras_config wrote"):
        read_npz(tmp_path / "x.npz", 1)
    with pytest.raises(ValueError, match="`file` is for the outputs recorded of a batch"):
        kinit.keras_config(dense(), file="x.npz")
    with pytest.raises(ValueError, match=r"`file` must end in \.npz, got 'x\.json'"):
        kinit.keras_config(dense(), inputs=BATCH, file="x.json")


def test_a_model_that_is_not_built_is_refused():
    """Recording would build it."""
    model = keras.Sequential([kl.Dense(3)])
    with pytest.raises(ValueError, match="has no weights; build it, or call it once on data"):
        kinit.keras_config(model, inputs=BATCH)
    assert not model.built


TF_KERAS = """
import numpy as np, tf_keras
from tf_keras import layers as kl
import torch_kinit as kinit
from torch_kinit.keras.recorded import recorded_in
inputs = tf_keras.Input((6,), dtype="int32")
x = kl.Embedding(9, 4, mask_zero=True, name="words")(inputs)
x = kl.Bidirectional(kl.LSTM(3, return_sequences=True, dropout=0.2), name="both")(x)
x = kl.BatchNormalization(name="norm")(kl.Dropout(0.5, name="drop")(x))
model = tf_keras.Model(inputs, kl.Dense(2, name="head")(kl.GlobalMaxPooling1D(name="most")(x)))
before = model.get_weights()
batch = np.array([[1, 2, 3, 4, 5, 6], [3, 4, 1, 0, 0, 0]], "int32")
recorded = recorded_in(kinit.keras_config(model, inputs=batch))
calls = recorded.calls["train"]
result = {
    "untouched": all((a == b).all() for a, b in zip(before, model.get_weights())), "own": model(batch).numpy(),
    "ours": recorded.arrays[recorded.calls["eval"][-1].outputs[0]], "names": [call.layer for call in calls],
    "drops": [call.inputs != call.outputs for call in calls if call.layer == "drop"],
}
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("tf_keras"), reason="pip install --no-deps tf_keras==2.21.0")
def test_models_of_tf_keras():
    """They are recorded as those of Keras 3 are, without dropout, and left alone."""
    found = backend("tensorflow")(TF_KERAS)
    assert found["untouched"]
    assert found["names"] == ["words", "both", "drop", "norm", "most", "head", ""]
    assert found["drops"] == [False]
    torch.testing.assert_close(found["ours"], found["own"])


def test_an_error_of_the_model_leaves_it_alone():
    """If the model cannot be called on the batch, its layers are as before."""
    model = dense()
    with pytest.raises(ValueError, match="incompatible"):
        kinit.keras_config(model, inputs=np.ones((2, 5), "float32"))
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
