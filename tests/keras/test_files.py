"""`from_keras` reads files and live models of Keras, and configs are read from files, within limits.

The oracle is `get_weights()` of the model of Keras 3 or tf_keras that wrote the file.
"""

import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

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
from tests.support.keras_files import FORMS, MODELS, layerwise, port, randomized, swapped
from torch_kinit.keras import files

pytestmark = [
    pytest.mark.usefixtures("_keras_on_cpu"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]

ROOT = Path(__file__).parents[2]
each_model = pytest.mark.parametrize("name", MODELS)


def made(name):
    keras.backend.clear_session(free_memory=False)
    return randomized(MODELS[name](keras))


def save(model, path):
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def check(module, expected):
    """Raise AssertionError unless the port holds these very numbers."""
    found = kinit.to_keras(module)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.reshape(b.shape), b)


# Whole files.


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


@pytest.fixture(scope="module")
def tf_keras_files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tf_keras")
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.keras_files", str(directory)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True)
    return directory


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


def ambiguous():
    return randomized(keras.Sequential([keras.Input((3, 8)), kl.PReLU(shared_axes=[1]), kl.RMSNormalization()]))


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
    """A .keras file keeps a shared layer where it comes first, as `get_weights()` does."""
    shared, inputs = kl.Dense(4), keras.Input((4,))
    first = keras.Model(inputs, kl.Dense(4)(shared(inputs)))
    inputs = keras.Input((4,))
    model = randomized(keras.Model(inputs, shared(kl.Dense(4)(first(inputs)))))
    module = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    kinit.from_keras(module, save(model, tmp_path / "shared.keras"))
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


# Configs.


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"distributed"}))
def test_a_config_is_read_from_an_h5_and_a_live_model(name, tmp_path):
    """They give the rules and the numbers that model.to_json() gives."""
    model = made(name)
    path = save(model, tmp_path / "model.h5")
    for config in (path, str(path), model):
        assert kinit.rules_from_keras(config, port(model)) == kinit.rules_from_keras(model.to_json(), port(model))


def test_weights_alone_hold_no_config(tmp_path):
    """The error says what to save instead."""
    path = save(ambiguous(), tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"a\.weights\.h5' holds weights and no config; save the whole model"):
        kinit.rules_from_keras(path, nn.Linear(8, 8))


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "."), data)
    return path


def peak(call):
    """The most memory, in MiB, that Python took meanwhile."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def refused(config):
    def call():
        with pytest.raises(ValueError, match=r"may have 64 MiB, and has .*; it is not read"):
            kinit.rules_from_keras(config, nn.Linear(2, 2))

    return call


@pytest.mark.slow
def test_a_config_of_600_mb_is_not_read(tmp_path):
    """The size that the archive declares is looked at first."""
    path = archive(tmp_path / "bomb.keras", config__json=b" " * 600_000_000)
    assert path.stat().st_size < 5_000_000
    assert peak(refused(path)) < 5


def test_a_json_file_of_more_than_64_mib_is_not_read(tmp_path):
    """Nor is it when nothing declares its size."""
    path = tmp_path / "long.json"
    path.write_bytes(b" " * (64 * 2**20 + 1))
    assert peak(refused(path)) < 200


def test_a_config_with_a_false_size_is_not_read_past_it(tmp_path):
    """An archive that declares 100 bytes and unpacks to 100 MB gives an error, without the 100 MB."""
    path = archive(tmp_path / "lying.keras", config__json=b" " * 100_000_000)
    data = bytearray(path.read_bytes())
    size = (100_000_000).to_bytes(4, "little")
    path.write_bytes(data.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="lying"):
        kinit.rules_from_keras(path, nn.Linear(2, 2))


def nested_models(levels):
    entry = {"class_name": "Dense", "config": {"name": "d", "units": 2}}
    for i in range(levels):
        entry = {"class_name": "Sequential", "config": {"name": f"s{i}", "layers": [entry]}}
    return entry


def in_wrappers(levels):
    entry = {"class_name": "Dense", "config": {"name": "d", "units": 2}}
    for i in range(levels):
        entry = {"class_name": "TimeDistributed", "config": {"name": f"t{i}", "layer": entry}}
    return {"class_name": "Sequential", "config": {"layers": [entry]}}


@pytest.mark.parametrize(
    "config",
    [
        '{"a":' * 3000 + "1" + "}" * 3000,
        '{"class_name": "Sequential", "config": ' + "[" * 3000 + "]" * 3000 + "}",
        nested_models(3000),
        in_wrappers(3000),
    ],
    ids=["dicts", "lists", "models", "wrappers"],
)
def test_deep_nesting_is_a_clear_error(config):
    """3,000 levels are no model, as text or as data; no RecursionError."""
    with pytest.raises(ValueError, match="nested deeper than 200 levels"):
        kinit.rules_from_keras(config, nn.Linear(2, 2))


def test_models_in_models_are_read_to_forty_levels():
    """What Keras can build is below the limit; so is a wrapper in a wrapper."""
    for config in (nested_models(40), in_wrappers(60), json.dumps(nested_models(40))):
        assert kinit.rules_from_keras(config, nn.Linear(2, 2))["bias"] == "zeros"


def test_code_in_a_config_is_never_read(tmp_path, monkeypatch):
    """A Lambda's function is no weight: nothing is decoded, unmarshalled or unpickled."""
    model = keras.Sequential([keras.Input((4,)), kl.Dense(4), kl.Lambda(lambda x: x + 1), kl.Dense(2)])
    paths = [save(randomized(model), tmp_path / f"code{form}") for form in (".keras", ".h5")]
    weights = model.get_weights()
    for target in ("marshal.loads", "pickle.loads", "pickle.load", "base64.b64decode", "codecs.decode"):
        monkeypatch.setattr(target, lambda *_, **__: pytest.fail("code was read"))
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for path in paths:
        module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])
        assert kinit.rules_from_keras(path, module)["0.weight"] == "glorot_uniform"
        kinit.from_keras(module, path)
        check(module, weights)


# Broken files: an error that tells, and the port as it was.


@pytest.fixture
def broken(tmp_path):
    """A file of two Dense layers, which a test opens to break it; what the error must say, and how."""

    def call(change, message, form=".h5", error=ValueError):
        model = made("swapped")
        path, module = save(model, tmp_path / f"broken{form}"), port(model)
        if form == ".h5" or form == ".weights.h5":
            with h5py.File(path, "a") as file:
                change(file, tmp_path)
        else:
            change(path)
        before = fingerprint(module)
        with pytest.raises(error, match=message):
            kinit.from_keras(module, path)
        assert fingerprint(module) == before

    return call


OF_NUMBERS = '{"class_name": "Sequential", "config": {"layers": [1, 2]}}'
KERNEL = "model_weights/abc/sequential/abc/kernel"  # the third of eight arrays


def replaced(name, make):
    def change(file, directory):
        del file[name]
        make(file, name, directory)

    return change


def elsewhere(directory):
    with h5py.File(directory / "other.h5", "w") as file:
        file["secret"] = np.ones((8, 8), np.float32)
    return str(directory / "other.h5")


def external_link(file, name, directory):
    file[name] = h5py.ExternalLink(elsewhere(directory), "secret")


def external_storage(file, name, directory):
    (directory / "raw").write_bytes(bytes(256))
    file.create_dataset(name, (8, 8), "float32", external=[(str(directory / "raw"), 0, 256)])


def virtual(file, name, directory):
    layout = h5py.VirtualLayout((8, 8), "float32")
    layout[:] = h5py.VirtualSource(elsewhere(directory), "secret", (8, 8))
    file.create_virtual_dataset(name, layout)


def never_written(file, name, directory):
    file.create_dataset(name, (8, 8), "float32")


def bomb(file, name, directory):
    file.create_dataset(name, (2**20, 2**20), "float32", chunks=(8, 8), compression="gzip")[0, 0] = 1


def strings(file, name, directory):
    file.create_dataset(name, data=["a", "b"], dtype=h5py.string_dtype())


def bytes_of_fixed_length(file, name, directory):
    file[name] = np.array([b"abc"] * 8)


def compound(file, name, directory):
    file[name] = np.zeros((8, 8), [("a", "i1"), ("b", "i1")])


def references(file, name, directory):
    file.create_dataset(name, (8,), h5py.ref_dtype)


def null(file, name, directory):
    file[name] = h5py.Empty("float32")


def group(file, name, directory):
    file.create_group(name)


def transposed(file, name, directory):
    file[name] = np.zeros((4, 8), np.float32)


def complex_numbers(file, name, directory):
    file[name] = np.zeros((8, 8), np.complex64)


NUMBERS = "abc/kernel' in 'broken.h5' holds values of dtype .*, not real numbers"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda *_: None, "abc' in 'broken.h5' lacks 'kernel': the file is incomplete"),
        (external_link, "has 'kernel' as a ExternalLink, which is not followed"),
        (lambda file, name, _: file.__setitem__(name, h5py.SoftLink("/model_weights/zed")), "'kernel' as a SoftLink"),
        (external_storage, "abc/kernel' in 'broken.h5' keeps its values in another file, which is not opened"),
        (virtual, "abc/kernel' in 'broken.h5' keeps its values in another file"),
        (never_written, "abc/kernel' in 'broken.h5' was never written"),
        (bomb, "abc/kernel' in 'broken.h5' unpacks to 4398046511104 bytes from .*; it is not read"),
        (strings, NUMBERS),
        (bytes_of_fixed_length, NUMBERS),
        (compound, NUMBERS),
        (references, NUMBERS),
        (complex_numbers, NUMBERS),
        (null, "abc/kernel' in 'broken.h5' holds no array"),
        (group, "abc/kernel' in 'broken.h5' holds no array"),
        (transposed, r"Array 2 \(.*abc/kernel in 'broken.h5'\) of 8 has shape \(4, 8\); its place is 1.weight"),
    ],
)
def test_a_broken_array_is_refused(make, message, broken):
    """Whatever stands in the place of the third array, an error names it, and nothing of the port is changed."""
    broken(replaced(KERNEL, make), message)


def circle(file, directory):
    file["layers/dense/layers"] = file["layers"]


def two_names(file, directory):
    file["layers/dense/a"] = file["layers/dense/b"] = file["layers/dense_1"]


def deep(file, directory):
    file["layers/dense/" + "a/" * 3000] = 1


def array_for_layer(file, directory):
    del file["layers/dense"]
    file["layers/dense"] = np.zeros((8, 8))


@pytest.mark.parametrize(
    ("change", "message", "form"),
    [
        (
            lambda file, _: file["model_weights"].attrs.pop("layer_names"),
            "/model_weights in the file lacks layer",
            ".h5",
        ),
        (
            lambda file, _: file["model_weights/abc"].attrs.pop("weight_names"),
            "abc in the file lacks weight_names",
            ".h5",
        ),
        (lambda file, _: file.attrs.__setitem__("model_config", "{"), "model_config in .* is no JSON", ".h5"),
        (lambda file, _: file.attrs.__setitem__("model_config", 3), "model_config of .* is no text", ".h5"),
        (
            lambda file, _: file["model_weights"].attrs.__setitem__("layer_names", 3),
            "layer_names of .* is no list",
            ".h5",
        ),
        (lambda file, _: file.pop("layers/dense/vars/0"), "vars in the file has 1, but no 0", ".weights.h5"),
        (lambda file, _: file.pop("layers/dense"), "There are 6 arrays|The file has 6 arrays for 8", ".weights.h5"),
        (circle, "is another name of a layer that was read", ".weights.h5"),
        (two_names, "is another name of a layer that was read", ".weights.h5"),
        (deep, "is nested deeper than 100 groups", ".weights.h5"),
        (array_for_layer, "layers/dense' in .* is an array where a layer is expected", ".weights.h5"),
        (lambda file, _: file.attrs.__setitem__("model_config", OF_NUMBERS), "lists something else than", ".h5"),
    ],
)
def test_a_broken_file_is_refused(change, message, form, broken):
    """An error says what is missing, and nothing of the port is changed."""
    broken(change, message, form)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3000])


def of_text(path):
    path.write_text("no model")


def without_weights(path):
    archive(path, config__json=json.dumps({"class_name": "Sequential", "config": {"layers": []}}))


def other_layers(path):
    with zipfile.ZipFile(path) as file:
        weights = file.read("model.weights.h5")
    config = {"class_name": "Sequential", "config": {"layers": [nested_models(0)]}}
    archive(path, config__json=json.dumps(config), model__weights__h5=weights)


def damaged(path):
    """One bit of the last array."""
    data = bytearray(path.read_bytes())
    at = data.rindex(np.float32(made("swapped").get_weights()[0][0, 0]).tobytes())
    data[at] ^= 1
    path.write_bytes(data)


def without_bias(path):
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    copy = io.BytesIO(members["model.weights.h5"])
    with h5py.File(copy, "a") as file:
        del file["layers/dense_1"]
    archive(path, config__json=members["config.json"], model__weights__h5=copy.getvalue())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "broken.keras' is no model saved by Keras 3: it is no zip file, or a damaged one"),
        (of_text, "broken.keras' is no model saved by Keras 3: it is no zip file"),
        (without_weights, "broken.keras' is no model saved by Keras 3: it is a zip file without model.weights.h5"),
        (other_layers, "The file has weights in /layers/batch_normalization, of a layer that the config does not list"),
        (damaged, "broken.keras' is no model saved by Keras 3.*Bad CRC-32 for file 'model.weights.h5'"),
        (without_bias, "The file has no weights for layer 'abc', in /layers/dense_1"),
    ],
)
def test_a_broken_archive_is_refused(change, message, broken):
    """An error says what is wrong, and nothing of the port is changed."""
    broken(change, message, ".keras")


@pytest.mark.parametrize("form", [".h5", ".weights.h5"])
def test_a_truncated_h5_is_refused(form, tmp_path):
    """An error says that it may be truncated."""
    path = save(made("swapped"), tmp_path / f"cut{form}")
    cut(path)
    with pytest.raises(ValueError, match="cannot be read as HDF5; it may be truncated"):
        kinit.from_keras(port(made("swapped")), path)


def test_names_that_contradict_the_order_are_refused(tmp_path):
    """A config whose equal layers stand in another order than the file says by their names is not taken."""
    model = made("swapped")
    config = json.loads(model.to_json())
    layers = config["config"]["layers"]
    layers[1], layers[2] = layers[2], layers[1]
    path = save(model, tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"/layers/dense in the file is the layer 'zed'; by its class .* 'abc'"):
        kinit.from_keras(port(model), path, keras_config=config)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("model.pt", ValueError, "Weights are read from a .keras, .weights.h5 or .h5 file, got 'model.pt'"),
        ("none.keras", FileNotFoundError, "none.keras"),
        ("none.weights.h5", FileNotFoundError, "none.weights.h5"),
    ],
)
def test_what_is_no_file_of_keras_is_refused(source, error, message):
    """A sentence says what is accepted."""
    with pytest.raises(error, match=message):
        kinit.from_keras(nn.Linear(2, 2), source)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    """Reading needs h5py, which nothing else of the package needs."""
    path = save(made("swapped"), tmp_path / "a.keras")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"read with h5py.*pip install torch_kinit\[files\]"):
        kinit.from_keras(nn.Linear(2, 2), path)


def test_without_numpy_to_keras_says_so(monkeypatch):
    """torch's own error, "Numpy is not available", does not name the function."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ModuleNotFoundError, match="`to_keras` gives NumPy arrays, and NumPy is not installed"):
        kinit.to_keras(nn.Linear(2, 2))


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


def test_limits_are_those_of_the_docs():
    """The numbers that errors name."""
    assert (files.LARGEST >> 20, files.DEEPEST) == (64, 200)
    assert swapped(keras).count_params() < files.LARGEST
