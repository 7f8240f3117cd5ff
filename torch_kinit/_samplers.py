"""Fill a tensor in place with uniform, normal or truncated normal values drawn from a torch.Generator.

These three functions are the only ones that touch a generator; a `Stream` draws for itself, once the law is known
to fit the tensor. They take checked arguments (see `_checks`), know nothing of fans or layers, and hold these
promises for every law, as far as values come from torch's generators:

* One pass of element-wise operations: no rejection, no loop that depends on data, no host synchronization.
* At most 16 MiB beside the tensor, whatever its size, dtype or strides.
* float16, bfloat16 and float8 tensors get the float32 draw, rounded once.
* No value leaves the law's support as the tensor's own dtype can express it, so rounding cannot cross a bound.
* For float32 and narrower dtypes no float64 tensor is made (MPS has none); scalars are computed in Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from torch_kinit.streams import AnyGenerator, Stream

# Values a pass covers at a time. One thread gains from chunks that stay in its L2 cache (256 KiB of float32).
# With several, each operation waits for all of them, long where another process has a core: few large passes,
# over the whole tensor where no scratch memory is needed. Measured on two cores, one of them busy, against
# uniform_: chunks of 2**16 cost 4.2 times, 2**18 3.4, 2**21 1.7, the whole 1.4.
_CACHE_CHUNK = 1 << 16
_SCRATCH_CHUNK = 3 << 20  # 12 MiB of float32
_TAIL_CHUNK = 1 << 18  # a normal's tail keeps five scratch buffers, 10 MiB of float64
# From this many standard deviations on, an interval is a tail: erf is so near 1 there that erfinv would have
# only a few million float32 arguments left (5.3 M at 1, 0.8 M at 2, a thousand at 4).
_TAIL = 1.0
# What a draw can reach, in standard deviations: 5.8 to 6.7 in float32, 8.6 in float64.
_REACH = 9.0

_Law = Callable[[torch.Tensor, torch.Generator | None], object]


def uniform_(tensor: torch.Tensor, low: float, high: float, generator: AnyGenerator) -> torch.Tensor:
    """Fill `tensor` from U[low, high]."""
    work = _work_dtype(tensor.dtype)
    bounds = _representable(low, high, tensor.dtype)
    first, last = _representable(low, high, work)
    if last - first > torch.finfo(work).max:
        raise ValueError(f"`low`={low!r} and `high`={high!r} are further apart than {work} can express.")
    if isinstance(generator, Stream):
        return generator.uniform_(tensor, low, high)

    def law(out: torch.Tensor, generator: torch.Generator | None) -> None:
        out.uniform_(first, last, generator=generator)
        if tensor.dtype != work:
            _clamp_(out, bounds)

    return _fill(tensor, law, generator)


def normal_(tensor: torch.Tensor, mean: float, std: float, generator: AnyGenerator) -> torch.Tensor:
    """Fill `tensor` from N(mean, std**2)."""
    _support(mean, std, -math.inf, math.inf, tensor.dtype)
    if isinstance(generator, Stream):
        return generator.normal_(tensor, mean, std)
    return _fill(tensor, lambda out, g: out.normal_(mean, std, generator=g), generator)


def trunc_normal_(
    tensor: torch.Tensor, mean: float, std: float, lower: float, upper: float, generator: AnyGenerator
) -> torch.Tensor:
    """Fill `tensor` from N(mean, std**2) given that it lies `lower` to `upper` standard deviations from the mean."""
    if isinstance(generator, Stream):
        _support(mean, std, *((lower, upper) if std else (-math.inf, math.inf)), tensor.dtype)
        return generator.trunc_normal_(tensor, mean, std, lower, upper)
    if std == 0:
        _support(mean, std, -math.inf, math.inf, tensor.dtype)
        return _fill(tensor, lambda out, g: out.fill_(mean), generator)
    bounds = _support(mean, std, lower, upper, tensor.dtype)
    if lower == -math.inf and upper == math.inf:
        return normal_(tensor, mean, std, generator)
    if lower + upper < 0:  # mirrored, so that the tail, if it is one, is the upper one
        lower, upper, std = -upper, -lower, -std
    if lower < _TAIL:
        return _fill(tensor, _central(mean, std, lower, upper, bounds), generator)
    return _fill(tensor, _tail(mean, std, lower, upper, bounds), generator, _TAIL_CHUNK)


def _central(mean: float, std: float, lower: float, upper: float, bounds: tuple[float, float]) -> _Law:
    """By the inverse distribution function: sqrt(2) * erfinv(U), U uniform between the bounds' erf."""
    low, high = math.erf(lower / math.sqrt(2)), math.erf(upper / math.sqrt(2))

    def law(out: torch.Tensor, generator: torch.Generator | None) -> None:
        edge = _below_one(out.dtype)  # erfinv(1) is infinite
        out.uniform_(max(low, -edge), min(high, edge), generator=generator)
        out.erfinv_().mul_(std * math.sqrt(2))
        if mean != 0:
            out.add_(mean)
        _clamp_(out, bounds)

    return law


def _tail(mean: float, std: float, lower: float, upper: float, bounds: tuple[float, float]) -> _Law:
    """By the inverse survival function, in the distance d from the lower bound a.

    With Q the survival function of N(0, 1) and T = -log(Q(a+d)/Q(a)), T is a unit exponential cut off at the
    upper bound. d solves  T = d*(a + d/2) - log(M(a+d)/M(a)),  M(x) = Q(x)/pdf(x) = sqrt(pi/2)*erfcx(x/sqrt(2)),
    in which nothing underflows or cancels however far out a is. log Q is concave, so Newton's steps converge
    from the first guess, which is exact to second order in T.
    """
    mills = _mills_ratio(lower)
    hazard = 1 / mills
    slope = min(max(hazard * (hazard - lower), 0.0), 1.0)  # the hazard's derivative; cancels for large a
    longest = math.inf
    if upper < math.inf:
        longest = (upper - lower) * (upper + lower) / 2 - math.log(_mills_ratio(upper) / mills)
    share = -math.expm1(-longest)

    def law(out: torch.Tensor, generator: torch.Generator | None) -> None:
        out.uniform_(0.0, min(share, _below_one(out.dtype)), generator=generator)
        exponential = out.neg_().log1p_().neg_()
        d = 2 * exponential / (hazard + (hazard**2 + 2 * slope * exponential).sqrt_())
        for _ in range(3 if out.dtype == torch.float64 else 2):
            here = torch.special.erfcx((d + lower).mul_(math.sqrt(0.5))).mul_(math.sqrt(math.pi / 2))
            short = exponential - d * (d / 2 + lower) + (here / mills).log_()
            d.add_(short.mul_(here))
        out.copy_(d).mul_(std).add_(mean + std * lower)
        _clamp_(out, bounds)

    return law


def _mills_ratio(x: float) -> float:
    """(1 - cdf(x)) / pdf(x) of N(0, 1), for x > 0."""
    if x < 15:
        return math.sqrt(math.pi / 2) * math.exp(x * x / 2) * math.erfc(x / math.sqrt(2))
    # Its asymptotic series 1/x - 1/x**3 + 3/x**5 - 15/x**7 ...; exp(x*x/2) overflows from 38 on.
    term = total = 1 / x
    for k in range(1, 12):
        term *= -(2 * k - 1) / (x * x)
        total += term
    return total


def _clamp_(out: torch.Tensor, bounds: tuple[float, float]) -> None:
    torch.nn.functional.hardtanh_(out, *bounds)  # clamp_, but vmap has a rule for it


def _below_one(dtype: torch.dtype) -> float:
    return 1 - torch.finfo(dtype).eps / 2


def _support(mean: float, std: float, lower: float, upper: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least and greatest value of `dtype` inside the bounds; an error if the law does not fit in `dtype`."""
    largest = torch.finfo(dtype).max
    least = mean + std * max(lower, min(upper, 0.0) - _REACH)
    most = mean + std * min(upper, max(lower, 0.0) + _REACH)
    if max(-least, most) > largest:
        raise ValueError(
            f"`mean`={mean!r} and `std`={std!r} give values up to {max(-least, most):.3g}, "
            f"which {dtype} cannot hold (its largest is {largest:.3g})."
        )
    if lower == -math.inf and upper == math.inf:
        return -largest, largest
    return _representable(max(mean + std * lower, -largest), min(mean + std * upper, largest), dtype)


def _representable(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least value of `dtype` that is >= low and the greatest that is <= high."""
    info = torch.finfo(dtype)
    if max(-low, high) > info.max:
        raise ValueError(f"{dtype} cannot hold values from {low!r} to {high!r} (its largest is {info.max:.3g}).")
    first = _round(low, info, math.ceil)
    last = _round(high, info, math.floor)
    if first > last:
        raise ValueError(f"{dtype} has no value between {low!r} and {high!r}.")
    return first, last


def _round(value: float, info: torch.finfo, direction: Callable[[float], int]) -> float:
    """`value` moved up (ceil) or down (floor) to a multiple of the spacing that `info`'s dtype has there."""
    exponent = max(math.frexp(value)[1], math.frexp(info.smallest_normal)[1]) - 1
    spacing = math.ldexp(info.eps, exponent)
    return value if spacing == 0 else direction(value / spacing) * spacing


def _work_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fill(tensor: torch.Tensor, law: _Law, generator: torch.Generator | None, chunk: int | None = None) -> torch.Tensor:
    """Run `law` over `tensor`: in place where dtype and device allow it, else through a scratch buffer."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return tensor
    dtype = _work_dtype(tensor.dtype)
    device = tensor.device if generator is None else generator.device
    direct = tensor.dtype == dtype and tensor.device.type == device.type
    if torch.compiler.is_compiling():
        chunk = tensor.numel()  # the compiler makes loops of its own
    elif device.type == "cpu" and torch.get_num_threads() == 1:
        chunk = _CACHE_CHUNK
    elif chunk is None:
        chunk = tensor.numel() if direct else _SCRATCH_CHUNK
    with torch.no_grad():
        for piece in _pieces(tensor, chunk):
            out = piece if direct else torch.empty_like(piece, dtype=dtype, device=device)
            law(out, generator)
            if not direct:
                piece.copy_(out)
                del out  # before the next one is made
    return tensor


def _pieces(tensor: torch.Tensor, limit: int) -> Iterator[torch.Tensor]:
    """Views of at most `limit` values that together are the whole of `tensor`, in the order of its memory."""
    if tensor.numel() <= limit:
        yield tensor
        return
    tensor = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    if tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), limit)
        return
    longest = max(range(tensor.ndim), key=lambda d: tensor.shape[d])
    for half in torch.split(tensor, (tensor.shape[longest] + 1) // 2, dim=longest):
        yield from _pieces(half, limit)
