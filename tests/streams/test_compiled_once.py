"""What compiled() compiles, once, and what it leaves to eager draws."""

import functools
import threading
import warnings

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils._python_dispatch import TorchDispatchMode

import torch_kinit as kinit
from tests.support.kernels import CHUNK, INF, KEY, LAWS, LEAST, Compiled, check_same, compilable, drawn
from torch_kinit import compiled
from torch_kinit.streams import compiled as kernels

pytestmark = pytest.mark.filterwarnings(
    "ignore:Skipping serialization of skipfiles_inline_module_allowlist"  # torch 2.6
)


@pytest.fixture
def device(device):
    """Each device that kernels can be compiled for."""
    return compilable(device)


class Operations(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_nothing_is_compiled_again(device):
    """One kernel serves all sizes, keys and laws of its kind; small tensors, float64 and tails take none."""
    with compiled():
        for law in LAWS.values():
            drawn(law, LEAST, device=device)
        before = Compiled()
        for law in LAWS.values():
            drawn(law, 3 * LEAST + 1, key=kinit.Key(9), device=device)
            drawn(law, 300, 1024, key=kinit.Key(9), device=device)
        drawn(functools.partial(kinit.trunc_normal_, mean=0.5, std=0.3, upper=1), LEAST, device=device)
        drawn(kinit.he_normal_, 300, 1024, device=device)
        drawn(kinit.random_normal_, LEAST - 1, device=device)
        drawn(kinit.random_normal_, LEAST, dtype=torch.float64, device=device)
        drawn(functools.partial(kinit.trunc_normal_, lower=3, upper=INF), LEAST, device=device)
    assert before.count == 0


def test_three_kernels_serve_all_laws(device):
    """From nothing, all laws take three graphs a dtype, and none outside of compiled()."""
    torch._dynamo.reset()
    before = Compiled()
    for law in LAWS.values():
        drawn(law, LEAST, device=device)
    assert before.count == 0
    with compiled():
        for law in LAWS.values():
            drawn(law, LEAST, device=device)
    assert before.count == 3


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


def test_modes_and_traces_see_eager_draws(device):
    """Under a dispatch mode, vmap or torch.compile, draws are eager."""
    law, calls = LAWS["uniform"], []
    eager = drawn(law, LEAST, device=device)

    def run(*arguments):
        calls.append(arguments)

    with pytest.MonkeyPatch.context() as patch, compiled():
        patch.setattr(kernels, "_run", run)
        with Operations():
            check_same(drawn(law, LEAST, device=device), eager)
        traced = torch.compile(lambda t: law(t, generator=KEY), backend="eager")
        check_same(traced(torch.empty(LEAST, device=device)), eager)
        torch.func.vmap(lambda t: law(t, generator=KEY))(torch.empty(2, LEAST, device=device))
        assert not calls
        drawn(law, LEAST, device=device)
    assert len(calls) == 1


# --- without a compiler ----------------------------------------------------------------------------------------------


FAILURES = {
    "no compiler": InvalidCxxCompiler(),
    "no triton": RuntimeError("Cannot find a working triton installation."),
}


@pytest.mark.slow
@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "after a piece"])
def test_without_a_compiler_draws_are_eager(error, late, monkeypatch):
    """One warning says so and why, and the values are the same, also where a part is written already."""
    written = []

    def compile_(function, **settings):
        def call(out, *arguments):
            if not late or written:
                raise error
            written.append(out.fill_(7))

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    kernels._kernel.cache_clear()
    eager = [drawn(law, 2 * CHUNK) for law in (LAWS["uniform"], LAWS["normal"])]
    with compiled(), pytest.warns(UserWarning, match=r"torch\.compile failed .*eager") as warned:
        ours = [drawn(law, 2 * CHUNK) for law in (LAWS["uniform"], LAWS["normal"])]
    assert len(warned) == 1
    assert type(error).__name__ in str(warned[0].message)
    assert len(written) == late
    for mine, other in zip(ours, eager, strict=True):
        check_same(mine, other)
    kernels._kernel.cache_clear()


def test_a_failure_does_not_outlast_its_context(monkeypatch):
    """Where one compile failed, the next compiled() compiles again; the warning points at the line that drew."""
    failing, ran = [True], []

    def compile_(function, **settings):
        def call(*arguments):
            if failing:
                raise RuntimeError(failing.pop())
            ran.append(arguments)
            function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    kernels._kernel.cache_clear()
    law = LAWS["uniform"]
    eager = drawn(law, LEAST)
    with compiled():
        with pytest.warns(UserWarning, match=r"torch\.compile failed \(RuntimeError: True\)") as warned:
            check_same(law(torch.empty(LEAST), generator=KEY), eager)
        assert [warning.filename for warning in warned] == [__file__]
        with compiled():  # the same context, to the end of the outer one
            check_same(drawn(law, LEAST), eager)
        assert not ran
    with compiled():
        check_same(drawn(law, LEAST), eager)
    assert len(ran) == 1
    kernels._kernel.cache_clear()


def test_without_a_key_nothing_is_compiled(monkeypatch):
    """torch's generators draw as ever."""
    monkeypatch.setattr(kernels, "_run", pytest.fail)
    with compiled(), warnings.catch_warnings():
        warnings.simplefilter("error")
        kinit.random_uniform_(torch.empty(LEAST))
