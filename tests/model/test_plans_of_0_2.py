"""Plans that version 0.2 wrote as JSON, with four moments where there is a law today, are read and carried out."""

import json
from functools import partial

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.states import check_same_state, state


def row(name, layer, role, shape, initializer, moments, rule="Keras default", **more):
    """A step as 0.2 wrote it."""
    kept = {"name": name, "layer": layer, "role": role, "shape": shape, "dtype": "float32"}
    return {
        **kept,
        "initializer": initializer and {"name": initializer, "arguments": more.pop("arguments", {})},
        **{"fans": None, "blocks": 1, "moments": moments, "rule": rule, "tied": [], "kind": "parameter", "seeds": []},
        **more,
    }


# What `json.dumps(plan.to_dict())` gave there for `model()` with RULES, and for a replayed nn.Linear(2, 3).
RULES = {
    "head": "he_normal",
    "head.bias": 0.5,
    "norm.bias": kinit.skip,
    "norm.weight": partial(kinit.trunc_normal_, std=0.5),
}
FOUR = [0.0, 0.0, 0.0, 0.0]
WRITTEN = json.dumps({
    "convention": "keras-3.15",
    "depthwise": True,
    "steps": [
        row("read.weight_ih_l0", "LSTM", "kernel", [8, 2], "glorot_uniform_",
            [0.0, 0.4472135954999579, -0.7745966692414833, 0.7745966692414833], fans=[2, 8]),
        row("read.weight_hh_l0", "LSTM", "recurrent_kernel", [8, 2], "orthogonal_",
            [0.0, 0.35355339059327373, -1.0, 1.0]),
        row("read.bias_ih_l0", "LSTM", "bias", [8], "unit_forget_bias_", [0.25, 0.4330127018922193, 0.0, 1.0]),
        row("read.bias_hh_l0", "LSTM", "second_bias", [8], "zeros_", FOUR),
        row("head.weight", "Linear", "kernel", [3, 2], "he_normal_",
            [0.0, 1.0, -2.273694468677113, 2.273694468677113], "'head'", fans=[2, 3]),
        row("head.bias", "Linear", "bias", [3], "constant_", [0.5, 0.0, 0.5, 0.5], "'head.bias'",
            arguments={"value": 0.5}),
        row("norm.weight", "BatchNorm1d", "gamma", [3], "trunc_normal_", [0.0, 0.4398128305171199, -1.0, 1.0],
            "'norm.weight'", arguments={"std": 0.5}),
        row("norm.bias", "BatchNorm1d", "beta", [3], None, None, "'norm.bias'"),
        row("norm.running_mean", "BatchNorm1d", "moving_mean", [3], "zeros_", FOUR, kind="buffer"),
        row("norm.running_var", "BatchNorm1d", "moving_variance", [3], "ones_", [1.0, 0.0, 1.0, 1.0], kind="buffer"),
        row("norm.num_batches_tracked", "BatchNorm1d", "num_batches_tracked", [], "zeros_", FOUR, kind="buffer",
            dtype="int64"),
    ],
})  # fmt: skip
REPLAYED = json.dumps({
    "convention": "keras-3.15",
    "depthwise": True,
    "steps": [
        row("weight", "Linear", "kernel", [3, 2], "glorot_uniform_",
            [0.0, 0.6324555320336759, -1.0954451150103321, 1.0954451150103321], fans=[2, 3],
            seeds=[[347712783, "jax"]]),
        row("bias", "Linear", "bias", [3], "zeros_", FOUR),
    ],
})  # fmt: skip
VALUES = [  # which it gave
    [1.037266731262207, 0.8535155653953552],
    [0.13978658616542816, 0.48217666149139404],
    [-0.29002901911735535, -0.4911333918571472],
]


def model():
    return nn.ModuleDict({"read": nn.LSTM(2, 2), "head": nn.Linear(2, 3), "norm": nn.BatchNorm1d(3)})


def test_a_plan_is_carried_out():
    """It gives the values of the rules that it was made from."""
    read, found, want = kinit.Plan.from_dict(json.loads(WRITTEN)), model(), model()
    read.apply(found, seed=3)
    kinit.apply(want, RULES, seed=3)
    check_same_state(state(found), state(want))


def test_a_replayed_plan_gives_the_values_of_0_2():
    """The seeds of Keras layers are read, and give the bits that 0.2 gave."""
    module = nn.Linear(2, 3)
    kinit.Plan.from_dict(json.loads(REPLAYED)).apply(module)
    assert torch.equal(module.weight, torch.tensor(VALUES))
    assert not module.bias.any()


@pytest.mark.parametrize("text", [WRITTEN, REPLAYED], ids=["written", "replayed"])
def test_all_but_the_law_is_there(text):
    """Each step is what was written, but for its moments; written again, it is read as the same plan."""
    written, read = json.loads(text), kinit.Plan.from_dict(json.loads(text))
    again = json.loads(json.dumps(read.to_dict()))
    for old, new in zip(written["steps"], again["steps"], strict=True):
        assert {k: v for k, v in new.items() if k != "law"} == {k: v for k, v in old.items() if k != "moments"}
    assert kinit.Plan.from_dict(again) == read
