"""Large draws from torch's CPU generators take 64 random bits at a time, and have the values of `uniform_`."""

import math
import time

import pytest
import torch

import torch_kinit as kinit
from tests.support.kernels import check_same
from torch_kinit.streams import generator, paired
from torch_kinit.streams.inverse import inverse_cdf

LEAST = 4 * paired._PIECE
BOUNDS = [(0.0, 1.0), (-0.3, 0.7), (-1e-3, 1e-3), (0.0, 1e-29), (-1e38, 1e38), (-0.9544997, 0.9544997), (-2.5, 0.0)]
TOO_NARROW = [(0.0, 1e-40), (5.0, 5.000001), (0.5, 1.0), (-1.0, -0.75), (-1e-38, 0.0), (1.0, 2.0)]
DRAWS = {
    "he_uniform": kinit.he_uniform_,
    "uniform": lambda t, generator: kinit.random_uniform_(t, 0.1, 0.7, generator=generator),
    "he_normal": kinit.he_normal_,
    "normal, one-sided": lambda t, generator: kinit.trunc_normal_(
        t, 0.1, 0.2, lower=-math.inf, upper=1.0, generator=generator
    ),
}
INVERSE = inverse_cdf(kinit.Uniform(-0.25, 0.5), torch.float32)
PLACES = {
    "in one line": lambda: torch.zeros(2049, 2050),
    "at an odd offset": lambda: torch.zeros(LEAST + 8)[3:].view(-1, 1),
    "with gaps": lambda: torch.zeros(2100, 2050)[:, 7:],
    "transposed": lambda: torch.zeros(2050, 2061).t(),
    "a parameter": lambda: torch.nn.Parameter(torch.zeros(2049, 2050)),
    "bfloat16": lambda: torch.zeros(2051, 2051, dtype=torch.bfloat16),
}


@pytest.fixture
def used(monkeypatch):
    """Two threads, and no piece that takes too long; gives the number of values of each call for pairs."""
    counts, draw, before = [], paired._draw, torch.get_num_threads()

    def counted(out, *arguments):
        counts.append(out.numel())
        draw(out, *arguments)

    paired._are_those_of_uniform()
    monkeypatch.setattr(paired, "_draw", counted)
    monkeypatch.setattr(paired.Pairs, "_fill_piece", untimed)
    torch.set_num_threads(2)
    yield counts
    torch.set_num_threads(before)


def untimed(self, piece, inverse, draw):
    inverse.fill(piece, draw, self._functions)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("count", [2, 1000, 65_538])
def test_numbers_and_state_are_those_of_uniform(low, high, count):
    """The same bits as `uniform_`, from the same state to the same state."""
    assert paired._stays_below(low, high)
    generators = [torch.Generator().manual_seed(count) for _ in range(2)]
    ours, others = torch.empty(count), torch.empty(count)
    for _ in range(3):
        paired._draw(ours, torch.empty(count // 2, dtype=torch.int64), low, high, generators[0])
        others.uniform_(low, high, generator=generators[1])
        check_same(ours, others)
    assert torch.equal(*(each.get_state() for each in generators))


@pytest.mark.parametrize(("low", "high"), TOO_NARROW)
def test_numbers_that_may_be_rounded_to_the_upper_bound(low, high):
    """Newer torch puts the lower bound in the place of the upper one: such laws, and the least, are left to it."""
    assert not paired._stays_below(low, high)


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_keep_their_values(draw, make, used, monkeypatch):
    """Initializers give the values they give without pairs, in the order of memory, and leave the same state."""
    ours, others = make(), make()
    generators = [torch.Generator().manual_seed(8) for _ in range(2)]
    draw(ours, generator=generators[0])
    assert 2 * paired._PIECE < sum(used) < ours.numel()
    monkeypatch.setattr(generator, "pairs", lambda *arguments: None)
    draw(others, generator=generators[1])
    check_same(ours.detach(), others.detach())
    assert torch.equal(*(each.get_state() for each in generators))


def test_inference_tensors(used):
    """Tensors of inference mode are filled, too."""
    with torch.inference_mode():
        tensor = kinit.random_uniform_(torch.full((LEAST,), 2.0), -0.5, 0.5)
    assert used
    assert bool((tensor < 1).all())


def test_the_global_generator(used, monkeypatch):
    """Without a generator the numbers are torch's own of its global one."""
    torch.manual_seed(3)
    ours = kinit.random_uniform_(torch.empty(LEAST), -0.5, 0.5)
    state = torch.get_rng_state()
    assert used
    torch.manual_seed(3)
    check_same(ours, torch.empty(LEAST).uniform_(-0.5, 0.5).clamp_(-0.5, 0.5))
    assert torch.equal(state, torch.get_rng_state())


def test_where_torch_makes_other_numbers(monkeypatch):
    """A torch whose `uniform_` makes other numbers of the same bits keeps drawing them."""
    draw = paired._draw
    monkeypatch.setattr(paired, "_draw", lambda out, *arguments: draw(out, *arguments) or out[-1:].mul_(1 + 2**-23))
    assert not paired._are_those_of_uniform.__wrapped__()
    monkeypatch.setattr(paired, "_draw", draw)
    assert paired._are_those_of_uniform.__wrapped__()


def test_what_takes_too_long_is_given_up(monkeypatch):
    """Where pairs take longer, as with a busy core, `uniform_` draws the rest, with the same values."""
    calls, draw = [], paired._draw

    def slow(out, *arguments):
        calls.append(out.numel())
        time.sleep(0.05)
        draw(out, *arguments)

    monkeypatch.setattr(paired, "_draw", slow)
    generators = [torch.Generator().manual_seed(8) for _ in range(2)]
    ours = torch.empty(LEAST)
    in_pairs = paired.Pairs(generators[0], generator._NATIVE)
    in_pairs.fill(ours, INVERSE)
    assert len(calls) <= 2
    check_same(ours, torch.empty(LEAST).uniform_(-0.25, 0.5, generator=generators[1]))


OTHERS = {
    "a small tensor": lambda: torch.empty(LEAST - 1),
    "a fake one": lambda: fake(LEAST),
    "another device": lambda: torch.empty(LEAST, device="meta"),
}


def fake(size):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(size)


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_is_drawn_without(make, used):
    """Small tensors, subclasses and other devices are left to `uniform_`."""
    assert paired.pairs(make(), INVERSE, None, generator._NATIVE) is None


def test_one_thread_draws_without(used):
    """One thread gains nothing."""
    torch.set_num_threads(1)
    assert paired.pairs(torch.empty(LEAST), INVERSE, None, generator._NATIVE) is None


@pytest.mark.parametrize("default", [torch.float16, torch.float64], ids=str)
def test_the_default_dtype_does_not_matter(default):
    """What torch makes of a Python float plays no part."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert paired._are_those_of_uniform.__wrapped__()
    finally:
        torch.set_default_dtype(before)


def test_a_graph_has_no_pairs(used):
    """torch.compile makes loops of its own of a draw of any size."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: kinit.random_uniform_(t, -0.5, 0.5), fullgraph=True, backend="aot_eager")
    assert bool((compiled(torch.full((LEAST,), 2.0)) < 1).all())
    assert not used
