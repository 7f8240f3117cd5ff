"""Broken files give an error that tells what is wrong, and leave the port as it was."""

import io
import json
import sys
import zipfile

import h5py
import numpy as np
import pytest
from torch import nn

import torch_kinit as kinit
from tests.support.fingerprint import fingerprint
from tests.support.keras_files import archive, made, nested_models, port, save

pytestmark = [
    pytest.mark.usefixtures("_keras_on_cpu"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]


@pytest.fixture
def broken(tmp_path):
    """Breaks a file by `change`, and checks the error and that the port is as it was."""

    def call(change, message, form=".h5", error=ValueError):
        model = made("swapped")
        path, module = save(model, tmp_path / f"broken{form}"), port(model)
        if form.endswith(".h5"):
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


NUMBERS = "abc/kernel' holds values of dtype .*, not real numbers"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda *_: None, "broken.h5': '/model_weights/abc/sequential/abc' lacks 'kernel': the file is incomplete"),
        (external_link, "has 'kernel' as a link to another file, which is not followed"),
        (lambda file, name, _: file.__setitem__(name, h5py.SoftLink("/model_weights/zed")), "'kernel' as a soft link"),
        (external_storage, "abc/kernel' keeps its values in another file, which is not opened"),
        (virtual, "abc/kernel' keeps its values in another file"),
        (never_written, "abc/kernel' was never written"),
        (bomb, "abc/kernel' unpacks to 4398046511104 bytes from .*; it is not read"),
        (strings, NUMBERS),
        (bytes_of_fixed_length, NUMBERS),
        (compound, NUMBERS),
        (references, NUMBERS),
        (complex_numbers, NUMBERS),
        (null, "abc/kernel' holds no array"),
        (group, "abc/kernel' holds no array"),
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
        (array_for_layer, "layers/dense' is an array where a layer is expected", ".weights.h5"),
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
    with pytest.raises(
        ValueError, match=r"/layers/dense in the file is the layer 'zed'; by the order of the config, 'abc'"
    ):
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
