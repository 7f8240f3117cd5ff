"""Names are those of the bare model: in rules, in only= and as prefix, whatever the model is wrapped in."""

import re

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.models import Positions, Twice, network, symmetric, tied
from tests.support.states import check_same_state, network_state, state


class FullyShardedLike(nn.Module):
    """A wrapper that calls its module what FSDP1 does."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


def inside(model):
    """Wrap children, not the model."""
    model["attend"] = checkpoint_wrapper(model["attend"])
    model["read"] = FullyShardedLike(model["read"])
    model["head"] = nn.DataParallel(checkpoint_wrapper(torch.compile(model["head"])))
    return model


WRAPPERS = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "FSDP1's name": FullyShardedLike,
    "inside": inside,
    "all": lambda model: nn.DataParallel(torch.compile(checkpoint_wrapper(FullyShardedLike(model)))),
}
WRAPPED = re.compile(r"(^|\.)(module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.)")
each_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def short(name):
    """A name without those of the wrappers above."""
    return WRAPPED.sub("", name).lstrip(".")


@each_wrapper
def test_wrappers_do_not_count(wrap):
    """A compiled, checkpointed or wrapped model, or one with such parts, gets the values of the bare one."""
    model = wrap(network())
    kinit.apply(model, seed=5)
    check_same_state({short(name): tensor for name, tensor in state(model).items()}, network_state())


def test_a_child_of_the_name_of_a_wrapper_counts():
    """A layer that somebody calls "module" is none of a wrapper's, and its name counts."""
    model = nn.ModuleDict({"module": nn.Linear(4, 4)})
    kinit.apply(model, seed=1)
    lone = nn.Linear(4, 4)
    kinit.apply(lone, seed=1)
    assert not torch.equal(lone.weight, model["module"].weight)


def test_a_prefix_may_have_the_names_of_wrappers():
    """The path of a part in a compiled model is the same prefix as in the bare one."""
    want = {name.removeprefix("head."): t for name, t in network_state().items() if name.startswith("head.")}
    for prefix in ("head", "_orig_mod.head", "_orig_mod.head._checkpoint_wrapped_module"):
        model = network()["head"]
        kinit.apply(model, seed=5, prefix=prefix)
        check_same_state(state(model), want)


# --- rules -----------------------------------------------------------------------------------------------------------


class Rooted(Positions):
    """Parameters of the model itself beside those of its children, which a wrapper's name must not mix up."""

    def __init__(self):
        super().__init__()
        self.update = nn.ModuleDict(dict(network()))
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("mask", torch.ones(3))

    def __getitem__(self, name):
        return self.update[name]

    def __setitem__(self, name, module):
        self.update[name] = module


RULES = {
    "names": {"update.head.bias": 1.0, "weight": 2.0},
    "paths": {"update.head": "he_normal", "update.attend": {"bias": "ones"}},
    "path of the model": {"": {"kernel": "ones"}, "update.read": "he_normal"},
    "globs": {"*.weight": 0.5, "*.bias*": {"bias": 0.25}, "weight": "ones"},
    "one part": {re.compile(r"[^.]+\.weight"): 0.5},
    "regexes": {re.compile(r"update\.(head|stem)"): "he_normal", re.compile("[a-z]+"): "ones"},
    "statistics": {"update.norm.running_mean": 3.0, "update.*": {"moving_variance": 2.0}},
    "skip": {"update.read": kinit.skip, "*head*": kinit.skip},
    "buffer": {"mask": 0.0},
}


def rows(model, rules):
    """What a plan decides, by names without wrappers."""
    try:
        plan = kinit.plan(model, {"positions": 1.0, "token": 1.0, "weight": 1.0, **rules})
    except kinit.UnusedRuleError as error:
        return str(error)
    return {short(s.name): (str(s.initializer), s.role, s.layer, s.rule, s.fans) for s in plan}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@each_wrapper
def test_rules_of_the_bare_model(wrap, rules):
    """A wrapped model takes the rules of the bare one, which then mean the same."""
    want = rows(Rooted(), rules)
    assert rows(wrap(Rooted()), rules) == want


UNUSED = ["update.haed.weight", "haed", "update", "Linear", "decoder*", re.compile("update.head.weigh"), nn.Conv3d]


@pytest.mark.parametrize("key", UNUSED, ids=str)
@each_wrapper
def test_hints_for_the_bare_model(wrap, key):
    """A rule that matches nothing has the same hint, whatever the model is wrapped in."""
    want = rows(Rooted(), {key: "zeros"})
    assert isinstance(want, str)
    assert rows(wrap(Rooted()), {key: "zeros"}) == want


FULL = {
    "name": ({"module._orig_mod.head.bias": 2.0}, ["head.bias"]),
    "path": ({"module._orig_mod.head": 2.0}, ["head.weight"]),
    "glob": ({"module.*head*": 2.0}, ["head.weight", "head.bias"]),
    "regex": ({re.compile(r"module\._orig_mod\.\w+\.weight"): 2.0}, ["words", "stem", "norm", "head"]),
    "statistics": ({"module._orig_mod.norm.running_var": 2.0}, ["norm.running_var"]),
}


@pytest.mark.parametrize(("rules", "names"), FULL.values(), ids=FULL)
def test_rules_with_the_full_names(rules, names):
    """A rule may also be written with the names that wrappers have put in, which stay in the plan."""
    plan = kinit.plan(nn.DataParallel(torch.compile(network())), rules)
    set_to_two = [step.name for step in plan if str(step.initializer) == "constant(2)"]
    assert set_to_two == [f"module._orig_mod.{n}" if "." in n else f"module._orig_mod.{n}.weight" for n in names]


def test_a_misspelt_full_name_has_a_hint():
    """What is near to a wrong name is told by the bare model's names."""
    with pytest.raises(kinit.UnusedRuleError, match=r"'module\.haed\.weight' matches nothing\. Did you mean 'head\.we"):
        kinit.plan(nn.DataParallel(network()), {"module.haed.weight": "zeros"})


def test_a_bare_name_wins_over_a_full_one():
    """A child called "module" in DataParallel is what "module" means, as in the bare model."""
    model = nn.DataParallel(nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)}))
    plan = kinit.plan(model, {"module.*": "ones"})
    assert [s.name for s in plan if str(s.initializer) == "ones"] == ["module.module.weight", "module.module.bias"]


# --- only= -----------------------------------------------------------------------------------------------------------


def check_only(model, chosen, **arguments):
    """Raise AssertionError unless apply(only=...) sets those tensors, to what it sets them to in the whole."""
    before = state(model)
    kinit.apply(model, seed=5, **arguments)
    after, want = state(model), network_state()
    check_same_state(
        {short(n): t for n, t in after.items() if short(n) in chosen}, {name: want[name] for name in chosen}
    )
    check_same_state(
        {name: t for name, t in after.items() if short(name) not in chosen},
        {name: t for name, t in before.items() if short(name) not in chosen},
    )


@pytest.mark.parametrize("wrap", [lambda m: m, *WRAPPERS.values()], ids=["bare", *WRAPPERS])
@pytest.mark.parametrize("names", ["full", "short"])
def test_only_what_is_missing(wrap, names):
    """After loading a checkpoint that lacks layers, they are initialized, statistics too, and nothing else changes."""
    model = wrap(network())
    saved = model.state_dict()
    for name in [name for name in saved if short(name).startswith(("head", "norm"))]:
        del saved[name]
    missing = model.load_state_dict(saved, strict=False).missing_keys
    chosen = {short(name) for name in missing}
    assert {"head.weight", "head.bias", "norm.weight", "norm.running_var", "norm.num_batches_tracked"} <= chosen
    check_only(model, chosen, only=missing if names == "full" else chosen)


@pytest.mark.parametrize("only", [lambda name: re.match("read|stem", name), lambda name: False, [], {"head.bias": 1}])
@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile], ids=["bare", "compiled"])
def test_only_by_predicate_or_any_collection(only, wrap):
    """A function of the name chooses, and so does any collection of names, also an empty one."""
    names = list(network().state_dict())
    check_only(wrap(network()), [n for n in names if (only(n) if callable(only) else n in only)], only=only)


def test_only_by_what_names_are_not():
    """A function that excludes names sees none of a wrapper's; one that knows only full names sees those."""
    head = {"head.weight", "head.bias"}
    others = set(network().state_dict()) - head
    check_only(nn.DataParallel(network()), others, only=lambda name: not name.startswith("head"))
    check_only(nn.DataParallel(network()), head, only=lambda name: name.startswith("module.head"))


@pytest.mark.parametrize(
    "make", [parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm]
)
def test_only_of_a_parametrized_weight(make):
    """What a state dict has of a parametrized weight stands for it, and torch's own buffers beside it are no error."""
    model = nn.Sequential(make(nn.Linear(4, 4)), nn.Linear(4, 4))
    saved = {name: t for name, t in state(model).items() if name.startswith("1.")}
    missing = model.load_state_dict(saved, strict=False).missing_keys
    assert any(name.startswith("0.parametrizations.weight.original") for name in missing)
    plan = kinit.apply(model, seed=1, only=missing)
    vectors = ["_u", "_v"] if make is parametrizations.spectral_norm else []
    named = ["0.weight", "0.bias", *(f"0.parametrizations.weight.0.{name}" for name in vectors)]
    assert [step.name for step in plan if step.initializer] == named
    plain = nn.Sequential(nn.Linear(4, 4))
    kinit.apply(symmetric(Twice()), seed=1, only=["parametrizations.weight.original"])
    kinit.apply(plain, seed=1)
    if make is parametrizations.weight_norm:
        torch.testing.assert_close(model[0].weight, plain[0].weight)


class Cached(nn.Linear):
    """A layer with a buffer and a state of its own."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("cache", torch.arange(3.0))

    def get_extra_state(self):
        return 1

    def set_extra_state(self, found):
        pass


def test_only_passes_over_what_nobody_initializes():
    """Buffers and states that neither Keras nor a rule speaks of stay as their module made them; a rule chooses."""
    model = nn.DataParallel(Cached())
    missing = model.load_state_dict({}, strict=False).missing_keys
    assert set(missing) == {"module.weight", "module.bias", "module.cache", "module._extra_state"}
    plan = kinit.apply(model, seed=1, only=missing)
    assert [step.name for step in plan] == ["module.weight", "module.bias"]
    assert torch.equal(model.module.cache.cpu(), torch.arange(3.0))
    kinit.apply(model, {"cache": 7.0}, seed=1, only=missing)
    assert model.module.cache.tolist() == [7.0] * 3


@pytest.mark.parametrize("only", [["head.weight"], lambda name: name != "words.weight"], ids=["list", "predicate"])
def test_only_spares_what_was_loaded_under_another_name(only):
    """A tied tensor of which a checkpoint has one name is left alone, and the plan says why; it is set by both."""
    model = tied()
    before = state(model)
    plan = kinit.apply(model, seed=1, only=only)
    assert plan["head.weight"].rule == "left alone (only= lacks words.weight)"
    assert torch.equal(model["words"].weight, before["words.weight"])
    assert kinit.plan(model, only=["head.weight", "words.weight"])["head.weight"].initializer


def test_only_needs_no_rule_for_the_others():
    """A raw parameter that is left alone needs no rule; one that is chosen does."""
    model = Positions()
    before = state(model)
    plan = kinit.apply(model, seed=1, only=["head.weight"])
    assert plan["positions"].rule == "left alone (only=)"
    assert torch.equal(model.positions, before["positions"])
    assert not torch.equal(model.head.weight, before["head.weight"])
    with pytest.raises(kinit.UncoveredParameterError, match="positions"):
        kinit.apply(model, seed=1, only=["positions"])
