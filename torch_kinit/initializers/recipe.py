"""An initializer with its arguments: what a plan keeps, compares, prints and writes to JSON."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.initializers.axes import keras_shape, torch_shape
from torch_kinit.initializers.plain import array_, constant_, unit_forget_bias_
from torch_kinit.initializers.table import BY_FUNCTION, PARAMETERS, ROWS, Initializer
from torch_kinit.streams.generator import as_source
from torch_kinit.streams.keras_seed import KerasSeed
from torch_kinit.streams.key import Key
from torch_kinit.streams.laws import Entries, Law
from torch_kinit.streams.source import LawFinder

_LISTED = 64  # values of a list that is printed
OURS = {row.function.__name__: row.function for row in ROWS}


@dataclass(frozen=True, eq=False)
class Recipe:
    """An initializer and the arguments it gets: what a plan keeps, compares, prints and writes to JSON."""

    function: Initializer
    arguments: Mapping[str, Any]

    @functools.cached_property
    def ours(self) -> bool:
        """Whether the function is one of this package's."""
        return OURS.get(getattr(self.function, "__name__", "")) is self.function

    @property
    def settled(self) -> dict[str, Any]:
        """All arguments of a function of ours: those given, and the defaults of the others."""
        return {**PARAMETERS[self.function], **self.arguments}

    def accepts(self, argument: str) -> bool:
        """Whether the function takes an argument of this name."""
        if self.ours:
            return argument in PARAMETERS[self.function]
        try:
            return argument in inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # some builtins have no signature
            return False

    def __call__(self, tensor: Tensor, **context: Any) -> Any:
        """Fill `tensor`; of the context (layout, fans, generator) pass what is accepted and not settled yet."""
        passed = {k: v for k, v in context.items() if v is not None and self.accepts(k)}
        return self.function(tensor, **{**passed, **self.arguments})

    def without_generator(self) -> Recipe:
        """The same, to draw from the source that it is given."""
        return Recipe(self.function, {k: v for k, v in self.arguments.items() if k != "generator"})

    def law_for(self, tensor: Tensor, layout: str = "torch", fans: tuple[int, int] | None = None) -> Law | None:
        """The law of the values that this initializer of ours gives a tensor on the meta device; None if none is known.

        Raises:
            TypeError, ValueError: what filling the tensor would raise.
        """
        layout = self.arguments.get("layout", layout)
        finder, own = LawFinder(), self.arguments.get("generator")
        self.without_generator()(tensor, layout=layout, fans=fans, generator=finder)
        if own is not None:
            as_source(own, tensor.device)
            self(tensor, layout=layout, fans=fans)
        shape = keras_shape(tensor.shape, layout)
        known = BY_FUNCTION[self.function].law
        law = known(self.settled, shape) if known else None
        if law is None and finder.law is None and 0 not in shape:
            return self._entries(shape)
        return law if known or self.function is unit_forget_bias_ else finder.law

    def _entries(self, shape: tuple[int, ...]) -> Law:
        """The moments of values without chance, from the very values."""
        shape = torch_shape(shape) if self.arguments.get("layout") == "torch" else shape
        filled = torch.empty(shape, dtype=torch.float64, device="cpu")
        self(filled, layout="keras")
        spread = float(filled.std(correction=0))
        return Entries(float(filled.mean()), spread, float(filled.min()), float(filled.max()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; only this package's functions with plain arguments can be written."""
        if not self.ours:
            raise ValueError(
                f"{self} cannot be written to JSON: only this package's initializers can. "
                "Use one of them, or build the plan anew where you need it."
            )
        return {"name": self.function.__name__, "arguments": {k: _plain(v) for k, v in self.arguments.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote."""
        name = data["name"]
        if name not in OURS:
            raise ValueError(f"Unknown initializer {checks.short(name)}.{checks.near(name, OURS)}")
        return cls(OURS[name], {k: _unplain(v) for k, v in data["arguments"].items()})

    def __str__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or type(self.function).__name__
        shown = [f"{k}={_short(v)}" for k, v in self.arguments.items()]
        if self.ours:
            name = name.rstrip("_")
            if self.function in (constant_, array_) and "value" in self.arguments:
                others = [f"{k}={_short(v)}" for k, v in self.arguments.items() if k != "value"]
                shown = [_short(self.arguments["value"]), *(others if self.function is constant_ else ())]
        else:
            name = f"{getattr(self.function, '__module__', '?')}.{name}"
        return f"{name}({', '.join(shown)})" if shown else name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        if self.function != other.function or self.arguments.keys() != other.arguments.keys():
            return False
        return all(_same(v, other.arguments[k]) for k, v in self.arguments.items())

    def __hash__(self) -> int:
        return hash((getattr(self.function, "__qualname__", ""), frozenset(self.arguments)))


def _same(a: Any, b: Any) -> bool:
    if is_array(a) and is_array(b):
        first, second = checks.array(a), checks.array(b)
        return a is b or (not (first.is_meta or second.is_meta) and torch.equal(first.cpu(), second.cpu()))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, functools.partial) and isinstance(b, functools.partial):
        return Recipe(a.func, a.keywords) == Recipe(b.func, b.keywords)
    return not is_array(a) and not is_array(b) and bool(a == b)


def is_array(value: Any) -> bool:
    """Whether `value` is a tensor or a NumPy array."""
    return hasattr(value, "__array__") and hasattr(value, "shape") and hasattr(value, "tolist")


def plain_scalar(value: Any) -> Any:
    """`value` with NumPy's scalars made Python's."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain_scalar, value))
    return value.item() if is_array(value) and not tuple(value.shape) else value


def _short(value: Any) -> str:
    if is_array(value) and tuple(value.shape):
        return f"array of shape {tuple(value.shape)}"
    if callable(value):
        return str(Recipe(getattr(value, "func", value), getattr(value, "keywords", {})))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, (list, tuple)):
        return _short_list(value)
    return repr(value)


def _short_list(value: list[Any] | tuple[Any, ...]) -> str:
    """A list or tuple as Python writes it; a long one by its size."""
    if len(value) > _LISTED:
        return f"{type(value).__name__} of {len(value)} values"
    inside = ", ".join(map(_short, value))
    if isinstance(value, list):
        return f"[{inside}]"
    return f"({inside},)" if len(value) == 1 else f"({inside})"


def _plain(value: Any) -> Any:
    if is_array(value):
        value = checks.array(value)
        dtype = str(value.dtype).removeprefix("torch.")
        return {"array": value.tolist(), "dtype": dtype}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, KerasSeed):
        return {"keras_seed": value.seed, "backend": value.backend}
    if isinstance(value, Key):
        return {"key": list(value.words)}  # each fits in the 53 bits that some readers of JSON have
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no infinity
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):  # an initializer that another one is given
        return {"initializer": Recipe(getattr(value, "func", value), getattr(value, "keywords", {})).to_dict()}
    raise ValueError(f"{checks.short(value)} of type {type(value).__name__} cannot be written to JSON.")


def _unplain(value: Any) -> Any:
    if isinstance(value, Mapping) and "float" in value:
        return float(value["float"])
    if isinstance(value, Mapping) and "initializer" in value:
        inner = Recipe.from_dict(value["initializer"])
        return functools.partial(inner.function, **inner.arguments) if inner.arguments else inner.function
    if isinstance(value, Mapping) and "keras_seed" in value:
        return KerasSeed(value["keras_seed"], value["backend"])
    if isinstance(value, Mapping) and "key" in value:
        high, low = value["key"]
        return Key(high << 32 | low)
    if isinstance(value, Mapping):
        return torch.tensor(value["array"], dtype=getattr(torch, value["dtype"]))
    return tuple(_unplain(v) for v in value) if isinstance(value, list) else value
