"""Large draws from a torch.Generator: a second thread finishes what the first has drawn, and nothing else changes."""

import threading
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_kinit as kinit
from torch_kinit.streams import overlap

SIZE = 5000
DRAWS = {
    "truncated": kinit.trunc_normal_,
    "truncated, moved": partial(kinit.trunc_normal_, mean=1.0, lower=-1, upper=3),
    "uniform": partial(kinit.random_uniform_, low=-0.1, high=0.7),
    "normal": kinit.random_normal_,
    "constant": partial(kinit.trunc_normal_, std=0.0),
    "tail": partial(kinit.trunc_normal_, lower=3, upper=9),
}
VIEWS = {
    "contiguous": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.view(50, 100).t(),
    "columns": lambda tensor: tensor.view(50, 100)[:, 3:97],
    "channels last": lambda tensor: tensor.view(5, 10, 20, 5).permute(0, 3, 1, 2),
}


@pytest.fixture
def small(monkeypatch):
    """Small tensors are drawn as large ones are, in pieces of odd sizes; where on: by two threads."""
    before = torch.get_num_threads()
    monkeypatch.setattr("torch_kinit.streams.generator._CACHE_CHUNK", 16)
    monkeypatch.setattr(overlap, "_PIECE", 777)
    monkeypatch.setattr(overlap, "_SHARED_ERFINV", 100)
    torch.set_num_threads(2)
    yield lambda on: monkeypatch.setattr(overlap, "_LEAST", 1 if on else SIZE + 1)
    torch.set_num_threads(before)


def drawn(draw, view, dtype=torch.float32):
    """What lies in the memory of a tensor after a draw into a view of it, and what the generator gives next."""
    generator = torch.Generator().manual_seed(3)
    memory = torch.zeros(SIZE, dtype=dtype)
    draw(view(memory), generator=generator)
    return memory, torch.rand(3, generator=generator)


@pytest.fixture
def finished(monkeypatch):
    """The threads in which values are finished."""
    threads, fill = [], overlap.fill

    def watched(tensor, draw, finish, functions, dtype):
        def noted(out, functions):
            threads.append(threading.current_thread())
            finish(out, functions)

        fill(tensor, draw, noted, functions, dtype)

    monkeypatch.setattr(overlap, "fill", watched)
    return threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_values_are_those_of_one_thread(draw, view, dtype, small):
    """The same bits, in the view alone, and the same number of draws from the generator."""
    small(on=False)
    expected = drawn(draw, view, dtype)
    small(on=True)
    assert all(map(torch.equal, drawn(draw, view, dtype), expected))


def test_one_thread_draws_and_another_finishes(small, finished):
    """What is compared above is drawn by two threads, the second of which is gone afterwards."""
    small(on=True)
    drawn(kinit.trunc_normal_, VIEWS["contiguous"])
    assert len(finished) == 7  # pieces
    assert len(set(finished)) == 1
    assert finished[0] is not threading.current_thread()
    assert not finished[0].is_alive()


def test_threads_that_torch_may_not_use_are_not_used(small, finished):
    """With one thread for torch there is no other."""
    small(on=True)
    torch.set_num_threads(1)
    drawn(kinit.trunc_normal_, VIEWS["contiguous"])
    assert finished == []


def test_what_a_thread_has_for_itself(small, finished):
    """Inference mode and leaves that require gradients are the second thread's, too; modes are not passed by."""
    small(on=True)
    with torch.inference_mode():
        tensor = kinit.trunc_normal_(torch.empty(SIZE, dtype=torch.bfloat16))
    assert tensor.is_inference()
    leaf = kinit.trunc_normal_(torch.empty(SIZE, requires_grad=True))
    assert leaf.is_leaf
    assert finished
    count = len(finished)
    with FakeTensorMode():
        kinit.trunc_normal_(torch.empty(SIZE))
    torch.func.vmap(kinit.trunc_normal_, randomness="different")(torch.empty(2, SIZE))
    assert len(finished) == count


def test_an_error_in_the_second_thread_is_raised(small, monkeypatch):
    """What goes wrong there is not lost."""
    small(on=True)
    monkeypatch.setattr(overlap, "_erfinv_", lambda x: x.no_such_method())
    with pytest.raises(AttributeError, match="no_such_method"):
        kinit.trunc_normal_(torch.empty(SIZE))


def test_memory(small, monkeypatch):
    """Of half precision at most four pieces wait, however slow the second thread; what is float32 needs no memory."""
    small(on=True)
    empty, sizes = torch.empty, []
    half, whole = empty(1 << 20, dtype=torch.bfloat16), empty(1 << 20)
    monkeypatch.setattr(overlap, "_PIECE", 1 << 15)
    monkeypatch.setattr(torch, "empty", lambda size, **settings: sizes.append(size) or empty(size, **settings))
    kinit.trunc_normal_(whole)
    assert sizes == []
    kinit.trunc_normal_(half)
    assert sizes == [1 << 15] * 4
