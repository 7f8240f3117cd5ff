"""The command line plans and applies the demonstration's model, and any that can be imported."""

import json
import math
import re
import sys

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.command_line import DEMO, LINEAR, process
from torch_kinit.__main__ import main


@pytest.mark.slow
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


@pytest.mark.slow
def test_demonstration_is_reproducible(run):
    """The same seed prints the same, another seed something else."""
    code, first, _ = run("--seed", 3)
    assert code == 0
    assert run("--seed", 3)[1] == first
    assert run("--seed", 4)[1] != first
    assert run()[1] == run("--seed", 0)[1]


def test_plan_prints_the_plan(run):
    """plan prints what kinit.plan gives, and as JSON what its to_dict does."""
    plan = kinit.plan(nn.Linear(20, 5))
    assert run("plan", *LINEAR) == (0, f"{plan}\n", "")
    code, out, err = run("plan", *LINEAR, "--json")
    assert (code, err) == (0, "")
    assert kinit.Plan.from_dict(json.loads(out)) == plan


def test_apply_prints_plan_and_values(run):
    """apply prints the plan and a row a tensor with its values beside the law's."""
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


def test_tensors_without_values(run):
    """Empty tensors, which have no mean, are null in JSON."""
    arguments = [a for setting in ("num_embeddings=0", "embedding_dim=3") for a in ("--set", setting)]
    data = json.loads(run("apply", "torch.nn:Embedding", *arguments, "--json")[1], parse_constant=pytest.fail)
    assert data["values"]["weight"] == dict.fromkeys(("mean", "std", "min", "max"))


SEEDS = {
    "--seed": (["--seed", 5], {"seed": 5}),
    "--seed and --prefix": (["--seed", 5, "--prefix", "body.head"], {"seed": 5, "prefix": "body.head"}),
    "--generator-seed": (["--generator-seed", 5], {"generator": 5}),
}


@pytest.mark.parametrize(("arguments", "given"), SEEDS.values(), ids=SEEDS)
def test_seeds_are_those_of_python(arguments, given, run, tmp_path):
    """A seed on the command line gives the weights that the same argument gives in Python."""
    assert run("apply", *LINEAR, *arguments, "--out", tmp_path / "weights.pt")[0] == 0
    if "generator" in given:
        given = {"generator": torch.Generator().manual_seed(given["generator"])}
    module = nn.Linear(20, 5)
    kinit.apply(module, **given)
    loaded = torch.load(tmp_path / "weights.pt")
    assert {name: value.tolist() for name, value in loaded.items()} == {
        name: value.tolist() for name, value in module.state_dict().items()
    }


SETTINGS = {
    "int": ("3", 3),
    "negative": ("-3", -3),
    "float without zero": (".5", 0.5),
    "power": ("1e-3", 1e-3),
    "True": ("True", True),
    "False": ("False", False),
    "None": ("None", None),
    "tuple": ("(4, 8)", (4, 8)),
    "list": ("[1, 'a', None]", [1, "a", None]),
    "dict": ("{'a': {'b': 2}}", {"a": {"b": 2}}),
    "text": ("relu", "relu"),
    "quoted text": ("'relu'", "relu"),
    "text that is a number": ("'3'", "3"),
    "text that is JSON": ("'true'", "true"),
    "text with an equals sign": ("a=b", "a=b"),
    "text with spaces": ("two words", "two words"),
    "empty": ("", ""),
    "a call": ("__import__('os').getcwd()", "__import__('os').getcwd()"),
    "arithmetic": ("2**3", "2**3"),
    "a version": ("1.2.3", "1.2.3"),
    "a path": ("C:\\new", "C:\\new"),
    "an open bracket": ("(4, 8", "(4, 8"),
    "too deep": ("(" * 5000, "(" * 5000),
    "too long a number": ("1" * 5000, "1" * 5000),
}


@pytest.mark.parametrize(("text", "value"), SETTINGS.values(), ids=SETTINGS)
def test_set(text, value, run, tmp_path, monkeypatch):
    """--set gives the factory a Python literal, or else the text as it is, and evaluates nothing."""
    (tmp_path / "mine_set.py").write_text(
        "from torch import nn\nGIVEN = []\ndef make(x): GIVEN.append(x); return nn.Linear(2, 2)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_set", raising=False)
    assert run("plan", "mine_set:make", "--set", f"x={text}")[::2] == (0, "")
    (given,) = sys.modules["mine_set"].GIVEN
    assert (type(given), given) == (type(value), value)


def test_several_settings(run):
    """--set may be given for one argument after the other."""
    rnn = ("torch.nn:RNN", *(x for s in ("input_size=2", "hidden_size=3", "bidirectional=True") for x in ("--set", s)))
    assert "weight_ih_l0_reverse" in run("plan", *rnn)[1]


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


OPTIONS = {
    "--only": (["--only", "weight"], {"only": ["weight"]}),
    "--only, again": (["--only", "weight", "--only", "bias"], {"only": ["weight", "bias"]}),
    "--convention": (["--convention", "keras-3.14"], {"convention": "keras-3.14"}),
    "--on-uncovered": (["--on-uncovered", "keep"], {"on_uncovered": "keep"}),
}


@pytest.mark.parametrize("command", ["plan", "apply"])
@pytest.mark.parametrize(("arguments", "given"), OPTIONS.values(), ids=OPTIONS)
def test_options_of_a_plan(command, arguments, given, run):
    """Each option does what the argument of kinit.plan does that it is named after."""
    code, out, _ = run(command, *LINEAR, *arguments, "--json")
    assert code == 0
    assert kinit.Plan.from_dict(json.loads(out)) == kinit.plan(nn.Linear(20, 5), **given)


def test_on_uncovered_keep(run):
    """A parameter of its own stays as it is, where asked for."""
    code, out, _ = run("apply", "tests.support.models:Positions", "--on-uncovered", "keep")
    assert code == 0
    assert re.search(r"positions +Positions +- +\(left alone\)", out)


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_saved_plan_is_carried_out(command, run, tmp_path):
    """`apply --plan` takes what `plan --json` printed, and what `apply --json` did."""
    (tmp_path / "rules.json").write_text('{"weight": "he_normal", "bias": 0.5}', encoding="utf-8")
    saved, weights = tmp_path / "plan.json", tmp_path / "weights.pt"
    saved.write_text(run(command, *LINEAR, "--rules", tmp_path / "rules.json", "--json")[1], encoding="utf-8")
    assert run("apply", *LINEAR, "--plan", saved, "--seed", 3, "--out", weights)[0] == 0
    module = nn.Linear(20, 5)
    kinit.apply(module, {"weight": "he_normal", "bias": 0.5}, seed=3)
    loaded = torch.load(weights)
    assert torch.equal(loaded["weight"], module.weight)
    assert torch.equal(loaded["bias"], module.bias)


def test_blocks_fold_unless_asked_not_to(run):
    """The table tells equal blocks once, and each with --no-fold."""
    arguments = ["plan", "tests.support.command_line:stack", "--set", "layers=3"]
    assert "0-2.weight" in run(*arguments)[1]
    assert "1.weight" in run(*arguments, "--no-fold")[1]


def test_version(capsys):
    """--version prints the package's."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"torch_kinit {kinit.__version__}\n"


def test_help(capsys):
    """--help explains the commands on stdout and ends with 0."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--help"])
    assert ended.value.code == 0
    assert "MODULE:FACTORY" in capsys.readouterr().out


@pytest.mark.slow
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
