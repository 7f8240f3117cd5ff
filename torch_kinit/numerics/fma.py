"""a*b + c rounded once in float32, on the CPU, in place: what a compiler makes of a sum and a product there.

torch's kernels for AVX2 and later compute addcmul and add(alpha=) with the fused instruction, those without it round
twice; no document promises either, so `is_fused` tries. Without it the sum is taken in float64, where the product
is exact. That rounds twice, which shows only where the float64 sum, inexact, falls on the middle of two float32
numbers: with chances of 2**-29 a value, and not at all while c is below 64 times a's share of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

# One value, vectors of every width with and without a remainder, and enough for several threads.
_PROBED = (1, 3, 7, 8, 15, 16, 31, 33, 64, 101, 70001)


def fma_(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Write a*b + c into `a`."""
    if a.dtype != torch.float32 or is_fused():
        return torch.addcmul(c, a, b, out=a)
    return a.copy_(a.double().mul_(b).add_(c))


def polynomial(coefficients: Sequence[float], x: Tensor, out: Tensor) -> Tensor:
    """Write the polynomial of `coefficients`, the leading one first, into `out`, by Horner's rule in fused steps.

    Of a float64 `x` the steps are torch's addcmul, fused or not. `out` may be `x` if the degree is one.
    """
    leading, second, *rest = coefficients
    if x.dtype == torch.float32 and not is_fused():
        return _polynomial_by_float64(coefficients, x, out)
    constants = torch.tensor([second, *rest], dtype=x.dtype, device="cpu").unbind()
    torch.add(constants[0], x, alpha=leading, out=out)
    for constant in constants[1:]:
        torch.addcmul(constant, out, x, out=out)
    return out


def _polynomial_by_float64(coefficients: Sequence[float], x: Tensor, out: Tensor) -> Tensor:
    leading, *rest = torch.tensor(coefficients, dtype=x.dtype, device="cpu").tolist()
    wide = x.double()
    step = torch.full_like(wide, leading)
    for constant in rest:
        out.copy_(step.mul_(wide).add_(constant))
        step.copy_(out)
    return out


def sqrt_(x: Tensor) -> Tensor:
    """Replace positive numbers by their square roots: of float32, correctly rounded; torch's are off for a fifth.

    Three roundings in float64 add up to less than 2**-51; no root is nearer to the middle of two float32 numbers, whose
    square has 50 bits. (torch's sqrt, unlike its rsqrt, also shares small tensors among its threads.)
    """
    if x.dtype == torch.float64:
        return x.sqrt_()
    wide = x.double()
    return x.copy_(wide.mul_(wide.rsqrt()))


@cache
def is_fused() -> bool:
    """Whether torch's float32 kernels round a*b + c once, in each form that is used here."""
    return all(_rounds_once(size) for size in _PROBED)


def _rounds_once(size: int) -> bool:
    # (1 + e)**2 - (1 + 2e) is e**2 if rounded once, and 0 if the square is rounded first.
    e = torch.finfo(torch.float32).eps
    a = torch.full((size,), 1 + e, dtype=torch.float32, device="cpu")
    c = torch.full_like(a, -1 - 2 * e)
    sums = [
        torch.addcmul(c, a, a),
        torch.addcmul(c[0], a, a),
        torch.add(c[0], a, alpha=1 + e),
        torch.addcmul(c, a, a, out=a.clone()),
    ]
    return all(bool((s == e * e).all()) for s in sums)
