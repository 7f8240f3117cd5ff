"""A parameter with several owners is drawn once, and one behind a parametrization is set through it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import torch_kinit as kinit
from tests.support.models import Symmetric, seeded, symmetric, tied

# --- tied parameters -------------------------------------------------------------------------------------------------


def test_tied_parameter_is_drawn_once():
    """A tied parameter has one step, that of its first owner, and stays tied."""
    model = tied()
    seen = []

    def fill_(tensor):
        seen.append(tensor.zero_())

    kinit.apply(model, {"words": fill_})
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


# --- parametrizations ------------------------------------------------------------------------------------------------


class Settable(Symmetric):
    def right_inverse(self, x):
        return x.triu()


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
    weight = module.weight.detach()
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


class _OneWay(nn.Module):
    def forward(self, x):
        return x.exp()


def test_apply_refuses_a_parametrization_that_came_after_the_plan():
    """A parametrization without right_inverse, registered since the plan was made, is an error; nothing is changed."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plan = kinit.plan(model)
    nn.utils.parametrize.register_parametrization(model[1], "weight", _OneWay(), unsafe=True)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="_OneWay has no right_inverse"):
        plan.apply()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_a_shared_module_is_named_by_either_path():
    """A rule for one of the paths of a module used twice is a rule for the module."""
    layer = nn.Linear(2, 2)
    plan = kinit.plan(nn.Sequential(layer, nn.ReLU(), layer), {"2": {"kernel": "he_normal", "bias": kinit.skip}})
    assert [(s.name, str(s.initializer)) for s in plan] == [("0.weight", "he_normal"), ("0.bias", "None")]


def test_inference_tensors_are_refused_outside():
    """A tensor made in inference mode, which torch lets nobody fill outside, is an error before anything changes."""
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.inference_mode():
        model.append(nn.Linear(2, 2))
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"1\.weight .*inference_mode"):
        kinit.apply(model)
    assert torch.equal(model[0].weight, before)
