"""Layers of other packages are known by name, with the laws of Keras or of their authors, and without an import."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from torch_kinit import Variable

NORM = re.compile(r"^class (\w*Norm\w*)\((?:torch\.)?nn\.Module\):\n((?:(?:    .*)?\n)+)", re.MULTILINE)
WEIGHT = re.compile(r"self\.weight = (?:torch\.)?nn\.Parameter\(torch\.(ones|zeros)\(")
ONE_PLUS = re.compile(r"1(\.0)? \+ self\.weight")


def class_of(package, name, base=nn.Module, **tensors):
    """A class of another package, as far as this one sees it: its name, and the tensors of a module."""

    def made(self):
        nn.Module.__init__(self)
        for tensor, shape in tensors.items():
            self.register_parameter(tensor, nn.Parameter(torch.empty(shape)))

    return type(name, (base,), {"__module__": f"{package}.somewhere", "__init__": made})


def planned(module, rules=None):
    return {step.name: (step.role, str(step.initializer), step.rule) for step in kinit.plan(module, rules)}


def norms_of_transformers():
    """The norms in its source that hold a weight: file, name, and whether they multiply by 1 + weight."""
    folder = Path(pytest.importorskip("transformers").__file__).parent / "models"
    for file in sorted(folder.glob("*/modeling_*.py")):
        for name, body in NORM.findall(file.read_text("utf-8")):
            if made := WEIGHT.search(body):
                assert (made[1] == "zeros") == bool(ONE_PLUS.search(body)), name
                yield file.stem, name, made[1]


def test_every_norm_of_transformers_starts_neutral():
    """Each norm gets what its own constructor gives: ones, or zeros where it multiplies by 1 + weight."""
    found = list(norms_of_transformers())
    assert len(found) > 200
    assert sum(value == "zeros" for _, _, value in found) > 10
    for file, name, value in found:
        norm = class_of(f"transformers.models.{file}", name, weight=3)()
        assert planned(norm) == {"weight": ("gamma", value, "Keras default")}, name


@pytest.mark.parametrize(
    ("package", "name", "base", "expected"),
    [
        ("transformers", "NemotronLayerNorm1P", nn.LayerNorm, {"weight": "zeros", "bias": "zeros"}),
        ("transformers", "VideoPrismLayerNorm", nn.LayerNorm, {"weight": "zeros", "bias": "zeros"}),
        ("transformers", "SamLayerNorm", nn.LayerNorm, {"weight": "ones", "bias": "zeros"}),
        ("timm", "LayerNorm2d", nn.LayerNorm, {"weight": "ones", "bias": "zeros"}),
        ("mine", "NemotronLayerNorm1P", nn.LayerNorm, {"weight": "ones", "bias": "zeros"}),
        ("transformers_of_mine", "NemotronLayerNorm1P", nn.LayerNorm, {"weight": "ones", "bias": "zeros"}),
    ],
)
def test_a_name_speaks_before_the_base_class(package, name, base, expected):
    """What is known of a class by name replaces that of its base in torch; another package's class is not meant."""
    norm = type(name, (base,), {"__module__": f"{package}.somewhere"})(3)
    assert {tensor: initializer for tensor, (_, initializer, _) in planned(norm).items()} == expected


def test_a_class_of_torch_with_more_tensors_keeps_its_own():
    """timm's ScaledStdConv2d is a Conv2d with a gain: the kernel, still the main weight, and the gain."""
    conv = type("ScaledStdConv2d", (nn.Conv2d,), {"__module__": "timm.layers.std_conv"})(3, 4, 5)
    conv.gain = nn.Parameter(torch.empty(4, 1, 1, 1))
    assert planned(conv, {type(conv): "he_normal"}) == {
        "weight": ("kernel", "he_normal", "ScaledStdConv2d"),
        "bias": ("bias", "zeros", "Keras default"),
        "gain": ("gamma", "ones", "timm default"),
    }


def test_a_rule_wins_over_the_authors_default():
    """By name, by class and role, and where the tensor is tied to one of which no rule speaks."""
    made = class_of("timm.models", "VisionTransformer", cls_token=(1, 1, 8), pos_embed=(1, 5, 8))
    model = nn.ModuleDict({"a": made(), "b": made()})
    model["b"].cls_token = model["a"].cls_token
    plan = planned(model, {"b.cls_token": "ones", made: {"position_embeddings": "he_normal"}})
    assert plan == {
        "b.cls_token": ("token", "ones", "'b.cls_token'"),  # of which the rule speaks
        "a.pos_embed": ("position_embeddings", "he_normal", "VisionTransformer"),
        "b.pos_embed": ("position_embeddings", "he_normal", "VisionTransformer"),
    }
    assert planned(model)["a.cls_token"] == ("token", "random_normal(std=1e-06)", "timm default")


def test_a_registered_layout_wins_over_the_known_one(register):
    """A user's layout of such a class, or of its base, takes the place of what is known by name."""
    norm = class_of("transformers.models", "GemmaRMSNorm", weight=3)
    heir = type("Heir", (norm,), {})
    assert planned(heir()) == {"weight": ("gamma", "zeros", "Keras default")}
    register(norm, lambda m: [Variable("gain", "weight", "keras", default=0.5, origin="our")])
    assert planned(heir()) == {"weight": ("gain", "constant(0.5)", "our default")}
    register(heir, class_of("transformers.models", "LlamaRMSNorm", weight=3))
    assert planned(heir()) == {"weight": ("gamma", "ones", "Keras default")}


@pytest.mark.parametrize(
    ("default", "shown"),
    [
        ("trunc_normal(std=0.02)", "trunc_normal(std=0.02)"),
        (0.5, "constant(0.5)"),
        (torch.tensor([1.0, 2.0, 3.0]), "array of shape (3,)"),
        (nn.init.ones_, "torch.nn.init.ones_"),
    ],
    ids=["call", "number", "array", "function"],
)
def test_a_default_is_what_a_rule_may_say(register, default, shown):
    """A call as text, a number, an array or a function; a user's rule wins over each."""
    norm = class_of("mine", "Own", weight=3)
    register(norm, lambda m: [Variable("own", "weight", "keras", default=default)])
    model = nn.Sequential(norm(), norm())
    assert planned(model, {"1": "zeros"}) == {
        "0.weight": ("own", shown if "array" not in shown else "array(array of shape (3,))", "Keras default"),
        "1.weight": ("own", "zeros", "'1'"),
    }


def test_a_table_that_a_constructor_computes_is_left_alone():
    """A buffer of a known name, such as the rotary `pos_embed` of timm, is no position embedding to draw."""
    rotary = class_of("timm.layers", "RotaryEmbeddingCat")()
    rotary.register_buffer("pos_embed", torch.ones(3, 4))
    assert len(kinit.apply(rotary, seed=0)) == 0
    assert bool((rotary.pos_embed == 1).all())


def test_no_package_is_needed(monkeypatch):
    """Classes are known where importing their packages raises."""
    for package in ("timm", "torchvision", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
        norm = class_of(package, "FrozenBatchNorm2d")()
        norm.register_buffer("weight", torch.zeros(3))
        assert planned(norm) == {"weight": ("gamma", "ones", "Keras default")}


def test_gpt2_conv1d():
    """GPT-2's Conv1D is a Dense without registering: its fans, and the numbers that Keras draws."""
    from transformers.pytorch_utils import Conv1D

    own, torchs = nn.Sequential(Conv1D(7, 5), Conv1D(3, 7)), nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    for model in (own, torchs):
        kinit.replay_keras(model, 1, backend="jax", build="sequential")
    assert kinit.plan(own)["0.weight"].fans == (5, 7)
    assert all(torch.equal(a.weight, b.weight.t()) for a, b in zip(own, torchs, strict=True))
