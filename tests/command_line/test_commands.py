"""The command line plans and applies the demonstration's model, and any that can be imported."""

import json
import math
import re

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
    """Empty tensors, which have no mean, are null in JSON."""
    arguments = [a for setting in ("num_embeddings=0", "embedding_dim=3") for a in ("--set", setting)]
    data = json.loads(run("apply", "torch.nn:Embedding", *arguments, "--json")[1], parse_constant=pytest.fail)
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
