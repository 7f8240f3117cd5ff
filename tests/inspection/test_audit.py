"""An audit passes what is initialized as planned, and names what a planted mistake looks like."""

import json
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support import audit_rates

HE = {nn.Linear: "he_normal"}
TORCH = "looks like torch's default "


class Every(nn.Module):
    """A layer of each kind, large enough to tell laws apart."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(96, 160)
        self.conv = nn.Conv2d(24, 40, 3)
        self.depthwise = nn.Conv2d(256, 512, 3, groups=256)
        self.transposed = nn.ConvTranspose1d(48, 30, 5)
        self.words = nn.Embedding(50, 20, padding_idx=7)
        self.rnn = nn.RNN(40, 50)
        self.lstm = nn.LSTM(40, 50)
        self.gru = nn.GRUCell(40, 50)
        self.attention = nn.MultiheadAttention(64, 4)
        self.other_sizes = nn.MultiheadAttention(64, 4, kdim=128, vdim=256)
        self.alpha = nn.PReLU(8)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.LayerNorm(8)


# What torch gives each layer, by the documentation of its class; nothing said: what Keras gives, too.
OF_TORCH = {
    "dense.weight": "kaiming_uniform(a=sqrt 5)",
    "dense.bias": "bias U(-b, b), b = 1/sqrt(fan_in)",
    "conv.weight": "kaiming_uniform(a=sqrt 5)",
    "conv.bias": "bias U(-b, b), b = 1/sqrt(fan_in)",
    "depthwise.weight": "kaiming_uniform(a=sqrt 5)",
    "depthwise.bias": "bias U(-b, b), b = 1/sqrt(fan_in)",
    "transposed.weight": "kaiming_uniform(a=sqrt 5)",
    "transposed.bias": "bias U(-b, b), b = 1/sqrt(fan_in)",
    "words.weight": "N(0, 1)",
    **{
        f"{layer}.{kind}{suffix}": "U(-b, b), b = 1/sqrt(hidden_size)"
        for layer, suffix in (("rnn", "_l0"), ("lstm", "_l0"), ("gru", ""))
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
    "attention.in_proj_weight": "xavier_uniform of in_proj as one matrix: packed fans",
    "attention.out_proj.weight": "kaiming_uniform(a=sqrt 5)",
    "other_sizes.out_proj.weight": "kaiming_uniform(a=sqrt 5)",
    "alpha.weight": "0.25",
}


def test_torchs_defaults_are_told_layer_by_layer():
    """Of a model as torch's constructors leave it each layer is named, unless Keras has the same law."""
    torch.manual_seed(0)
    found = {each.name: each.cause for each in kinit.audit(Every()) if each.verdict == "off"}
    assert found == {name: TORCH + law for name, law in OF_TORCH.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_initialized_passes(dtype):
    """Each law of Keras' passes in each dtype, as do constants, arrays, identities and orthogonal matrices."""
    model = Every().to(dtype)
    rules = {
        "dense": {"kernel": "he_normal", "bias": partial(kinit.random_normal_, mean=1.0, std=0.1)},
        "conv": {"kernel": partial(kinit.orthogonal_, gain=0.5), "bias": torch.arange(40.0)},
        "transposed": {"kernel": partial(kinit.trunc_normal_, lower=-1.0, upper=3.0)},
        "rnn": {"recurrent_kernel": "identity", "kernel": partial(kinit.variance_scaling_, mode="fan_avg")},
    }
    for seed in range(3):
        made = kinit.apply(model, rules, seed=seed)
        report = made.audit()
        assert report.ok, str(report)
        assert {each.verdict for each in report} <= {"ok", "too small to tell"}
        assert report["dense.weight"].verdict == report["conv.weight"].verdict == report["rnn.weight_hh_l0"].verdict
    assert kinit.audit(model, rules).findings == report.findings


def linear(damage, rules=HE, sizes=(300, 500)):
    """A rightly initialized layer, damaged."""
    layer = nn.Linear(*sizes)
    kinit.apply(layer, rules, seed=0)
    with torch.no_grad():
        damage(layer.weight)
    return layer, rules, "weight"


def planted(layer, name, damage, rules=None):
    """A tensor of another layer, damaged."""
    kinit.apply(layer, rules, seed=0)
    with torch.no_grad():
        damage(layer.get_parameter(name))
    return layer, rules, name


def per_gate(weight):
    for gate in weight.chunk(len(weight) // weight.shape[1]):
        nn.init.orthogonal_(gate)


def middle_wrong(weight):
    nn.init.uniform_(weight.chunk(3)[1], -0.01, 0.01)


def set_part(tensor, part, value):
    tensor.zero_()
    tensor.chunk(4)[part].fill_(value)


def attention_3_14(weight):
    """in_proj as tf.keras has it, whose fans are those of (in, heads, head_dim) read as a convolution."""
    bound = math.sqrt(6 / (64 * 4 + 64 * 16))
    nn.init.uniform_(weight, -bound, bound)


LSTM, GRU, ATTENTION = partial(nn.LSTM, 40, 50), partial(nn.GRU, 40, 50), partial(nn.MultiheadAttention, 64, 4)
MISTAKES = {
    "torch's default": (lambda: linear(partial(nn.init.kaiming_uniform_, a=5**0.5)), TORCH + "kaiming_uniform"),
    "truncation forgotten": (
        lambda: linear(lambda w: w.mul_(0.8796256610342398)),
        "std is 0.88 of the law's: truncation not",
    ),
    "corrected twice": (
        lambda: linear(lambda w: w.div_(0.8796256610342398), {nn.Linear: "trunc_normal"}),
        "std is 1.14 of the law's: truncation corrected, where the planned std is before it",
    ),
    "not truncated": (
        lambda: linear(lambda w: nn.init.normal_(w, std=(2 / 300) ** 0.5)),
        "looks like a normal of the same std, not truncated",
    ),
    "swapped fans": (
        lambda: linear(lambda w: kinit.he_normal_(w.t())),
        "fans look swapped, (500, 300) for (300, 500)",
    ),
    "another initializer": (lambda: linear(kinit.lecun_uniform_), "looks like Keras' lecun_uniform"),
    "GPT-2's": (lambda: linear(partial(nn.init.normal_, std=0.02)), "looks like N(0, 0.02)"),
    "all zeros": (lambda: linear(nn.init.zeros_), "looks like Keras' zeros"),
    "half": (lambda: linear(lambda w: w.mul_(0.5)), "std is 0.50 of the law's, whose shape it has"),
    "orthogonal": (lambda: linear(nn.init.orthogonal_), "looks orthogonal, gain 1"),
    "one NaN": (lambda: linear(lambda w: w[3, 4].fill_(math.nan)), "NaN or infinite values"),
    "unknown": (lambda: linear(lambda w: w.add_(0.1)), "no usual law fits"),
    "wrong axes of a kernel": (
        lambda: planted(nn.Conv2d(30, 70, 5), "weight", lambda w: kinit.glorot_uniform_(w, layout="keras")),
        "fans look like Keras' for torch's shape: axes in the wrong order",
    ),
    "depthwise fans of torch": (
        lambda: planted(nn.Conv2d(256, 256, 3, groups=256), "weight", kinit.he_normal_, {nn.Conv2d: "he_normal"}),
        "fans look like those of Conv(groups=...), (9, 2304) for (2304, 9)",
    ),
    "packed attention": (
        lambda: planted(ATTENTION(), "in_proj_weight", kinit.he_normal_, {"*": {"kernel": "glorot_normal"}}),
        "looks like Keras' he_normal",
    ),
    "fans of all three kernels": (
        lambda: planted(ATTENTION(), "in_proj_weight", kinit.glorot_normal_, {"*": {"kernel": "glorot_normal"}}),
        "fans look like those of the packed tensor as one matrix, (64, 192) for (64, 64)",
    ),
    "attention of tf.keras": (
        lambda: planted(ATTENTION(), "in_proj_weight", attention_3_14),
        "fans look like those of keras-3.14, (256, 1024) for (64, 64)",
    ),
    "one of three kernels": (
        lambda: planted(ATTENTION(), "in_proj_weight", middle_wrong),
        "variables 2 of 3: std is 0.05 of the law's",
    ),
    "orthogonal gates": (
        lambda: planted(LSTM(), "weight_hh_l0", per_gate),
        "each gate is orthogonal by itself, not the packed kernel",
    ),
    "orthogonal gates of a GRU": (
        lambda: planted(GRU(), "weight_hh_l0", per_gate),
        "each gate is orthogonal by itself, not the packed kernel",
    ),
    "gain": (
        lambda: planted(GRU(), "weight_hh_l0", partial(nn.init.orthogonal_, gain=2**0.5)),
        "orthogonal with gain 1.414",
    ),
    "identity": (lambda: planted(nn.RNN(9, 50), "weight_hh_l0", nn.init.eye_), "looks like an identity"),
    "not orthogonal": (
        lambda: planted(LSTM(), "weight_hh_l0", kinit.glorot_uniform_),
        "looks like Keras' glorot_uniform",
    ),
    "no forget bias": (lambda: planted(LSTM(), "bias_ih_l0", nn.init.zeros_), "forget bias is missing: all zeros"),
    "forget bias elsewhere": (
        lambda: planted(LSTM(), "bias_ih_l0", partial(set_part, part=0, value=1.0)),
        "the 1 stands in block 1, the forget gate is block 2",
    ),
    "forget bias of 2": (
        lambda: planted(LSTM(), "bias_ih_l0", partial(set_part, part=1, value=2.0)),
        "each gate has one value: 0, 2, 0, 0",
    ),
    "two forget biases": (
        lambda: planted(LSTM(), "bias_hh_l0", partial(set_part, part=1, value=1.0)),
        "a second forget bias of 1: the two add up to 2",
    ),
    "padding row": (
        lambda: planted(nn.Embedding(50, 20, padding_idx=-3), "weight", lambda w: w[47, 2].fill_(0.01)),
        "padding_idx's row 47 has 1 values that are not zero",
    ),
    "another array": (
        lambda: planted(nn.Linear(2, 3), "bias", lambda b: b[1].fill_(0.0), {"bias": torch.tensor([1.0, 2.0, 3.0])}),
        None,
    ),
}


@pytest.mark.parametrize(("plant", "cause"), MISTAKES.values(), ids=MISTAKES)
def test_a_planted_mistake_is_named(plant, cause):
    """The damaged tensor alone is off, and what it looks like is said."""
    model, rules, name = plant()
    report = kinit.audit(model, rules)
    assert not report.ok
    assert [each.name for each in report if not each.ok] == [name], str(report)
    if cause is not None:
        assert report[name].verdict == "off"
        assert cause in report[name].cause


def test_swapped_blocks_and_flattened_inputs_are_no_mistakes():
    """GRU's gates in torch's order, ties and a Flatten's marks pass."""
    model = nn.Sequential(
        nn.GRU(16, 32), nn.Flatten(), kinit.flattened(nn.Linear(60, 40), (3, 5, 4)), nn.Linear(60, 40)
    )
    model[3].weight = model[2].weight
    report = kinit.apply(model, {nn.Linear: {"kernel": "orthogonal"}}, seed=0).audit()
    assert report.ok
    assert report["3.weight"] is report["2.weight"]
    assert report["2.weight"].tied == ("3.weight",)


def test_small_tensors_say_so():
    """What fits the plan and a usual mistake is too small to tell; more values of the same law are not."""
    for sizes, verdict in (((4, 3), "too small to tell"), ((400, 300), "ok")):
        layer = nn.Linear(*sizes)
        report = kinit.apply(layer, HE, seed=0).audit()
        assert report.ok
        assert report["weight"].verdict == verdict
    assert "as well as planned" in kinit.apply(nn.Linear(4, 3), HE, seed=0).audit()["weight"].cause


def test_trained_models_are_told():
    """After some steps of SGD statistics have moved, biases are no longer constant, and weights follow these."""
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8))
    kinit.apply(model, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    for _ in range(20):
        optimizer.zero_grad()
        (model(torch.randn(64, 32)) - 1).square().mean().backward()
        optimizer.step()
    report = kinit.audit(model)
    assert report["1.num_batches_tracked"].cause == "20 batches tracked"
    assert report["1.running_mean"].cause == "running statistics have moved"
    assert {report[name].verdict for name in ("1.weight", "1.bias", "3.bias", "3.weight")} == {"looks trained"}
    assert not report.ok


def test_what_cannot_be_told_says_why():
    """A parametrization that changes values, another's initializer, what is left alone, and no values."""
    model = nn.ModuleDict(
        {
            "normed": parametrizations.weight_norm(nn.Linear(30, 20)),
            "orthogonal": parametrizations.orthogonal(nn.Linear(30, 20)),
            "others": nn.Linear(30, 20),
            "left": nn.Linear(30, 20),
        }
    )
    rules = {"others": nn.init.xavier_normal_, "left": kinit.skip}
    report = kinit.apply(model, rules, seed=0).audit()
    verdicts = {name: report[f"{name}.weight"].verdict for name in model}
    assert verdicts == {"normed": "ok", "orthogonal": "beyond", "others": "beyond", "left": "left alone"}
    assert report["orthogonal.weight"].cause == "passes through Orthogonal"
    assert kinit.audit(model, rules, only=["others.bias"])["normed.weight"].verdict == "left alone"
    with torch.no_grad():
        model["normed"].weight = torch.rand(20, 30)
    assert kinit.audit(model, rules)["normed.weight"].verdict == "off"


SPECTRAL = {
    "alone": parametrizations.spectral_norm,
    "twice": lambda module: parametrizations.spectral_norm(parametrizations.spectral_norm(module)),
    "above weight_norm": lambda module: parametrizations.spectral_norm(parametrizations.weight_norm(module)),
}
LAYERS = {"linear": lambda: nn.Linear(200, 120), "transposed": lambda: nn.ConvTranspose2d(20, 30, 5)}


@pytest.mark.parametrize("wrap", SPECTRAL.values(), ids=SPECTRAL)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_what_spectral_norm_divides_is_audited(make, wrap):
    """The weight as it was set has its law; torch's default, and a std that is off, are named, and nothing is moved."""
    layer = wrap(make())
    left = kinit.audit(layer)["weight"]
    assert (left.verdict, left.cause) == ("off", TORCH + "kaiming_uniform(a=sqrt 5)")
    made = kinit.apply(layer, {"": "he_normal"}, seed=0)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    report = made.audit()
    assert report.ok
    found = report["weight"]
    assert found.verdict == "ok"
    assert found.expected["std"] == pytest.approx(kinit.plan(make(), {"": "he_normal"})["weight"].std)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if "original" in name and "original1" not in name:
                value.mul_(0.8796256610342398)
    assert "truncation not corrected" in made.audit()["weight"].cause


def test_an_audit_changes_nothing():
    """Values, modes, and the random state are as they were."""
    model = Every().eval()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    kinit.audit(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


def test_devices_agree(device):
    """A model on another device has the verdicts and causes that it has on the CPU."""
    for planted_mistake in (False, True):
        model = Every()
        made = kinit.apply(model, seed=0)
        if planted_mistake:
            nn.init.xavier_uniform_(model.attention.in_proj_weight)
        here = [(each.name, each.verdict, each.cause, each.failed) for each in made.audit()]
        there = [(each.name, each.verdict, each.cause, each.failed) for each in kinit.audit(model.to(device))]
        assert here == there


REFUSED = {
    "no module": (lambda: kinit.audit(3), TypeError, "`model` must be a torch.nn.Module"),
    "alpha": (lambda: kinit.audit(nn.Linear(2, 2), alpha=1.0), ValueError, "`alpha` must be more than 0 and less th"),
    "alpha, text": (lambda: kinit.audit(nn.Linear(2, 2), alpha="no"), TypeError, "`alpha` must be a number"),
    "meta": (lambda: kinit.audit(nn.Linear(2, 2, device="meta")), ValueError, "weight is on the meta device and has"),
    "rules": (lambda: kinit.audit(nn.Linear(2, 2), {"b": 0}), kinit.UnusedRuleError, "'b'"),
    "data": (
        lambda: kinit.Plan.from_dict(kinit.plan(nn.Linear(2, 2)).to_dict()).audit(),
        ValueError,
        "has no model: pass one to `audit`",
    ),
    "another model": (lambda: kinit.plan(nn.Linear(2, 2)).audit(nn.Linear(2, 3)), ValueError, "weight was planned as"),
    "name": (lambda: kinit.audit(nn.Linear(2, 2))["w"], KeyError, "no parameter 'w'"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(call, error, message):
    """What cannot be audited is refused in a sentence."""
    with pytest.raises(error, match=message.replace("(", r"\(")):
        call()


def test_a_report_is_text_html_and_data():
    """Text fits the width with what is off first, HTML has a row a tensor, and data survives JSON."""
    model = Every()
    kinit.apply(model, seed=0)
    nn.init.xavier_uniform_(model.attention.in_proj_weight)
    report = kinit.audit(model, alpha=0.01)
    lines = report.to_text(100).splitlines()
    assert max(map(len, lines)) <= 100
    assert "in_proj_weight" in lines[3]
    assert lines[-1].startswith(f"{len(report)} tensors: 1 off, ")
    assert str(report).splitlines()[0].split() == ["name", "verdict", "initializer", "measured", "expected", "cause"]
    assert report._repr_html_().count("<tr>") == len(report) + 2
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (data["ok"], data["alpha"], len(data["findings"])) == (False, 0.01, len(report))
    assert repr(report) == f"<Audit of {len(report)} tensors, 1 off>"


@pytest.mark.slow
def test_no_false_alarm_in_400_tensors():
    """Of a model of 400 tensors with five laws none of a few seeds is off."""
    assert len(audit_rates.planned()) == 400
    assert audit_rates.false_alarms(range(8)) == []


FOUND = {  # a mistake in a layer from n to 2n units that should have he_normal, and its name
    "torch's default": (partial(nn.init.kaiming_uniform_, a=5**0.5), TORCH + "kaiming_uniform(a=sqrt 5)"),
    "truncation not corrected": (lambda w: w.mul_(0.8796256610342398), "std is 0.88 of the law's"),
    "not truncated": (lambda w: nn.init.normal_(w, std=(2 / w.shape[1]) ** 0.5), "not truncated"),
    "swapped fans": (lambda w: kinit.he_normal_(w.t()), "fans look swapped"),
}


def rate(damage, cause, size, seeds=20):
    """How often the mistake is named, in how many seeds it is off at least."""
    named = 0
    for seed in range(seeds):
        layer = nn.Linear(size, 2 * size)
        made = kinit.apply(layer, HE, seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            damage(layer.weight)
        named += cause in made.audit()["weight"].cause and not made.audit().ok
    return named / seeds


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "cause"), FOUND.values(), ids=FOUND)
def test_detection_rates(damage, cause):
    """From 512 values on each mistake is named in every seed; at 128 the rate is what the documentation says."""
    rates = [rate(damage, cause, size) for size in (8, 16, 32)]
    print(f"{cause}: {rates}")
    assert rates[1:] == [1.0, 1.0]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_shards_are_audited_as_the_whole():
    """Two processes, each with a part of every tensor, say what one says of the whole, mistakes included."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.audit_run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:2] == ["off: 0, equal: 13", "off: 4, equal: 13"]
