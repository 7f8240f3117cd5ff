"""Configs are read from files and live models, as data within limits.

The oracle is what `to_json()` of the same model gives.
"""

import json
import sys
import tracemalloc

import keras
import pytest
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.fingerprint import fingerprint
from tests.support.keras_files import (
    FORMS,
    MODELS,
    ambiguous,
    archive,
    check,
    made,
    nested_models,
    port,
    randomized,
    save,
    swapped,
)
from torch_kinit.keras import files

pytestmark = [
    pytest.mark.usefixtures("_keras_on_cpu"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"distributed"}))
@pytest.mark.filterwarnings("ignore:The config does not tell all that the program drew")
def test_a_config_is_read_from_an_h5_and_a_live_model(name, tmp_path):
    """They give the rules that model.to_json() gives, the file its numbers too, and the model those of its start."""
    model = made(name)
    path, expected, module = save(model, tmp_path / "model.h5"), port(model), port(model)
    rules = kinit.rules_from_keras(model.to_json(), module)
    kinit.replay_keras(expected, 7, backend="torch", keras_config=model.to_json())
    for config in (path, str(path)):
        assert kinit.rules_from_keras(config, module) == rules
        kinit.replay_keras(module, 7, backend="torch", keras_config=config)
        assert fingerprint(module) == fingerprint(expected)
    assert kinit.rules_from_keras(model, module) == rules
    kinit.replay_keras(module, backend="torch", keras_config=model)
    kinit.replay_keras(expected, backend="torch", keras_config=kinit.keras_config(model))
    assert fingerprint(module) == fingerprint(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"distributed"}))
def test_a_config_is_read_from_an_h5_of_tf_keras(name, tf_keras_files):
    """Its attribute model_config is what its .keras file has in config.json."""
    paths = [tf_keras_files / f"{name}{form}" for form in FORMS[1::-1]]
    h5, archived = (kinit.rules_from_keras(path, port(made(name)), convention="keras-3.14") for path in paths)
    assert h5 == archived


def test_weights_alone_hold_no_config(tmp_path):
    """The error says what to save instead."""
    path = save(ambiguous(), tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"a\.weights\.h5' holds weights and no config; save the whole model"):
        kinit.rules_from_keras(path, nn.Linear(8, 8))


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


def test_limits_are_those_of_the_docs():
    """The numbers that errors name."""
    assert (files.LARGEST >> 20, files.DEEPEST) == (64, 200)
    assert swapped(keras).count_params() < files.LARGEST
