"""Wrong input to the command line is one line on stderr and exit code 2."""

import re
import sys

import pytest

from tests.support.command_line import LINEAR, process

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


@pytest.mark.slow
@pytest.mark.usefixtures("_files")
def test_wrong_input_to_the_process(tmp_path):
    """The process itself ends with the same one line and exit code."""
    arguments, sentence = WRONG["unused rules"]
    done = process(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"torch_kinit: .*{sentence}.*\n", done.stderr), done.stderr


@pytest.mark.slow
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
