"""Every layout, proved by a forward pass against Keras itself; every torch layer answered for; the fans Keras uses."""

import importlib
import pkgutil
import warnings
from dataclasses import replace

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl
from keras.src.initializers import random_initializers
from torch import nn

import torch_kinit as kinit
from tests.keras_twins import (
    SQUARE,
    TORCH_ONLY,
    TWINS,
    WEIGHTED,
    WRONG,
    Twin,
    carried,
    carry,
    check_same_output,
    tensor_of,
)
from torch_kinit import Variable, _layouts
from torch_kinit._layouts import Options, layout_of

each_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)


@pytest.fixture(autouse=True)
def _on_the_cpu():
    """Keras would take an accelerator where there is one."""
    with keras.device("cpu"):
        yield


@pytest.fixture
def register(monkeypatch):
    """Registers layouts for one test only."""
    monkeypatch.setattr(_layouts, "_LAYOUTS", dict(_layouts._LAYOUTS))
    return kinit.register_layout


# Equal outputs, and what unequal ones look like


@each_twin
def test_forward(twin):
    """A module given its Keras twin's variables through its layout computes what Keras computes."""
    check_same_output(twin, *carried(twin))


@each_twin
def test_forward_depends_on_the_place_of_every_tensor(twin):
    """With the values of any one tensor moved on by one place the comparison with Keras fails."""
    module, inputs, expected = carried(twin)
    moved = 0
    for variable in layout_of(module, Options(depthwise=twin.depthwise)):
        tensor = tensor_of(module, variable)
        if tensor is None or tensor.numel() == 1 or variable.role in TORCH_ONLY:
            continue
        kept = tensor.detach().clone()
        tensor.data.copy_(kept.flatten().roll(1).view_as(kept))
        with pytest.raises(AssertionError, match="not close"):
            check_same_output(twin, module, inputs, expected)
        tensor.data.copy_(kept)
        moved += 1
    assert moved or twin.name == "PReLU (5, 4)"  # whose parameter is a single number
    check_same_output(twin, module, inputs, expected)


@pytest.mark.parametrize("name", SQUARE)
def test_square_shapes_are_right_to_begin_with(name):
    """The twins from which the wrong layouts are made agree under the right one."""
    check_same_output(SQUARE[name], *carried(SQUARE[name]))


@pytest.mark.parametrize(("name", "change", "tensor", "wrong"), WRONG, ids=[f"{row[0]}: {row[1]}" for row in WRONG])
def test_wrong_layout_is_rejected(name, change, tensor, wrong):
    """A layout that is wrong in one respect, and fits in shape, gives other outputs than Keras."""

    def variables(module):
        right = layout_of(module, Options())
        assert tensor in [v.tensor for v in right]
        return [replace(v, **wrong) if v.tensor == tensor else v for v in right]

    carried_wrongly = carried(SQUARE[name], variables)
    with pytest.raises(AssertionError, match="not close"):
        check_same_output(SQUARE[name], *carried_wrongly)


def test_layout_of_another_shape_is_rejected():
    """A convolution's weight taken without permutation does not even fit Keras' kernel."""
    module, layer = nn.Conv2d(4, 8, (3, 5)), kl.Conv2D(8, (3, 5), data_format="channels_first")
    layer.build((None, 4, 7, 9))
    with pytest.raises(AssertionError, match=r"\[8, 4, 3, 5\].*\[3, 5, 4, 8\]"), torch.no_grad():
        carry(
            [layer], module, [Variable("kernel", "weight", "keras"), Variable("bias", "bias")], np.random.default_rng(0)
        )


def test_bilinear_is_an_einsum():
    """Bilinear, of which Keras has no layer, contracts a kernel of axes (in1, in2, out)."""
    module, a, b = nn.Bilinear(3, 4, 5, bias=False), torch.randn(2, 3), torch.randn(2, 4)
    kernel, values = layout_of(module, Options())[0], torch.randn(3, 4, 5)
    with torch.no_grad():
        kernel.fill(module.weight, lambda view: view.copy_(values))
        torch.testing.assert_close(module(a, b), keras.ops.einsum("bi,bj,ijo->bo", a, b, values), rtol=1e-5, atol=1e-5)


# Views


@pytest.mark.parametrize(
    "make",
    [
        *[pytest.param(twin.module, id=twin.name) for twin in TWINS],
        pytest.param(lambda: nn.Bilinear(3, 4, 5), id="Bilinear"),
        pytest.param(lambda: nn.LSTM(4, 6, proj_size=3), id="LSTM proj_size"),
        pytest.param(lambda: nn.MultiheadAttention(12, 3, add_bias_kv=True), id="MultiheadAttention bias_k"),
        pytest.param(lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), id="grouped ConvTranspose2d"),
        pytest.param(lambda: nn.Conv3d(4, 8, 3, groups=4), id="depthwise Conv3d"),
    ],
)
def test_views_cover_each_element_once(make):
    """A variable's views share the tensor's memory and hold each of its elements exactly once."""
    module = make()
    for variable in layout_of(module, Options()):
        tensor = tensor_of(module, variable)
        if tensor is None:
            continue
        tensor, count = tensor.detach(), torch.arange(tensor.numel())
        tensor.copy_(count.view_as(tensor))
        views = variable.views(tensor)
        assert len(views) == variable.blocks
        assert torch.equal(torch.cat([view.flatten() for view in views]).sort().values.long(), count)
        for view in views:
            view.fill_(-1)
        assert bool((tensor == -1).all()), variable
        numbers = iter(count.split(tensor.numel() // variable.blocks))
        variable.fill(tensor, lambda view, numbers=numbers: view.copy_(next(numbers).view_as(view)))
        assert torch.equal(tensor.flatten().sort().values.long(), count), variable


# Every class of torch.nn

MADE_FROM = {
    "AdaptiveLogSoftmaxWithLoss": lambda cls: cls(4, 9, [3, 5], div_value=4.0),  # its last tail has no width at all
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), lambda cls: cls(4, affine=True)),
    "TransformerDecoder": lambda cls: cls(nn.TransformerDecoderLayer(4, 2), 2),
    "TransformerEncoder": lambda cls: cls(nn.TransformerEncoderLayer(4, 2), 2),
    "Unflatten": lambda cls: cls(0, (2, 2)),
}
BASES = {nn.Module, nn.RNNBase, nn.RNNCellBase}  # not layers themselves
OWNERS = {
    *(nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear, nn.Bilinear, nn.MultiheadAttention, nn.PReLU),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell, nn.Embedding, nn.EmbeddingBag),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
}


def _torch_classes():
    files = [
        importlib.import_module(f"torch.nn.modules.{info.name}") for info in pkgutil.iter_modules(nn.modules.__path__)
    ]
    found = [value for file in [nn, *files] for value in vars(file).values() if isinstance(value, type)]
    classes = {cls for cls in found if issubclass(cls, nn.Module) and not cls.__name__.startswith("_")}
    return sorted(classes - BASES, key=lambda cls: cls.__name__)


def _made(cls):
    """An instance of a torch.nn class, made with the arguments that most of them take."""
    guesses = [lambda cls, n=n: cls(*n) for n in ((), (4,), (4, 4), (4, 4, 1))]
    for make in [MADE_FROM[cls.__name__]] if cls.__name__ in MADE_FROM else guesses:
        try:
            with warnings.catch_warnings(action="ignore"):
                return make(cls)
        except (TypeError, ValueError):
            continue
    return pytest.fail(f"{cls.__name__} is new: say in MADE_FROM how to make one, and give it a layout.")


@pytest.mark.parametrize("cls", _torch_classes(), ids=lambda cls: cls.__name__)
def test_every_torch_class_is_answered_for(cls):
    """Each class in torch.nn holds no parameters, or has a layout for all of them, or says that it is lazy."""
    with torch.device("meta"):
        module = _made(cls)
    if cls.__name__.startswith("Lazy"):
        with pytest.raises(ValueError, match=r"(is|are) lazy and without a shape: run one forward pass first"):
            kinit.plan(module)
        return
    if cls in OWNERS:
        assert list(module.parameters(recurse=False))
    plan = kinit.plan(module)  # raises UncoveredParameterError if a parameter is left over
    assert {name for name, _ in module.named_parameters()} <= {
        name for step in plan for name in (step.name, *step.tied)
    }
    assert all(step.initializer is not None for step in plan)


def test_the_walk_finds_what_owns_parameters():
    """The walk over torch.nn sees every layer that is known to own parameters."""
    assert set(_torch_classes()) >= OWNERS


# Fans


def _attention_fans(*projections, out):
    names = ["in_proj_weight"] if len(projections) == 1 else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    return {**dict(zip(names, projections, strict=True)), "out_proj.weight": out}


BEFORE = {"convention": "keras-3.14"}
FANS = [  # worked out by hand from Keras' shapes: (*kernel, in / groups, out), transposed (*kernel, out, in), ...
    ("Linear", nn.Linear(5, 7), {"weight": (5, 7), "bias": (7, 7)}),
    ("Conv1d", nn.Conv1d(4, 8, 3), {"weight": (12, 24), "bias": (8, 8)}),
    ("Conv2d", nn.Conv2d(4, 8, (3, 5)), {"weight": (60, 120)}),
    ("Conv2d one channel", nn.Conv2d(1, 8, (3, 5)), {"weight": (15, 120)}),
    ("Conv2d groups", nn.Conv2d(4, 8, (3, 5), groups=2), {"weight": (30, 120)}),
    ("Conv3d", nn.Conv3d(4, 8, 3), {"weight": (108, 216)}),
    ("depthwise Conv1d x2", nn.Conv1d(4, 8, 3, groups=4), {"weight": (12, 6)}),
    ("depthwise Conv2d x1", nn.Conv2d(4, 4, (3, 5), groups=4), {"weight": (60, 15)}),
    ("depthwise Conv2d x2", nn.Conv2d(4, 8, (3, 5), groups=4), {"weight": (60, 30)}),
    ("depthwise Conv3d x2", nn.Conv3d(4, 8, (3, 5, 2), groups=4), {"weight": (120, 60)}),
    ("Conv2d(groups=4)", nn.Conv2d(4, 8, (3, 5), groups=4), {"weight": (15, 120)}, {"depthwise": False}),
    ("ConvTranspose2d", nn.ConvTranspose2d(4, 8, (3, 5)), {"weight": (120, 60)}),
    ("ConvTranspose2d groups", nn.ConvTranspose2d(4, 8, (3, 5), groups=2), {"weight": (60, 60)}),
    ("Embedding", nn.Embedding(11, 4), {"weight": (11, 4)}),
    ("EmbeddingBag", nn.EmbeddingBag(11, 4), {"weight": (11, 4)}),
    ("Bilinear", nn.Bilinear(3, 4, 5), {"weight": (12, 5)}),
    ("LayerNorm", nn.LayerNorm((5, 6)), {"weight": (5, 6)}),
    ("RNN", nn.RNN(4, 6), {"weight_ih_l0": (4, 6), "weight_hh_l0": (6, 6), "bias_ih_l0": (6, 6)}),
    ("LSTM", nn.LSTM(4, 6), {"weight_ih_l0": (4, 24), "weight_hh_l0": (6, 24), "bias_ih_l0": (24, 24)}),
    ("LSTM deep", nn.LSTM(4, 6, 2, bidirectional=True), {"weight_ih_l0_reverse": (4, 24), "weight_ih_l1": (12, 24)}),
    (
        "LSTM proj_size",
        nn.LSTM(4, 6, proj_size=3),
        {"weight_ih_l0": (4, 24), "weight_hh_l0": (3, 24), "weight_hr_l0": (6, 3)},
    ),
    (
        "GRU",
        nn.GRU(4, 6),
        {"weight_ih_l0": (4, 18), "weight_hh_l0": (6, 18), "bias_ih_l0": (2, 18), "bias_hh_l0": (2, 18)},
    ),
    ("GRUCell", nn.GRUCell(4, 6), {"weight_ih": (4, 18), "weight_hh": (6, 18), "bias_ih": (2, 18)}),
    ("attention", nn.MultiheadAttention(12, 3), _attention_fans((12, 12), out=(12, 12))),
    ("attention 3.14", nn.MultiheadAttention(12, 3), _attention_fans((36, 48), out=(12, 36)), BEFORE),
    (
        "attention separate",
        nn.MultiheadAttention(12, 3, kdim=9, vdim=8),
        _attention_fans((12, 12), (9, 12), (8, 12), out=(12, 12)),
    ),
    (
        "attention separate 3.14",
        nn.MultiheadAttention(12, 3, kdim=9, vdim=8),
        _attention_fans((36, 48), (27, 36), (24, 32), out=(12, 36)),
        BEFORE,
    ),
    ("attention bias_k", nn.MultiheadAttention(12, 3, add_bias_kv=True), {"bias_k": (12, 12), "bias_v": (12, 12)}),
]


@pytest.mark.parametrize(
    ("module", "fans", "options"), [(*row[1:3], dict(*row[3:])) for row in FANS], ids=[r[0] for r in FANS]
)
def test_fans_by_table(module, fans, options):
    """A scaled initializer gets the fans of the variable that Keras has in the parameter's place."""
    plan = kinit.plan(module, {"*": "glorot_uniform"}, **options)
    assert {name: plan[name].fans for name in fans} == fans


@pytest.fixture
def fans_used(monkeypatch):
    """The fans that Keras computes, in the order in which it does."""
    used, compute = [], random_initializers.compute_fans
    monkeypatch.setattr(
        random_initializers, "compute_fans", lambda *a, **kw: used.append(compute(*a, **kw)) or used[-1]
    )
    return used


def _scaled(config):
    """A Keras layer's config with GlorotUniform in place of its other random initializers."""
    if isinstance(config, dict):
        if config.get("class_name") in ("Orthogonal", "RandomUniform"):
            return {"class_name": "GlorotUniform", "config": {}}
        return {key: _scaled(value) for key, value in config.items()}
    return config


@pytest.mark.parametrize("twin", WEIGHTED, ids=lambda twin: twin.name)
def test_fans_are_those_keras_uses(twin, fans_used):
    """The plan's fans, weight by weight, are those that Keras 3.15 computes while it builds the twin."""
    layers = [kl.deserialize(_scaled(kl.serialize(layer))) for layer in twin.layers()]
    twin.run_keras(layers, *twin.inputs(np.random.default_rng(0)))
    plan = kinit.plan(twin.module(), {"*weight*": "glorot_uniform"}, depthwise=twin.depthwise)
    assert fans_used
    assert [step.fans for step in plan if "weight" in step.name for _ in range(step.blocks)] == fans_used


def test_attention_fans_before_3_15_are_those_of_the_shape():
    """Under convention="keras-3.14" attention's fans are what Keras computes from its kernels' shapes alone."""
    layer = kl.MultiHeadAttention(3, 4)
    layer.build((2, 5, 12), (2, 7, 8), (2, 7, 9))
    plan = kinit.plan(nn.MultiheadAttention(12, 3, kdim=9, vdim=8), convention="keras-3.14")
    shapes = [weight.shape for weight in layer.weights if weight.name == "kernel"]
    before = [random_initializers.compute_fans(shape) for shape in shapes]
    assert [step.fans for step in plan if "weight" in step.name] == before


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Bilinear(3, 4, 5), {"weight": ("kernel", "glorot_uniform"), "bias": ("bias", "zeros")}),
        (
            nn.LSTM(4, 6, proj_size=3),
            {
                "weight_hr_l0": ("projection_kernel", "glorot_uniform"),
                "weight_hh_l0": ("recurrent_kernel", "orthogonal"),
                "bias_ih_l0": ("bias", "unit_forget_bias"),
                "bias_hh_l0": ("second_bias", "zeros"),
            },
        ),
        (
            nn.MultiheadAttention(12, 3, add_bias_kv=True),
            {"bias_k": ("bias_k", "glorot_normal"), "bias_v": ("bias_v", "glorot_normal")},
        ),
        (nn.Conv2d(2, 8, 3, groups=2), {"weight": ("depthwise_kernel", "glorot_uniform")}),
        (nn.Conv2d(1, 8, 3), {"weight": ("kernel", "glorot_uniform")}),
    ],
    ids=["Bilinear", "LSTM proj_size", "attention bias_k", "depthwise", "one channel"],
)
def test_roles(module, expected):
    """Parameters that Keras lacks, or calls by more than one name, have the roles and defaults documented for them."""
    plan = kinit.plan(module)
    assert {name: (plan[name].role, str(plan[name].initializer)) for name in expected} == expected


# Layouts of a user's own


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 6))
        self.bias = None


class Heir(Own):
    pass


def test_gpt2_conv1d(register):
    """GPT-2's Conv1D, registered as the documentation shows, is Keras' Dense; unregistered, it is refused."""
    from transformers.pytorch_utils import Conv1D

    with pytest.raises(kinit.UncoveredParameterError, match="of Conv1D"):
        kinit.plan(Conv1D(7, 5))
    register(Conv1D, lambda m: [Variable("kernel", "weight", "keras"), Variable("bias", "bias")])
    twin = Twin("", lambda: Conv1D(7, 5), lambda: [kl.Dense(7)], ((3, 5),))
    check_same_output(twin, *carried(twin))
    assert kinit.plan(Conv1D(7, 5))["weight"].fans == (5, 7)


def test_subclasses_inherit_the_nearest_layout(register):
    """A subclass has its base's layout until it is registered itself, and that leaves the base as it was."""
    register(Own, lambda m: [Variable("kernel", "weight"), Variable("bias", "bias")])
    assert kinit.plan(Heir())["weight"].fans == (6, 4)
    register(Heir, lambda m: [Variable("kernel", "weight", "keras")])
    assert (kinit.plan(Heir())["weight"].fans, kinit.plan(Own())["weight"].fans) == ((4, 6), (6, 4))


def test_registering_again_replaces(register):
    """A second registration takes the place of the first, and of a built-in one."""
    register(nn.Linear, lambda m: (Variable("gain", "weight", "keras", default="he_normal"), Variable("bias", "bias")))
    first = kinit.plan(nn.Linear(5, 7))["weight"]
    assert (first.role, first.fans, str(first.initializer)) == ("gain", (7, 5), "he_normal")
    register(nn.Linear, lambda m: (Variable("kernel", "weight"), Variable("bias", "bias")))
    again = kinit.plan(nn.Linear(5, 7))["weight"]
    assert (again.role, again.fans, str(again.initializer)) == ("kernel", (5, 7), "glorot_uniform")


@pytest.mark.parametrize("cls", [int, "Linear", nn.Linear(2, 2), None], ids=repr)
def test_only_module_classes_are_registered(register, cls):
    """A layout for what is no module class is refused with what came."""
    with pytest.raises(TypeError, match=r"`cls` must be a subclass of torch\.nn\.Module, got"):
        register(cls, lambda m: [])


def test_only_functions_are_layouts(register):
    """A list of variables where the function that makes it belongs is refused."""
    with pytest.raises(TypeError, match="`layout` must be a function from a module to its variables, got"):
        register(Own, [Variable("kernel", "weight")])


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        pytest.param({"tensor": "weihgt"}, "weihgt", id="no such tensor"),
        pytest.param({"tensor": "inner.weight"}, r"inner\.weight", id="no such child"),
        pytest.param({"layout": "kears"}, "kears", id="unknown layout"),
        pytest.param({"layout": lambda w: w.t().contiguous()}, "weight", id="a copy, not a view"),
        pytest.param({"layout": lambda w: w.t()[:3]}, "weight", id="a view of a part"),
        pytest.param({"blocks": 3}, "weight", id="blocks of unequal size"),
        pytest.param({"swapped": True}, "weight", id="four rows in three blocks"),
        pytest.param({"default": "glorot"}, "glorot", id="unknown default"),
        pytest.param({"fans": (2,)}, "fans", id="one fan"),
    ],
)
def test_wrong_variable_is_refused(register, variable, message):
    """A variable that could not reach each element of a tensor there is a ValueError, before anything changes."""
    register(Own, lambda m: [Variable(**{"role": "kernel", "tensor": "weight", **variable})])
    module = Own()
    with pytest.raises(ValueError, match=message):
        kinit.apply(module)
    assert not module.weight.any()


def test_layout_of_something_else_is_refused(register):
    """A layout that gives names where Variables belong is a TypeError that says so."""
    register(Own, lambda m: ["weight"])
    with pytest.raises(TypeError, match="Variable"):
        kinit.plan(Own())
