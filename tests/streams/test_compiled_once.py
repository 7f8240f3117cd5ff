"""When compiled() builds its kernel, and what it leaves to eager draws."""

import functools
import subprocess
import threading
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torch_kinit as kinit
from tests.support.kernels import INF, KEY, LAWS, LEAST, SHARED, check_same, compilable, drawn
from torch_kinit import compiled
from torch_kinit.streams import compiled as kernels


@pytest.fixture
def device(device):
    """Each device that kernels can be compiled for."""
    return compilable(device)


@pytest.fixture
def builds(monkeypatch):
    """The commands that are run from here on, by a process in which nothing has been built."""
    run, commands = subprocess.run, []

    def noted(command, **settings):
        commands.append(command)
        return run(command, **settings)

    monkeypatch.setattr(subprocess, "run", noted)
    kernels._kernel.cache_clear()
    yield commands
    kernels._kernel.cache_clear()


class Operations(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_one_kernel_serves_all_laws(builds, device):
    """It is built at the first draw that needs it, once."""
    drawn(LAWS["uniform"], LEAST, device=device)
    with compiled():
        drawn(kinit.random_normal_, LEAST - 1, device=device)
        drawn(kinit.random_normal_, LEAST, dtype=torch.float64, device=device)
        drawn(functools.partial(kinit.trunc_normal_, lower=3, upper=INF), LEAST, device=device)
        assert builds == []
        for law in LAWS.values():
            drawn(law, LEAST, device=device)
    with compiled():
        drawn(LAWS["normal"], LEAST, device=device)
    assert len(builds) == 1


def test_threads_have_no_share_in_the_values(device):
    """One thread and five give equal bits, and torch's number of threads stays."""
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 5):
            torch.set_num_threads(count)
            with compiled():
                found.append(drawn(LAWS["normal"], 3 * SHARED + 1, device=device))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    check_same(*found)


def test_it_is_a_context_of_its_thread_and_a_decorator(device):
    """Other threads draw eagerly meanwhile, and a decorated function's draws are compiled."""
    asked = []

    def ask():
        asked.append(kernels._session.get() is not None)

    with compiled():
        with compiled():
            pass
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        ask()
    ask()
    compiled()(ask)()
    assert asked == [False, True, False, True]


def test_modes_see_eager_draws(device, monkeypatch):
    """Under a dispatch mode or vmap, draws are eager; the operator that a graph has for a draw is as fast as others."""
    law, calls = LAWS["uniform"], []
    eager = drawn(law, LEAST, device=device)
    monkeypatch.setattr(kernels, "_run", lambda *arguments: calls.append(arguments))
    with compiled():
        with Operations():
            check_same(drawn(law, LEAST, device=device), eager)
        torch.func.vmap(lambda t: law(t, generator=KEY))(torch.empty(2, LEAST, device=device))
        assert not calls
        traced = torch.compile(lambda t: law(t, generator=KEY), backend="eager")
        traced(torch.empty(LEAST, device=device))
        drawn(law, LEAST, device=device)
    assert len(calls) == 2


# --- without a compiler ----------------------------------------------------------------------------------------------


COMPILERS = {
    "none": (None, r"FileNotFoundError: no C compiler: no CC"),
    "of no such name": ("no-such-compiler", r"FileNotFoundError: .*no-such-compiler"),
    "that fails": (
        "cc -include no-such-file.h",
        r"RuntimeError: cc -include no-such-file\.h: .*no-such-file\.h: No such file",
    ),
    "that changes values": ("cc -D__FAST_MATH__", r"RuntimeError: .*Values would depend on the compiler"),
    "that builds nothing": ("true", r"OSError: .*compiled\.so"),
}


@pytest.mark.parametrize(("command", "reason"), COMPILERS.values(), ids=COMPILERS)
def test_without_a_compiler_draws_are_eager(command, reason, builds, monkeypatch):
    """One warning says so and why, at the line that drew, and the values are the same."""
    monkeypatch.setenv("CC", command or "")
    if command is None:
        monkeypatch.setattr("shutil.which", lambda name: None)
    laws, tensors = (LAWS["uniform"], LAWS["normal"]), (torch.empty(LEAST), torch.empty(LEAST))

    def draw():
        for law, tensor in zip(laws, tensors, strict=True):
            with compiled():  # the same context, to the end of the outer one
                law(tensor, generator=KEY)

    with pytest.warns(UserWarning, match=rf"kernel cannot be built \({reason}.*eager") as warned:
        compiled()(draw)()
    assert [warning.filename for warning in warned] == [__file__]
    for law, tensor in zip(laws, tensors, strict=True):
        check_same(tensor, drawn(law, LEAST))


def test_a_failure_does_not_outlast_its_context(builds, device, monkeypatch):
    """Where it could not be built, the next compiled() tries again."""
    draw = compiled()(functools.partial(drawn, LAWS["uniform"], LEAST))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(UserWarning, match="cannot be built"):
        draw()
    monkeypatch.delenv("CC")
    draw()
    assert kernels._kernel.cache_info().currsize == 1


def test_without_a_key_nothing_is_compiled(monkeypatch):
    """torch's generators draw as ever."""
    monkeypatch.setattr(kernels, "_run", pytest.fail)
    with compiled(), warnings.catch_warnings():
        warnings.simplefilter("error")
        kinit.random_uniform_(torch.empty(LEAST))
