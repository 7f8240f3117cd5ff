"""The command line: the demonstration, plan and apply of any importable model, and one line for each wrong input."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from torch_kinit.__main__ import main

DEMO = "torch_kinit._demo:PictureAndText"
TRANSFORMER = ("torch.nn:Transformer", "--set", "d_model=64", "--set", "nhead=4")
LINEAR = ("torch.nn:Linear", "--set", "in_features=20", "--set", "out_features=5")


@pytest.fixture
def run(capsys):
    """Call the command line in this process; its exit code, stdout and stderr."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def process(*arguments, cwd=None):
    """Call it as users do."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(kinit.__file__)))
    return subprocess.run(
        [sys.executable, "-m", "torch_kinit", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root, "COLUMNS": "160"},
    )


# ---- what it does


def test_demonstration():
    """Without arguments it plans and applies a network with all common layers, and runs it."""
    done = process()
    assert (done.returncode, done.stderr) == (0, "")
    for layer in (
        "Embedding",
        "Conv2d",
        "ConvTranspose2d",
        "BatchNorm2d",
        "LSTM",
        "GRU",
        "MultiheadAttention",
        "Linear",
    ):
        assert re.search(rf"\b{layer}\b", done.stdout), layer
    for role in ("depthwise_kernel", "recurrent_kernel", "embeddings", "moving_variance"):
        assert role in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160
    assert "nan" not in done.stdout


def test_demonstration_is_reproducible(run):
    """The same seed prints the same, another seed something else."""
    code, first, _ = run("--seed", 3)
    assert code == 0
    assert run("--seed", 3)[1] == first
    assert run("--seed", 4)[1] != first
    assert run()[1] == run("--seed", 0)[1]


def test_plan_prints_the_plan(run, monkeypatch):
    """plan prints what kinit.plan gives, and as JSON what its to_dict does."""
    monkeypatch.setenv("COLUMNS", "150")
    plan = kinit.plan(nn.Linear(20, 5))
    assert run("plan", *LINEAR) == (0, f"{plan}\n", "")
    code, out, err = run("plan", *LINEAR, "--json")
    assert (code, err) == (0, "")
    assert kinit.Plan.from_dict(json.loads(out)) == plan


def test_apply_prints_plan_and_values(run, monkeypatch):
    """apply prints the plan and a row a tensor with its values beside the law's."""
    monkeypatch.setenv("COLUMNS", "150")
    code, out, err = run("apply", *LINEAR, "--seed", 1)
    assert (code, err) == (0, "")
    plan, values = out.split("\n\n")
    assert plan == str(kinit.plan(nn.Linear(20, 5)))
    head, _, weight, bias = (re.split(r" {2,}", line) for line in values.splitlines())
    assert head == ["name", "initializer", "mean", "std", "std by law", "min", "max", "law's bounds"]
    limit = math.sqrt(6 / 25)  # Glorot and Bengio 2010
    assert weight[:2] == ["weight", "glorot_uniform"]
    assert float(weight[4]) == pytest.approx(limit / math.sqrt(3), rel=1e-3)
    assert -limit <= float(weight[5]) < 0 < float(weight[6]) <= limit
    assert bias == ["bias", "zeros", "+0.00e+00", "0", "0", "0", "0", "[0, 0]"]


def test_apply_json_has_the_values(run):
    """apply --json is strict JSON: the plan and each tensor's mean, std, min and max, the same for the same seed."""
    code, out, _ = run("apply", DEMO, "--set", "width=8", "--seed", 5, "--json")
    assert code == 0
    data = json.loads(out, parse_constant=pytest.fail)
    assert set(data["values"]) == {step["name"] for step in data["steps"]}
    assert run("apply", DEMO, "--set", "width=8", "--seed", 5, "--json")[1] == out
    assert run("apply", DEMO, "--set", "width=8", "--seed", 6, "--json")[1] != out
    module = nn.Linear(20, 5)
    kinit.apply(module, generator=torch.Generator().manual_seed(5))
    values = json.loads(run("apply", *LINEAR, "--seed", 5, "--json")[1])["values"]["weight"]
    assert values["max"] == float(module.weight.detach().max())


def test_tensors_without_values(run):
    """Empty and meta tensors, which have no mean, are null in JSON."""
    settings = ["in_features=2", "out_features=3", 'device="meta"']
    arguments = [a for setting in settings for a in ("--set", setting)]
    data = json.loads(run("apply", "torch.nn:Linear", *arguments, "--json")[1], parse_constant=pytest.fail)
    assert data["values"]["weight"] == dict.fromkeys(("mean", "std", "min", "max"))


SETTINGS = {
    "number": ("num_layers=2", "weight_ih_l1"),
    "true": ("bidirectional=true", "weight_ih_l0_reverse"),
    "string": ("nonlinearity=relu", "weight_ih_l0"),
    "quoted string": ('nonlinearity="relu"', "weight_ih_l0"),
}


@pytest.mark.parametrize(("setting", "name"), SETTINGS.values(), ids=SETTINGS)
def test_set(setting, name, run):
    """--set gives the factory an argument, read as JSON or else as a string."""
    code, out, _ = run(
        "plan", "torch.nn:RNN", "--set", "input_size=2", "--set", "hidden_size=3", "--set", setting, "--json"
    )
    assert code == 0
    assert name in kinit.Plan.from_dict(json.loads(out))


RULE_FILES = {
    "json": (
        "rules.json",
        json.dumps(
            {
                "torch.nn:Conv2d": "he_normal",
                "re:reader\\..*_hh.*": {"recurrent_kernel": "identity"},
                "answer": {
                    "kernel_initializer": {"class_name": "RandomNormal", "config": {"stddev": 0.5}},
                    "bias": 0.25,
                },
                "words": "skip",
            }
        ),
    ),
    "toml": (
        "rules.toml",
        """
        "torch.nn:Conv2d" = "he_normal"
        're:reader\\..*_hh.*' = {recurrent_kernel = "identity"}
        words = "skip"
        [answer]
        kernel_initializer = {class_name = "RandomNormal", config = {stddev = 0.5}}
        bias = 0.25
        """,
    ),
}


@pytest.mark.parametrize(("name", "text"), RULE_FILES.values(), ids=RULE_FILES)
def test_rule_file(name, text, run, tmp_path):
    """A rule file, JSON or TOML, has classes, globs and regexes for keys and says what a dict of rules would."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    code, out, err = run("plan", DEMO, "--rules", tmp_path / name, "--json")
    assert (code, err) == (0, "")
    plan = kinit.Plan.from_dict(json.loads(out))
    printed = {step.name: str(step.initializer) for step in plan if step.rule != "Keras default"}
    assert printed == {
        **dict.fromkeys(("stem.weight", "depthwise.weight", "pointwise.weight"), "he_normal"),
        **dict.fromkeys(("reader.weight_hh_l0", "reader.weight_hh_l0_reverse"), "identity"),
        "answer.weight": "random_normal(std=0.5)",
        "answer.bias": "constant(0.25)",
        "words.weight": "None",
    }


def test_help(capsys):
    """--help explains the commands on stdout and ends with 0."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--help"])
    assert ended.value.code == 0
    assert "MODULE:FACTORY" in capsys.readouterr().out


# ---- wrong input

FILES = {
    "broken.json": "{",
    "broken.toml": "a = ",
    "list.json": "[]",
    "number.json": "3",
    "latin.json": b'{"\xe9": 1}',
    "unused.json": '{"torch.nn:Conv2d": "zeros", "haed": "ones"}',
    "value.json": '{"weight": "he_norml"}',
    "null.json": '{"weight": null}',
    "nan.json": '{"weight": NaN}',
    "regex.json": '{"re:(": "zeros"}',
    "class.json": '{"torch.nn:Conv9d": "zeros"}',
    "module.json": '{"torch.nope:Conv2d": "zeros"}',
    "function.json": '{"torch.nn.init:zeros_": "zeros"}',
    "deep.json": "[" * 100_000,
}
HUGE = "99999999999999999999999"

WRONG = {
    "module": (["plan", "nowhere:f"], r"Cannot import 'nowhere': ModuleNotFoundError: No module named 'nowhere'"),
    "relative module": (["plan", ".nn:Linear"], r"Cannot import '\.nn': TypeError"),
    "factory": (["plan", "torch.nn:Liner"], r"torch\.nn has no 'Liner'\."),
    "nested factory": (["plan", "torch:nn.Liner"], r"torch has no 'nn\.Liner'\."),
    "no factory": (["plan", "torch.nn"], r"Expected MODULE:NAME such as torch\.nn:Transformer, got 'torch\.nn'"),
    "empty factory": (["plan", "torch.nn:"], r"Expected MODULE:NAME such as torch\.nn:Transformer, got 'torch\.nn:'"),
    "not callable": (["plan", "torch:pi"], r"torch:pi is not callable\."),
    "no module": (["plan", "builtins:dict"], r"builtins:dict gave a dict, not a torch\.nn\.Module\."),
    "missing argument": (["plan", "torch.nn:Linear"], r"torch\.nn:Linear\(\) raised TypeError: .*missing 2 required"),
    "unknown argument": (["plan", *LINEAR, "--set", "x=1"], r"torch\.nn:Linear\(.*x=1\) raised TypeError: .*'x'"),
    "argument's value": (
        ["plan", "torch.nn:Linear", "--set", "in_features=abc", "--set", "out_features=5"],
        r"torch\.nn:Linear\(in_features='abc', out_features=5\) raised TypeError",
    ),
    "--set without value": (["plan", *LINEAR, "--set", "bias"], r"--set takes KEY=VALUE, got 'bias'\."),
    "--set without key": (["plan", *LINEAR, "--set", "=1"], r"--set takes KEY=VALUE, got '=1'\."),
    "lazy model": (
        ["plan", "torch.nn:LazyLinear", "--set", "out_features=2"],
        r"weight.* lazy .* run one forward pass",
    ),
    "no rule file": (
        ["plan", *LINEAR, "--rules", "missing.json"],
        r"Cannot read the rules missing\.json: No such file",
    ),
    "rule file is a folder": (["plan", *LINEAR, "--rules", "."], r"Cannot read the rules \.: Is a directory"),
    "broken JSON": (["plan", *LINEAR, "--rules", "broken.json"], r"The rules broken\.json are not JSON: Expecting"),
    "broken TOML": (["plan", *LINEAR, "--rules", "broken.toml"], r"The rules broken\.toml are not TOML: Invalid value"),
    "too deep JSON": (["plan", *LINEAR, "--rules", "deep.json"], r"The rules deep\.json are not JSON: "),
    "not UTF-8": (["plan", *LINEAR, "--rules", "latin.json"], r"The rules latin\.json are not JSON: 'utf-8' codec"),
    "rules are a list": (
        ["plan", *LINEAR, "--rules", "list.json"],
        r"The rules list\.json must be one object, got a list",
    ),
    "rules are a number": (
        ["apply", *LINEAR, "--rules", "number.json"],
        r"The rules number\.json must be one object, got a int",
    ),
    "unused rules": (
        ["plan", *LINEAR, "--rules", "unused.json"],
        r"Rules that would do nothing: Conv2d matches nothing\. 'haed' matches nothing\.",
    ),
    "rule's value": (
        ["plan", *LINEAR, "--rules", "value.json"],
        r"Rule 'weight': Unknown initializer 'he_norml'\. Did you mean",
    ),
    "rule is null": (["plan", *LINEAR, "--rules", "null.json"], r"Rule 'weight': None is no initializer"),
    "rule is NaN": (["plan", *LINEAR, "--rules", "nan.json"], r"Rule 'weight': `value` must be finite, got nan"),
    "rule's regex": (["plan", *LINEAR, "--rules", "regex.json"], r"The rule 're:\(' is no regex: missing \)"),
    "rule's class": (["plan", *LINEAR, "--rules", "class.json"], r"torch\.nn has no 'Conv9d'\."),
    "rule's module": (["plan", *LINEAR, "--rules", "module.json"], r"Cannot import 'torch\.nope'"),
    "rule's class is none": (
        ["plan", *LINEAR, "--rules", "function.json"],
        r"A rule's key must be a module class, .* got <function",
    ),
    "unknown option": (["plan", *LINEAR, "--sed", "1"], r"unrecognized arguments: --sed 1"),
    "unknown command": (["paint", *LINEAR], r"invalid choice: 'paint'"),
    "no model": (["apply"], r"the following arguments are required: MODULE:FACTORY"),
    "seed is no number": (["apply", *LINEAR, "--seed", "one"], r"argument --seed: invalid int value: 'one'"),
    "overflowing seed": (["apply", *LINEAR, "--seed", HUGE], rf"--seed must fit in 64 bits, got {HUGE}"),
    "overflowing seed of plan": (["plan", *LINEAR, "--seed", HUGE], rf"--seed must fit in 64 bits, got {HUGE}"),
    "overflowing seed of the demonstration": (["--seed", HUGE], rf"--seed must fit in 64 bits, got {HUGE}"),
    "overflowing negative seed": (["--seed", f"-{HUGE}"], rf"--seed must fit in 64 bits, got -{HUGE}"),
}


@pytest.fixture
def _files(tmp_path, monkeypatch):
    """The rule files above, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize(("arguments", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_input(arguments, sentence, run):
    """Wrong input is one line on stderr, nothing on stdout, and exit code 2."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"torch_kinit: .*{sentence}.*\n", err), err


@pytest.mark.usefixtures("_files")
def test_wrong_input_to_the_process(tmp_path):
    """The process itself ends with the same one line and exit code."""
    arguments, sentence = WRONG["unused rules"]
    done = process(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"torch_kinit: .*{sentence}.*\n", done.stderr), done.stderr


def test_model_that_warns(tmp_path):
    """A factory's own warnings do not hide the one line: torch's Transformer warns as it is built."""
    done = process(
        "plan", "torch.nn:Transformer", "--set", "d_model=64", "--set", "nhead=4", "--rules", "no.json", cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"torch_kinit: Cannot read the rules no\.json: .*\n", done.stderr), done.stderr


MODULES = {
    "prints": ("print('hello')\ndef make(): return 3", r"mine:make gave a int, not a torch\.nn\.Module\."),
    "exits": ("import sys\nsys.exit('bye')", r"Cannot import 'mine': SystemExit: bye"),
    "syntax error": ("def make(:", r"Cannot import 'mine': SyntaxError: invalid syntax"),
    "factory exits": ("def make(): raise SystemExit(3)", r"mine:make\(\) raised SystemExit: 3"),
    "uncovered parameter": (
        "import torch\ndef make(): return torch.nn.ParameterList([torch.zeros(2)])",
        r"Neither Keras nor a rule says how to initialize: 0 \(2,\) of ParameterList",
    ),
    "many lines": ("def make(): raise ValueError('one\\ntwo')", r"mine:make\(\) raised ValueError: one two"),
}


@pytest.mark.parametrize(("source", "sentence"), MODULES.values(), ids=MODULES)
def test_module_that_misbehaves(source, sentence, run, tmp_path, monkeypatch):
    """A user's module that prints, exits or fails still ends in one line and exit code 2."""
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    code, out, err = run("plan", "mine:make")
    assert code == 2
    assert re.fullmatch(rf"torch_kinit: .*{sentence}.*\n", err), err
    assert out == ("hello\n" if "print" in source else "")


def test_model_in_the_current_folder(tmp_path):
    """The current folder is where modules are looked for first."""
    (tmp_path / "mine.py").write_text("from torch import nn\ndef make(n): return nn.Linear(n, n)\n", encoding="utf-8")
    done = process("apply", "mine:make", "--set", "n=3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "glorot_uniform" in done.stdout
    done = process(
        "apply", "torch.nn:Transformer", "--set", "d_model=64", "--set", "nhead=4", "--seed", "0", cwd=tmp_path
    )
    assert done.returncode == 0
    assert "decoder.layers.5.multihead_attn.in_proj_weight" in done.stdout
