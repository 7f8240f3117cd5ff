"""`from_keras` reads files and live models of Keras.

The oracle is `get_weights()` of the model of Keras 3 or tf_keras that wrote the file.
"""

import contextlib
import json
import random
import re

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import torch
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.backends import NAMES, backend
from tests.support.fingerprint import fingerprint
from tests.support.keras_files import (
    FORMS,
    MODELS,
    ambiguous,
    check,
    layerwise,
    made,
    port,
    randomized,
    save,
)

pytestmark = [
    pytest.mark.usefixtures("_keras_on_cpu"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]

each_model = pytest.mark.parametrize("name", MODELS)


@each_model
@pytest.mark.parametrize("form", FORMS)
def test_a_file_gives_the_weights_of_keras_3(name, form, tmp_path):
    """Each array of a .keras and .h5 file comes to where `get_weights()` has it; of a .weights.h5 with a config."""
    model = made(name)
    module, path = port(model), save(model, tmp_path / f"model{form}")
    kinit.from_keras(module, path, keras_config=model.to_json() if form == ".weights.h5" else None)
    check(module, model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(layerwise(model), model.get_weights(), strict=True))


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"nested"}))
def test_weights_alone_are_ordered_by_their_shapes(name, tmp_path):
    """A .weights.h5 keeps layers by class; where one order fits the shapes, it is that of `get_weights()`."""
    model = made(name)
    module, path = port(model), save(model, tmp_path / "model.weights.h5")
    kinit.from_keras(module, str(path))
    check(module, model.get_weights())


@each_model
def test_groups_without_arrays_may_be_missing(name, tmp_path):
    """Keras writes an empty group for a layer without weights, but loads a file that has none."""
    model = made(name)
    module, path = port(model), save(model, tmp_path / "model.weights.h5")
    with h5py.File(path, "a") as file:
        names = []
        file.visititems(lambda name, item: names.append(name))
        for each in names:
            if each.endswith("vars") and not len(file[each]):
                del file[each]
    keras.models.clone_model(model).load_weights(path)
    kinit.from_keras(module, path, keras_config=model)
    check(module, model.get_weights())


@each_model
def test_files_of_tensorflow_2_12_name_the_list_of_layers_otherwise(name, tmp_path):
    """Keras loads `_layer_checkpoint_dependencies` for `layers`; so is it read."""
    model = made(name)
    module, path = port(model), save(model, tmp_path / "model.weights.h5")
    with h5py.File(path, "a") as file:
        names = []
        file.visititems(lambda name, item: names.append(name))
        for each in sorted((name for name in names if name.endswith("layers")), key=len, reverse=True):
            file.move(each, each.removesuffix("layers") + "_layer_checkpoint_dependencies")
    keras.models.clone_model(model).load_weights(path)
    kinit.from_keras(module, path, keras_config=model)
    check(module, model.get_weights())


@pytest.mark.slow
@each_model
@pytest.mark.parametrize("form", FORMS)
def test_a_file_gives_the_weights_of_tf_keras(name, form, tf_keras_files):
    """Files of tf_keras 2.21 too, layer by layer, though an .h5 lists the weights that are trained first."""
    module = port(made(name))
    config = tf_keras_files / f"{name}.h5" if form == ".weights.h5" else None
    kinit.from_keras(module, tf_keras_files / f"{name}{form}", keras_config=config)
    with np.load(tf_keras_files / f"{name}.npz") as arrays:
        check(module, list(arrays.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swapped", "branches", "attention", "separable"])
def test_an_h5_of_weights_alone_tells_the_order_of_layers(name, tf_keras_files):
    """As `save_weights("x.h5")` of tf_keras writes it, where no model is in the model."""
    module = port(made(name))
    kinit.from_keras(module, tf_keras_files / f"{name}.only.h5")
    with np.load(tf_keras_files / f"{name}.npz") as arrays:
        check(module, list(arrays.values()))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [("nested", ".only.h5"), ("nested", ".weights.h5")])
def test_an_order_that_the_file_does_not_tell_is_not_guessed(name, form, tf_keras_files):
    """Models of equal shapes that could change places are an error, which a config settles."""
    module, path = port(made(name)), tf_keras_files / f"{name}{form}"
    before = fingerprint(module)
    with pytest.raises(ValueError, match=r"does not tell which comes first.*`keras_config`.*to_json.*get_weights"):
        kinit.from_keras(module, path)
    assert fingerprint(module) == before
    kinit.from_keras(module, path, keras_config=tf_keras_files / f"{name}.h5")
    with np.load(tf_keras_files / f"{name}.npz") as arrays:
        check(module, list(arrays.values()))


def ambiguous_port():
    return nn.ModuleList([nn.PReLU(8), nn.RMSNorm(8)])


def test_classes_of_equal_shapes_need_a_config(tmp_path):
    """Two layers of one shape in a file that orders by class: the error names both, and a config settles it."""
    model, module, path = ambiguous(), ambiguous_port(), tmp_path / "a.weights.h5"
    save(model, path)
    with pytest.raises(ValueError, match="which comes first, '/layers/p_re_lu/vars/0' or '/layers/rms_normalization/v"):
        kinit.from_keras(module, path)
    for config in (model, model.to_json(), json.loads(model.to_json()), save(model, tmp_path / "a.keras")):
        module = ambiguous_port()
        kinit.from_keras(module, path, keras_config=config)
        check(module, model.get_weights())


def test_an_embedding_is_no_kernel(tmp_path):
    """Where shapes allow two orders, the names of the weights may allow one."""
    model = randomized(keras.Sequential([keras.Input((3,)), kl.Embedding(8, 8), kl.Dense(8, use_bias=False)]))
    module = nn.ModuleList([nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)])
    kinit.from_keras(module, save(model, tmp_path / "a.weights.h5"))
    check(module, model.get_weights())


def test_a_deep_model_is_ordered_in_time(tmp_path):
    """Hundreds of layers of four classes, all of one width."""
    again = []
    for _ in range(60):
        again += [kl.Conv1D(4, 3, padding="same"), kl.BatchNormalization(), kl.Dense(4, use_bias=False)]
        again.append(kl.LSTM(4, return_sequences=True))
    model = randomized(keras.Sequential([keras.Input((5, 4)), *again]))
    module = port(model)
    kinit.from_keras(module, save(model, tmp_path / "deep.weights.h5"))
    check(module, model.get_weights())


class Block(kl.Layer):
    """A layer of a class of its own, with others inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.second, self.first = kl.Dense(5), kl.Dense(8)
        self.many = [kl.Dense(6), kl.LayerNormalization(), kl.Dense(8)]

    def build(self, shape):
        for layer in (self.second, *self.many, self.first):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, x):
        for layer in (self.second, *self.many, self.first):
            x = layer(x)
        return x


class Net(keras.Model):
    """A model of a class of its own."""

    def __init__(self):
        super().__init__()
        self.z, self.b, self.a = kl.Dense(8), Block(), kl.Dense(7)

    def call(self, x):
        return self.a(self.b(self.z(x)))


def own_port():
    """In the order of get_weights(): by when the attributes were set, where shapes allow no other."""
    inner = [nn.Linear(8, 5), nn.Linear(8, 8), nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 8)]
    return nn.ModuleList([nn.Linear(9, 8), *inner, nn.Linear(8, 7)])


@pytest.mark.parametrize("form", [".keras", ".weights.h5"])
def test_a_subclassed_model_is_read_where_shapes_decide(form, tmp_path):
    """Its file names attributes and tells no order; with shapes of which one order fits, that is taken."""
    model = Net()
    model(np.zeros((2, 9)))
    module = own_port()
    kinit.from_keras(module, save(randomized(model), tmp_path / f"own{form}"))
    check(module, model.get_weights())


def test_a_layer_of_an_own_class_in_a_functional_model(tmp_path):
    """The config tells the order of the layers, and the shapes that inside each."""
    inputs = keras.Input((8,))
    model = randomized(keras.Model(inputs, Block()(kl.Dense(8)(Block()(inputs)))))
    inner = own_port()[1:6]
    module = nn.ModuleList([*inner, nn.Linear(8, 8), *own_port()[1:6]])
    for form in (".keras", ".h5"):
        kinit.from_keras(module, save(model, tmp_path / f"own{form}"))
        check(module, model.get_weights())


class Attention(kl.Layer):
    """With the names of Keras' own attention, and its parts made in another order."""

    def __init__(self, names, **kwargs):
        super().__init__(**kwargs)
        for name in names:
            setattr(self, name, kl.Dense(8, name=name))
        self.names = names

    def build(self, shape):
        for name in self.names:
            getattr(self, name).build(shape)

    def call(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


@pytest.mark.parametrize(
    "names",
    [
        ("value", "attention_output", "query", "key"),
        ("value_dense", "output_dense", "query_dense", "key_dense"),
        ("backward_layer", "forward_layer"),
    ],
)
def test_names_of_parts_tell_nothing_in_a_class_of_ones_own(names, tmp_path):
    """Only Keras' own attention has its query first, and only its Bidirectional what runs forward."""
    model = randomized(keras.Sequential([keras.Input((8,)), Attention(names)]))
    for form in FORMS:
        path = save(model, tmp_path / f"own{form}")
        with pytest.raises(ValueError, match="does not tell which comes first"):
            kinit.from_keras(nn.ModuleList([nn.Linear(8, 8) for _ in names]), path)


def test_names_of_another_session_are_no_contradiction(tmp_path):
    """Automatic names that begin at another number: dense_1 of the file may be dense of the config."""

    def model(*names):
        return randomized(keras.Sequential([keras.Input((8,)), *(kl.Dense(8, name=name) for name in names)]))

    saved, config = model("dense_1", "dense_2"), model("dense", "dense_1")
    module = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    kinit.from_keras(module, save(saved, tmp_path / "a.weights.h5"), keras_config=config)
    check(module, saved.get_weights())


def test_states_that_are_no_weights_are_left_out(tmp_path):
    """An optimizer's, a metric's, and the seeds of Dropout are not in `get_weights()`."""
    model = keras.Sequential([keras.Input((4,)), kl.Dense(4), kl.Dropout(0.5), kl.GaussianNoise(0.1), kl.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.zeros((2, 4)), np.zeros((2, 2)), verbose=0)
    for form in FORMS:
        module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])
        kinit.from_keras(module, save(model, tmp_path / f"trained{form}"))
        check(module, model.get_weights())


def test_a_layer_of_two_models_is_read_once(tmp_path):
    """`get_weights()` has a shared layer where it comes first; a .keras file has it once, an .h5 twice."""
    shared, inputs = kl.Dense(4), keras.Input((4,))
    first = keras.Model(inputs, kl.Dense(4)(shared(inputs)))
    inputs = keras.Input((4,))
    model = randomized(keras.Model(inputs, shared(kl.Dense(4)(first(inputs)))))
    for form in (".keras", ".h5"):
        module = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        kinit.from_keras(module, save(model, tmp_path / f"shared{form}"))
        check(module, model.get_weights())


def test_a_kernel_that_is_not_trained_keeps_its_place(tmp_path):
    """An .h5 lists it last, `get_weights()` first."""
    model = keras.Sequential([keras.Input((8,)), kl.Dense(8), kl.LayerNormalization()])
    model.layers[0].kernel.trainable = model.layers[1].gamma.trainable = False
    module = nn.ModuleList([nn.Linear(8, 8), nn.LayerNorm(8)])
    for form in FORMS:
        kinit.from_keras(module, save(randomized(model), tmp_path / f"frozen{form}"))
        check(module, model.get_weights())


def test_a_live_model_is_read():
    """Whatever has `get_weights()`; Keras is not imported for it."""
    model = made("attention")
    module = port(model)
    kinit.from_keras(module, model)
    check(module, model.get_weights())


IN_THREE_DTYPES = """
import keras
layers = [keras.layers.Dense(3, dtype="bfloat16"), keras.layers.Dense(2, dtype="float16"), keras.layers.Dense(2)]
model = keras.Sequential([keras.Input((4,)), *layers])
(model.save_weights if path.endswith(".weights.h5") else model.save)(path)
result = [keras.ops.convert_to_tensor(w.value) for w in model.weights]
"""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_bfloat16_is_taken_bit_for_bit(name, form, tmp_path):
    """From each backend's files, in which HDF5 holds two opaque bytes, beside float16 and float32."""
    expected = backend(name)(IN_THREE_DTYPES, path=str(tmp_path / f"model{form}"))
    module = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2)])
    for part, dtype in zip(module, (torch.bfloat16, torch.float16, torch.float32), strict=True):
        part.to(dtype)
    kinit.from_keras(module, tmp_path / f"model{form}")
    for tensor, value in zip(module.parameters(), expected, strict=True):
        assert tensor.dtype == value.dtype
        assert torch.equal(tensor, value if value.ndim == 1 else value.T)


def test_arrays_of_ml_dtypes_are_taken_bit_for_bit():
    """All 65,536 patterns of a bfloat16, as `get_weights()` gives them under a bfloat16 policy."""
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    module = nn.Embedding(256, 256, dtype=torch.bfloat16)
    kinit.from_keras(module, [bits.view(ml_dtypes.bfloat16)])
    assert np.array_equal(module.weight.detach().view(torch.int16).numpy().view(np.uint16), bits)


def random_layer(rng, depth):
    """A layer from (5, 8) to (5, 8), so that shapes tell little; perhaps a model, perhaps not trained."""
    kinds = {
        "dense": lambda: kl.Dense(8, use_bias=rng.random() < 0.7),
        "conv1d": lambda: kl.Conv1D(8, 1),
        "norm": kl.BatchNormalization,
        "layer norm": kl.LayerNormalization,
        "dropout": lambda: kl.Dropout(0.1),
        "lstm": lambda: kl.LSTM(8, return_sequences=True),
        "both": lambda: kl.Bidirectional(kl.LSTM(4, return_sequences=True)),
        "stack": lambda: kl.RNN([kl.GRUCell(8), kl.LSTMCell(8), kl.GRUCell(8)], return_sequences=True),
        "each": lambda: kl.TimeDistributed(kl.Dense(8)),
        "model": lambda: random_model(rng, depth - 1),
        "each of a model": lambda: kl.TimeDistributed(keras.Sequential([kl.BatchNormalization(), kl.Dense(8)])),
    }
    layer = kinds[rng.choice([kind for kind in kinds if depth or kind != "model"])]()
    if rng.random() < 0.2:
        layer.trainable = False
    if rng.random() < 0.3:
        layer._name = "".join(rng.choices("abcdefgh", k=6))
    return layer


def random_model(rng, depth=2):
    layers = [random_layer(rng, depth) for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.5:
        return keras.Sequential([keras.Input((5, 8)), *layers])
    x = inputs = keras.Input((5, 8))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_any_model_is_read_right_or_refused(seed, tmp_path):
    """With a config each array is in its place; without one too, or an error says that the order is not known."""
    keras.backend.clear_session(free_memory=False)
    model = randomized(random_model(random.Random(seed)))
    module, expected = port(model), model.get_weights()
    for form in FORMS:
        path = save(model, tmp_path / f"model{form}")
        kinit.from_keras(module, path, keras_config=model if form == ".weights.h5" else None)
        check(module, expected)
    with contextlib.suppress(NotToldError):
        from_file_alone(module, path)
        check(module, expected)


class NotToldError(Exception):
    """An order that a file does not tell."""


def from_file_alone(module, path):
    try:
        kinit.from_keras(module, path)
    except ValueError as error:
        if re.search("does not tell which comes first|too many orders", str(error)):
            raise NotToldError from error
        raise


# LoRA.


@pytest.fixture
def lora():
    model = randomized(keras.Sequential([keras.Input((4,)), kl.Dense(6, name="low"), kl.Dense(2)]))
    model.layers[0].enable_lora(2)
    return randomized(model)


def lora_port():
    return nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 2)])


@pytest.mark.parametrize("form", [".keras", ".weights.h5"])
def test_a_file_has_the_kernel_with_its_lora_update(lora, form, tmp_path):
    """Keras saves the product of the factors in the kernel, and the port gets it."""
    module = lora_port()
    kinit.from_keras(module, save(lora, tmp_path / f"lora{form}"))
    assert torch.equal(module[0].weight.T, lora.layers[0].kernel.detach())
    assert not torch.equal(module[0].weight.T, lora.layers[0]._kernel.value.detach())


def test_lora_weights_are_named_as_the_cause(lora, tmp_path):
    """Where torch has no place for them: a live model, arrays with a config, an .h5, and rules."""
    h5, module = save(lora, tmp_path / "lora.h5"), lora_port()
    calls = [
        lambda: kinit.from_keras(module, lora),
        lambda: kinit.from_keras(module, lora.get_weights(), keras_config=lora),
        lambda: kinit.from_keras(module, h5),
        lambda: kinit.rules_from_keras(lora, module),
        lambda: kinit.replay_keras(module, 0, backend="torch", keras_config=lora),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"low.* has LoRA weights \(`lora_rank`\).*save\('merged.keras'\)"):
            call()
