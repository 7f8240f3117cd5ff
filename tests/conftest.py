"""What all tests share: the devices there are, Keras on torch, a fixed seed, and fixtures of several files."""

import os
import re

os.environ["KERAS_BACKEND"] = "torch"
os.environ["COLUMNS"] = "120"  # the width of tables in doctests
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or a third of the time goes into waiting, with several workers

import pytest
import torch

import torch_kinit
from tests.support import torchvision_ops

torchvision_ops.stand_in()
torch_kinit.audit  # noqa: B018  # loads all that is loaded late, so that its examples are found with the others

ONCE = {"comparisons", "digests", "tf_keras_files"}  # fixtures that start processes, whose answers several tests share
ASKING = {"backend", "real"}  # of tests.support: who imports one of these asks such a process
BACKEND = re.compile(r"test_keras_(jax|tensorflow|torch)\.py|[\[-](jax|tensorflow|torch)(?=[\]-])")  # in a test's id
DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append("cuda")
if torch.backends.mps.is_available():
    DEVICES.append("mps")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """With `--dist loadgroup` one worker has all tests of a folder that ask one process, started once."""
    for item in items:
        if shared := ONCE.intersection(item.fixturenames):
            path = "" if "tf_keras_files" in shared else item.path.name
            item.add_marker(pytest.mark.xdist_group(f"{path} {shared.pop()}"))
            continue
        if ASKING & vars(getattr(item, "module", item)).keys():
            asked = {name for found in BACKEND.findall(item.nodeid) for name in found if name}
            one = asked if len(asked) == 1 and "by_backend" not in item.fixturenames else ()  # that asks all three
            item.add_marker(pytest.mark.xdist_group(" ".join((item.path.parent.name, *one))))  # no group is too long


def pytest_configure(config):
    """Refuse a pytest whose groups pytest-xdist 3.8 loses without a word: tests then start each process thrice."""
    if config.getoption("dist", "no") == "loadgroup" and not hasattr(pytest.Item, "_nodeid"):
        raise pytest.UsageError("--dist loadgroup has no effect with this pytest: take that of constraints.txt")


@pytest.fixture(params=DEVICES)
def device(request):
    """Each device there is."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seeded():
    """Fix torch's global seed, so that a test that draws from it draws the same each time."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def _one_thread():
    """Several threads wait for each other at every operation, long where another process has a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def _keras_on_cpu():
    """Keras would take an accelerator where there is one."""
    import keras

    with keras.device("cpu"):
        yield


@pytest.fixture
def register(monkeypatch):
    """Registers layouts for one test only."""
    import torch_kinit as kinit
    from torch_kinit.layers import table

    monkeypatch.setattr(table, "_ROWS", dict(table._ROWS))
    return kinit.register_layout


@pytest.fixture
def register_keras():
    """Registers Keras layers for one test only, which starts without any."""
    import torch_kinit as kinit
    from torch_kinit.keras.read import REGISTERED

    before = dict(REGISTERED)
    REGISTERED.clear()
    yield kinit.register_keras_layer
    REGISTERED.clear()
    REGISTERED.update(before)


@pytest.fixture
def run(capsys):
    """Call the command line in this process; its exit code, stdout and stderr."""
    from torch_kinit.__main__ import main

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
