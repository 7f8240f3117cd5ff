"""`compare` prints what kinit.compare finds, and its exit code says whether there is something."""

import json

import pytest

import torch_kinit as kinit

LINEAR = ("compare", "torch.nn:Linear", "--set", "in_features=3", "--set", "out_features=2")


@pytest.fixture
def config(tmp_path):
    """A file with the config of one Dense layer, and a function that changes its config."""
    path = tmp_path / "model.json"

    def save(**more):
        dense = {"class_name": "Dense", "config": {"name": "dense", "units": 2, **more}}
        path.write_text(json.dumps({"class_name": "Sequential", "config": {"layers": [dense]}}), "utf-8")
        return path

    return save


def test_the_exit_code_tells_whether_there_are_differences(run, config):
    """0 where there are none, 1 where there are; what is printed is the comparison as text."""
    code, out, err = run(*LINEAR, "--keras-config", config())
    assert (code, err) == (0, "")
    assert out.startswith("1 layer with weights, 0 differences.")
    code, out, err = run(*LINEAR, "--keras-config", config(trainable=False))
    assert (code, err) == (1, "")
    assert "port.requires_grad_(False)" in out


def test_a_terminal_for_errors_alone_cuts_nothing(run, config, monkeypatch):
    """The width of the terminal that stderr goes to is not that of the output."""
    path = config(trainable=False)
    whole = run(*LINEAR, "--keras-config", path)[1]
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert run(*LINEAR, "--keras-config", path)[1] == whole
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(*LINEAR, "--keras-config", path)[1] != whole


def test_json_is_the_comparisons_own(run, config):
    """--json prints its to_dict."""
    from torch import nn

    path = config(trainable=False)
    _, out, _ = run(*LINEAR, "--keras-config", path, "--json")
    assert json.loads(out) == kinit.compare(path, nn.Linear(3, 2)).to_dict()


def test_modules_are_read(run, config):
    """--modules takes a dict; another layer's name is told in the words of the command line."""
    assert run(*LINEAR, "--keras-config", config(), "--modules", "{'dense': ''}")[0] == 0
    code, _, err = run(*LINEAR, "--keras-config", config(), "--modules", "{'head': ''}")
    assert code == 2
    assert "--modules speaks of 'head', which is no Keras layer" in err


def test_a_missing_config_is_told(run, tmp_path):
    """A file that is not there, and none given, are errors."""
    assert run(*LINEAR, "--keras-config", tmp_path / "no.json")[::2] == (
        2,
        f"torch_kinit: There is no file {tmp_path / 'no.json'}.\n",
    )
    assert "--keras-config" in run(*LINEAR)[2]
