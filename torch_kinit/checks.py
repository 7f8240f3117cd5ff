"""What an argument must be, said in one sentence where it is not."""

from __future__ import annotations

import difflib
import itertools
import math
import operator
import reprlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_kinit.shards import is_distributed, sharding


class _Short(reprlib.Repr):
    """Python's own short form, with tensors, arrays and modules by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 120
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 3
        self.maxlevel = 3

    def repr1(self, x: Any, level: int) -> str:
        kind = type(x).__name__
        if isinstance(x, nn.Module):
            return f"{kind}(...)"
        try:
            if isinstance(x, torch.Tensor) or (hasattr(x, "__array__") and not isinstance(x, type)):
                return f"<{kind} of shape {reprlib.repr(tuple(x.shape))}>"
            if isinstance(x, dict):
                return self.repr_dict(x, level)
            return super().repr1(x, level)
        except Exception:  # an int of too many digits, a user's own class
            return f"<{kind}>"


_SHORT = _Short()


def short(value: object) -> str:
    """`repr(value)`, cut to what fits in a sentence whatever the value is.

    Example:
        >>> short("he_normal"), short(list(range(100000))), short({"weight": torch.zeros(1000, 1000)})
        ("'he_normal'", '[0, 1, 2, ...]', "{'weight': <Tensor of shape (1000, 1000)>}")
    """
    return _SHORT.repr(value)


def cut(text: str, longest: int = 120) -> str:
    """A text without line breaks, with its middle left out if it is long."""
    half = longest // 2
    return " ".join((text if len(text) <= longest else f"{text[:half]}...{text[-half:]}").split())


def listed(names: Iterable[str], most: int = 6) -> str:
    """The first of some names, and how many more there are.

    Example:
        >>> listed(map(str, range(300)), most=3)
        '0, 1, 2 and 297 more'
    """
    every = list(names)
    shown = ", ".join(cut(name, 100) for name in every[:most])
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown


def bounded(lines: Sequence[str], room: int = 1000) -> list[str]:
    """The first of some lines, as many as have room in a message, and how many more there are."""
    ends = itertools.accumulate(len(line) + 1 for line in lines)
    fit = max(1, sum(end <= room for end in ends))
    return [*lines[:fit], *([f"  ... and {len(lines) - fit} more"] if len(lines) > fit else [])]


def near(name: str, accepted: Iterable[str]) -> str:
    """A hint such as " Did you mean 'he_normal'?", or nothing."""
    others = [a for a in accepted if a != name]
    close = [a for a in others if a.casefold() == name.casefold()]
    close = close or (difflib.get_close_matches(name, others, n=3, cutoff=0.6) if len(name) < 200 else [])
    return f" Did you mean {' or '.join(map(short, close[:3]))}?" if close else ""


def warn(message: str) -> None:
    """Warn at the line outside this package from which it was called."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


@contextmanager
def context(text: str) -> Iterator[None]:
    """Say in an error where it was raised: before its message, if that is all it has, or else in a note."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (TypeError, ValueError)) and len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (f"{text}: {error.args[0]}",)
        else:
            error.add_note(text)
        raise


def module(value: object, name: str = "model") -> None:
    """Refuse a `model` that is no module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"`{name}` must be a torch.nn.Module, got {short(value)} of type {type(value).__name__}.")


def choice(name: str, value: object, accepted: Iterable[str]) -> None:
    """Refuse a `value` that is not one of the `accepted` strings."""
    accepted = tuple(accepted)
    if value not in accepted:
        hint = near(value, accepted) if isinstance(value, str) else ""
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, accepted))}, got {short(value)}.{hint}")


def boolean(name: str, value: object) -> None:
    """Refuse a `value` that is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {short(value)}.")


def number(name: str, value: object, *, infinite: bool = False) -> float:
    """`value` as a float; NaN always, and infinity unless `infinite`, are refused."""
    if isinstance(value, (bool, str, torch.Tensor)) or not hasattr(value, "__float__"):
        raise TypeError(f"`{name}` must be a number, got {short(value)} of type {type(value).__name__}.")
    try:
        as_float = float(value)
    except OverflowError:
        raise ValueError(f"`{name}` must fit in a float, got a number beyond 1.8e308.") from None
    if math.isnan(as_float) or (math.isinf(as_float) and not infinite):
        raise ValueError(f"`{name}` must be {'a number' if infinite else 'finite'}, got {short(value)}.")
    return as_float


def array(value: object) -> torch.Tensor:
    """`value` as a tensor; NumPy may hold it in ways torch cannot take: backwards, or not to be written to."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if hasattr(value, "__array__"):
        own = value.__array__().copy()
        if own.dtype.name == "bfloat16":  # of ml_dtypes, as Keras gives it
            return torch.as_tensor(own.view("int16"), device="cpu").view(torch.bfloat16)
        return torch.as_tensor(own, device="cpu")
    # A list has no dtype of its own, and torch's default may be narrower than what is filled.
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


def integer(name: str, value: Any, wanted: str = "an int") -> int:
    """`value` as an int; NumPy's are taken, True and False are not, nor such tensors."""
    truth = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    try:
        if truth:
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be {wanted}, got {short(value)} of type {type(value).__name__}.") from None


def spread(name: str, value: object) -> float:
    """`value` as a finite float that is not negative."""
    as_float = number(name, value)
    if as_float < 0:
        raise ValueError(f"`{name}` must not be negative, got {short(value)}.")
    return as_float


def interval(
    low_name: str, low: object, high_name: str, high: object, *, infinite: bool = False
) -> tuple[float, float]:
    """`low` and `high` as floats with low < high."""
    a, b = number(low_name, low, infinite=infinite), number(high_name, high, infinite=infinite)
    if not a < b:
        raise ValueError(
            f"`{low_name}` must be less than `{high_name}`, got {low_name}={short(low)}, {high_name}={short(high)}."
        )
    return a, b


def tensor(value: object, name: str = "tensor") -> torch.Tensor:
    """`value` if it is a tensor that an initializer can fill in place."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {short(value)} of type {type(value).__name__}.")
    if not torch.compiler.is_compiling() and is_lazy(value):
        raise ValueError(f"`{name}` is lazy and has no shape yet: run one forward pass of the model first.")
    if value.is_quantized or value.layout != torch.strided:
        kind = "quantized" if value.is_quantized else str(value.layout)
        raise TypeError(f"`{name}` must be a dense (strided) tensor, got a {kind} one.")
    if not value.dtype.is_floating_point or torch.finfo(value.dtype).min >= 0:
        raise TypeError(f"`{name}` must have a real floating dtype, got {value.dtype}.")
    if not torch.compiler.is_compiling() and value.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"`{name}` was made in torch.inference_mode() and can only be filled there; "
            "initialize inside that context, or give a .clone()."
        )
    for placement in value.placements if is_distributed(value) else ():  # type: ignore[attr-defined]
        sharding(placement, name)
    if _overlaps(value):
        raise ValueError(
            f"`{name}` of shape {tuple(value.shape)} and strides {value.stride()} holds the same memory more than "
            "once (an expanded or overlapping view); fill the tensor it was made from, or a .clone()."
        )
    return value


def _overlaps(value: torch.Tensor) -> bool:
    """Whether two indices may share memory: a stride smaller than what the finer dimensions span."""
    if value.is_contiguous():
        return False
    strides = list(zip(value.stride(), value.shape, strict=True))
    if torch.compiler.is_compiling():  # which cannot sort symbolic strides
        return any(stride == 0 and size > 1 for stride, size in strides)
    span = 1
    for stride, size in sorted(strides):
        if size > 1 and stride < span:
            return True
        span += stride * (size - 1)
    return False
