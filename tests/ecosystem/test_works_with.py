"""The snippets of docs/works-with.md run as they stand, and give the weights that `apply` gives without their package.

Where torchvision's compiled part does not fit torch, tests/support/torchvision_ops.py lets its Python code be imported.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import torch_kinit as kinit
from tests.support.sharded_run import RUNS_FSDP2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ecosystem"),
    *map(
        pytest.mark.filterwarnings,  # what the packages warn of in each other
        ("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning:(lightning|torch).*"),
    ),
]
PAGE = Path(__file__).parents[2] / "docs" / "works-with.md"


def snippets(page):
    """The pieces of code of a page, by their section and their place in it."""
    found = {}
    for section in page.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL)):
            found[f"{title} {i + 1}"] = code
    return found


SNIPPETS = snippets(PAGE.read_text("utf-8"))


def run(name):
    """Run a snippet; what it has defined. Skips where a package that it imports is not installed."""
    for package in re.findall(r"^(?:from|import) (\w+)", SNIPPETS[name], re.MULTILINE):
        pytest.importorskip(package)
    defined = {"__name__": "__main__"}
    exec(compile(SNIPPETS[name], f"{PAGE.name}: {name}", "exec"), defined)
    return defined


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def check_equal(model, other):
    """Two models have the same parameters, by their names without those of wrappers."""
    theirs = {name.replace("_orig_mod.", ""): whole(p) for name, p in model.named_parameters()}
    ours = dict(other.named_parameters())
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def perceptron(inputs, width):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 1))


def initialized(model, rules=None, seed=0):
    kinit.apply(model, rules, seed=seed)
    return model


def check_transformers_1(found, printed):
    assert printed == "4 (96, 64)\n"
    check_equal(found["model"], initialized(found["AutoModelForCausalLM"].from_config(found["config"])))


def check_transformers_2(found, printed):
    assert printed.endswith("['classifier.weight', 'classifier.bias']\n")
    check_equal(found["model"].bert, found["BertModel"].from_pretrained("checkpoint"))
    expected = kinit.glorot_uniform_(torch.empty(2, 32), generator=kinit.Key(0).fold_in("classifier.weight"))
    assert torch.equal(found["model"].classifier.weight, expected)


def check_transformers_3(found, printed):
    other = initialized(found["AutoModelForCausalLM"].from_config(found["config"]))
    check_equal(found["model"], other)
    assert not other.model.norm.weight.any()  # 1 + weight
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(found["model"](tokens).logits, other(tokens).logits)


def check_timm(found, printed):
    assert printed == "timm default random_normal(std=0.02)\n"
    model, timm = found["model"], found["timm"]
    assert not model.head.weight.any()
    other = initialized(timm.create_model("vit_tiny_patch16_224", num_classes=5), {"head": "zeros"})
    check_equal(model, other)


def check_lightning(found, printed):
    check_equal(found["module"].net, initialized(perceptron(8, 16)))


def check_accelerate(found, printed):
    model = found["model"]
    plain = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    check_equal(model, initialized(plain))
    check_equal(initialized(model, seed=1), initialized(plain, seed=1))


def check_skorch(found, printed):
    check_equal(found["net"].module_, initialized(perceptron(8, 32), {nn.Linear: "he_normal"}))


def check_compile(found, printed):
    plain = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 1))
    check_equal(found["compiled"], initialized(plain, {"0": "he_normal"}))


CHECKS = {
    "transformers 1": check_transformers_1,
    "transformers 2": check_transformers_2,
    "transformers 3": check_transformers_3,
    "timm and torchvision 1": check_timm,
    "Lightning 1": check_lightning,
    "Lightning 2": check_lightning,
    "accelerate 1": check_accelerate,
    "skorch 1": check_skorch,
    "torch.compile 1": check_compile,
}
ON_PROCESSES = ["FSDP2 and torch.distributed.checkpoint 1", "FSDP2 and torch.distributed.checkpoint 2"]


def test_each_snippet_of_the_page_is_checked():
    """No snippet is left out, and none is checked that the page does not have."""
    assert [*CHECKS, *ON_PROCESSES] == list(SNIPPETS)


@pytest.fixture
def _alone(tmp_path, monkeypatch):
    """An empty folder; afterwards no process group, and the environment as it was, which Lightning writes to."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.usefixtures("_alone")
def test_snippet(name, capsys):
    """A snippet prints what it says, and its model has the weights of plain `apply`."""
    if name == "Lightning 2" and not RUNS_FSDP2:
        pytest.skip("torch runs no model of fully_shard on the CPU")
    CHECKS[name](run(name), capsys.readouterr().out)


def run_on_two_processes(script, monkeypatch):
    """Run a script as torchrun does, on this process and a second one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0"}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    others = {"RANK": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(kinit.__file__).parents[1])}
    command = [sys.executable, script]
    with subprocess.Popen(command, env={**os.environ, **others}, stderr=subprocess.PIPE, text=True) as second:
        exec(compile(script.read_text("utf-8"), script.name, "exec"), {"__name__": "__main__"})
        _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors


@pytest.mark.usefixtures("_alone")
def test_saved_by_two_processes_and_loaded_by_one(tmp_path, monkeypatch):
    """What two processes save after they initialized their shards is what `apply` gives in the one that loads it."""
    save, load = (SNIPPETS[name] for name in ON_PROCESSES)
    script = tmp_path / "save.py"
    script.write_text(save, "utf-8")
    run_on_two_processes(script, monkeypatch)
    assert len(list((tmp_path / "first").glob("*.distcp"))) == 2
    found = run(ON_PROCESSES[1])
    found["state"]["model"]["0.weight"][0, 0] += 1
    with pytest.raises(AssertionError):  # the snippet's own check can fail
        exec(load.splitlines()[-1], found)
