"""`kinit audit` exits 0 for a model that is initialized as planned, and 1 for another."""

import json

import pytest
import torch
from torch import nn

import torch_kinit as kinit

LINEAR = ("audit", "torch.nn:Linear", "--set", "in_features=64", "--set", "out_features=256")


def test_a_model_as_torch_makes_it_is_off(run):
    """The table names torch's defaults, and the exit code is 1."""
    code, out, err = run(*LINEAR)
    assert (code, err) == (1, "")
    assert "looks like torch's default kaiming_uniform(a=sqrt 5)" in out


def test_saved_weights_are_audited(run, tmp_path):
    """A state dict is loaded first; as data the audit is that of Python."""
    layer, rules, weights = nn.Linear(64, 256), tmp_path / "rules.json", tmp_path / "weights.pt"
    made = kinit.apply(layer, {nn.Linear: "he_normal"}, seed=0)
    rules.write_text('{"torch.nn:Linear": "he_normal"}', "utf-8")
    torch.save(layer.state_dict(), weights)
    code, out, _ = run(*LINEAR, "--rules", rules, "--weights", weights, "--json", "--alpha", 0.01)
    assert code == 0
    assert json.loads(out) == made.audit(alpha=0.01).to_dict()
    assert run(*LINEAR, "--weights", weights)[0] == 1


@pytest.mark.parametrize("state", [{"weight": torch.ones(2)}, [1]], ids=["another model's", "no dict"])
def test_wrong_weights_are_told(run, tmp_path, state):
    """A file with something else is an error in one line."""
    torch.save(state, tmp_path / "weights.pt")
    code, _, err = run(*LINEAR, "--weights", tmp_path / "weights.pt")
    assert code == 2
    assert "is no state dict of the model" in err
