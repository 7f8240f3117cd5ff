"""Rules in files mean what they mean in Python, and a file that would lose one of them is refused."""

import re

import pytest
from torch import nn

import torch_kinit as kinit
from tests.support.models import lineage

RULES = {
    nn.Conv2d: "he_normal",
    re.compile(r"body\.\d"): {"kernel": "trunc_normal(std=0.02)", "bias": 1},
    "head": "skip",
}
JSON = r"""
{"torch.nn:Conv2d": "he_normal", "re:body\\.\\d": {"kernel": "trunc_normal(std=0.02)", "bias": 1}, "head": "skip"}
"""
TOML = r"""
"torch.nn:Conv2d" = "he_normal"
head = "skip"
['re:body\.\d']
kernel = "trunc_normal(std=0.02)"
bias = 1
"""


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", JSON), ("a.toml", TOML), ("A.JSON", JSON), ("a.json", b"\xef\xbb\xbf" + JSON.encode())],
    ids=["JSON", "TOML", "capitals", "byte order mark"],
)
def test_files_mean_what_python_means(name, content, tmp_path):
    """Both kinds of file give the rules that a program would write, and so the same plan."""
    rules = kinit.load_rules(str(written(tmp_path, name, content)))
    assert rules == RULES
    assert kinit.plan(lineage(), rules) == kinit.plan(lineage(), RULES)


def test_rules_keep_their_order(tmp_path):
    """The later rule wins, as it stands in the file."""
    path = written(tmp_path, "a.json", '{"head": {"kernel": "zeros"}, "torch.nn:Linear": {"kernel": "ones"}}')
    assert str(kinit.plan(lineage(), kinit.load_rules(path))["head.weight"].initializer) == "ones"


NOT_RULES = {
    "repeated": ("a.json", '{"head": "zeros", "stem": 1, "head": "ones"}', "not JSON: the key 'head' is there twice"),
    "repeated role": ("a.json", '{"head": {"bias": 1, "bias": 2}}', "the key 'bias' is there twice"),
    "repeated in TOML": ("a.toml", 'head = "zeros"\nhead = "ones"', "not TOML: Cannot overwrite a value "),
    "one class, two names": (
        "a.json",
        '{"torch.nn:Linear": "zeros", "torch.nn.modules.linear:Linear": "ones"}',
        "'torch.nn:Linear' and 'torch.nn.modules.linear:Linear' are the same key.",
    ),
    "no quotes": ("a.json", '{torch.nn:Linear: "zeros"}', 'stand in quotes, a class as "torch.nn:Linear".'),
    "no quotes in TOML": ("a.toml", 'torch.nn:Linear = "zeros"', 'a class as "torch.nn:Linear".'),
    "dots without quotes": (
        "a.toml",
        'torch.nn.Linear = "zeros"',
        "'torch.nn.Linear' has no quotes, so TOML breaks it at its dots; "
        'write "torch.nn:Linear" if it is a class, else "torch.nn.Linear".',
    ),
    "table without quotes": ("a.toml", '[body.0.weight]\nkernel = "zeros"', "TOML breaks it at its dots"),
    "text without quotes": ("a.toml", "head = zeros", "Keys and texts stand in quotes"),
    "ending": ("a.yaml", "head: zeros", "Rules are read from files that end in .json or .toml, got "),
    "no ending": ("rules", "{}", "that end in .json or .toml"),
    "list": ("a.json", '["zeros"]', "must be one object, got a list."),
    "empty": ("a.json", "", "not JSON: Expecting value"),
    "not UTF-8": ("a.toml", b"\xe9", "not TOML: 'utf-8' codec"),
    "deep": ("a.json", "[" * 100_000, "not JSON: "),
    "regex": ("a.json", '{"re:(": "zeros"}', "The rule 're:(' is no regex: missing )"),
    "class misspelt": ("a.json", '{"torch.nn:Liner": "zeros"}', "torch.nn has no 'Liner'. Did you mean 'Linear'"),
    "module misspelt": ("a.json", '{"torch.n:Linear": "zeros"}', "Cannot import 'torch.n': ModuleNotFoundError"),
    "half a class": ("a.json", '{":Linear": "zeros"}', "A class is written MODULE:NAME, such as torch.nn:Lin"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), NOT_RULES.values(), ids=NOT_RULES)
def test_a_file_that_would_lose_a_rule(name, content, says, tmp_path):
    """Repeated keys, missing quotes and unknown endings are errors that say so, and name the file."""
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        kinit.load_rules(written(tmp_path, name, content))
    assert name in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_a_key_that_names_no_class(tmp_path):
    """A function is no key, and a number no path."""
    with pytest.raises(TypeError, match=r"A rule's key must be a module class, .* got <function zeros_"):
        kinit.load_rules(written(tmp_path, "a.json", '{"torch.nn.init:zeros_": "zeros"}'))
    with pytest.raises(TypeError, match="`path` must be a path of a file, got 3 of type int"):
        kinit.load_rules(3)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        kinit.load_rules("nowhere.json")
