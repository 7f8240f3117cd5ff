"""Wrong input to the command line is one message on stderr and exit code 2."""

import json
import os
import re
import sys

import pytest
from torch import nn

import torch_kinit as kinit
from tests.support.command_line import LINEAR, process

PRINTED = "hello\n"
MINE = """
import torch
from torch import nn

def prints(): print("hello"); return 3
def exits(): raise SystemExit(3)
def lines(): raise ValueError("one\\ntwo")
def book(): raise RuntimeError("a" * 10_000)
def unset(): return nn.Linear.weight
def positions(): return nn.ParameterList([torch.zeros(2)])

class Stateful(nn.Linear):
    def __init__(self): super().__init__(2, 2)
    def get_extra_state(self): return {"a": 1}
    def set_extra_state(self, state): pass
"""
FILES = {
    "broken.json": "{",
    "broken.toml": "a = ",
    "list.json": "[]",
    "number.json": "3",
    "latin.json": b'{"\xe9": 1}',
    "unused.json": '{"torch.nn:Conv2d": "zeros", "haed": "ones"}',
    "value.json": '{"weight": "he_norml"}',
    "twice.json": '{"weight": "zeros", "weight": "ones"}',
    "null.json": '{"weight": null}',
    "nan.json": '{"weight": NaN}',
    "regex.json": '{"re:(": "zeros"}',
    "class.json": '{"torch.nn:Conv9d": "zeros"}',
    "module.json": '{"torch.nope:Conv2d": "zeros"}',
    "function.json": '{"torch.nn.init:zeros_": "zeros"}',
    "deep.json": "[" * 100_000,
    "rules.json": '{"weight": "he_normal"}',
    "other.json": json.dumps(kinit.plan(nn.Linear(3, 3)).to_dict()),
    "weights.h5": "no HDF5",
    "layers.json": '{"class_name": "Sequential", "config": {"name": "s", "layers": []}}',
    "mine.py": MINE,
    "mine_exits.py": "import sys\nsys.exit('bye')",
    "mine_broken.py": "def make(:",
}
HUGE = "99999999999999999999999"
GRU = ("torch.nn:GRU", "--set", "input_size=3", "--set", "hidden_size=4", "--backend", "jax")
CONFIG = ("--seed", "1", "--keras-config")
BILINEAR = ("torch.nn:Bilinear", *(x for i in ("in1", "in2", "out") for x in ("--set", f"{i}_features=2")))

# The arguments, and a part of the message as a regex.
WRONG = {
    # the model
    "module": (["plan", "nowhere:f"], r"Cannot import 'nowhere': ModuleNotFoundError: No module named 'nowhere'"),
    "relative module": (["plan", ".nn:Linear"], r"Cannot import '\.nn': TypeError"),
    "factory": (["plan", "torch.nn:Liner"], r"torch\.nn has no 'Liner'\. Did you mean 'Linear'"),
    "nested factory": (["plan", "torch:nn.Liner"], r"torch has no 'nn\.Liner'\. Did you mean 'Linear'"),
    "no factory": (["plan", "torch.nn"], r"Expected MODULE:NAME such as torch\.nn:Transformer, got 'torch\.nn'"),
    "empty factory": (["plan", "torch.nn:"], r"Expected MODULE:NAME such as torch\.nn:Transformer, got 'torch\.nn:'"),
    "not callable": (["plan", "torch:pi"], r"torch:pi is not callable\."),
    "no module": (["plan", "builtins:dict"], r"builtins:dict gave a dict, not a torch\.nn\.Module\."),
    "no model": (["apply"], r"the following arguments are required: MODULE:FACTORY"),
    "missing argument": (["plan", "torch.nn:Linear"], r"torch\.nn:Linear\(\) raised TypeError: .*missing 2 required"),
    "lazy model": (["plan", "torch.nn:LazyLinear", "--set", "out_features=2"], r"lazy .* run one forward pass"),
    "module that exits": (["plan", "mine_exits:f"], r"Cannot import 'mine_exits': SystemExit: bye"),
    "module with a syntax error": (
        ["plan", "mine_broken:f"],
        r"Cannot import 'mine_broken': SyntaxError",
    ),
    "factory that prints": (["plan", "mine:prints"], r"mine:prints gave a int, not a torch\.nn\.Module\."),
    "factory that exits": (["plan", "mine:exits"], r"mine:exits\(\) raised SystemExit: 3"),
    "factory of many lines": (["plan", "mine:lines"], r"mine:lines\(\) raised ValueError: one\ntwo"),
    "factory that raises a book": (["plan", "mine:book"], r"mine:book\(\) raised RuntimeError: a+…"),
    "class with another attribute": (["plan", "mine:unset"], r"mine:unset\(\) raised AttributeError"),
    # --set
    "unknown argument": (["plan", *LINEAR, "--set", "x=1"], r"torch\.nn:Linear\(.*x=1\) raised TypeError: .*'x'"),
    "argument's value": (
        ["plan", "torch.nn:Linear", "--set", "in_features=abc", "--set", "out_features=5"],
        r"torch\.nn:Linear\(in_features='abc', out_features=5\) raised TypeError",
    ),
    "--set without value": (["plan", *LINEAR, "--set", "bias"], r"--set takes KEY=VALUE, got 'bias'\."),
    "--set without key": (["plan", *LINEAR, "--set", "=1"], r"--set takes KEY=VALUE, got '=1'\."),
    "--set with a key that is no name": (["plan", *LINEAR, "--set", "a b=1"], r"--set takes KEY=VALUE, got 'a b=1'\."),
    "--set twice": (["plan", *LINEAR, "--set", "in_features=3"], r"--set has 'in_features' twice\."),
    "--set in JSON": (
        ["plan", *LINEAR, "--set", "bias=false"],
        r"--set bias reads Python, and false is JSON",
    ),
    "--set in JSON, inside": (
        ["plan", *LINEAR, "--set", "bias=[null]"],
        r"--set bias reads Python, and \[null\] is",
    ),
    # rule files
    "no rule file": (["plan", *LINEAR, "--rules", "no.json"], r"Cannot open no\.json: No such file"),
    "rule file is a folder": (["plan", *LINEAR, "--rules", "folder.json"], r"Cannot open folder\.json: Is a directory"),
    "rule file of another kind": (["plan", *LINEAR, "--rules", "mine.py"], r"files that end in \.json or \.toml, got"),
    "rule twice": (["plan", *LINEAR, "--rules", "twice.json"], r"the key 'weight' is there twice"),
    "broken JSON": (["plan", *LINEAR, "--rules", "broken.json"], r"The rules broken\.json are not JSON: Expecting"),
    "broken TOML": (["plan", *LINEAR, "--rules", "broken.toml"], r"The rules broken\.toml are not TOML: Invalid value"),
    "too deep JSON": (["plan", *LINEAR, "--rules", "deep.json"], r"The rules deep\.json are not JSON: "),
    "not UTF-8": (["plan", *LINEAR, "--rules", "latin.json"], r"The rules latin\.json are not JSON: 'utf-8' codec"),
    "rules are a list": (["plan", *LINEAR, "--rules", "list.json"], r"list\.json must be one object, got a list"),
    "rules are a number": (["apply", *LINEAR, "--rules", "number.json"], r"number\.json must be one object, got a int"),
    "unused rules": (
        ["plan", *LINEAR, "--rules", "unused.json"],
        r"Rules that would do nothing:\n  Conv2d matches nothing\.\n  'haed' matches nothing\.",
    ),
    "rule's value": (["plan", *LINEAR, "--rules", "value.json"], r"Unknown initializer 'he_norml'\. Did you mean"),
    "rule is null": (["plan", *LINEAR, "--rules", "null.json"], r"Rule 'weight': None is no initializer"),
    "rule is NaN": (["plan", *LINEAR, "--rules", "nan.json"], r"Rule 'weight': `value` must be finite, got nan"),
    "rule's regex": (["plan", *LINEAR, "--rules", "regex.json"], r"The rule 're:\(' is no regex: missing \)"),
    "rule's class": (["plan", *LINEAR, "--rules", "class.json"], r"torch\.nn has no 'Conv9d'\."),
    "rule's module": (["plan", *LINEAR, "--rules", "module.json"], r"Cannot import 'torch\.nope'"),
    "rule's class is none": (
        ["plan", *LINEAR, "--rules", "function.json"],
        r"A rule's key must be a module class, .* got <function",
    ),
    "uncovered parameter": (
        ["plan", "mine:positions"],
        r"Neither Keras nor a rule says how to initialize:\n +0 \(2,\) of ParameterList",
    ),
    "uncovered parameter, told as options": (["plan", "mine:positions"], r"--on-uncovered keep"),
    # options
    "unknown option": (["plan", *LINEAR, "--sed", "1"], r"unrecognized arguments: --sed 1"),
    "shortened option": (["plan", *LINEAR, "--rul", "rules.json"], r"unrecognized arguments: --rul rules.json"),
    "unknown command": (["paint", *LINEAR], r"invalid choice: 'paint'"),
    "seed before the command": (["--seed", "1", "apply", *LINEAR], r"--seed stands behind the command"),
    "seed of a plan, which draws nothing": (["plan", *LINEAR, "--seed", "1"], r"unrecognized arguments: --seed 1"),
    "seed is no number": (["apply", *LINEAR, "--seed", "one"], r"argument --seed: invalid int value: 'one'"),
    "overflowing seed": (["apply", *LINEAR, "--seed", HUGE], rf"--seed must be from 0 to 2\*\*64 - 1, got {HUGE}"),
    "negative seed": (["apply", *LINEAR, "--seed", "-1"], r"--seed must be from 0 to 2\*\*64 - 1, got -1"),
    "overflowing generator seed": (
        ["apply", *LINEAR, "--generator-seed", HUGE],
        rf"--generator-seed must fit in 64 bits, got {HUGE}",
    ),
    "two seeds": (
        ["apply", *LINEAR, "--seed", "1", "--generator-seed", "1"],
        r"argument --generator-seed: not allowed with argument --seed",
    ),
    "overflowing seed of the demonstration": (["--seed", HUGE], r"--seed must be from 0 to 2\*\*64 - 1"),
    "negative seed of the demonstration": (["--seed", f"-{HUGE}"], r"--seed must be from 0 to 2\*\*64 - 1"),
    "prefix without seed": (["apply", *LINEAR, "--prefix", "a"], r"--prefix a is for values .* so it needs --seed"),
    "empty prefix parts": (["apply", *LINEAR, "--seed", "1", "--prefix", "a..b"], r"--prefix must be a name"),
    "unknown name": (["plan", *LINEAR, "--only", "wieght"], r"--only has 'wieght', .* Did you mean 'weight'"),
    "on-uncovered": (["plan", *LINEAR, "--on-uncovered", "ignore"], r"--on-uncovered: invalid choice: 'ignore'"),
    "convention": (["plan", *LINEAR, "--convention", "keras-2"], r"--convention: invalid choice: 'keras-2'"),
    # --plan
    "no plan file": (["apply", *LINEAR, "--plan", "no.json"], r"Cannot open no\.json: No such file"),
    "plan file is a folder": (["apply", *LINEAR, "--plan", "."], r"Cannot open \.: Is a directory"),
    "plan is not JSON": (
        ["apply", *LINEAR, "--plan", "broken.json"],
        r"broken\.json is no plan that `plan --json`",
    ),
    "plan is a rule file": (
        ["apply", *LINEAR, "--plan", "rules.json"],
        r"rules\.json is no plan that `plan --json`",
    ),
    "plan of another model": (
        ["apply", *LINEAR, "--plan", "other.json"],
        r"planned as \(3, 3\) float32 and is",
    ),
    "plan and rules": (["apply", *LINEAR, "--plan", "other.json", "--rules", "rules.json"], r"--plan excludes --rules"),
    "plan and names": (
        ["apply", *LINEAR, "--plan", "other.json", "--only", "weight"],
        r"--plan excludes .* --only",
    ),
    # --out
    "unknown suffix": (
        ["apply", *LINEAR, "--out", "w.bin"],
        r"is saved as \.pt or \.safetensors, got 'w\.bin'",
    ),
    "no suffix": (
        ["apply", *LINEAR, "--out", "weights"],
        r"is saved as \.pt or \.safetensors, got 'weights'",
    ),
    "no folder": (["apply", *LINEAR, "--out", "no/w.pt"], r"There is no folder 'no' to write w\.pt in"),
    "a folder": (["apply", *LINEAR, "--out", "folder.pt"], r"'folder\.pt' is a folder, not a file to write"),
    "state that safetensors cannot hold": (
        ["apply", "mine:Stateful", "--out", "w.safetensors"],
        r"_extra_state is a dict, which \.safetensors cannot hold; save as \.pt",
    ),
    "out of a plan": (["plan", *LINEAR, "--out", "w.pt"], r"unrecognized arguments: --out w\.pt"),
    # replay
    "replay without seed": (["replay", *GRU], r"--seed must be given"),
    "replay without backend": (["replay", *GRU[:-2], "--seed", "1"], r"required: --backend"),
    "backend": (["replay", *GRU[:-1], "theano", "--seed", "1"], r"invalid choice: 'theano'"),
    "Keras' seed": (["replay", *GRU, "--seed", "-1"], r"--seed must be from 0 to 2\*\*32 - 1"),
    "no config": (["replay", *GRU, *CONFIG, "no.json"], r"There is no file no\.json"),
    "config is a folder": (
        ["replay", *GRU, *CONFIG, "."],
        r"or \.h5 file, got '\.'",
    ),
    "config is no HDF5": (
        ["replay", *GRU, *CONFIG, "weights.h5"],
        r"cannot be read as HDF5",
    ),
    "config is not JSON": (
        ["replay", *GRU, *CONFIG, "broken.json"],
        r"broken\.json' is no JSON",
    ),
    "config of another model": (
        ["replay", *GRU, *CONFIG, "layers.json"],
        r"has no weight for weight",
    ),
    "made without config": (["replay", *GRU, "--seed", "1", "--made", "program"], r"--made says how the model of a"),
    "no twin": (["replay", *BILINEAR, "--seed", "1", "--backend", "jax"], r"No Keras layer draws weight of Bilinear"),
    "order of nothing": (["replay", *GRU, "--seed", "1", "--order", "gru"], r"--order has 'gru', which is no module"),
    "order of a twin that is none": (
        ["replay", *GRU, "--seed", "1", "--order", "('Densse', 'x')"],
        r"twin\('Densse",
    ),
    "order of an empty twin": (
        ["replay", *GRU, "--seed", "1", "--order", "()"],
        r"--order has \(\), and a twin begins",
    ),
    "order in JSON": (["replay", *GRU, "--seed", "1", "--order", "null"], r"--order reads Python, and null is JSON"),
}


@pytest.fixture
def _files(tmp_path, monkeypatch):
    """The rule files above, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for name in ("folder.pt", "folder.json"):
        (tmp_path / name).mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize(("arguments", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_input(arguments, sentence, run, tmp_path):
    """A wrong input is one message on stderr and exit code 2: nothing on stdout, no traceback, no file left behind."""
    before = sorted(os.listdir(tmp_path))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    message = err.removeprefix(PRINTED)
    assert message.startswith("torch_kinit: ")
    assert re.search(sentence, message), err
    assert "Traceback" not in message
    assert len(message) < 1550
    assert sorted(name for name in os.listdir(tmp_path) if name != "__pycache__") == before


def test_there_are_sixty():
    """The table has at least sixty rows."""
    assert len(WRONG) >= 60


@pytest.mark.slow
@pytest.mark.usefixtures("_files")
def test_wrong_input_to_the_process(tmp_path):
    """The process itself ends with the same message and exit code, and the warnings of its model do not hide it."""
    arguments, sentence = WRONG["unused rules"]
    done = process(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"torch_kinit: {sentence}\n?", done.stderr.partition(" Did")[0]), done.stderr
