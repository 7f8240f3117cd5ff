"""Every torch layer has a layout, proved by a forward pass against Keras itself."""

import importlib
import pkgutil
import warnings
from dataclasses import replace

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.keras_twins import SQUARE, TORCH_ONLY, TWINS, WRONG, carried, carry, check_same_output, tensor_of
from torch_kinit import Variable
from torch_kinit.layers.table import layout_of
from torch_kinit.layers.variable import Options

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")

each_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)


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
