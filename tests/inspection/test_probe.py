"""A probe tells the signal's growth through a model, which closed forms give, and leaves the model as it was."""

import copy
import itertools
import json
import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import torch_kinit as kinit

WIDTH, DEPTH = 192, 20


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def deep(law, activation=nn.ReLU, widths=(WIDTH,) * (DEPTH + 1)):
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), activation())]
    model = nn.Sequential(*layers[:-1])
    kinit.apply(model, {nn.Linear: law}, seed=0)
    return model


# The growth of signal and gradient: closed forms, and torch's own autograd.

# Each ReLU halves the mean square, and a linear layer of n inputs multiplies it by n times the variance of its weights.
GROWTH = {
    "he on relu": ("he_normal", nn.ReLU, 1, "steady", None),
    "glorot on relu": ("glorot_uniform", nn.ReLU, math.sqrt(1 / 2), "vanishing", "he_normal"),
    "lecun on relu": ("lecun_normal", nn.ReLU, math.sqrt(1 / 2), "vanishing", "he_normal"),
    "twice he on relu": (kinit.get({"class_name": "VarianceScaling", "config": {"scale": 8.0}}), nn.ReLU, 2,
                         "exploding", "he_normal"),
    "glorot on nothing": ("glorot_normal", nn.Identity, 1, "steady", None),
    "he on nothing": ("he_normal", nn.Identity, math.sqrt(2), "exploding", "glorot_normal"),
    "lecun on selu": ("lecun_normal", nn.SELU, 1, "steady", None),
}  # fmt: skip


@pytest.mark.parametrize(("law", "activation", "growth", "word", "mend"), GROWTH.values(), ids=GROWTH)
def test_growth_is_that_of_the_closed_form(law, activation, growth, word, mend):
    """Signal and gradient grow as the closed form says, within what 192 units let vary; the law named mends it."""
    report = kinit.probe(deep(law, activation), inputs(64, WIDTH))
    assert report.growth == pytest.approx(growth, rel=0.06)
    assert report.gradient_growth == pytest.approx(growth, rel=0.06)
    assert (report.signal, report.gradient, report.law) == (word, word, mend)
    if mend:
        assert f"{mend} would hold it" in report.verdict
        assert kinit.probe(deep(mend, activation), inputs(64, WIDTH)).signal == "steady"


def test_growth_does_not_mind_the_widths():
    """He's law, which minds the inputs of a layer, keeps signal and gradient norm where widths go up and down."""
    report = kinit.probe(deep("he_normal", widths=(64, *(256, 128, 512) * 4, 10)), inputs(64, 64))
    assert report.growth == pytest.approx(1, rel=0.06)
    assert report.gradient_growth == pytest.approx(1, rel=0.06)


def test_growth_does_not_mind_two_odd_layers():
    """A median of slopes passes over two layers of another scale."""
    model = deep("he_normal")
    with torch.no_grad():
        model[16].weight.mul_(1e3)
        model[18].weight.mul_(1e-3)
    assert kinit.probe(model, inputs(64, WIDTH)).growth == pytest.approx(1, rel=0.06)


def test_saturated_units_stop_the_gradient_alone():
    """Weights ten times too large for tanh keep the signal at one and send the gradient up; Glorot's law is named."""
    model = deep("glorot_normal", nn.Tanh)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(10)
    report = kinit.probe(model, inputs(64, WIDTH))
    assert (report.signal, report.gradient, report.law) == ("steady", "exploding", "glorot_normal")


def test_a_law_that_is_there_already_is_not_advised():
    """Where the weights have the law that suits, nothing is advised but to look elsewhere."""
    report = kinit.probe(deep("glorot_normal", nn.Sigmoid), inputs(64, WIDTH))
    assert (report.gradient, report.law) == ("vanishing", None)
    assert "another law would not mend it" in report.verdict


@pytest.mark.parametrize("factor", [1e-36, 1e-30, 1e25, 8e37], ids=["almost subnormal", "tiny", "huge", "greatest"])
def test_squares_do_not_leave_the_range(factor):
    """The std of values whose squares underflow or overflow in float32 is right."""
    row = kinit.probe(nn.Identity(), inputs(64, 64) * factor).rows[0]
    assert row.std == pytest.approx(float(inputs(64, 64).double().std(correction=0)) * factor, rel=1e-5)


def test_what_is_not_finite_or_zero_is_said():
    """Overflow is an explosion, silence a vanishing, and both are told in words and in valid JSON."""
    loud, dead = deep("he_normal"), deep("he_normal")
    with torch.no_grad():
        loud[10].weight.fill_(1e38)
        dead[10].weight.fill_(0)
    report = kinit.probe(loud, inputs(8, WIDTH))
    assert report.signal == "exploding"
    assert "not finite" in report.verdict
    json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert kinit.probe(dead, inputs(8, WIDTH)).signal == "vanishing"


class Functional(nn.Module):
    """Six layers with an activation between them that is no module."""

    def __init__(self, function):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.function = function

    def forward(self, x):
        for layer in self.layers:
            x = self.function(layer(x))
        return x


FUNCTIONS = {
    "relu": (torch.relu, "relu"),
    "relu_": (functional.relu_, "relu"),
    "tanh": (torch.tanh, "tanh"),
    "gelu": (functional.gelu, "gelu"),
    "selu": (functional.selu, "selu"),
    "silu": (functional.silu, "silu"),
    "none": (lambda x: x, "linear"),
    "unknown": (lambda x: x.sin(), None),
    "relu of a sum": (lambda x: torch.relu(x + 0.1), "relu"),
}


@pytest.mark.parametrize(("function", "name"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_are_known_by_the_next_layer(function, name):
    """The function after each layer, but for the last, is known by what the next layer receives."""
    report = kinit.probe(Functional(function), inputs(32, 16))
    assert [row.activation for row in report.rows] == [name] * 5 + [None]


class Branches(nn.Module):
    """A convolution, a ReLU in place, a layer called twice, and outputs of several kinds in a dict."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)
        self.twice, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.act(self.conv(x)).mean((2, 3))
        x = self.twice(torch.tanh(self.twice(x)))
        logits = self.head(x)
        return {"logits": logits, "loss": logits.square().mean(), "words": ("text", torch.ones(2, dtype=torch.long))}


def test_gradients_are_those_of_autograd():
    """The gradient of each call is torch's, of the outputs times Key(0)'s normal numbers, and of a scalar once."""
    model, x = Branches(), inputs(4, 3, 8, 8)
    stages = {"conv": model.conv(x)}
    stages["act"] = stages["conv"].relu()
    stages["twice"] = model.twice(stages["act"].mean((2, 3)))
    stages["twice [2]"] = model.twice(stages["twice"].tanh())
    stages["head"] = model.head(stages["twice [2]"])
    sent = kinit.random_normal_(torch.empty(4, 2), 0, 1, generator=kinit.Key(0).fold_in(0))
    total = (stages["head"] * sent).sum() + stages["head"].square().mean()
    expected = dict(zip(stages, torch.autograd.grad(total, list(stages.values())), strict=True))
    report = kinit.probe(model, x=x)
    assert [row.title for row in report.rows] == list(stages)
    for row in report.rows:
        stage, gradient = stages[row.title].detach(), expected[row.title]
        assert row.shape == tuple(stage.shape)
        assert row.mean == pytest.approx(float(stage.mean()), rel=1e-4, abs=1e-6)
        assert row.std == pytest.approx(float(stage.std(correction=0)), rel=1e-4)
        assert row.gradient == pytest.approx(float(gradient.std(correction=0)), rel=1e-4)
        assert row.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_dead_units_are_counted_along_the_right_axis():
    """Two of eight channels and one of four features that are zero for all examples and positions are dead."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(1, 2), nn.Linear(6, 4), nn.ReLU())
    with torch.no_grad():
        model[0].bias[:2] = -100
        model[3].bias[1] = -100
        model[3].bias[2] = 100
    report = kinit.probe(model, inputs(5, 3, 8, 8))
    assert [row.dead for row in report.rows] == [None, 0.25, None, None, 0.25]
    assert report.rows[1].zeros > 0.25
    assert "most in 1 (25%)" in report.verdict


MODELS = {
    "lstm": (lambda: nn.LSTM(4, 6, bidirectional=True), (5, 2, 4), ["LSTM"]),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8),
                  ["MultiheadAttention", *["Dropout", "Linear"] * 2, "Dropout", *["LayerNorm"] * 2]),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (2, 4), ["ParametrizedLinear"]),
    "embedding": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), None, ["Embedding", "Linear"]),
    "no example": (lambda: nn.Linear(4, 3), (0, 4), ["Linear"]),
    "no layer": (lambda: nn.Sequential(), (2, 4), ["Sequential"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "layers"), MODELS.values(), ids=MODELS)
def test_each_layer_has_a_row(make, shape, layers):
    """Recurrent, attention and parametrized layers have one row a call, and a short model no verdict."""
    given = torch.tensor([[1, 2], [3, 4]]) if shape is None else inputs(*shape)
    report = kinit.probe(make(), given)
    assert sorted(row.layer for row in report.rows) == sorted(layers)
    assert report.signal in ("too shallow", "steady")
    json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_without_gradients_there_is_the_signal():
    """A frozen model and `backward=False` have the signal alone; a caller's inference_mode makes no difference."""
    model, x = deep("he_normal"), inputs(8, WIDTH)
    with torch.inference_mode():
        seen = kinit.probe(model, x)
    assert seen.gradient == "steady"
    forward = kinit.probe(model, x, backward=False)
    frozen = kinit.probe(model.requires_grad_(False), x)
    for report in (forward, frozen):
        assert report.gradient is report.gradient_growth is None
        assert {row.gradient for row in report.rows} == {None}
        assert report.growth == seen.growth
    assert "gradient " not in frozen.verdict


def test_a_module_that_nobody_knows_is_no_activation():
    """After a layer an activation module of somebody else's is known by what it does, or not at all."""

    class Own(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.forward = function

    layers = [nn.Linear(16, 16), Own(torch.tanh), nn.Linear(16, 16), Own(torch.sin), nn.Linear(16, 16), nn.Dropout(0.0)]
    rows = kinit.probe(nn.Sequential(*layers, nn.Linear(16, 2)), inputs(32, 16)).weighted
    assert [row.activation for row in rows] == ["tanh", None, "linear", None]


def test_fast_paths_are_not_taken():
    """A transformer in evaluation mode without gradients, for which torch has one fused operation, has all its rows."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    assert len(kinit.probe(model, inputs(2, 5, 8), backward=False).rows) == 8


def test_parametrizations_run_as_without_a_probe():
    """Spectral norm, which takes a step whenever it is asked for, gives what it gives without a probe around it."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 8))
    report = kinit.probe(model, inputs(4, 8))
    assert report.rows[0].std == pytest.approx(float(model[0](inputs(4, 8)).detach().std(correction=0)), rel=1e-6)


@pytest.mark.slow
def test_a_compiled_model_is_seen():
    """Graphs of torch.compile, which pass over hooks, are not used."""
    model, x = deep("he_normal"), inputs(8, WIDTH)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    assert kinit.probe(compiled, x).growth == kinit.probe(model, x).growth


# What is left as it was.


class Restless(nn.Module):
    """Changes all it has when it is called: statistics, weights, their memory, attributes, modes and random states."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.words = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Embedding(5, 4, max_norm=0.1)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("counter", torch.zeros(()))
        self.register_buffer("cache", None)
        self.average, self.seen, self.fails = torch.zeros(4), [], False

    def forward(self, x):
        self.linear.weight.data = self.linear.weight.data.renorm(2, 0, 0.1)
        x = self.drop(self.norm(self.linear(x.add_(1)))) + self.words(torch.tensor([0, 1, 2], device=x.device))
        self.counter += 1
        self.cache, self.last = x, x
        self.average.add_(x.detach().mean(0).cpu())
        self.seen.append(random.random())
        self.drop.eval()
        if self.fails:
            raise KeyError("no such thing")
        return x


def state_of(model):
    tensors = [*model.parameters(), *model.buffers(), model.average]
    held = [(id(tensor), tensor.data_ptr(), tensor.detach().clone()) for tensor in tensors]
    attributes = [(sorted(vars(module)), module.training, len(module._forward_hooks)) for module in model.modules()]
    gradients, device = [parameter.grad for parameter in model.parameters()], model.counter.device
    states = [torch.get_rng_state()]
    states += [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state()]
    return held, gradients, attributes, model.seen[:], states, random.getstate()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, tuple | list) else a == b


@pytest.mark.parametrize("fails", [False, True], ids=["passes", "fails"])
def test_the_model_is_left_as_it_was(fails, device):
    """Tensors and their memory, gradients, attributes, modes, hooks, inputs and random states are those of before."""
    model, x = Restless().to(device), inputs(3, 4).to(device)
    model.linear.weight.grad = torch.ones(4, 4, device=device)
    model.fails = fails
    pending = model.linear(x).square().sum()  # a graph of the caller's, which still holds the weights
    before, given = state_of(model), x.clone()
    if fails:
        with pytest.raises(KeyError, match="no such thing") as caught:
            kinit.probe(model, x)
        assert f"gave the model a float32 tensor of shape (3, 4) on {x.device}" in caught.value.__notes__[0]
    else:
        kinit.probe(model, x)
    assert same(state_of(model), before)
    assert torch.equal(x, given)
    pending.backward()


def test_the_checker_of_states_sees_a_change():
    """Without a probe around it, the same model is not left as it was, in any of these."""
    model, x = Restless(), inputs(3, 4)
    before = state_of(model)
    model(x).sum().backward()
    assert [same(a, b) for a, b in zip(state_of(model), before, strict=True)] == [False] * 6


# What cannot be probed.


def test_inputs_that_do_not_fit_raise_what_torch_raises():
    """The message is torch's own, with a note of what the model was given."""
    model = nn.Linear(4, 2)
    with pytest.raises(RuntimeError) as own:
        model(torch.ones(3, 5))
    with pytest.raises(RuntimeError) as caught:
        kinit.probe(model, torch.ones(3, 5))
    assert str(caught.value) == str(own.value)
    assert "a float32 tensor of shape (3, 5) on cpu" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="missing 1 required positional argument") as caught:
        kinit.probe(model)
    assert "gave the model nothing" in caught.value.__notes__[0]


def test_models_without_values_are_refused():
    """On meta, lazy, or no module at all: the error says what to do, and a lazy model stays lazy."""
    with pytest.raises(ValueError, match=r"`model` has weight on the meta device.*kinit\.materialize"):
        kinit.probe(nn.Linear(3, 2, device="meta"), torch.ones(1, 3))
    lazy = nn.LazyLinear(2)
    with pytest.raises(ValueError, match="lazy parameter weight: run one forward pass"):
        kinit.probe(lazy, torch.ones(1, 3))
    assert lazy.has_uninitialized_params()
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module"):
        kinit.probe([1])
    traced = torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3))
    with pytest.raises(TypeError, match=r"TorchScript module \(1\), which takes no hooks"):
        kinit.probe(nn.Sequential(nn.ReLU(), traced), torch.ones(1, 3))
    with pytest.raises(TypeError, match="`backward` must be True or False"):
        kinit.probe(nn.Linear(3, 2), torch.ones(1, 3), backward=1)


# The report.


def test_the_report_is_a_table_with_a_verdict():
    """Text and HTML have a line a row and the verdict; the data is plain; a copy is equal."""
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    report = kinit.probe(model, inputs(6, 4))
    lines = str(report).splitlines()
    assert lines[0].split() == ["name", "layer", "mean", "std", "zeros", "dead", "units", "gradient", "std"]
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["0", "Linear"],
        ["1", "LayerNorm"],
        ["2", "ReLU"],
        ["3", "Linear"],
    ]
    assert lines[7:] == report.verdict.splitlines()
    assert set(lines[6]) == {"-", " "}
    assert "1 normalization layer resets the scale of the signal." in report.verdict
    assert report._repr_html_().count("<tr>") == 5
    assert report.to_dict()["rows"][2]["layer"] == "ReLU"
    assert copy.deepcopy(report) == report
