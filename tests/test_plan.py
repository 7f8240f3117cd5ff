"""A plan is data: it changes nothing, and can be read, compared, printed, saved and carried out elsewhere."""

import hashlib
import html.parser
import json
import math
import random
import re
from functools import partial

import keras
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit

INF = math.inf


def fingerprint(model, *generators):
    """A digest of all that an initialization could change: parameters, buffers, modes and every random state."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tensor.requires_grad}".encode())
        if not isinstance(tensor, nn.parameter.UninitializedTensorMixin) and tensor.device.type != "meta":
            digest.update(f"{tuple(tensor.shape)}".encode() + tensor.detach().contiguous().numpy().tobytes())
    digest.update(repr([(name, module.training) for name, module in model.named_modules()]).encode())
    for state in (torch.get_rng_state(), *(g.get_state() for g in generators)):
        digest.update(state.numpy().tobytes())
    digest.update(repr((random.getstate(), np.random.get_state())).encode())
    return digest.hexdigest()


def network():
    return nn.ModuleDict(
        {
            "words": nn.Embedding(10, 8, padding_idx=0),
            "stem": nn.Conv2d(4, 8, 3, groups=4),
            "norm": nn.BatchNorm2d(8),
            "read": nn.LSTM(8, 6, bidirectional=True),
            "sum": nn.GRU(12, 6),
            "attend": nn.MultiheadAttention(12, 3),
            "head": nn.Linear(12, 2),
        }
    )


def tied():
    model = nn.ModuleDict({"words": nn.Embedding(10, 8), "head": nn.Linear(8, 10)})
    model["head"].weight = model["words"].weight
    return model


MODELS = {
    "network": network,
    "half precision": lambda: network().half(),
    "Transformer": lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    "tied": tied,
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
    "spectral_norm in attention": lambda: parametrizations.spectral_norm(nn.MultiheadAttention(4, 2), "in_proj_weight"),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 3)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_plan_draws_nothing_and_changes_nothing(make):
    """A plan leaves parameters, buffers, modes and random states as they are, bit for bit; so does reading it."""
    model = make()
    before = fingerprint(model)
    plan = kinit.plan(model, {"*weight*": kinit.he_normal_})
    for read in (str, kinit.Plan._repr_html_, hash, kinit.Plan.to_dict, list):
        read(plan)
    assert fingerprint(model) == before


def test_fingerprint_sees_changes():
    """The digest differs after a change to a parameter, a buffer, a mode or a random state."""
    model, generator = network(), torch.Generator()
    changes = [
        lambda: model["head"].bias.data[0].add_(1e-6),
        lambda: model["norm"].running_var.mul_(2),
        lambda: model["norm"].eval(),
        lambda: torch.rand(()),
        lambda: torch.rand((), generator=generator),
        random.random,
        np.random.rand,
    ]
    digests = [fingerprint(model, generator)]
    for change in changes:
        change()
        digests.append(fingerprint(model, generator))
    assert len(set(digests)) == len(changes) + 1


@pytest.mark.parametrize("make", [network, tied, MODELS["Transformer"]], ids=["network", "tied", "Transformer"])
def test_meta_model(make):
    """A model on the meta device has the same plan as one in memory, and the plan of the one does for the other."""
    model = make()
    with torch.device("meta"):
        on_meta = make()
    plan = kinit.plan(on_meta, {"*bias": "random_normal"})
    assert plan == kinit.plan(model, {"*bias": "random_normal"})
    plan.apply(model, generator=torch.Generator().manual_seed(1))
    twin = make()
    kinit.apply(twin, {"*bias": "random_normal"}, generator=torch.Generator().manual_seed(1))
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_collection():
    """A plan is iterated, counted and asked by parameter name, also by a tied one."""
    plan = kinit.plan(tied())
    assert [step.name for step in plan] == ["words.weight", "head.bias"]
    assert len(plan) == 2
    assert plan["head.weight"] is plan["words.weight"]
    assert plan["words.weight"].tied == ("head.weight",)
    assert "head.weight" in plan
    assert "head" not in plan
    assert 0 not in plan
    assert repr(plan) == "<Plan of 2 steps>"
    with pytest.raises(KeyError, match=r"The plan has no parameter 'head.wieght'. Did you mean 'head.weight'"):
        plan["head.wieght"]


def test_every_tensor_has_one_step():
    """Each parameter and each statistic of a model is in its plan exactly once."""
    model = network()
    plan = kinit.plan(model)
    assert sorted(step.name for step in plan) == sorted(model.state_dict())
    assert {step.name for step in plan if step.kind == "buffer"} == {name for name, _ in model.named_buffers()}


def test_equality():
    """Plans are equal, with equal hashes, when their steps and conventions are, whatever the model."""
    plan, same = (kinit.plan(network(), {"head": torch.ones(12, 2)}) for _ in range(2))
    assert plan == same
    assert hash(plan) == hash(same)
    others = [
        kinit.plan(network()),
        kinit.plan(network(), {"head": torch.zeros(12, 2)}),
        kinit.plan(network(), {"head.weight": torch.ones(2, 12)}),
        kinit.plan(network(), {"head": torch.ones(12, 2)}, convention="keras-3.14"),
        kinit.plan(network(), {"head": torch.ones(12, 2)}, depthwise=False),
        list(plan),
    ]
    assert all(plan != other for other in others)


def test_plan_is_frozen():
    """Neither a plan nor a step can be assigned to."""
    plan = kinit.plan(nn.Linear(2, 2))
    with pytest.raises(AttributeError, match="cannot assign to field 'steps'"):
        plan.steps = ()
    with pytest.raises(AttributeError, match="cannot assign to field 'rule'"):
        plan["weight"].rule = "mine"


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
    "a step without moments": written() | {"steps": [{"name": "weight"}]},
    "unknown field": written() | {"steps": [written()["steps"][0] | {"colour": "red"}]},
    "unknown initializer": written()
    | {"steps": [written()["steps"][0] | {"initializer": {"name": "he", "arguments": {}}}]},
    "initializer that is none": written() | {"steps": [written()["steps"][0] | {"initializer": "he_normal_"}]},
    "arguments that are none": written()
    | {"steps": [written()["steps"][0] | {"initializer": {"name": "zeros_", "arguments": []}}]},
    "moments that are none": written() | {"steps": [written()["steps"][0] | {"moments": [0.0]}]},
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


def test_text_fits_the_terminal(monkeypatch):
    """No line of the text table is wider than the terminal, which COLUMNS tells, and each step has its line."""
    plan = kinit.plan(network(), {"head": nn.init.xavier_uniform_})
    for width in range(20, 201):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = str(plan).splitlines()
        assert len(lines) == len(plan) + 2
        assert max(map(len, lines)) <= width


def cells(step):
    fans = "-" if step.fans is None else f"({step.fans[0]}, {step.fans[1]})"
    fans = f"{step.blocks} x {fans}" if step.blocks > 1 and step.fans else fans
    return [" = ".join((step.name, *step.tied)), step.layer, step.role or "-", str(step.initializer), fans, step.rule]


def test_text_is_whole_where_there_is_room(monkeypatch):
    """A wide terminal sees a row a step: name, layer, role, initializer, fans, std, rule, nothing cut."""
    monkeypatch.setenv("COLUMNS", "1000")
    plan = kinit.plan(network(), {"head": nn.init.xavier_uniform_})
    head, _, *rows = (re.split(r" {2,}", line) for line in str(plan).splitlines())
    assert head == ["name", "layer", "role", "initializer", "fans", "std", "rule"]
    assert [row[:5] + row[6:] for row in rows] == [cells(step) for step in plan]
    assert all(row[5] == ("-" if step.std is None else f"{step.std:.4g}") for row, step in zip(rows, plan, strict=True))


class _Cells(html.parser.HTMLParser):
    """The texts of a table's cells by row, refusing tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.rows = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html():
    """The HTML table is well-formed and escaped, with the whole of each cell."""
    plan = kinit.plan(network(), {"head": lambda tensor: None})
    parser = _Cells()
    parser.feed(plan._repr_html_())
    parser.close()
    assert parser.open == []
    assert len(parser.rows) == 1 + len(plan)
    assert [row[:5] + row[6:] for row in parser.rows[1:]] == [cells(step) for step in plan]
    assert "<lambda>" in plan["head.weight"].initializer.__str__()
    assert "<lambda>" not in plan._repr_html_()


def keras_fans(*arguments):
    """What Keras itself takes for the fans of a kernel of this shape."""
    return tuple(keras.src.initializers.random_initializers.compute_fans(*arguments))


ATTENTION = {  # each kernel's Keras shape, and the axes that Keras 3.15 gives its initializer
    "in_proj_weight": ((12, 3, 4), (0,), (1, 2)),
    "out_proj.weight": ((3, 4, 12), (0, 1), (2,)),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_convention(name):
    """Attention kernels have the fans of Keras 3.15, by axes, or of Keras up to 3.14, by shape."""
    shape, inputs, outputs = ATTENTION[name]
    model = nn.MultiheadAttention(12, 3)
    assert kinit.plan(model)[name].fans == keras_fans(shape, inputs, outputs)
    assert kinit.plan(model, convention="keras-3.15") == kinit.plan(model)
    assert kinit.plan(model, convention="keras-3.14")[name].fans == keras_fans(shape)


def test_depthwise_option():
    """A convolution with a group a channel has DepthwiseConv2D's fans, or those of Conv2D(groups=...)."""
    model = nn.Conv2d(4, 8, (3, 5), groups=4)
    as_depthwise, as_grouped = (kinit.plan(model, depthwise=value)["weight"] for value in (True, False))
    assert (as_depthwise.role, as_depthwise.fans) == ("depthwise_kernel", keras_fans((3, 5, 4, 2)))
    assert (as_grouped.role, as_grouped.fans) == ("kernel", keras_fans((3, 5, 1, 8)))


class Positions(nn.Module):
    """A module with a parameter of its own, of no known layout."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(5, 4))
        self.token = nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, 2)


def test_uncovered_is_an_error():
    """Parameters that nothing covers are an UncoveredParameterError that lists them all and tells what to do."""
    with pytest.raises(kinit.UncoveredParameterError) as caught:
        kinit.plan(Positions())
    message = str(caught.value)
    assert "positions (5, 4) of Positions" in message
    assert "token (4,) of Positions" in message
    assert "head.weight" not in message
    assert "{'positions': 'zeros'}" in message
    assert "kinit.skip" in message
    assert "register_layout" in message
    assert "on_uncovered='keep'" in message


def test_uncovered_can_be_kept():
    """With on_uncovered="keep" such parameters keep their values, and the plan says so."""
    model = Positions()
    kept = model.positions.detach().clone()
    plan = kinit.apply(model, {"token": "zeros"}, on_uncovered="keep")
    step = plan["positions"]
    assert (step.role, step.initializer, step.rule) == (None, None, "left alone (uncovered)")
    assert torch.equal(model.positions, kept)
    assert "(left alone)" in str(plan)
    assert bool((model.token == 0).all())


OPTIONS = {
    "convention": (
        {"convention": "keras-3.1"},
        "`convention` must be one of 'keras-3.15', 'keras-3.14', got 'keras-3.1'",
    ),
    "on_uncovered": ({"on_uncovered": "ignore"}, "`on_uncovered` must be one of 'error', 'keep', got 'ignore'"),
}


@pytest.mark.parametrize(("options", "sentence"), OPTIONS.values(), ids=OPTIONS)
def test_wrong_option(options, sentence):
    """An option that is not one of its names is a ValueError that lists them."""
    with pytest.raises(ValueError, match=sentence):
        kinit.plan(nn.Linear(2, 2), **options)


@pytest.mark.parametrize("model", [nn.Linear, torch.zeros(2), None], ids=["class", "tensor", "None"])
def test_model_must_be_a_module(model):
    """Anything but a module is a TypeError."""
    with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, got "):
        kinit.plan(model)


def test_step_fields():
    """A step tells what it fills, with what, why, and what the values will be like: Keras' numbers, in closed form."""
    plan = kinit.plan(network(), {"head": "he_uniform"})
    step = plan["head.weight"]
    assert (step.name, step.layer, step.role, step.shape) == ("head.weight", "Linear", "kernel", (2, 12))
    assert (step.dtype, step.kind, step.tied, step.blocks, step.fans) == ("float32", "parameter", (), 1, (12, 2))
    assert (str(step.initializer), step.rule) == ("he_uniform", "'head'")
    limit = math.sqrt(6 / 12)  # He et al. 2015
    assert step.moments == pytest.approx((0.0, limit / math.sqrt(3), -limit, limit))
    packed = plan["attend.in_proj_weight"]
    assert (packed.blocks, packed.fans, packed.shape) == (3, (12, 12), (36, 12))
    assert packed.std == pytest.approx(1 / math.sqrt(12))  # Glorot and Bengio 2010
    recurrent = plan["read.weight_hh_l0"]
    assert (recurrent.fans, str(recurrent.initializer), recurrent.rule) == (None, "orthogonal", "Keras default")
    statistic = plan["norm.running_var"]
    assert (statistic.role, statistic.kind, statistic.moments) == ("moving_variance", "buffer", (1.0, 0.0, 1.0, 1.0))
    counter = plan["norm.num_batches_tracked"]
    assert (counter.dtype, counter.shape) == ("int64", ())
    forget = plan["read.bias_ih_l0"]  # one block of four holds ones
    assert forget.moments == pytest.approx((0.25, math.sqrt(0.25 * 0.75), 0.0, 1.0))
