"""Numbers too small to be normal, which JAX and TensorFlow replace by zero on the CPU, but in float16."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(value: float, dtype: torch.dtype) -> float:
    """`value` in `dtype`; 0 if it is subnormal, and not of float16, which is computed in float32."""
    number = torch.tensor(value, dtype=dtype, device="cpu").item()
    return number if dtype == torch.float16 or abs(number) >= torch.finfo(dtype).tiny else 0.0


def flush_(x: Tensor, *scales: float) -> Tensor:
    """Replace subnormal values of `x` by zero, if the numbers it was made from are so small that there can be any."""
    tiny = torch.finfo(x.dtype).tiny
    # A sum of products with units of 2**-24 is no smaller, if not zero.
    if x.dtype != torch.float16 and any(0 < abs(scale) < tiny * 2.0**60 for scale in scales):
        x.mul_(x.abs() >= tiny)
    return x


def affine_(x: Tensor, shift: float, scale: float) -> Tensor:
    """Scale, then shift, each rounded."""
    flush_(x.mul_(scale), shift, scale)
    return flush_(x.add_(shift), shift, scale)
