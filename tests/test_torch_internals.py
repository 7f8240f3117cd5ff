"""Private names of torch stand in one file, and with any of them missing the package imports and draws the same."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torch_kinit as kinit
from torch_kinit import torch_internals

PACKAGE = Path(kinit.__file__).parent
NAMES = list(torch_internals.PRIVATE_NAMES)
# Takes each name away in turn, imports the package anew, and prints the digest of all that it draws; first none.
TAKEN_AWAY = """
import contextlib, hashlib, json, sys, traceback, warnings
import torch
from torch import nn


class Missing:
    def __get__(self, instance, owner=None):
        raise AttributeError("taken away")


@contextlib.contextmanager
def without(name):
    path, _, last = name.rpartition(".")
    owner = torch
    for part in path.split(".")[1:]:
        owner = getattr(owner, part)
    own = vars(owner).get(last)  # a class may inherit it
    setattr(owner, last, Missing()) if isinstance(owner, type) else delattr(owner, last)
    try:
        yield
    finally:
        delattr(owner, last) if own is None else setattr(owner, last, own)


def has(name):
    found = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    return found is not None


def network(device):
    with torch.device(device):
        read = nn.LSTM(6, 5, num_layers=2, bidirectional=True)
        return nn.ModuleDict({"read": read, "conv": nn.Conv2d(4, 8, 3, groups=2), "norm": nn.LayerNorm(5)})


def hashed(tensors, text=""):
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def drawn(models):
    import torch_kinit as kinit

    found = []

    draws = [kinit.random_uniform_, kinit.random_normal_, kinit.trunc_normal_, kinit.orthogonal_]
    sources = [lambda: kinit.Key(3), *(lambda b=b: kinit.KerasSeed(3, b) for b in ("jax", "tensorflow", "torch"))]
    for source in [*sources, lambda: torch.Generator().manual_seed(3)]:
        for draw in draws:
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                found.append(draw(torch.empty(70, 30, dtype=dtype), generator=source()))
    plan = json.dumps(kinit.plan(models["real"]).to_dict())
    for model in (models["real"], models["meta"]):
        kinit.materialize(model, "cpu")
        kinit.apply(model, seed=1)
        found += model.parameters()
        assert list(map(id, model["read"]._flat_weights)) == list(map(id, model["read"].parameters()))
    kinit.replay_keras(models["linear"], 1, backend="jax")
    return hashed([*found, *models["linear"].parameters()], plan)


def computed(models):
    inputs = torch.linspace(-1, 1, 36).view(2, 3, 6)
    return hashed([models["real"]["read"](inputs)[0], models["meta"]["read"](inputs)[0]])


def eager_inside_compiled():
    import torch_kinit as kinit

    def draws():
        return [kinit.random_uniform_(torch.empty(70_000), generator=kinit.Key(4))]

    with kinit.compiled(), warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = draws()
    assert all(map(torch.equal, inside, draws()))


def models():
    return {"real": network("cpu"), "meta": network("meta"), "linear": nn.Sequential(nn.Linear(7, 5))}


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_kinit"]:
        del sys.modules[name]


eager = sys.argv[1].split()
for name in ["none", *sys.argv[2:]]:
    forget()
    given = models()  # as torch itself needs some of the names for that
    try:
        if name == "none":
            found = drawn(given)
        else:
            assert has(name), "this torch has no such name"
            with without(name):
                assert not has(name)
                found = drawn(given)
                if name in eager:
                    eager_inside_compiled()
        found += computed(given)  # torch's own forward needs some of the names, too
    except Exception:
        found = repr(traceback.format_exc())
    print(name, found, sep="\\t")
"""


EAGER = [name for name, meaning in torch_internals.PRIVATE_NAMES.items() if "eager, also inside compiled()" in meaning]


@pytest.fixture(scope="module")
def digests():
    """What is drawn without each name, as a digest or a traceback; and with all of them."""
    command = [sys.executable, "-W", "ignore", "-c", TAKEN_AWAY, " ".join(EAGER), *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_a_private_name_all_is_the_same(name, digests):
    """Without each name the package imports, and draws, plans, applies, replays and materializes the same values."""
    assert len(digests["none"]) == 32, digests["none"]
    assert digests[name] == digests["none"]


@pytest.mark.slow
def test_a_missing_name_that_matters_is_seen(digests):
    """The comparison above has a row of each name, and sees a name that this torch does not have."""
    assert set(digests) == {"none", *NAMES}
    command = [sys.executable, "-W", "ignore", "-c", TAKEN_AWAY, "", "torch.nn.RNNBase._no_such_name"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "this torch has no such name" in done.stdout


# --- one file --------------------------------------------------------------------------------------------------------

# Which torch has on its modules, tensors and wrappers; `_apply` and the like may not be said by other names either.
ATTRIBUTES = {name.rpartition(".")[2] for name in NAMES} | {
    *("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_flat_weights", "_flat_weight_refs"),
    *("_local_tensor", "_spec", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fsdp_flattened"),
    *("_StridedShard", "split_factor", "training_state", "_version", "_cdata", "_make_subclass"),
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(trees):
    """The private names that files define themselves: functions, classes, attributes of self, fields."""
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def private_uses(tree, own=()):
    """Where a file imports from a private module of torch, or uses a private name that is none of its package's own."""
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [part for alias in node.names for part in alias.name.split(".") if is_private(part)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            found = [part for part in [*node.module.split("."), *(a.name for a in node.names)] if is_private(part)]
            found += [alias.name for alias in node.names if alias.name in ATTRIBUTES]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("sys", "torch_internals"):
            mine = node.attr in {*own, "_replace"} and not ast.unparse(node.value).startswith("torch")
            found = [node.attr] if node.attr in ATTRIBUTES or (is_private(node.attr) and not mine) else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found = [node.value] if node.value in ATTRIBUTES else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("torch."):
            found = [node.value] if any(map(is_private, node.value.split("."))) else []
        yield from (f"line {node.lineno}: {name}" for name in found)


def trees():
    """Every file of the package, read."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.glob("**/*.py"))}


def test_private_names_stand_in_one_file():
    """No other file of the package imports from a private module of torch or uses one of its private names."""
    read = trees()
    own = set(own_names(read.values()))
    uses = {path.relative_to(PACKAGE).as_posix(): list(private_uses(tree, own)) for path, tree in read.items()}
    assert uses.pop("torch_internals.py")
    assert {path: found for path, found in uses.items() if found} == {}


PLANTED = {
    "import": "import torch._dynamo",
    "import as": "import torch.distributed._tensor as t",
    "from a private module": "from torch.utils._python_dispatch import TorchDispatchMode",
    "from a private package": "from torch._subclasses.fake_tensor import FakeTensorMode",
    "a private name": "from torch.nn.parameter import _ParameterMeta",
    "a name of the table": "from torch.utils import swap_tensors",
    "an attribute of torch": "torch._C._functorch.peek_interpreter_stack()",
    "a module's dictionary": "list(module._parameters)",
    "a method": "module._apply(lambda t: t)",
    "a tensor's base": "view._base is tensor",
    "a DTensor's part": "tensor._local_tensor",
    "inside a call": "f(g(model)._buffers, 1)",
    "swap": "torch.utils.swap_tensors(a, b)",
    "by a string": "getattr(module, '_parameters')",
    "by a class' name": "type(placement).__name__ == '_StridedShard'",
    "by a dotted string": "find('torch._dynamo.mark_dynamic')",
    "an own name on torch": "torch._own",
}


@pytest.mark.parametrize("line", PLANTED.values(), ids=PLANTED)
def test_a_planted_use_is_found(line):
    """The reader of files finds each way to a private name."""
    assert list(private_uses(ast.parse(line), {"_own"}))


PASSED = ["self._own = 1", "step._own()", "super()._own()", "torch.empty(3)", "sys._getframe()"]


@pytest.mark.parametrize("line", [*PASSED, "torch_internals.mark_dynamic(tensor)", "'a _base in a sentence'"])
def test_own_and_public_names_are_let_through(line):
    """The reader of files lets the package's own private names through, and public ones."""
    assert not list(private_uses(ast.parse(line), {"_own"}))
