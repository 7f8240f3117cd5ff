"""A plan can be written to JSON, read back and carried out elsewhere."""

import json
import math
from functools import partial

import keras
import numpy as np
import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.fingerprint import fingerprint
from tests.support.models import network, tied

INF = math.inf

RULES = {
    "defaults": None,
    "arrays": {"head": np.arange(24.0).reshape(12, 2), "head.bias": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)},
    "numbers": {"head": 1, "head.bias": 0.1},
    "skip": {nn.GRU: kinit.skip},
    "unbounded law": {"head": "random_normal"},
    "one-sided bounds": {"head": partial(kinit.trunc_normal_, lower=-INF, upper=1.0)},
    "one-sided bounds, above": {"head": partial(kinit.trunc_normal_, lower=0.5, upper=INF)},
    "fans": {"head": partial(kinit.he_normal_, fans=(3, 4)), "attend": partial(kinit.he_normal_, fans=((0,), (1, 2)))},
    "layout": {"stem": partial(kinit.orthogonal_, layout="torch")},
    "config": {nn.Linear: {"class_name": "VarianceScaling", "config": {"scale": 2.0, "distribution": "normal"}}},
    "nested list": {"head.bias": partial(kinit.constant_, value=[1.0, 2.0])},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_json_round_trip(rules):
    """A plan written as strict JSON and read again is equal, and fills a fresh model with the same values."""
    plan = kinit.plan(network(), rules)
    read = kinit.Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False)))
    assert read == plan
    assert hash(read) == hash(plan)
    assert read.model is None
    first, second = plan.model, network()
    second.load_state_dict(first.state_dict())
    plan.apply(generator=torch.Generator().manual_seed(3))
    read.apply(second, generator=torch.Generator().manual_seed(3))
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_plan_from_json_gives_the_law():
    """A plan read from JSON draws Keras' GlorotUniform: inside its limit, and near it."""
    data = json.loads(json.dumps(kinit.plan(nn.Linear(100, 200)).to_dict()))
    fresh = nn.Linear(100, 200)
    kinit.Plan.from_dict(data).apply(fresh)
    limit = float(abs(keras.initializers.GlorotUniform(0)((100, 200))).max())
    assert float(fresh.weight.detach().abs().max()) == pytest.approx(limit, rel=2e-3)


@pytest.mark.parametrize(
    "value", [nn.init.xavier_uniform_, partial(nn.init.normal_, std=1.0), lambda t: None, [].append]
)
def test_foreign_callables_refuse_json(value):
    """A plan with a function of somebody else's cannot be written, and says which parameter has it."""
    plan = kinit.plan(nn.Linear(2, 2), {nn.Linear: value})
    with pytest.raises(
        ValueError, match=r"^weight: .* cannot be written to JSON: only this package's initializers can"
    ):
        plan.to_dict()


def written():
    return kinit.plan(nn.Linear(2, 2)).to_dict()


NOT_PLANS = {
    "list": [],
    "empty": {},
    "steps missing": {k: v for k, v in written().items() if k != "steps"},
    "unknown convention": written() | {"convention": "keras-9"},
    "a step that is none": written() | {"steps": ["weight"]},
    "a step without fields": written() | {"steps": [{"name": "weight"}]},
    "unknown field": written() | {"steps": [written()["steps"][0] | {"colour": "red"}]},
    "unknown initializer": written()
    | {"steps": [written()["steps"][0] | {"initializer": {"name": "he", "arguments": {}}}]},
    "initializer that is none": written() | {"steps": [written()["steps"][0] | {"initializer": "he_normal_"}]},
    "arguments that are none": written()
    | {"steps": [written()["steps"][0] | {"initializer": {"name": "zeros_", "arguments": []}}]},
    "a law that is none": written()
    | {"steps": [written()["steps"][0] | {"law": {"law": "Cauchy", "arguments": [0.0]}}]},
}


@pytest.mark.parametrize("data", NOT_PLANS.values(), ids=NOT_PLANS)
def test_data_that_is_no_plan(data):
    """Data that `to_dict` cannot have written is a ValueError that says what is wrong."""
    with pytest.raises(
        ValueError, match=r"This is not a plan that `to_dict` wrote|Unknown initializer 'he'|`convention`"
    ):
        kinit.Plan.from_dict(data)


def test_plan_without_model():
    """A plan read from data cannot be applied to nothing."""
    with pytest.raises(ValueError, match="This plan was read from data and has no model: pass one to `apply`"):
        kinit.Plan.from_dict(written()).apply()


OTHER_MODELS = {
    "missing parameter": (nn.Linear(2, 2, bias=False), "The model has no parameter 'bias', which the plan speaks of."),
    "another shape": (nn.Linear(3, 2), r"weight was planned as \(2, 2\) float32 and is \(2, 3\) float32."),
    "another dtype": (nn.Linear(2, 2).double(), r"weight was planned as \(2, 2\) float32 and is \(2, 2\) float64."),
}


@pytest.mark.parametrize(("model", "sentence"), OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_plan_of_another_model(model, sentence):
    """A plan is refused by a model it was not made for, which stays as it is."""
    plan = kinit.plan(nn.Linear(2, 2))
    before = fingerprint(model)
    with pytest.raises(ValueError, match=sentence):
        plan.apply(model)
    assert fingerprint(model) == before


def test_parameter_unknown_to_the_plan():
    """A model with more parameters than the plan knows refuses it, with their names."""
    model = nn.Linear(2, 2)
    plan = kinit.plan(nn.Linear(2, 2))
    model.scale = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"The model has parameters that the plan does not know: scale\."):
        plan.apply(model)


def untied():
    return nn.ModuleDict({"words": nn.Embedding(10, 8), "head": nn.Linear(8, 10)})


@pytest.mark.parametrize(
    ("planned", "given"), [(tied, untied), (untied, tied)], ids=["tied to untied", "untied to tied"]
)
def test_model_tied_otherwise(planned, given):
    """A plan is refused by a model whose parameters are tied otherwise: some would be drawn twice or never."""
    plan, model = kinit.plan(planned()), given()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"head\.weight"):
        plan.apply(model)
    assert fingerprint(model) == before


def test_options_are_part_of_a_plan_and_of_its_json():
    """Plans of equal steps made with other options differ, also after JSON."""
    plans = [
        kinit.plan(nn.Linear(2, 2), convention=convention, depthwise=depthwise)
        for convention in ("keras-3.15", "keras-3.14")
        for depthwise in (True, False)
    ]
    for i, one in enumerate(plans):
        read = kinit.Plan.from_dict(one.to_dict())
        assert (read.convention, read.depthwise) == (one.convention, one.depthwise)
        assert [read == other for other in plans] == [j == i for j in range(4)]


@pytest.mark.parametrize("array", [np.zeros(2, np.float32), torch.zeros(2)], ids=["numpy", "torch"])
def test_a_plan_keeps_a_copy_of_arrays(array):
    """What is done to an array after it went into a plan does not change the plan."""
    model = nn.Linear(2, 2)
    plan = kinit.plan(model, {"bias": array})
    array += 5
    plan.apply()
    assert bool((model.bias == 0).all())
