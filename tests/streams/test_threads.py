"""Draws leave the process as it was, and give the same values from several threads and on any number of them."""

import random
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.backends import NAMES, same_bits
from tests.support.draws import DRAWS
from tests.support.kernels import compiler_of
from tests.support.models import network, seeded
from torch_kinit import KerasSeed, Key
from torch_kinit.streams import compiled as kernels

KERAS_DRAWS = {name: DRAWS[name] for name in ("uniform", "normal", "truncated", "scaled")}  # those that Keras has
SOURCES = {  # what draws, made anew for each draw, and what it can draw
    "global": (lambda: None, DRAWS),
    "generator": (seeded, DRAWS),
    "Key": (lambda: Key(3), DRAWS),
    **{f"KerasSeed of {name}": (partial(KerasSeed, 3, name), KERAS_DRAWS) for name in NAMES},
}
EVERY = {f"{source}, {law}": (make, draw) for source, (make, draws) in SOURCES.items() for law, draw in draws.items()}
every_draw = pytest.mark.parametrize(("source", "draw"), EVERY.values(), ids=EVERY)
LARGE = 600_001  # of several pieces, whatever draws


@pytest.fixture
def threads():
    """Set torch's number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- what a process has set ------------------------------------------------------------------------------------------

SETTERS = [
    "set_num_threads",
    "set_num_interop_threads",
    "set_default_dtype",
    "set_default_device",
    "manual_seed",
    "seed",
]
SETTERS += ["set_flush_denormal", "use_deterministic_algorithms", "set_float32_matmul_precision"]


def settings():
    """What a process has set, and its global random states."""
    set_ = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    return *set_, bytes(torch.get_rng_state().tolist()), random.getstate(), repr(np.random.get_state())


@contextmanager
def untouched():
    """A context in which torch's setters raise, and after which all is set as before."""
    before = settings()
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTERS:
            patch.setattr(torch, name, partial(pytest.fail, f"torch.{name} was called"))
        yield
    assert settings() == before


@pytest.mark.parametrize(
    "touch",
    [lambda: torch.set_num_threads(1), lambda: torch.rand(1), lambda: np.random.rand(), lambda: random.random()],
    ids=["threads", "torch's state", "NumPy's state", "Python's state"],
)
def test_the_watch_sees_a_touch(touch):
    """The context above fails for each setting and state."""
    with pytest.raises((AssertionError, pytest.fail.Exception)), untouched():
        touch()


@every_draw
def test_a_draw_touches_no_setting(source, draw):
    """No draw sets threads, dtype or device, and none moves a random state that it was not given."""
    given = source()
    for tensor in (torch.empty(LARGE), torch.empty(300, 1000, dtype=torch.bfloat16).t()):
        if given is None:
            with torch.random.fork_rng(), untouched_but_torchs_state():
                draw(tensor)
        else:
            with untouched():
                draw(tensor, generator=given)


@contextmanager
def untouched_but_torchs_state():
    """The watch for a draw from torch's global generator."""
    state = torch.get_rng_state()
    with untouched():
        yield
        assert not torch.equal(torch.get_rng_state(), state)
        torch.set_rng_state(state)


def whole():
    """Layers of many kinds, some of several pieces."""
    return nn.Sequential(nn.Linear(700, 500), nn.Conv2d(16, 64, 9), nn.LSTM(70, 60), nn.LayerNorm(9))


def spectral():
    """A layer that keeps vectors beside its weight."""
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(700, 500)))


def matrix():
    return torch.empty(80, 70)


CALLS = {  # what is made first, and the call of it
    "plan": (network, lambda model: kinit.plan(model).to_dict()),
    "apply(seed=)": (whole, partial(kinit.apply, seed=1)),
    "apply(generator=)": (whole, lambda model: kinit.apply(model, generator=seeded())),
    "apply(generator=KerasSeed)": (whole, partial(kinit.apply, generator=KerasSeed(1, "jax"))),
    "apply to a parametrization": (spectral, partial(kinit.apply, seed=1)),
    "apply of torch's function": (whole, partial(kinit.apply, rules={"0": nn.init.orthogonal_}, seed=1)),
    "apply of a function without generator": (whole, partial(kinit.apply, rules={"0": torch.Tensor.normal_}, seed=1)),
    "replay_keras": (lambda: whole()[:1], partial(kinit.replay_keras, seed=1, backend="torch")),
    "materialize": (lambda: nn.Linear(700, 500, device="meta"), partial(kinit.materialize, device="cpu")),
    "law": (matrix, partial(kinit.law, "orthogonal")),
    "stft_": (lambda: torch.empty(65, 1, 128), kinit.stft_),
    **{
        f"orthogonal_, {name}": (matrix, lambda tensor, make=make: kinit.orthogonal_(tensor, generator=make()))
        for name, (make, _) in SOURCES.items()
        if name != "global"
    },
}


@pytest.mark.parametrize(("make", "call"), CALLS.values(), ids=CALLS)
def test_a_call_touches_no_setting(make, call):
    """No call sets threads, dtype or device, or moves a random state that it was not given."""
    made = make()
    with untouched():
        call(made)


# --- threads that are born meanwhile ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Key", *(name for name in SOURCES if "Keras" in name)])
def test_a_thread_born_during_a_draw_has_all_of_torchs_threads(name, threads):
    """Threads whose first operation falls into a draw of four million values have the process' number of threads."""
    threads(2)
    source, found, done = SOURCES[name][0](), [], threading.Event()

    def watch():
        while not done.is_set():
            born = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
            born.start()
            born.join()

    watcher = threading.Thread(target=watch)
    watcher.start()
    for draw in (kinit.random_uniform_, kinit.trunc_normal_):
        draw(torch.empty(1 << 22), generator=source)
    done.set()
    watcher.join()
    assert len(found) > 10
    assert set(found) == {2}


# --- two at once -----------------------------------------------------------------------------------------------------


def side_by_side(*calls):
    """What each call returns, all begun at once, each in a thread of its own."""
    barrier, found = threading.Barrier(len(calls)), [None] * len(calls)

    def run(place, call):
        barrier.wait()
        found[place] = call()

    running = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return found


def series(make, draw):
    """Draws of one kind after another, from a source made at first, in large and small tensors, whole and strided."""
    source, dtypes = make(), (torch.float32, torch.bfloat16, torch.float64)
    shapes = [(70_001,), (3, 5), (400, 300)]
    found = [draw(torch.empty(shape, dtype=dtype), generator=source) for dtype in dtypes for shape in shapes]
    return [*found, draw(torch.empty(300, 400).t(), generator=source)]


def check_all_same(found, expected):
    """Raise AssertionError unless each of several lists of tensors has the bits of the expected one."""
    assert len(found) > 1
    for each in found:
        assert len(each) == len(expected)
        assert all(map(same_bits, each, expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "draw"),
    [pair for name, pair in EVERY.items() if "global" not in name],
    ids=[name for name in EVERY if "global" not in name],
)
def test_two_threads_draw_what_each_draws_alone(source, draw):
    """Draws at once, from one key or seed or from generators of their own, have the bits of those alone."""
    alone = series(source, draw)
    check_all_same(side_by_side(*[partial(series, source, draw)] * 2), alone)


def test_the_comparison_sees_a_shared_generator():
    """The check above rejects threads that take turns at one generator."""
    alone, shared = series(seeded, kinit.random_normal_), seeded()
    with pytest.raises(AssertionError):
        check_all_same(side_by_side(*[partial(series, lambda: shared, kinit.random_normal_)] * 2), alone)


@pytest.mark.parametrize(
    "settings", [{"seed": 1}, {"generator": KerasSeed(1, "tensorflow")}], ids=["seed", "KerasSeed"]
)
def test_two_models_are_initialized_at_once(settings):
    """apply gives models in two threads the weights that it gives one alone."""

    def initialized():
        model = whole()
        kinit.apply(model, **settings)
        return [parameter.detach() for parameter in model.parameters()]

    check_all_same(side_by_side(initialized, initialized), initialized())


@pytest.mark.slow
def test_two_threads_compile_at_once():
    """Contexts of compiled() in two threads, of which both find nothing compiled, give the bits of eager draws."""
    if reason := compiler_of("cpu"):
        pytest.skip(reason)
    kernels._kernel.cache_clear()
    draws = [partial(kinit.random_uniform_, low=-0.3), kinit.trunc_normal_]

    def drawn():
        return [draw(torch.empty(size), generator=Key(3)) for size in (70_001, 1 << 17) for draw in draws]

    check_all_same(side_by_side(*[kinit.compiled()(drawn)] * 2), drawn())


# --- any number of threads -------------------------------------------------------------------------------------------

VIEWS = {  # views of a tensor of the dtype, of more than 2**16 values and not by sixteens
    "columns": lambda d: torch.empty(101, 2000, dtype=d)[:, :999],
    "rows and columns": lambda d: torch.empty(500, 701, dtype=d)[5:495:2, 3::2],
    "every third": lambda d: torch.empty(300_001, dtype=d)[::3],
    "transposed": lambda d: torch.empty(333, 301, dtype=d).t(),
    "channels_last": lambda d: torch.empty(9, 17, 31, 33, dtype=d).to(memory_format=torch.channels_last),
    "permuted": lambda d: torch.empty(9, 17, 31, 33, dtype=d).permute(2, 0, 3, 1),
    "reversed": lambda d: torch.empty(9, 17, 31, 33, dtype=d).permute(3, 2, 1, 0),
    "permuted part": lambda d: torch.empty(10, 19, 40, 33, dtype=d)[1:, :17, 4:35].permute(1, 3, 0, 2),
    "short rows": lambda d: torch.empty(40_000, 5, dtype=d)[:, 1:4],
    "one long row": lambda d: torch.empty(2, 100_003, dtype=d)[1:],
}
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


def in_memory(tensor):
    """The values of a tensor in the order in which they lie in memory."""
    return tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True)).flatten()


@pytest.mark.slow
@every_view
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_generators_values_lie_in_the_order_of_memory(draw, dtype, view, threads):
    """A view of any strides has a contiguous tensor's values, in the order of its memory, on one thread and on two."""
    extra = {"fans": (3, 5)} if draw is kinit.he_normal_ else {}
    found = []
    for count in (1, 2):
        threads(count)
        tensor = view(dtype)
        assert tensor.numel() > 1 << 16
        found.append(in_memory(draw(tensor, generator=seeded(), **extra)))
        found.append(draw(torch.empty(tensor.numel(), dtype=dtype), generator=seeded(), **extra))
    check_all_same([[values] for values in found[1:]], [found[0]])


@pytest.mark.slow
@every_view
@pytest.mark.parametrize(
    ("source", "draw"),
    [pair for name, pair in EVERY.items() if "Key," in name or "Keras" in name],
    ids=[name for name in EVERY if "Key," in name or "Keras" in name],
)
def test_a_keys_values_go_by_index(source, draw, view, threads):
    """A view of any strides has a contiguous tensor's values of a Key or KerasSeed at each index, on any threads."""
    found = []
    for count in (1, 2):
        threads(count)
        tensor = draw(view(torch.float32), generator=source())
        found.append([tensor, draw(torch.empty(tensor.shape), generator=source())])
    (first, second), (third, fourth) = found
    check_all_same([[second], [third], [fourth]], [first])


# --- first use in inference mode -------------------------------------------------------------------------------------

INFERENCE = """
import sys, torch
from torch import nn

def series(kinit):
    sources = [kinit.Key(3), *(kinit.KerasSeed(3, name) for name in ("jax", "tensorflow", "torch"))]
    sources.append(torch.Generator().manual_seed(3))
    draws = [kinit.random_uniform_, kinit.random_normal_, kinit.trunc_normal_, kinit.orthogonal_]
    shapes = [(70, 50), (70, 1000)]
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    found = [
        draw(torch.empty(shape, dtype=dtype), generator=source)
        for source in sources for draw in draws for shape in shapes for dtype in dtypes
    ]
    model = nn.LSTM(30, 20)
    kinit.apply(model, seed=1)
    found += [parameter.detach() for parameter in model.parameters()]
    if sys.argv[1] == "compiled":
        with kinit.compiled():
            found += [draw(torch.empty(size), generator=kinit.Key(4)) for draw in draws[:1] for size in (65536, 70001)]
    return found

with torch.inference_mode():
    import torch_kinit as kinit
    first = series(kinit)
second = series(kinit)
print(len(first), all(map(torch.equal, first, second)), any(x.is_inference() for x in second))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_first_use_in_inference_mode(how):
    """A process that first draws in inference mode, where caches are made, draws outside of it as well, the same."""
    if how == "compiled" and (reason := compiler_of("cpu")):
        pytest.skip(reason)
    command = [sys.executable, "-W", "ignore", "-c", INFERENCE, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(164 + 2 * (how == "compiled")), "True", "False"]
