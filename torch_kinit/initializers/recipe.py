"""An initializer with its arguments: what a plan keeps, compares, prints and writes to JSON."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.initializers import plain, scaled, structured
from torch_kinit.shards import by_the_whole
from torch_kinit.streams.keras_seed import KerasSeed
from torch_kinit.streams.key import Key

Initializer = Callable[..., Any]


@by_the_whole
def array_(tensor: Tensor, value: Any, *, layout: str = "torch") -> Tensor:
    """Fill `tensor` with an array of exactly its shape (in Keras' layout, if `layout` says so)."""
    shape = tuple(checks.array(value).shape)
    view = plain.keras_view(checks.tensor(tensor), layout)
    wanted = tuple(tensor.shape) if layout == "torch" else tuple(view.shape)
    if shape != wanted:
        where = "the parameter's" if layout == "torch" else "Keras' variable's"
        raise ValueError(f"the array has shape {shape}, {where} is {wanted}.")
    return plain.constant_(tensor, value, layout="keras")


_OURS: dict[str, Initializer] = {
    function.__name__: function
    for function in (
        *(plain.zeros_, plain.ones_, plain.constant_, array_, plain.unit_forget_bias_),
        *(plain.random_normal_, plain.random_uniform_, plain.trunc_normal_),
        *(scaled.variance_scaling_, scaled.lecun_normal_, scaled.lecun_uniform_, scaled.glorot_normal_),
        *(scaled.glorot_uniform_, scaled.he_normal_, scaled.he_uniform_),
        *(structured.orthogonal_, structured.identity_, structured.stft_),
    )
}
# Those that draw each value by itself.
ELEMENTWISE = frozenset(
    (
        *(plain.random_normal_, plain.random_uniform_, plain.trunc_normal_),
        *(scaled.variance_scaling_, scaled.lecun_normal_, scaled.lecun_uniform_, scaled.glorot_normal_),
        *(scaled.glorot_uniform_, scaled.he_normal_, scaled.he_uniform_),
    )
)
# Those that give each value the same number.
UNIFORM = frozenset((plain.zeros_, plain.ones_))
# The arguments of each, with their defaults.
PARAMETERS: dict[Initializer, dict[str, Any]] = {
    function: {name: p.default for name, p in inspect.signature(function).parameters.items() if name != "tensor"}
    for function in _OURS.values()
}


@dataclass(frozen=True, eq=False)
class Recipe:
    """An initializer and the arguments it gets: what a plan keeps, compares, prints and writes to JSON."""

    function: Initializer
    arguments: Mapping[str, Any]

    @functools.cached_property
    def ours(self) -> bool:
        """Whether the function is one of this package's."""
        return _OURS.get(getattr(self.function, "__name__", "")) is self.function

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

    def __call__(self, tensor: Tensor, **context: Any) -> None:
        """Fill `tensor`; of the context (layout, fans, generator) pass what is accepted and not settled yet."""
        passed = {k: v for k, v in context.items() if v is not None and self.accepts(k)}
        self.function(tensor, **{**passed, **self.arguments})

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
        if name not in _OURS:
            raise ValueError(f"Unknown initializer {name!r}.{checks.near(name, _OURS)}")
        return cls(_OURS[name], {k: _unplain(v) for k, v in data["arguments"].items()})

    def __str__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or type(self.function).__name__
        shown = [f"{k}={_short(v)}" for k, v in self.arguments.items()]
        if self.ours:
            name = name.rstrip("_")
            if self.function in (plain.constant_, array_):
                shown = [_short(self.arguments.get("value", 0.0))]
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
        return bool(torch.equal(checks.array(a), checks.array(b)))
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
    return f"{value:g}" if isinstance(value, float) else repr(value)


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
    raise ValueError(f"{value!r} of type {type(value).__name__} cannot be written to JSON.")


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
