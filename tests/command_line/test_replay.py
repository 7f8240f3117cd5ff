"""`python -m torch_kinit replay`: the weights Keras starts from, on the command line."""

import json
import sys
import warnings

import keras
import pytest
from torch import nn

import torch_kinit as kinit
from torch_kinit.__main__ import main

# The seeds drawn are compared with those of Keras itself.
GRU = ("torch.nn:GRU", "--set", "input_size=3", "--set", "hidden_size=4")


def keras_gru():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4)])


def test_prints_the_seeds_that_keras_draws(run):
    """The table has the seeds of Keras' initializers."""
    layer = keras_gru().layers[0]
    code, out, _ = run("replay", *GRU, "--seed", 1, "--backend", "torch")
    assert code == 0
    assert str(layer.cell.kernel_initializer.seed) in out
    assert str(layer.cell.recurrent_initializer.seed) in out


def test_prints_the_values_that_keras_draws(run):
    """The least and greatest value of the kernel are those of Keras' kernel."""
    kernel = keras_gru().get_weights()[0]
    code, out, _ = run("replay", *GRU, "--seed", 1, "--backend", "torch", "--json")
    assert code == 0
    values = json.loads(out)["values"]["weight_ih_l0"]
    assert (values["min"], values["max"]) == (float(kernel.min()), float(kernel.max()))


@pytest.mark.parametrize("suffix", [".json", ".keras"])
def test_reads_a_saved_model(run, tmp_path, suffix):
    """A saved model of another initializer gives another law and the explicit seed."""
    keras.backend.clear_session(free_memory=False)  # so that automatic names start anew, as in a program
    model = keras.Sequential(
        [keras.Input((5, 3)), keras.layers.GRU(4, kernel_initializer=keras.initializers.HeNormal(seed=77))]
    )
    path = tmp_path / f"model{suffix}"
    if suffix == ".json":
        path.write_text(model.to_json(), encoding="utf-8")
    else:
        model.save(path)
    code, out, _ = run("replay", *GRU, "--seed", 1, "--backend", "jax", "--keras-config", path)
    assert code == 0
    assert "he_normal" in out
    assert " 77\n" in out


def test_needs_no_seed_beside_what_keras_config_made(run, tmp_path):
    """The file has the seeds."""
    model = keras_gru()
    path = tmp_path / "model.json"
    path.write_text(json.dumps(kinit.keras_config(model)), encoding="utf-8")
    code, out, _ = run("replay", *GRU, "--backend", "torch", "--keras-config", path)
    assert code == 0
    assert f" {model.layers[0].cell.kernel_initializer.seed}\n" in out


def test_a_model_made_from_a_config(run, tmp_path):
    """`--made` says so, and a guess of anything else is warned of on stderr."""
    model = keras_gru()
    path = tmp_path / "model.json"
    path.write_text(model.to_json(), encoding="utf-8")
    keras.utils.set_random_seed(1)
    copy = keras.models.clone_model(model)
    code, out, _ = run(
        "replay", *GRU, "--seed", 1, "--backend", "torch", "--keras-config", path, "--made", "clone_model"
    )
    assert code == 0
    assert f" {copy.layers[0].cell.kernel_initializer.seed}\n" in out


ORDERS = {
    "a module": (["--order", "gru", "--order", "head"], ["gru", "head"]),
    "draws of something else": (["--order", "3", "--order", "gru", "--order", "head"], [3, "gru", "head"]),
    "twins": (
        ["--order", "('Dropout', {'rate': 0.5})", "--order", "gru", "--order", "('Dense', 'head')"],
        [kinit.twin("Dropout", rate=0.5), "gru", kinit.twin("Dense", "head")],
    ),
}


@pytest.mark.parametrize(("arguments", "order"), ORDERS.values(), ids=ORDERS)
def test_order(arguments, order, run, tmp_path, monkeypatch):
    """`--order`, once for each thing, is what `order` of replay_keras lists."""
    (tmp_path / "mine_order.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.ModuleDict({'head': nn.Linear(4, 2), 'gru': nn.GRU(3, 4, batch_first=True)})\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = run("replay", "mine_order:make", "--seed", 1, "--backend", "torch", "--json", *arguments)
    assert code == 0
    port = nn.ModuleDict({"head": nn.Linear(4, 2), "gru": nn.GRU(3, 4, batch_first=True)})
    done = kinit.replay_keras(port, 1, backend="torch", order=order, build="sequential")
    assert kinit.Plan.from_dict(json.loads(out)) == done


def as_script(*arguments):
    """Call the command line as the file does that an installer writes for `kinit`."""
    sys.argv = ["/bin/kinit", *map(str, arguments)]
    file = compile("from torch_kinit.__main__ import script\ncode = script()", "/bin/kinit", "exec")
    found = {"__name__": "__main__"}
    exec(file, found)
    return found["code"]


@pytest.mark.parametrize("call", [lambda *a: main([str(x) for x in a]), as_script], ids=["main", "script"])
def test_guesses_are_told_in_the_words_of_the_command_line(call, capsys, tmp_path, monkeypatch):
    """What replay_keras warns of is a line that names options, and no place in somebody's code."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "model.json"
    layer = keras.layers.GRU(4, kernel_initializer="he_normal", name="gru_3")  # made after three others
    given = keras.Sequential([keras.Input((5, 3)), layer])
    path.write_text(given.to_json(), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert call("replay", *GRU, "--seed", 1, "--backend", "torch", "--keras-config", path) == 0
    err = capsys.readouterr().err
    assert err.startswith("torch_kinit: warning: The config does not tell all")
    assert "--order, --build and --made settle it by hand" in err
    assert err.count("\n") == 1
