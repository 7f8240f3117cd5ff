"""From the meta device to a real one: what is allocated, what stays, and what apply asks for afterwards."""

import copy
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import torch_kinit as kinit
from tests.support.models import network, on_meta
from tests.support.states import check_same_state, state, tensors


class Rotary(nn.Module):
    """Buffers of several kinds that only `__init__` computes, one of them held by a plain attribute as well."""

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", 10.0 ** -torch.arange(4.0), persistent=False)
        self.register_buffer("ids", torch.arange(6)[None])
        self.register_buffer("bias", torch.ones(3, 3, dtype=torch.bool).tril())
        self.register_buffer("turns", torch.polar(torch.ones(2), torch.arange(2.0)))
        self.original = self.inv_freq


VALUES = {
    "*.inv_freq": lambda buffer: buffer.copy_(10.0 ** -torch.arange(4.0)),
    "*.ids": torch.arange(6)[None],
    "rotary.bias": torch.ones(3, 3, dtype=torch.bool).tril(),
    "*.turns": torch.polar(torch.ones(2), torch.arange(2.0)),
}


def whole():
    """Layers of every kind, two that share a weight, another memory format, and buffers of no layout."""
    model = network()
    model["stem"].to(memory_format=torch.channels_last)
    model["out"] = nn.Linear(8, 10)
    model["rotary"] = Rotary()
    model["words"].weight.requires_grad_(False)
    return model


def tie(model):
    model["out"].weight = model["words"].weight
    return model


def test_a_materialized_model_is_initialized_as_a_real_one():
    """Parameters, running statistics and the buffers that rules name; nothing is left of the way there."""
    expected = tie(whole())
    kinit.apply(expected, VALUES, seed=3)
    model = kinit.materialize(tie(on_meta(whole)), "cpu")
    kinit.apply(model, VALUES, seed=3)
    check_same_state(state(model), state(expected))
    assert not [m for m in model.modules() if any(name.startswith("_kinit") for name in vars(m))]
    built = Rotary()
    check_same_state(state(model["rotary"]), state(built))


def test_parameters_stay_the_objects_they_are():
    """With ties, attributes, requires_grad and strides; an optimizer and a recurrent layer hold the same as before."""
    model, real = tie(on_meta(whole)), tie(whole())
    model["head"].bias.tag = "kept"
    before = {name: id(tensor) for name, tensor in tensors(model).items()}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    assert kinit.materialize(model, torch.device("cpu")) is model
    assert {name: id(tensor) for name, tensor in tensors(model).items()} == before
    assert model["head"].bias.tag == "kept"
    assert model["rotary"].original is model["rotary"].inv_freq
    for name, tensor in tensors(model).items():
        wanted = tensors(real)[name]
        assert (tensor.dtype, tensor.stride(), tensor.requires_grad) == (
            wanted.dtype, wanted.stride(), wanted.requires_grad
        ), name  # fmt: skip
        assert isinstance(tensor, nn.Parameter) == isinstance(wanted, nn.Parameter)
    assert model.state_dict().keys() == real.state_dict().keys()
    kinit.apply(model, VALUES, seed=3)
    model["read"](torch.randn(2, 8))[0].sum().backward()
    values = model["read"].weight_hh_l0.detach().clone()
    optimizer.step()
    assert not torch.equal(model["read"].weight_hh_l0, values)


def test_a_subclass_of_parameter_keeps_its_class():
    """The class of a parameter is part of what it is."""

    class Special(nn.Parameter):
        pass

    model = on_meta(lambda: nn.Linear(3, 2))
    model.weight = Special(model.weight.detach())
    assert type(kinit.materialize(model, "cpu").weight) is Special


def test_what_is_watched_is_replaced_by_one_object():
    """torch cannot exchange the insides of what a weak reference points to; ties hold all the same."""
    model = tie(on_meta(whole))
    watched = weakref.ref(model["out"].weight)
    kinit.materialize(model, "cpu")
    assert model["out"].weight is model["words"].weight is not watched()
    assert model["out"].weight.device.type == "cpu"
    assert not model["out"].weight.requires_grad


def test_what_is_new_holds_no_numbers():
    """NaN in floating and complex tensors, zero in others."""
    for name, tensor in tensors(kinit.materialize(on_meta(whole), "cpu")).items():
        exact = tensor.dtype in (torch.int64, torch.bool)
        assert bool(((tensor == 0) if exact else tensor.isnan()).all()), name


def test_what_is_real_stays():
    """Tensors with storage keep their values, and apply asks nothing about those buffers."""
    model = tie(whole())
    before = {name: (id(tensor), tensor.detach().clone()) for name, tensor in tensors(model).items()}
    model["new"] = on_meta(lambda: nn.Linear(2, 2))
    kinit.materialize(model, "cpu")
    for name, (identity, value) in before.items():
        assert id(tensors(model)[name]) == identity
        assert torch.equal(tensors(model)[name], value), name
    kinit.apply(model, seed=1)
    check_same_state(state(model["rotary"]), state(Rotary()))


@pytest.mark.parametrize("map_", ["matrix_exp", "cayley", "householder"])
def test_parametrized_weights(map_):
    """A parametrization's own buffers that setting its value sets need no rule."""
    models = [parametrizations.orthogonal(nn.Linear(5, 5), orthogonal_map=map_) for _ in range(2)]
    kinit.apply(models[0], seed=2)
    kinit.apply(kinit.materialize(models[1].to("meta"), "cpu"), seed=2)
    check_same_state(*map(state, models))


class Scaled(nn.Module):
    """A parametrization with a buffer that setting the weight does not set."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.full((4, 1), 2.0))

    def forward(self, x):
        return self.factor * x

    def right_inverse(self, x):
        return x / 2


def test_parametrizations_that_nobody_completes():
    """A user's own buffers that setting the weight does not set are an error, after which the weight is what it was."""
    model = nn.Linear(5, 4)
    parametrize.register_parametrization(model, "weight", Scaled())
    model = kinit.materialize(model.to("meta"), "cpu")
    with pytest.raises(ValueError, match=r"parametrizations\.weight\.0\.factor \(4, 1\) of Scaled"):
        kinit.apply(model, seed=2)
    assert bool(model.parametrizations.weight.original.isnan().all())
    kinit.apply(model, {"*.factor": 2.0}, seed=2)
    assert bool(model(torch.ones(1, 5)).isfinite().all())


# --- buffers that nobody set -----------------------------------------------------------------------------------------

MOVED = {
    "as it is": lambda model: model,
    "copied": copy.deepcopy,
    "in float64": lambda model: model.double(),
    "in bfloat16": lambda model: model.bfloat16(),
}


@pytest.mark.parametrize("move", MOVED.values(), ids=MOVED)
@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_buffers_that_nobody_set(move):
    """All are listed, and nothing has changed, also when a rule for a weight's name fits a mask's, "bias"."""
    model = move(kinit.materialize(on_meta(whole), "cpu"))
    with pytest.raises(ValueError, match=r"(?s)rotary.inv_freq \(4,\) of Rotary\n.*ids.*rotary.bias \(3, 3\).*turns"):
        kinit.apply(model, {"*bias": "ones"}, seed=1)
    assert all(bool(parameter.isnan().all()) for parameter in model.parameters())
    rules = {"rotary": kinit.skip, "*bias": "ones"}
    assert kinit.apply(model, rules, seed=1)["rotary.bias"].initializer is None
    assert bool(model["rotary"].inv_freq.isnan().all())


def test_buffers_that_somebody_has_set():
    """By hand, by another tensor in their place, by a checkpoint: none needs a rule then."""
    model = kinit.materialize(on_meta(whole), "cpu")
    rotary, built = model["rotary"], Rotary()
    rotary.inv_freq.copy_(built.inv_freq)
    rotary.ids = built.ids
    rotary.register_buffer("turns", built.turns)
    rotary.load_state_dict({"bias": built.bias}, strict=False)
    kinit.apply(model, seed=1)
    check_same_state(state(rotary), state(built))


@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_that_lacks_a_layer(assign):
    """After loading what there is, only= gives values to what was missing, and asks about nothing else."""
    expected, model = whole(), on_meta(whole)
    kinit.apply(expected, seed=3)
    saved = {name: tensor for name, tensor in expected.state_dict().items() if not name.startswith(("head", "norm"))}
    if assign:
        missing = model.load_state_dict(saved, strict=False, assign=True).missing_keys
        kinit.materialize(model, "cpu")
    else:
        missing = kinit.materialize(model, "cpu").load_state_dict(saved, strict=False).missing_keys
    kinit.apply(model, seed=3, only=missing)
    model["rotary"].inv_freq.copy_(expected["rotary"].inv_freq)
    check_same_state(state(model), state(expected))


def test_only_asks_about_what_is_chosen():
    """A buffer that is chosen and that nobody set is an error."""
    model = kinit.materialize(on_meta(whole), "cpu")
    with pytest.raises(ValueError, match=r"nor a rule has set .*\n  rotary.ids \(1, 6\) of Rotary\nSet"):
        kinit.apply(model, seed=1, only=["head.weight", "rotary.ids"])


# --- errors ----------------------------------------------------------------------------------------------------------

RULES = {
    "fraction": ({"rotary.ids": 0.5}, r"int64 cannot hold constant\(0.5\) exactly"),
    "shape": ({"rotary.ids": torch.arange(6)}, r"the array has shape \(6,\), the buffer's is \(1, 6\)"),
    "random": ({"rotary.bias": "he_normal"}, "bool takes a number, an array or your function, not he_normal"),
    "complex": ({"rotary.ids": torch.ones(1, 6) * 1j}, "int64 cannot hold .* exactly"),
}


@pytest.mark.parametrize(("rules", "message"), RULES.values(), ids=RULES)
def test_values_that_a_buffer_cannot_hold(rules, message):
    """What does not fit is refused when the plan is made."""
    with pytest.raises(ValueError, match=message):
        kinit.plan(whole(), rules)


def test_apply_refuses_meta_tensors():
    """A plan can be made on the meta device and not carried out there; what a rule skips may stay."""
    model = on_meta(lambda: nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.BatchNorm1d(2)}))
    plan = kinit.plan(model)
    for call in (plan.apply, lambda: kinit.apply(model, seed=1), lambda: kinit.apply(model, only=["b.running_var"])):
        with pytest.raises(
            ValueError, match=r"(?s)On the meta .*  b.running_var \(2,\) of BatchNorm1d\n.*kinit.materialize\(model"
        ):
            call()
    kinit.materialize(model["a"], "cpu")
    kinit.apply(model, {"b": kinit.skip}, seed=1)
    assert bool(model["a"].weight.isfinite().all())


REFUSED = {
    "no module": (torch.ones(2), "cpu", TypeError, "`model` must be a torch.nn.Module"),
    "meta": (nn.Linear(2, 2), "meta", ValueError, "`device` must have memory, such as 'cpu' or 'cuda', got 'meta'"),
    "no device": (nn.Linear(2, 2), None, TypeError, "`device` must be a device such as 'cpu' or 'cuda', got None"),
    "unknown device": (nn.Linear(2, 2), "cpuu", ValueError, "`device` must be a device .*, got 'cpuu'"),
    "lazy": (on_meta(lambda: nn.LazyLinear(2)), "cpu", ValueError, "weight, bias are lazy and without a shape"),
}


@pytest.mark.parametrize(("model", "device", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(model, device, error, message):
    """What is no model, or no place, is an error."""
    with pytest.raises(error, match=message):
        kinit.materialize(model, device)


class Sharding(nn.Linear):
    """A user's module with methods that FSDP2's modules have too."""

    def reshard(self):
        raise AssertionError("not for initializing")

    unshard = set_modules_to_forward_prefetch = reshard


@pytest.mark.parametrize("fsdp", [False, True], ids=["without FSDP2", "with FSDP2 imported"])
def test_methods_of_the_users_are_not_called(fsdp, monkeypatch):
    """A module is taken for FSDP2's by what it is, not by the names of its methods."""
    if fsdp:
        pytest.importorskip("torch.distributed.fsdp")
    else:
        monkeypatch.delitem(sys.modules, "torch.distributed.fsdp", raising=False)
    model = kinit.materialize(on_meta(lambda: nn.Sequential(Sharding(3, 4), nn.Linear(4, 2))), "cpu")
    plan = kinit.apply(model, seed=1)
    plan.apply(seed=1)
    kinit.apply(model)
    assert bool(model[0].weight.isfinite().all())
