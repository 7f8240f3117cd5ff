"""`python -m torch_kinit replay`: the weights Keras starts from, on the command line."""

import json

import keras
import pytest

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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param((*GRU, "--backend", "torch"), "--seed", id="no seed"),
        pytest.param((*GRU, "--seed", 1), "--backend", id="no backend"),
        pytest.param((*GRU, "--seed", 1, "--backend", "theano"), "invalid choice: 'theano'", id="backend"),
        pytest.param((*GRU, "--seed", -1, "--backend", "jax"), "`seed` must be from 0 to 2**32 - 1", id="seed"),
        pytest.param(
            (*GRU, "--seed", 1, "--backend", "jax", "--keras-config", "none.json"),
            "There is no file none.json",
            id="no file",
        ),
        pytest.param(
            (
                "torch.nn:Bilinear",
                "--set",
                "in1_features=2",
                "--set",
                "in2_features=2",
                "--set",
                "out_features=2",
                "--seed",
                1,
                "--backend",
                "jax",
            ),
            "No Keras layer draws weight of Bilinear",
            id="no twin",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(run, arguments, sentence):
    """An error is one line on stderr, with exit code 2 and nothing on stdout."""
    code, out, err = run("replay", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
