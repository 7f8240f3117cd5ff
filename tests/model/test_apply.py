"""Each parameter gets the law of its rule or of Keras' default for it, and nothing else changes."""

import copy
import itertools
import math
import re
import sys

import pytest
import torch
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.laws import N, Normal, TruncatedAtTwo, Uniform, check_law
from tests.support.models import linear, seeded

TWINS = {  # a torch layer, its Keras twin, and what Keras calls the arguments of each role
    "Linear": (nn.Linear(4, 3), kl.Dense(3), {}),
    "Conv1d": (nn.Conv1d(4, 6, 3), kl.Conv1D(6, 3), {}),
    "Conv3d groups": (nn.Conv3d(4, 6, 3, groups=2), kl.Conv3D(6, 3, groups=2), {}),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), kl.DepthwiseConv2D(3), {"depthwise_kernel": "depthwise"}),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3), kl.Conv2DTranspose(6, 3), {}),
    "Embedding": (nn.Embedding(4, 3), kl.Embedding(4, 3), {}),
    "EmbeddingBag": (nn.EmbeddingBag(4, 3), kl.Embedding(4, 3), {}),
    "RNN": (nn.RNN(4, 3, 2), kl.SimpleRNN(3), {"recurrent_kernel": "recurrent"}),
    "GRU": (nn.GRU(4, 3, bidirectional=True), kl.GRU(3), {"recurrent_kernel": "recurrent"}),
    "GRU without bias": (nn.GRU(4, 3, bias=False), kl.GRU(3, use_bias=False), {"recurrent_kernel": "recurrent"}),
    "LSTM without bias": (nn.LSTM(4, 3, bias=False), kl.LSTM(3, use_bias=False), {"recurrent_kernel": "recurrent"}),
    "LSTMCell without bias": (nn.LSTMCell(4, 3, bias=False), kl.LSTMCell(3), {"recurrent_kernel": "recurrent"}),
    "MultiheadAttention": (nn.MultiheadAttention(4, 2), kl.MultiHeadAttention(2, 2), {}),
    "attention of three widths": (nn.MultiheadAttention(4, 2, kdim=3, vdim=5), kl.MultiHeadAttention(2, 2), {}),
    "BatchNorm1d": (nn.BatchNorm1d(4), kl.BatchNormalization(), {}),
    "InstanceNorm2d": (nn.InstanceNorm2d(4, affine=True), kl.GroupNormalization(-1), {}),
    "GroupNorm": (nn.GroupNorm(2, 4), kl.GroupNormalization(2), {}),
    "LayerNorm": (nn.LayerNorm(4), kl.LayerNormalization(), {}),
    "PReLU": (nn.PReLU(), kl.PReLU(), {}),
}


@pytest.mark.parametrize(("module", "layer", "arguments"), TWINS.values(), ids=TWINS)
def test_defaults_are_those_of_keras(module, layer, arguments):
    """Without rules each role gets what the config of the Keras layer says for it."""
    config = layer.get_config()
    own = [step for step in kinit.plan(module) if step.role not in ("second_bias", "num_batches_tracked")]
    assert own
    for step in own:
        expected = config[f"{arguments.get(step.role, step.role)}_initializer"]["class_name"]
        assert kinit.serialize(step.initializer)["class_name"] == expected, step.name


@pytest.mark.parametrize("cell", [False, True], ids=["LSTM", "LSTMCell"])
def test_lstm_bias(cell):
    """torch's first bias starts as Keras' LSTM bias does, one in the forget block, and its second as zero."""
    module, layer = (nn.LSTMCell if cell else nn.LSTM)(4, 3), kl.LSTM(3)
    layer.build((1, 1, 4))
    kinit.apply(module)
    suffix = "" if cell else "_l0"
    assert torch.equal(module.get_parameter("bias_ih" + suffix), torch.tensor(layer.weights[2].numpy()))
    assert bool((module.get_parameter("bias_hh" + suffix) == 0).all())


SIZE = 512  # SIZE**2 is laws.N
DRAWN = {  # limits in closed form: sqrt(6 / (fan_in + fan_out)), with the fans of Keras' variables
    "Linear": (lambda: nn.Linear(SIZE, SIZE), "weight", Uniform(-(w := math.sqrt(6 / 1024)), w)),
    "Conv2d": (lambda: nn.Conv2d(64, 512, (2, 4)), "weight", Uniform(-(w := math.sqrt(6 / (8 * 64 + 8 * 512))), w)),
    "depthwise": (
        lambda: nn.Conv2d(64, 4096, 8, groups=64),
        "weight",
        Uniform(-(w := math.sqrt(6 / (64 * 64 + 64 * 64))), w),
    ),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(512, 128, 4), "weight", Uniform(-(w := math.sqrt(6 / 2560)), w)),
    "Embedding": (lambda: nn.Embedding(1024, 256), "weight", Uniform(-0.05, 0.05)),
    "LSTM": (lambda: nn.LSTM(1024, 64), "weight_ih_l0", Uniform(-(w := math.sqrt(6 / (1024 + 256))), w)),
    "GRU": (lambda: nn.GRU(1024, 128), "weight_ih_l0", Uniform(-(w := math.sqrt(6 / (1024 + 384))), w)),
    "attention, packed": (lambda: nn.MultiheadAttention(300, 4), "in_proj_weight", Uniform(-0.1, 0.1)),
    "attention, output": (
        lambda: nn.MultiheadAttention(512, 4),
        "out_proj.weight",
        Uniform(-(w := math.sqrt(6 / 1024)), w),
    ),
}


@pytest.mark.parametrize(("make", "name", "law"), DRAWN.values(), ids=DRAWN)
def test_default_law(make, name, law):
    """The values themselves have Keras' law: support, mean, standard deviation and shape."""
    module = make()
    kinit.apply(module)
    check_law(module.get_parameter(name), law)


LAWS = {
    "he_normal": TruncatedAtTwo(0.0, math.sqrt(2 / 512) / 0.8796256610342398),
    "random_normal": Normal(0.0, 0.05),
    "random_uniform": Uniform(-0.05, 0.05),
    "truncated_normal": TruncatedAtTwo(0.0, 0.05),
}


@pytest.mark.parametrize("name", LAWS)
def test_rule_gives_the_law(name):
    """A rule's law is that of Keras' initializer of its name."""
    module = nn.Linear(SIZE, N // SIZE)
    kinit.apply(module, {nn.Linear: name})
    check_law(module.weight, LAWS[name])


@pytest.mark.parametrize("module", [nn.LSTM(4, 8), nn.GRU(4, 8), nn.RNN(4, 8)], ids=["LSTM", "GRU", "RNN"])
def test_recurrent_kernel_is_orthogonal_as_a_whole(module):
    """The gates' recurrent kernels together have orthonormal rows in Keras' layout (units, gates * units)."""
    kinit.apply(module.double())
    kernel = module.weight_hh_l0.detach().T
    torch.testing.assert_close(kernel @ kernel.T, torch.eye(8, dtype=torch.float64))


def test_zero_size_weights():
    """The empty matrices of an AdaptiveLogSoftmaxWithLoss are no obstacle."""
    with pytest.warns(UserWarning, match="zero-element"):  # torch's own, at construction
        module = nn.AdaptiveLogSoftmaxWithLoss(6, 20, [2, 4], div_value=4.0)
    plan = kinit.apply(module)
    assert plan["tail.1.0.weight"].shape == (0, 6)


EMBEDDINGS = {
    "default": None,
    "role": {"": {"embeddings": "ones"}},
    "name": {"weight": 2.0},
    "torch's": {"": nn.init.ones_},
}


@pytest.mark.parametrize("rules", EMBEDDINGS.values(), ids=EMBEDDINGS)
@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("padding", [0, -1])
def test_padding_row_stays_zero(cls, padding, rules):
    """The row of padding_idx is zero whatever the initializer, and no other row is."""
    module = cls(5, 4, padding_idx=padding)
    kinit.apply(module, rules)
    is_zero = (module.weight == 0).all(dim=1)
    assert int(is_zero.sum()) == 1
    assert bool(is_zero[padding])


def test_running_statistics_start_anew():
    """The statistics and the counter of a norm that has seen data are as in a new one."""
    module = nn.BatchNorm1d(4)
    module(torch.randn(8, 4))
    kinit.apply(module)
    for name, value in nn.BatchNorm1d(4).state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_apply_returns_what_it_did():
    """apply gives back the plan it carried out, and skip leaves values as they are."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model(torch.randn(8, 4))
    before = copy.deepcopy(model.state_dict())
    plan = kinit.apply(model, {"1": kinit.skip, "2": kinit.skip, "0.bias": 1.0})
    assert plan == kinit.plan(model, {"1": kinit.skip, "2": kinit.skip, "0.bias": 1.0})
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == set(before) - {"0.weight", "0.bias"}


def test_progress_bar(capsys, monkeypatch):
    """progress=True shows a bar on stderr, if filling takes longer than a second, and changes no value."""
    plain, shown = linear(), linear()
    kinit.apply(plain, generator=seeded())
    kinit.apply(shown, generator=seeded(), progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("tqdm.std.time", itertools.count(0.0, 0.7).__next__)  # a clock that goes on when looked at
    kinit.apply(shown, generator=seeded(), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"initializing: .*2/2", captured.err)
    assert torch.equal(plain.weight, shown.weight)


def test_progress_without_tqdm(monkeypatch, capsys):
    """Where tqdm is not installed, progress=True shows nothing and the values are the same."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "tqdm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    plain, shown = linear(), linear()
    kinit.apply(plain, generator=seeded())
    kinit.apply(shown, generator=seeded(), progress=True)
    assert capsys.readouterr() == ("", "")
    assert torch.equal(plain.weight, shown.weight)


def test_apply_passes_depthwise_on():
    """apply(depthwise=False) has the fans of Conv2D(groups=...), as plan has."""
    conv = nn.Conv2d(4, 4, 3, groups=4)
    assert kinit.apply(conv, depthwise=False)["weight"].fans == kinit.plan(conv, depthwise=False)["weight"].fans
    assert kinit.apply(conv, depthwise=False)["weight"].fans != kinit.plan(conv)["weight"].fans


def test_all_lazy_parameters_are_listed():
    """The error about lazy parameters names each of them."""
    with pytest.raises(ValueError, match=re.escape("0.weight, 0.bias, 1.weight, 1.bias are lazy")):
        kinit.plan(nn.Sequential(nn.LazyLinear(2), nn.LazyLinear(3)))
