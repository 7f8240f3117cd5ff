"""Parameters that nothing covers are grouped, and what is proposed for them covers them and harms no network."""

import re

import pytest
import torch
from torch import nn

import torch_kinit as kinit


class OwnNorm(nn.Module):
    """A norm of somebody's own, without a layout; it scales from one."""

    def __init__(self, width=4):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))


class GemmaLikeRMSNorm(nn.Module):
    """A norm that adds one to its weight, which so starts from zero."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.extra = nn.Parameter(torch.zeros(4))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = OwnNorm()
        self.lin = nn.Linear(4, 4)
        self.inner = GemmaLikeRMSNorm()


class Decoder(nn.Module):
    def __init__(self, layers=24):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.layers = nn.ModuleList(Block() for _ in range(layers))


def refused(model, rules=None):
    with pytest.raises(kinit.UncoveredParameterError) as caught:
        kinit.plan(model, rules)
    return str(caught.value)


def proposed(message):
    """The rule dict in the advice."""
    return eval(re.search(r"such as (\{.*\}); kinit", message)[1], {"re": re, "kinit": kinit, "...": ...})


def test_tensors_are_grouped_by_pattern():
    """Alike tensors of 24 blocks are a line, with a pattern that a rule takes."""
    lines = refused(Decoder()).splitlines()
    assert lines[1:-1] == [
        "  cls_token (1, 1, 4) of Decoder",
        "  *.input_layernorm.weight: 24 tensors of OwnNorm",
        "  *.input_layernorm.bias: 24 tensors of OwnNorm",
        "  *.inner.weight: 24 tensors of GemmaLikeRMSNorm",
        "  *.inner.extra: 24 tensors of GemmaLikeRMSNorm",
    ]


def test_the_proposed_rules_cover_and_keep_a_network_sound():
    """What the advice shows is taken, group after group, and leaves each norm with the factor that its author meant."""
    model, rules = Decoder(3), {}
    for _ in range(2):
        rules |= proposed(refused(model, rules).replace(", ...}", "}"))
    plan = kinit.apply(model, rules)
    assert plan["cls_token"].initializer is None
    assert [str(plan[f"layers.{i}.input_layernorm.weight"].initializer) for i in range(3)] == ["ones"] * 3
    assert str(plan["layers.1.input_layernorm.bias"].initializer) == "zeros"
    assert str(plan["layers.1.inner.weight"].initializer) == "zeros"
    assert plan["layers.1.inner.extra"].initializer is None


def test_a_norm_on_meta_that_may_add_one_is_left_to_its_author():
    """Without values to look at, a norm known to add one gets neither ones nor zeros."""
    with torch.device("meta"):
        message = refused(nn.Sequential(GemmaLikeRMSNorm(), OwnNorm()))
    assert "{'0.weight': kinit.skip, '0.extra': kinit.skip, '1.weight': 'ones', ...}" in message


class Shadowed(nn.Module):
    """Names that one glob cannot tell from the names of others."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(OwnNorm() for _ in range(3))
        self.blocks.append(nn.Sequential(nn.Linear(2, 2)))


def test_a_pattern_matches_nothing_else():
    """Where a glob would hit other parameters too, a regex is shown, and it hits those of the group alone."""
    model = Shadowed()
    message = refused(model)
    assert r"  blocks\.\d+\.weight: 3 tensors of OwnNorm" in message
    plan = kinit.plan(model, proposed(message))
    assert sorted(step.name for step in plan if step.rule.startswith("re ")) == [
        f"blocks.{i}.{name}" for i in range(3) for name in ("bias", "weight")
    ]


MANY = {
    "norms of one list": lambda: nn.Sequential(*(OwnNorm() for _ in range(300))),
    "other names": lambda: nn.ModuleDict({f"{chr(97 + i % 26) * (1 + i // 26)}_norm": OwnNorm() for i in range(300)}),
    "long names": lambda: nn.ModuleDict({f"{chr(97 + i) * 2000}": OwnNorm() for i in range(20)}),
    "classes": lambda: nn.Sequential(*(type(f"Norm{'x' * i}", (OwnNorm,), {})() for i in range(300))),
    "axes": lambda: nn.ParameterDict({f"p{'x' * i}": torch.zeros([1] * 60) for i in range(30)}),
}


@pytest.mark.parametrize("make", MANY.values(), ids=MANY)
def test_the_message_is_bounded(make):
    """Whatever is uncovered, the message has room on a screen, and says how much it leaves out."""
    message = refused(make())
    assert len(message) < 1500
    assert "on_uncovered='keep'" in message
    assert re.search(r"300 tensors|and \d+ more", message)


class Projection(nn.Module):
    """A layer without a layout, as transformers' Conv1D, with two parameters."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))


def test_a_wildcard_over_modules_without_a_layout():
    """A rule that matches modules of no layout says so, and what would match."""
    model = nn.ModuleList(nn.ModuleDict({"c_attn": Projection(), "drop": nn.Dropout()}) for _ in range(12))
    with pytest.raises(kinit.UnusedRuleError) as caught:
        kinit.plan(model, {"*.c_attn": "he_normal", re.compile(r"\d+\.c_attn"): "he_normal", "*.drop": "ones"})
    _, glob, regex, empty = str(caught.value).splitlines()
    assert "It matches 12 modules, such as Projection, without a layout; name their parameters, such as " in glob
    assert "'*.c_attn.weight'" in glob
    assert "It matches 12 modules, such as Projection, without a layout; name their parameters or use" in regex
    assert "'*.drop' matches nothing. It matches 12 modules, such as Dropout, without parameters of their own" in empty


def test_one_rule_on_a_tied_head_says_which_default_it_meets():
    """The message names the default that the other owner has, and the rule that would settle it."""
    model = nn.ModuleDict({"words": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["words"].weight
    with pytest.raises(kinit.TiedParameterError) as caught:
        kinit.plan(model, {"head": "he_normal"})
    assert "words.weight gets random_uniform (Keras default) and head.weight gets he_normal ('head')" in str(
        caught.value
    )
    assert "No rule speaks of words.weight, of Embedding: add one, {'words.weight': ...}" in str(caught.value)
    assert str(kinit.plan(model, {"head": "he_normal", "words.weight": "he_normal"})["words.weight"].rule)
