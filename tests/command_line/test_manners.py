"""The command line keeps its output clean, ends without a traceback, and writes files whole or not at all."""

import argparse
import configparser
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import torch_kinit as kinit
from tests.support.command_line import LINEAR
from torch_kinit import __main__ as command_line

MINE = """
import os, subprocess, sys, warnings
import torch
from torch import nn
import torch_kinit as kinit

print("imported")

class Loud(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)
        print("made")
        os.write(1, b"written\\n")
        subprocess.run([sys.executable, "-c", "print('from a program')"])

def warns():
    warnings.warn("mine is old")
    return nn.Linear(2, 3)

def interrupted():
    raise KeyboardInterrupt

def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model

ready = nn.Linear(2, 3)
"""


@pytest.fixture
def _mine(tmp_path, monkeypatch):
    """A module of models, in the current folder."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.usefixtures("_mine")
def test_stdout_is_the_result_alone(capfd):
    """What a module, a factory or a program that it starts prints is on stderr; --json is JSON."""
    assert command_line.main(["apply", "mine:Loud", "--seed", "1", "--json"]) == 0
    out, err = capfd.readouterr()
    assert set(json.loads(out)["values"]) == {"weight", "bias"}
    assert sorted(err.splitlines()) == ["from a program", "imported", "made", "written"]
    print("and afterwards stdout is as it was", flush=True)
    assert capfd.readouterr().out.startswith("and afterwards")


@pytest.mark.usefixtures("_mine")
def test_a_users_warning(run):
    """A warning of the user's own code is shown as Python shows it, on stderr, after success alone."""
    for more, code, shown in (["--json"], 0, 1), (["--only", "nothing"], 2, 0):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert run("plan", "mine:warns", *more)[0] == code
        assert [str(warning.message) for warning in seen] == ["mine is old"] * shown


@pytest.mark.usefixtures("_mine")
def test_a_module_that_is_there_already(run):
    """MODULE:NAME may be a module instead of a factory."""
    assert "glorot_uniform" in run("plan", "mine:ready")[1]


@pytest.mark.usefixtures("_mine")
def test_interrupt(run):
    """Ctrl-C ends with 130 and no traceback."""
    code, out, err = run("plan", "mine:interrupted")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.usefixtures("_mine")
def test_the_reader_has_seen_enough():
    """A reader that closes the pipe, such as `head`, is no error."""
    command = [sys.executable, "-m", "torch_kinit", "plan", "tests.support.command_line:stack"]
    roots = str(Path(kinit.__file__).parents[1]), str(Path(__file__).parents[2])  # of the package and of the tests
    with subprocess.Popen(
        [*command, "--set", "layers=3000", "--no-fold"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
    ) as started:
        started.stdout.read(10)
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 0


def test_a_state_dict_is_saved(run, tmp_path):
    """.pt is read by torch.load, .safetensors by safetensors; what was there before is replaced."""
    module = nn.Linear(20, 5)
    kinit.apply(module, seed=1)
    for suffix, load in ((".pt", torch.load), (".safetensors", load_file)):
        path = tmp_path / f"weights{suffix}"
        path.write_text("old", encoding="utf-8")
        assert run("apply", *LINEAR, "--seed", 1, "--out", path)[0] == 0
        loaded = load(path)
        assert sorted(loaded) == ["bias", "weight"]
        assert torch.equal(loaded["weight"], module.weight)
    assert sorted(os.listdir(tmp_path)) == ["weights.pt", "weights.safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_equal_seeds_give_equal_files(run, tmp_path, suffix):
    """Two runs write the same bytes, and through a link into the file that it leads to."""
    first, second = tmp_path / f"first{suffix}", tmp_path / f"link{suffix}"
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "file"
    second.symlink_to(target)
    for path in (first, second):
        assert run("apply", *LINEAR, "--seed", 1, "--out", path)[0] == 0
    assert second.is_symlink()
    assert target.read_bytes() == first.read_bytes()
    assert run("apply", *LINEAR, "--seed", 2, "--out", second)[0] == 0
    assert target.read_bytes() != first.read_bytes()


@pytest.mark.usefixtures("_mine")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tied_tensors_are_saved_under_each_name(run, suffix):
    """The file has all names of the state dict, and a model with ties loads it."""
    assert run("apply", "mine:tied", "--seed", 1, "--out", f"w{suffix}")[0] == 0
    loaded = (load_file if suffix == ".safetensors" else torch.load)(f"w{suffix}")
    sys.modules["mine"].tied().load_state_dict(loaded)
    assert torch.equal(loaded["0.weight"], loaded["1.weight"])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("out of luck")])
def test_a_file_that_cannot_be_written(error, run, tmp_path, monkeypatch):
    """An error while a file is written leaves the one that was there, and no other."""
    path = tmp_path / "weights.pt"
    path.write_text("old", encoding="utf-8")

    def save(state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save)
    code, out, err = run("apply", *LINEAR, "--out", path)
    assert (code, out) == (2, "")
    assert "Cannot write" in err
    assert ("No space left on device" if isinstance(error, OSError) else "out of luck") in err
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["weights.pt"]


@pytest.mark.parametrize("option", ["--rules", "--plan"])
def test_a_file_that_may_not_be_read(option, run, tmp_path, monkeypatch):
    """A file without permission is a message with its name."""
    path = tmp_path / "rules.json"

    def read(self, **how):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", read)
    assert run("apply", *LINEAR, option, path) == (2, "", f"torch_kinit: Cannot open {path}: Permission denied.\n")


def test_a_file_needs_safetensors(run, tmp_path, monkeypatch):
    """Without the package .safetensors is refused, before anything else is done."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    code, _, err = run("apply", "nowhere:f", "--out", tmp_path / "w.safetensors")
    assert code == 2
    assert "needs the package safetensors" in err


def test_progress_shows_on_a_terminal(run, monkeypatch):
    """A fill that takes longer than a second shows a bar if stderr is a terminal, and none else."""
    ticks = itertools.count(0.0, 0.7)
    monkeypatch.setattr("tqdm.std.time", ticks.__next__)
    assert run("apply", *LINEAR)[2] == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert "initializing" in run("apply", *LINEAR)[2]


def test_a_terminal_has_colours_and_its_width(run, monkeypatch):
    """A terminal of 70 columns gets a table of 70, with colours; a dumb one or NO_COLOR without."""
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    demo = ("plan", "torch_kinit.inspection.demo:PictureAndText")
    assert "\033" not in run(*demo)[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\033[1m" in run(*demo)[1]
    monkeypatch.setenv("TERM", "dumb")
    plain = run(*demo)[1]
    assert "\033" not in plain
    assert max(map(len, plain.splitlines())) <= 70
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(*demo)[1] == plain


def test_the_values_fit_80_columns(run, monkeypatch):
    """What apply prints on a terminal of 80 columns fits it, and says which columns it leaves out."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    out = run("apply", "torch_kinit.inspection.demo:PictureAndText", "--seed", 1)[1]
    assert max(map(len, out.splitlines())) <= 80
    assert "not shown in 80 columns: initializer, law's bounds" in out


WORDS = {
    "`seed` must be from 0": "--seed must be from 0",
    "so it needs `seed` or a Key": "so it needs --seed or a Key",
    "on_uncovered='keep' leaves them": "--on-uncovered keep leaves them",
    "`made`='program' tells": "--made program tells",
    "`keras_config` and `only`": "--keras-config and --only",
    "{'a': kinit.skip}": "{'a': 'skip'}",
    "with kinit.apply(model, seed=1)": "with kinit.apply(model, seed=1)",
    "kinit.apply(seed=1)": "kinit.apply(seed=1)",
    "`model` and `value` stay": "`model` and `value` stay",
}


@pytest.mark.parametrize(("message", "told"), WORDS.items(), ids=WORDS)
def test_messages_speak_of_options(message, told):
    """An argument of Python is told as the option that stands for it; code stays as it is."""
    names = ("seed", "on_uncovered", "made", "keras_config", "only", "model", "run")
    options = argparse.Namespace(**dict.fromkeys(names))
    assert command_line._as_options(message, options) == told


def test_an_output_without_the_letters(monkeypatch):
    """An output that cannot hold a character of the table gets another one instead of an error."""
    made = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", made)
    gaps = ("plan", "tests.support.command_line:stack", "--set", "layers=4", "--set", "gaps=True")
    assert command_line.main([*gaps]) == 0
    assert b"0,2?6.weight" in made.buffer.getvalue()


@pytest.mark.slow
def test_ctrl_c_in_the_process(tmp_path):
    """A process that is interrupted while a model is made ends with 130, quietly, and leaves no file."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef make():\n    pathlib.Path('made').touch()\n    time.sleep(60)\n", encoding="utf-8"
    )
    roots = str(Path(kinit.__file__).parents[1]), str(Path(__file__).parents[2])  # of the package and of the tests
    started = subprocess.Popen(
        [sys.executable, "-m", "torch_kinit", "apply", "slow:make", "--out", "w.pt"],
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background job ignores
    )
    while not (tmp_path / "made").exists() and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=60)[1] == b""
    assert started.returncode == 130
    assert "w.pt" not in os.listdir(tmp_path)


@pytest.mark.slow
def test_the_console_script(tmp_path):
    """The entry point `kinit` of setup.cfg finds models in the current folder."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    name, equals, entry = config["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = entry.partition(":")
    assert (name, equals) == ("kinit", " = ")
    (tmp_path / "mine.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n", encoding="utf-8")
    code = f"import sys; sys.path.pop(0); from {module} import {function}; sys.exit({function}())"
    roots = str(Path(kinit.__file__).parents[1]), str(Path(__file__).parents[2])  # of the package and of the tests
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "mine:make"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
    )
    assert "glorot_uniform" in done.stdout
