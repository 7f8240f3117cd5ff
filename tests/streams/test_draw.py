"""The draws: their laws, the tensors they fill, and their memory."""

import math

import pytest
import scipy.stats
import torch

import torch_kinit as kinit
from tests.support.draws import every_draw
from tests.support.laws import KS_BOUND, N, Normal, TruncatedAtTwo, Uniform, check_law, ks
from tests.support.memory import PeakMemory

INF = math.inf


# float64 too, where the device has it
def dtypes_of(device):
    return [torch.float32] if device.type == "mps" else [torch.float32, torch.float64]


def test_uniform_has_its_law(device):
    """random_uniform_ draws U[low, high]."""
    for dtype in dtypes_of(device):
        values = kinit.random_uniform_(torch.empty(N, dtype=dtype, device=device), -0.3, 1.2)
        check_law(values, Uniform(-0.3, 1.2))


def test_normal_has_its_law(device):
    """random_normal_ draws N(mean, std**2)."""
    for dtype in dtypes_of(device):
        values = kinit.random_normal_(torch.empty(N, dtype=dtype, device=device), 0.7, 0.02)
        check_law(values, Normal(0.7, 0.02))


def test_truncated_normal_at_two_has_its_law(device):
    """trunc_normal_ draws a normal conditioned on two standard deviations, std counted before truncation."""
    for dtype in dtypes_of(device):
        values = kinit.trunc_normal_(torch.empty(N, dtype=dtype, device=device), -0.5, 0.05)
        check_law(values, TruncatedAtTwo(-0.5, 0.05))


@pytest.mark.parametrize(
    ("values", "law"),
    [
        pytest.param(lambda: torch.randn(N) * 0.05 * 0.8796, TruncatedAtTwo(0, 0.05), id="a plain normal, right std"),
        pytest.param(
            lambda: kinit.trunc_normal_(torch.empty(N), std=0.05 * 0.8796), TruncatedAtTwo(0, 0.05), id="0.8796 twice"
        ),
        pytest.param(lambda: torch.randn(N).mul(0.05).clamp(-0.1, 0.1), TruncatedAtTwo(0, 0.05), id="a clamped normal"),
        pytest.param(
            lambda: torch.nn.init.trunc_normal_(torch.empty(N), std=0.05),
            TruncatedAtTwo(0, 0.05),
            id="torch's absolute bounds",
        ),
        pytest.param(lambda: torch.rand(N) * 1.001, Uniform(0, 1), id="a uniform too wide"),
        pytest.param(lambda: torch.rand(N) * 0.99, Uniform(0, 1), id="a uniform too narrow"),
        pytest.param(lambda: torch.randn(N) + 0.02, Normal(0, 1), id="a normal off by a fiftieth"),
        pytest.param(lambda: torch.rand(N).sub(0.5).mul(math.sqrt(12)), Normal(0, 1), id="a uniform for a normal"),
        pytest.param(lambda: torch.randn(N).index_fill_(0, torch.tensor([5]), INF), Normal(0, 1), id="an infinity"),
    ],
)  # fmt: skip
def test_the_check_of_laws_rejects(values, law):
    """check_law refuses the mistakes that initializers have really made."""
    with pytest.raises(AssertionError):
        check_law(values(), law)


BOUNDS = [
    (-2, 2), (-1, 1), (-0.01, 0.02), (-3, 0.5), (0, INF), (-INF, 0.3), (0.5, 0.6), (0.99, 1.2), (1, 3), (1.01, INF),
    (2, 2.5), (4, 6), (8, INF), (-INF, -8), (20, 20.1), (36, INF), (50, INF), (-60, -50), (-9, 1e9), (-1000, 1000),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_truncated_normal_has_its_law_between_any_bounds(lower, upper, dtype):
    """One-sided, far in a tail, narrow or wide: trunc_normal_ follows SciPy's law, finite and inside its bounds."""
    x = kinit.trunc_normal_(torch.empty(N, dtype=dtype), std=1.0, lower=lower, upper=upper).double()
    assert bool(torch.isfinite(x).all())
    assert float(x.min()) >= lower
    assert float(x.max()) <= upper
    law = scipy.stats.truncnorm(lower, upper)
    assert ks(x, lambda v: torch.from_numpy(law.cdf(v.numpy()))) <= KS_BOUND
    expected = law.std()
    assert abs(float(x.std()) / expected - 1) <= 0.02, (float(x.std()), expected)


@pytest.mark.parametrize("lower", [1.0, 2.0, 5.0, 8.0, 37.0, 100.0])
def test_a_tail_does_not_repeat_values(lower):
    """A tail's float64 values are all different: no CDF has underflowed and none is stuck at a bound."""
    x = kinit.trunc_normal_(torch.empty(N, dtype=torch.float64), std=1.0, lower=lower, upper=INF)
    assert x.unique().numel() == N


@pytest.mark.parametrize(("lower", "upper"), [(-2, 2), (0.2, 9), (3, INF), (8, INF)])
def test_float32_values_repeat_only_as_its_uniforms_do(lower, upper):
    """No float32 value is drawn more often than the 2**24 uniforms and the values' spacing explain."""
    x = kinit.trunc_normal_(torch.empty(N), std=1.0, lower=lower, upper=upper)
    _, counts = x.unique(return_counts=True)
    spacing = 2.0 ** (math.frexp(max(abs(lower), 1))[1] - 24)
    hazard = scipy.stats.truncnorm(lower, upper).pdf(max(lower, 0) + 1e-9)
    expected = N * max(spacing * hazard, 2.0**-23)
    assert int(counts.max()) <= expected + 6 * math.sqrt(expected) + 4


def test_wide_bounds_are_a_plain_normal():
    """Bounds of 1000 standard deviations give no outliers: kurtosis is 3 (pytorch issue 155588 had 28,000)."""
    x = kinit.trunc_normal_(torch.empty(1 << 22), std=1.0, lower=-1000, upper=1000).double()
    assert abs(float((x**4).mean() / (x**2).mean() ** 2) - 3) < 6 * math.sqrt(24 / x.numel())
    assert float(x.abs().max()) < 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize(
    ("draw", "low", "high"),
    [
        pytest.param(lambda t: kinit.trunc_normal_(t, std=0.05), -0.1, 0.1, id="truncated"),
        pytest.param(lambda t: kinit.trunc_normal_(t, 0.3, 0.1, lower=-1.5, upper=1.7), 0.15, 0.47, id="shifted"),
        pytest.param(lambda t: kinit.trunc_normal_(t, std=1.0, lower=3, upper=INF), 3.0, 9.0, id="tail"),
        pytest.param(lambda t: kinit.random_uniform_(t, -0.05, 0.07), -0.05, 0.07, id="uniform"),
        pytest.param(lambda t: kinit.random_uniform_(t, 1 / 3, 2 / 3), 1 / 3, 2 / 3, id="uniform thirds"),
    ],
)
def test_rounding_does_not_cross_a_bound(draw, low, high, dtype, device):
    """A half- or quarter-precision value lies inside the law's bounds, which the dtype may not have."""
    values = draw(torch.empty(N, dtype=dtype, device=device)).double()
    assert float(values.min()) >= low
    assert float(values.max()) <= high
    assert values.unique().numel() > 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_draw
def test_half_precision_is_the_float32_draw_rounded_once(draw, dtype, device):
    """With one seed, a half-precision tensor is the float32 one rounded, up to the clamp at the bounds."""
    shape = (300, 500)
    seeded = [torch.Generator(device).manual_seed(7) for _ in range(2)]
    half = draw(torch.empty(shape, dtype=dtype, device=device), generator=seeded[0])
    full = draw(torch.empty(shape, device=device), generator=seeded[1])
    rounded = full.to(dtype)
    assert torch.equal(half, rounded.clamp(half.min(), half.max()))
    assert float((half - rounded).abs().max()) <= torch.finfo(dtype).eps * float(rounded.abs().max())  # one spacing


VIEWS = {
    "contiguous": lambda d: torch.zeros(40, 30, 8, device=d),
    "transposed": lambda d: torch.zeros(40, 240, device=d).t(),
    "channels_last": lambda d: torch.zeros(8, 6, 20, 10, device=d).to(memory_format=torch.channels_last),
    "every second": lambda d: torch.zeros(160, 120, device=d)[::2, 1::2],
    "a slice": lambda d: torch.zeros(90, 110, device=d)[5:85, 3:-7],
    "permuted": lambda d: torch.zeros(20, 30, 8, 2, device=d).permute(2, 0, 3, 1),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_draw
def test_every_value_of_a_view_is_drawn_and_none_beside_it(draw, make, dtype, device, monkeypatch):
    """Strided views are filled whole, piece by piece too, and what lies between their values stays."""
    for piece in (1 << 30, 100):  # in one piece, and in many
        for name in ("_CACHE_CHUNK", "_SCRATCH_CHUNK", "_TAIL_CHUNK"):
            monkeypatch.setattr(kinit.streams.generator, name, piece)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        view = make(device).to(dtype)
        whole = torch.zeros(view.untyped_storage().nbytes() // view.element_size(), dtype=dtype, device=device)
        view = whole.as_strided(view.size(), view.stride(), view.storage_offset())
        draw(view)
        assert bool((view != 0).float().mean() > 0.99)
        drawn = view.clone()
        view.zero_()
        assert bool((whole == 0).all())
        assert drawn.unique().numel() > 25


@every_draw
def test_scalars_and_empty_tensors(draw, device):
    """0-d tensors get a value; zero-size and meta tensors are returned as they are."""
    scalar = torch.zeros((), device=device)
    assert draw(scalar) is scalar
    assert float(scalar) != 0
    for empty in (torch.empty(0, device=device), torch.empty(3, 0, 2, device=device), torch.empty(5, 5, device="meta")):
        assert draw(empty) is empty


@every_draw
def test_gradients_are_not_recorded(draw, device):
    """Leaves that require gradients are filled in place and stay leaves."""
    leaf = torch.nn.Parameter(torch.zeros(10, 10, device=device))
    version = leaf._version
    assert draw(leaf) is leaf
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert leaf.grad_fn is None
    assert leaf._version > version


@every_draw
def test_the_generator_reaches_every_draw(draw, device):
    """With a generator the global one is neither read nor moved; without one it is used."""
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        states.append(draw(torch.empty(200, 30, device=device), generator=torch.Generator(device).manual_seed(5)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*states)
    other = draw(torch.empty(200, 30, device=device), generator=torch.Generator(device).manual_seed(6))
    assert not torch.equal(other, states[0])
    torch.manual_seed(3)
    first = draw(torch.empty(200, 30, device=device))
    torch.manual_seed(3)
    assert torch.equal(first, draw(torch.empty(200, 30, device=device)))


@every_draw
def test_a_cpu_generator_fills_any_device(draw, device):
    """A CPU generator gives the same values on the CPU and, drawn there and copied, on an accelerator."""
    there = draw(torch.empty(300, 20, device=device), generator=torch.Generator().manual_seed(1))
    here = draw(torch.empty(300, 20), generator=torch.Generator().manual_seed(1))
    assert torch.equal(there.cpu(), here)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@every_draw
def test_memory_beside_the_tensor_is_bounded(draw, dtype, request):
    """A draw for many values allocates at most 16 MiB at a time beside them."""
    tensor = torch.empty(6 << 20 if "tail" in request.node.name else 32 << 20, dtype=dtype)
    with PeakMemory(tensor) as memory:
        draw(tensor)
    assert memory.peak <= 16 << 20, memory.peak


def test_std_zero_gives_the_mean():
    """A law without spread is its mean, rounded to the dtype."""
    for draw in (kinit.random_normal_, kinit.trunc_normal_):
        assert bool((draw(torch.empty(5, dtype=torch.bfloat16), 0.1, 0.0) == torch.tensor(0.1).bfloat16()).all())


def test_the_number_of_threads_does_not_change_a_draw():
    """One thread and two draw the same normal values, of a size that leaves a few at the end of the pieces, too."""
    count, threads = (1 << 16) + 5, torch.get_num_threads()
    drawn = []
    for used in (1, 2):
        torch.set_num_threads(used)
        drawn.append(kinit.random_normal_(torch.empty(count), generator=torch.Generator().manual_seed(0)))
    torch.set_num_threads(threads)
    assert torch.equal(*drawn)
