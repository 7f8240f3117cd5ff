"""Layers of other packages, known by the names of their classes: the packages themselves are never imported."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from torch_kinit.layers.known import Known
from torch_kinit.layers.variable import Entry, InitializerOf, Options, Twins, Variable, entry, initializers
from torch_kinit.torch_internals import tensors_of

_found: weakref.WeakKeyDictionary[type, tuple[Known, ...]] = weakref.WeakKeyDictionary()


@functools.cache
def _table_of(package: str) -> list[Known]:
    """The rows for a package; their tables are read when a class of it is met, since most models have none."""
    if package == "transformers":
        from torch_kinit.layers.of_transformers import ROWS
    elif package in ("timm", "torchvision"):
        from torch_kinit.layers.of_vision import ROWS
    else:
        return []
    return [row for row in ROWS if row.package == package]


def rows_of(cls: type) -> tuple[Known, ...]:
    """The rows that speak of a class by its package and name, the first one first."""
    rows = _found.get(cls)
    if rows is None:
        package = cls.__module__.partition(".")[0]
        rows = _found[cls] = tuple(row for row in _table_of(package) if row.is_of(cls.__name__))
    return rows


def variables_of(module: nn.Module, bases: tuple[type, ...]) -> dict[str, Variable]:
    """What the rows for some bases of a module's class, the nearest first, say of its tensors, by their names."""
    variables: dict[str, Variable] = {}
    for cls in bases:
        if rows := rows_of(cls):
            for name, tensor in _tensors(module, any(row.inside for row in rows)):
                said = (row.variable(module, name, tensor) for row in rows if name not in variables)
                if (variable := next(filter(None, said), None)) is not None:
                    variables[name] = variable
    return variables


def _tensors(module: nn.Module, inside: bool) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a module holds, and those of the modules in it if they are asked for."""
    yield from tensors_of(module).items()
    for path, child in module.named_children() if inside else ():
        yield from ((f"{path}.{name}", tensor) for name, tensor in tensors_of(child).items())


def _conv1d(m: Any, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    """GPT-2's Conv1D is a Dense whose kernel is stored as Keras stores it."""
    variables = Variable("kernel", "weight", "keras"), Variable("bias", "bias")
    return [entry("Dense", (m.nx,), units=m.nf, **initializers(m, variables, initializer_of))]


def twins_for(cls: type) -> Twins | None:
    """From a module of this class to the Keras layers that it stands for; None if there are none."""
    return _conv1d if (cls.__module__, cls.__name__) == ("transformers.pytorch_utils", "Conv1D") else None
