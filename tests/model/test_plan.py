"""A plan says what each parameter gets, and why, and changes nothing."""

import math
import random

import keras
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.fingerprint import fingerprint
from tests.support.models import Positions, network, tied

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
    weights = [step.name for step in kinit.plan(model) if "weight" in step.name]
    plan = kinit.plan(model, dict.fromkeys(weights, kinit.he_normal_))
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
    plan = kinit.plan(on_meta, {"bias": "random_normal"})
    assert plan == kinit.plan(model, {"bias": "random_normal"})
    plan.apply(model, generator=torch.Generator().manual_seed(1))
    twin = make()
    kinit.apply(twin, {"bias": "random_normal"}, generator=torch.Generator().manual_seed(1))
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


class Wrapping(nn.Module):
    """A model inside another, under the name that a wrapper gives it."""

    def __init__(self, name, inner):
        super().__init__()
        self.add_module(name, inner)


WRAPPED = {
    "torch.compile": (lambda inner: torch.compile(inner), "_orig_mod"),
    "DataParallel": (nn.DataParallel, "module"),
    "checkpointing": (lambda inner: Wrapping("_checkpoint_wrapped_module", inner), "_checkpoint_wrapped_module"),
    "FSDP1": (lambda inner: Wrapping("_fsdp_wrapped_module", inner), "_fsdp_wrapped_module"),
    "two": (lambda inner: torch.compile(nn.DataParallel(inner)), "_orig_mod.module"),
}


@pytest.mark.parametrize(("wrap", "prefix"), WRAPPED.values(), ids=WRAPPED)
def test_names_of_wrappers_do_not_matter(wrap, prefix):
    """A plan of a wrapped model, or of the bare one, takes names with and without the wrapper's; from JSON too."""
    bare, wrapped = kinit.plan(network()), kinit.plan(wrap(network()))
    assert wrapped.steps[0].name.startswith(prefix)
    for plan in (bare, wrapped, *(kinit.Plan.from_dict(made.to_dict()) for made in (bare, wrapped))):
        for name in ("head.weight", f"{prefix}.head.weight"):
            assert plan[name].shape == (2, 12)
            assert name in plan
        assert "head" not in plan
        assert f"{prefix}.head" not in plan


def test_a_name_that_means_several_is_refused():
    """A name without wrappers' that several tensors have is a KeyError that names them; their own names are taken."""
    inner = {name: nn.Linear(2, 3) for name in ("_orig_mod", "_fsdp_wrapped_module", "module")}
    plan = kinit.plan(nn.ModuleDict(inner))
    for name, several in (("weight", "'_orig_mod"), ("module.module.weight", ".*, 'module")):
        with pytest.raises(KeyError, match=rf"'{name}' is ambiguous: without .* it may be {several}.weight'"):
            plan[name]
        assert name not in plan
    assert [plan[f"{name}.weight"].name for name in inner] == [f"{name}.weight" for name in inner]


def test_a_parameter_whose_name_differs_by_a_wrapper_is_another():
    """That plan[...] overlooks wrappers does not let a plan pass over a parameter of a model."""
    plan = kinit.plan(nn.ModuleDict({"a": nn.Linear(2, 2)}))
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "module": nn.ModuleDict({"a": nn.Linear(2, 2)})})
    with pytest.raises(ValueError, match=r"parameters that the plan does not know: module\.a\.weight, module\.a\.bias"):
        plan.apply(model)
    assert list(plan.names) == ["a.weight", "a.bias"]


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


def test_uncovered_is_an_error():
    """Parameters that nothing covers are an UncoveredParameterError that lists them all and tells what to do."""
    with pytest.raises(kinit.UncoveredParameterError) as caught:
        kinit.plan(Positions())
    message = str(caught.value)
    assert "positions (5, 4) of Positions" in message
    assert "token (4,) of Positions" in message
    assert "head.weight" not in message
    assert "{'positions': kinit.skip, 'token': kinit.skip}" in message
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
    assert step.law == kinit.Uniform(-limit, limit)
    assert step.std == pytest.approx(limit / math.sqrt(3))
    packed = plan["attend.in_proj_weight"]
    assert (packed.blocks, packed.fans, packed.shape) == (3, (12, 12), (36, 12))
    assert packed.std == pytest.approx(1 / math.sqrt(12))  # Glorot and Bengio 2010
    recurrent = plan["read.weight_hh_l0"]
    assert (recurrent.fans, str(recurrent.initializer), recurrent.rule) == (None, "orthogonal", "Keras default")
    statistic = plan["norm.running_var"]
    assert (statistic.role, statistic.kind, statistic.law) == ("moving_variance", "buffer", kinit.Constant(1.0))
    counter = plan["norm.num_batches_tracked"]
    assert (counter.dtype, counter.shape) == ("int64", ())
    forget = plan["read.bias_ih_l0"]  # one block of four holds ones
    assert (forget.law.mean, forget.std) == pytest.approx((0.25, math.sqrt(0.25 * 0.75)))
    assert forget.law.bounds == (0.0, 1.0)


def test_the_defaults_are_read_only():
    """Nobody changes what all models get by assigning to KERAS_DEFAULTS; a copy is a plain dict."""
    before = dict(kinit.KERAS_DEFAULTS)
    with pytest.raises(TypeError, match="does not support item assignment"):
        kinit.KERAS_DEFAULTS["kernel"] = "he_normal"
    with pytest.raises(TypeError, match="does not support item deletion"):
        del kinit.KERAS_DEFAULTS["bias"]
    assert dict(kinit.KERAS_DEFAULTS) == before
