"""What apply does to models: Keras' defaults, ties, parametrizations, random sources, errors, real architectures."""

import copy
import math
import re
import sys
from functools import partial

import pytest
import torch
from keras import layers as kl
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import torch_kinit as kinit
from tests.laws import N, Normal, TruncatedAtTwo, Uniform, check_law
from tests.test_plan import Positions, fingerprint, tied
from torch_kinit import _layouts

# ---- defaults

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


# ---- tied parameters


def test_tied_parameter_is_drawn_once():
    """A tied parameter has one step, that of its first owner, and stays tied."""
    model = tied()
    seen = []
    kinit.apply(model, {"words": seen.append})
    assert [id(tensor) for tensor in seen] == [id(model["words"].weight)]
    plan = kinit.apply(model)
    assert (plan["head.weight"].layer, plan["head.weight"].tied) == ("Embedding", ("head.weight",))
    assert model["head"].weight is model["words"].weight
    assert 0.045 < float(model["head"].weight.detach().abs().max()) <= 0.05  # Keras' Embedding
    assert "words.weight = head.weight" in plan._repr_html_()


def test_module_used_twice():
    """A module under two paths is one set of tied parameters, and either path may name it."""
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    plan = kinit.plan(model, {"2.bias": 1.0, "0.bias": 1.0})
    assert {step.name: step.tied for step in plan} == {"0.weight": ("2.weight",), "0.bias": ("2.bias",)}


def test_parameter_under_two_names_of_one_module():
    """A parameter that one module holds under two names is drawn once, shown with both, and found by both."""
    module = nn.Module()
    module.first = module.second = nn.Parameter(torch.randn(3))
    assert kinit.plan(module, {"second": "zeros", "first": "zeros"})["second"].tied == ("second",)


TIES = {
    "first explicit": ({nn.Embedding: "he_normal"}, "he_normal"),
    "equal": ({nn.Embedding: "he_normal", nn.Linear: {"kernel": "HeNormal"}}, "he_normal"),
    "second yields": ({nn.Linear: "ones", nn.Embedding: "he_normal", "head.weight": kinit.skip}, "he_normal"),
    "first yields": ({nn.Linear: "ones", "words.weight": kinit.skip}, "ones"),
}


@pytest.mark.parametrize(("rules", "printed"), TIES.values(), ids=TIES)
def test_owners_agree(rules, printed):
    """Owners with the same rule, or of whom all but one skip, share their parameter in peace."""
    assert str(kinit.plan(tied(), rules)["head.weight"].initializer) == printed


class Fill:
    """An initializer whose method is one, too."""

    def ones(self, tensor):
        nn.init.ones_(tensor)


def test_one_method_is_one_initializer():
    """The same method of the same object is the same initializer, however often it is looked up."""
    fill = Fill()
    model = tied()
    kinit.apply(model, {nn.Embedding: fill.ones, nn.Linear: {"kernel": fill.ones}})
    assert bool((model["head"].weight == 1).all())


CONFLICTS = {
    "two rules": (
        {nn.Embedding: "zeros", nn.Linear: "ones"},
        "words.weight gets zeros (Embedding) and head.weight gets ones (Linear)",
    ),
    "a rule and the first's default": ({nn.Linear: "ones"}, "words.weight gets random_uniform (Keras default) and"),
}


@pytest.mark.parametrize(("rules", "sentence"), CONFLICTS.values(), ids=CONFLICTS)
def test_owners_disagree(rules, sentence):
    """Two owners with different rules are a TiedParameterError that names both and the way out."""
    with pytest.raises(kinit.TiedParameterError) as caught:
        kinit.plan(tied(), rules)
    message = str(caught.value)
    assert "words.weight and head.weight are one tensor" in message
    assert sentence in message
    assert "{'head.weight': kinit.skip}" in message


# ---- parametrizations


class Symmetric(nn.Module):
    """torch's own example of a parametrization, with or without a way back."""

    def forward(self, x):
        return x.triu() + x.triu(1).T


class Settable(Symmetric):
    def right_inverse(self, x):
        return x.triu()


class Failing(Symmetric):
    """It fails from the second time on; the first is torch's, when it is registered."""

    called = False

    def right_inverse(self, x):
        if self.called:
            torch.rand(3)
            raise RuntimeError("no way back")
        self.called = True
        return x.triu()


def symmetric(step):
    module = nn.Linear(4, 4)
    parametrize.register_parametrization(module, "weight", step)
    return module


def seeded():
    return torch.Generator().manual_seed(7)


def drawn(make=lambda: nn.Linear(4, 4), rules=None):
    """What a plain layer gets, as the oracle for a parametrized one."""
    module = make()
    kinit.apply(module, rules, generator=seeded())
    return module.weight.detach()


def test_weight_norm_is_set():
    """A weight-normalized weight ends as the very values that a plain layer gets."""
    module = parametrizations.weight_norm(nn.Linear(6, 4))
    kinit.apply(module, generator=seeded())
    torch.testing.assert_close(module.weight.detach(), drawn(lambda: nn.Linear(6, 4)))
    torch.testing.assert_close(module.parametrizations.weight.original0.detach().flatten(), module.weight.norm(dim=1))


def test_spectral_norm_is_set():
    """A spectrally normalized weight is set through its right_inverse: it becomes a plain layer's over a scalar."""
    module = parametrizations.spectral_norm(nn.Linear(4, 4))
    kinit.apply(module, generator=seeded())
    assert torch.equal(module.parametrizations.weight.original.detach(), drawn())
    weight = module.weight.detach()  # in training mode, where torch improves its estimate of the norm first
    torch.testing.assert_close(weight / weight.norm(), drawn() / drawn().norm())


def test_orthogonal_is_set():
    """An orthogonal parametrization keeps an orthogonal draw exactly."""
    module = parametrizations.orthogonal(nn.Linear(4, 4))
    kinit.apply(module, {nn.Linear: "orthogonal"}, generator=seeded())
    torch.testing.assert_close(module.weight.detach(), drawn(rules={nn.Linear: "orthogonal"}))


def test_custom_parametrization_is_set():
    """A parametrization with a right_inverse of its own is set through it."""
    module = symmetric(Settable())
    kinit.apply(module, generator=seeded())
    torch.testing.assert_close(module.weight.detach(), drawn().triu() + drawn().triu(1).T)


def test_parametrization_without_inverse():
    """A parametrization without right_inverse is an error of the plan that names it; skip yields."""
    with pytest.raises(ValueError, match=r"^weight .*its parametrization Symmetric has no right_inverse"):
        kinit.plan(symmetric(Symmetric()))
    assert kinit.plan(symmetric(Symmetric()), {"weight": kinit.skip})["weight"].initializer is None


def test_parametrized_raw_parameter_is_answered_for():
    """A raw parameter stays uncovered under a parametrization, and a rule for it sets its value."""
    model = nn.Module()
    model.matrix = nn.Parameter(torch.randn(3, 3))
    parametrize.register_parametrization(model, "matrix", Settable())
    with pytest.raises(kinit.UncoveredParameterError, match=r"matrix \(3, 3\)"):
        kinit.plan(model)
    kinit.apply(model, {"matrix": 2.0})
    assert bool((model.matrix == 2).all())


@pytest.mark.parametrize("old", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=["weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_old_norms_are_uncovered(old):
    """The hooks of the old weight_norm and spectral_norm leave parameters uncovered, with a hint at the new ones."""
    with pytest.raises(
        kinit.UncoveredParameterError,
        match=r"old torch\.nn\.utils\.weight_norm.*torch\.nn\.utils\.parametrizations",
    ):
        kinit.plan(nn.Sequential(old(nn.Linear(4, 4))))


@pytest.mark.parametrize(
    "lazy", [nn.LazyLinear(3), nn.LazyConv2d(3, 2), nn.LazyBatchNorm1d()], ids=lambda m: type(m).__name__
)
def test_lazy_parameters(lazy):
    """A parameter without a shape is an error that says to run a forward pass first."""
    with pytest.raises(ValueError, match=r"0\.weight.* lazy and without a shape: run one forward pass first"):
        kinit.plan(nn.Sequential(lazy))


# ---- random sources

OURS = [
    *(f"{name}_{law}" for name in ("glorot", "he", "lecun") for law in ("normal", "uniform")),
    *("variance_scaling", "random_normal", "random_uniform", "truncated_normal", "orthogonal"),
    partial(kinit.trunc_normal_, lower=3.0, upper=math.inf),
    partial(kinit.variance_scaling_, distribution="untruncated_normal"),
]
TORCHS = [
    *(nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.orthogonal_, partial(nn.init.normal_, std=2.0)),
]


def label(value):
    return value if isinstance(value, str) else getattr(value, "__name__", None) or f"partial {value.func.__name__}"


def mixed():
    return nn.ModuleDict(
        {"conv": nn.Conv2d(4, 4, 3, groups=4), "gru": nn.GRU(4, 3), "attend": nn.MultiheadAttention(4, 2)}
    )


@pytest.mark.parametrize("value", [*OURS, *TORCHS], ids=label)
def test_generator_reaches_every_draw(value):
    """With a generator, torch's global random state is neither read nor moved."""
    results = []
    for seed in (1, 2):
        model = mixed()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        kinit.apply(model, dict.fromkeys(("conv", "gru", "attend"), value), generator=seeded())
        assert torch.equal(torch.get_rng_state(), state)
        results.append(model.state_dict())
    assert all(torch.equal(values, results[1][name]) for name, values in results[0].items())


@pytest.mark.parametrize("shape", [(4, 4), (4, 3), (3, 4)], ids=str)
def test_generator_reaches_parametrizations(shape):
    """An orthogonal parametrization, which completes a rectangle at random, leaves the global state alone too."""
    results = []
    for seed in (1, 2):
        module = parametrizations.orthogonal(nn.Linear(*shape))
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        kinit.apply(module, generator=seeded())
        assert torch.equal(torch.get_rng_state(), state)
        results.append(module.parametrizations.weight[0].base)
    assert torch.equal(*results)


@pytest.mark.parametrize("value", [*OURS, *TORCHS], ids=label)
def test_without_generator_the_global_one_is_used(value):
    """Without a generator the values come from torch's global seed."""
    results = []
    for seed in (1, 1, 2):
        module = nn.Linear(6, 5)
        torch.manual_seed(seed)
        kinit.apply(module, {"": value})
        results.append(module.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_generator_given_in_a_rule():
    """A generator that a rule's partial holds is used for that rule, in place of the one given to apply."""
    module = nn.Linear(6, 5)
    kinit.apply(module, {"": partial(kinit.he_normal_, generator=torch.Generator().manual_seed(4))}, generator=seeded())
    assert torch.equal(module.weight, kinit.he_normal_(torch.empty(5, 6), generator=torch.Generator().manual_seed(4)))


# ---- errors


def boom(tensor, generator=None):
    """An initializer that fails after it has drawn and written."""
    nn.init.normal_(tensor, generator=generator)
    nn.init.normal_(tensor)
    raise RuntimeError("boom")


def chain(*modules):
    return lambda: nn.Sequential(*(make() for make in modules), nn.BatchNorm1d(4), nn.Linear(4, 4))


def linear():
    return nn.Linear(4, 4)


FAILURES = {
    "unused rule": (chain(linear), {"0": "zeros", "haed": "zeros"}, {}, kinit.UnusedRuleError),
    "uncovered": (Positions, {"head": "zeros"}, {}, kinit.UncoveredParameterError),
    "tied": (tied, {nn.Embedding: "zeros", nn.Linear: "ones"}, {}, kinit.TiedParameterError),
    "value": (chain(linear), {"0": "ones", "2": partial(kinit.he_normal_, fans=(-1, 2))}, {}, ValueError),
    "lazy": (chain(lambda: nn.LazyLinear(4)), None, {}, ValueError),
    "no right_inverse": (chain(linear, lambda: symmetric(Symmetric())), None, {}, ValueError),
    "integer generator": (chain(linear), None, {"generator": 0}, TypeError),
    "convention": (chain(linear), None, {"convention": "keras"}, ValueError),
    "foreign, midway": (chain(linear), {"2": boom}, {}, RuntimeError),
    "foreign, of a bias": (
        chain(linear),
        {"2": nn.init.xavier_normal_, "2.bias": nn.init.xavier_normal_},
        {},
        ValueError,
    ),
    "foreign, after weight_norm": (
        chain(lambda: parametrizations.weight_norm(linear())),
        {"2": boom},
        {},
        RuntimeError,
    ),
    "foreign, after spectral_norm": (
        chain(lambda: parametrizations.spectral_norm(linear())),
        {"2": boom},
        {},
        RuntimeError,
    ),
    "foreign, after orthogonal": (chain(lambda: parametrizations.orthogonal(linear())), {"2": boom}, {}, RuntimeError),
    "failing right_inverse": (chain(linear, lambda: symmetric(Failing())), None, {}, RuntimeError),
    "Cayley without trivialization": (
        chain(linear, lambda: parametrizations.orthogonal(linear(), orthogonal_map="cayley", use_trivialization=False)),
        None,
        {},
        Exception,
    ),
}


@pytest.mark.parametrize("use_global", [True, False], ids=["global", "generator"])
@pytest.mark.parametrize(("make", "rules", "options", "kind"), FAILURES.values(), ids=FAILURES)
def test_an_error_leaves_everything_untouched(make, rules, options, kind, use_global):
    """After any error all parameters, buffers, modes and random states are what they were, bit for bit."""
    model, generator = make(), seeded()
    if not use_global:
        options = {"generator": generator, **options}
    before = fingerprint(model, generator)
    with pytest.raises(kind):
        kinit.apply(model, rules, **options)
    assert fingerprint(model, generator) == before


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ReLU()], ids=["Linear", "nothing to draw"])
def test_seed_is_no_generator(model):
    """An integer where a generator belongs is a TypeError that tells how to make one, also where nothing is drawn."""
    with pytest.raises(TypeError, match=r"`generator` must be .*, got 3\. .*torch\.Generator\(\)\.manual_seed\(3\)"):
        kinit.apply(model, generator=3)


# ---- progress


def test_progress_bar(capsys):
    """progress=True shows a bar over the parameters on stderr and changes no value."""
    plain, shown = linear(), linear()
    kinit.apply(plain, generator=seeded())
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


# ---- real architectures


@pytest.fixture
def layouts(monkeypatch):
    """A registry of layouts that is as it was before, after the test."""
    monkeypatch.setattr(_layouts, "_LAYOUTS", dict(_layouts._LAYOUTS))
    return kinit.register_layout


def check_covered(model, plan):
    """Every parameter is in the plan exactly once, and its values have the std and the bounds that it says."""
    names = [name for step in plan for name in (step.name, *step.tied) if step.kind == "parameter"]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters(remove_duplicate=False))
    for step in plan:
        assert step.moments is not None, step.name
        values = model.get_parameter(step.name) if step.kind == "parameter" else model.get_buffer(step.name)
        values, law = values.detach().double(), step.moments
        assert float(values.min()) >= law.low - 1e-6, step.name
        assert float(values.max()) <= law.high + 1e-6, step.name
        # Of a law's sample std, the relative error is at most 0.707/sqrt(n), a normal's. An orthogonal's is smaller.
        assert float(values.std(correction=0)) == pytest.approx(
            law.std, rel=6 * 0.707 / math.sqrt(values.numel()), abs=1e-7
        )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 200, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def bert():
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(**sizes, intermediate_size=64, max_position_embeddings=32))


def vit():
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def test_torch_transformer():
    """torch's nn.Transformer is covered by the defaults alone, its packed attention included."""
    model = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
    plan = kinit.apply(model, generator=seeded())
    check_covered(model, plan)
    assert plan["decoder.layers.1.multihead_attn.in_proj_weight"].blocks == 3


def test_gpt2(layouts):
    """GPT-2 needs one registered layout, for its transposed linears; its head is tied to the embedding."""
    from transformers.pytorch_utils import Conv1D

    model = gpt2()
    with pytest.raises(kinit.UncoveredParameterError, match=r"h\.0\.attn\.c_attn\.weight \(32, 96\) of Conv1D"):
        kinit.plan(model)
    layouts(Conv1D, lambda m: [kinit.Variable("kernel", "weight", "keras"), kinit.Variable("bias", "bias")])
    plan = kinit.apply(model, {Conv1D: "he_normal"}, generator=seeded())
    check_covered(model, plan)
    assert plan["lm_head.weight"].name == "transformer.wte.weight"
    assert plan["transformer.h.0.mlp.c_fc.weight"].fans == (32, 128)
    assert bool(torch.isfinite(model(torch.arange(8)[None]).logits).all())


def test_bert():
    """BERT is covered by the defaults; its padding row stays zero and its tied decoder is drawn once."""
    model = bert()
    plan = kinit.plan(model, {"*word_embeddings*": kinit.skip})
    assert plan["cls.predictions.decoder.weight"].initializer is not None  # its other owner draws it
    plan = kinit.apply(model, {nn.Linear: {"bias": "zeros"}}, generator=seeded())
    assert bool((model.bert.embeddings.word_embeddings.weight[0] == 0).all())
    assert plan["cls.predictions.decoder.bias"].tied == ("cls.predictions.bias",)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[0] = model.bert.embeddings.word_embeddings.weight[1]
    check_covered(model, plan)


def test_vit():
    """ViT's raw parameters have to be spoken of, and rules by name cover them."""
    model = vit()
    rules = {"*cls_token": "zeros", "*position_embeddings": partial(kinit.trunc_normal_, std=0.02)}
    with pytest.raises(kinit.UncoveredParameterError, match="cls_token"):
        kinit.plan(model)
    check_covered(model, kinit.apply(model, rules, generator=seeded()))


def test_llama():
    """Llama's own RMSNorm has to be spoken of, and a rule by class covers it."""
    model = llama()
    rules = {type(model.model.norm): "ones", "*_proj": "he_normal", "lm_head": {"kernel": "lecun_normal"}}
    plan = kinit.apply(model, rules, generator=seeded())
    check_covered(model, plan)
    assert str(plan["model.layers.1.mlp.down_proj.weight"].initializer) == "he_normal"


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
