"""Initializers as text, "trunc_normal(std=0.02)": read as data, never evaluated."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch_kinit import checks
from torch_kinit.streams.keras_seed import KerasSeed
from torch_kinit.streams.key import Key

_LONGEST = 10_000  # characters of a text that is read
_SOURCES = {"Key": Key, "KerasSeed": KerasSeed}
_WAY_OUT = (
    "It is read as data, as a plan prints it: a name, then arguments such as std=0.02 whose values are numbers, inf, "
    "text, True, None, tuples, lists or other initializers. Arrays and functions are given themselves, not as text."
)


class Call(NamedTuple):
    """What a text says: a name, and the arguments by position and by name."""

    name: str
    values: list[Any]
    arguments: dict[str, Any]


def read_call(text: str, initializer: Callable[[Call], Any]) -> Call:
    """The call that `text` is, without making it; `initializer` gives the function that an argument names.

    Raises:
        ValueError: the text is no call of a name with plain values.

    Example:
        >>> read_call("trunc_normal(std=0.02, upper=inf)", initializer=print)
        Call(name='trunc_normal', values=[], arguments={'std': 0.02, 'upper': inf})
    """
    try:
        if len(text) > _LONGEST:
            raise SyntaxError(f"it has {len(text)} characters")
        return _call_of(ast.parse(text.strip(), mode="eval").body, initializer)
    except (SyntaxError, RecursionError, MemoryError) as error:
        why = f" ({error.msg})" if isinstance(error, SyntaxError) else ""
        raise ValueError(f"Could not read the initializer {checks.short(text)}{why}. {_WAY_OUT}") from None


def _call_of(node: ast.expr, initializer: Callable[[Call], Any]) -> Call:
    if not isinstance(node, ast.Call) or not isinstance(node.func, (ast.Name, ast.Attribute)):
        raise SyntaxError("it is not a name with arguments")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise SyntaxError(f"{keyword.arg} is given twice" if keyword.arg else "** is no argument")
        arguments[keyword.arg] = _value_of(keyword.value, initializer)
    return Call(ast.unparse(node.func), [_value_of(each, initializer) for each in node.args], arguments)


def _value_of(node: ast.expr, initializer: Callable[[Call], Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.Name(id="inf"):
            return math.inf
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant() | ast.Name(id="inf")):
            value = _value_of(node.operand, initializer)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return -value if isinstance(node.op, ast.USub) else value
        case ast.Tuple():
            return tuple(_value_of(each, initializer) for each in node.elts)
        case ast.List():
            return [_value_of(each, initializer) for each in node.elts]
        case ast.Name() if node.id != "nan":
            return initializer(Call(node.id, [], {}))
        case ast.Call():
            call = _call_of(node, initializer)
            source = _SOURCES.get(call.name)
            return source(*call.values, **call.arguments) if source else initializer(call)
    raise SyntaxError(f"{checks.short(ast.unparse(node))} is no plain value")
