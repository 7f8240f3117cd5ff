"""Initializers of other packages' layers that Keras has nothing like: sinusoids and time steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.initializers.plain import random_uniform_
from torch_kinit.shards import by_the_whole
from torch_kinit.streams.generator import AnyGenerator
from torch_kinit.streams.laws import Entries

_LONGEST = 10_000.0  # the wave length of the last channel, in that of the first
_STRIPS = 1 << 12  # of equal probability, whose midpoints give the moments of a law


def sinusoids_(tensor: Tensor) -> Tensor:
    """Fill `tensor`, of shape (positions, channels), with sines in its first half of channels and cosines in the other.

    The angle grows by 1 a position in the first channel of each half, and by 1/10,000 in the last.

    Raises:
        ValueError: `tensor` is no matrix with an even number of channels, four or more.

    Example:
        >>> import torch
        >>> sinusoids_(torch.empty(2, 4))
        tensor([[0.0000e+00, 0.0000e+00, 1.0000e+00, 1.0000e+00],
                [8.4147e-01, 1.0000e-04, 5.4030e-01, 1.0000e+00]])

    Source: Whisper's encoder; Vaswani et al., "Attention Is All You Need", 2017, where the channels alternate.
    """
    checks.tensor(tensor)
    if tensor.ndim != 2 or tensor.shape[1] % 2 or tensor.shape[1] < 4:
        raise ValueError(f"`tensor` must be (positions, an even number of channels), got shape {tuple(tensor.shape)}.")
    return _fill_with_waves(tensor)


@by_the_whole
def _fill_with_waves(tensor: Tensor) -> Tensor:
    half = tensor.shape[1] // 2
    slower = math.log(_LONGEST) / (half - 1)
    frequencies = torch.tensor([math.exp(-slower * i) for i in range(half)], dtype=torch.float32, device=tensor.device)
    angles = torch.arange(tensor.shape[0], dtype=torch.float32, device=tensor.device)[:, None] * frequencies
    with torch.no_grad():
        return tensor.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))


def time_step_bias_(tensor: Tensor, low: float = 0.001, high: float = 0.1, *, generator: AnyGenerator = None) -> Tensor:
    """Fill `tensor` with b such that log(softplus(b)) is uniform on [log(low), log(high)].

    So that time steps softplus(b) are spread evenly over the orders of magnitude, as state space models start with.

    Args:
        tensor: what to fill.
        low: the least time step, more than 0.
        high: the greatest time step, more than `low`.
        generator: as in `random_normal_`. The logarithms are those of the device, which differ in the last bit.

    Raises:
        ValueError: not 0 < low < high.

    Example:
        >>> import torch
        >>> steps = torch.nn.functional.softplus(time_step_bias_(torch.empty(1000)))
        >>> bool((steps > 0.00099).all() and (steps < 0.101).all())
        True

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023.
    """
    checks.tensor(tensor)
    low, high = checks.number("low", low), checks.number("high", high)
    if not 0 < low < high:
        raise ValueError(f"`low` and `high` must be 0 < low < high, got {low!r} and {high!r}.")
    drawn = random_uniform_(
        torch.empty_like(tensor, dtype=torch.float32), math.log(low), math.log(high), generator=generator
    )
    with torch.no_grad():
        steps = drawn.exp_()
        return tensor.copy_(steps + (-torch.expm1(-steps)).log())  # the inverse of softplus


def time_step_law(arguments: Mapping[str, Any], shape: tuple[int, ...]) -> Entries:
    """The moments and bounds of what `time_step_bias_` gives, by the midpoints of strips of equal probability."""
    low, high = math.log(float(arguments["low"])), math.log(float(arguments["high"]))
    places = [low + (high - low) * (i + 0.5) / _STRIPS for i in range(_STRIPS)]
    values = torch.tensor([_inverse_softplus(math.exp(place)) for place in places], dtype=torch.float64, device="cpu")
    spread = float(values.std(correction=0))
    return Entries(float(values.mean()), spread, _inverse_softplus(math.exp(low)), _inverse_softplus(math.exp(high)))


def _inverse_softplus(step: float) -> float:
    return step + math.log(-math.expm1(-step))
