"""Rules from files: `load_rules` reads JSON and TOML, whose keys name classes and regexes by text."""

from __future__ import annotations

import importlib
import json
import operator
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from torch_kinit import checks

_QUOTES = 'Keys and texts stand in quotes, a class as "torch.nn:Linear".'


def load_rules(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """The rules in a JSON or TOML file, to be given to `plan` or `apply`.

    The file holds one object (a TOML file is one), rules from top to bottom. Its keys are globs over parameter names
    and module paths; "re:..." for a regex; a class as "torch.nn:Linear", which is imported; or a role for all layers,
    such as "kernel". Its values are what a rule takes: a Keras name or config, "trunc_normal(std=0.02)", a number,
    "skip", or an object from roles to such values.

    Args:
        path: a file whose name ends in .json or .toml.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is neither JSON nor TOML, or has another ending; a key is there twice, names no class that can be
            imported, is no regex, or was broken at its dots because its quotes are missing.
        TypeError: `path` is no path, or a key names something else than a module class.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "rules.toml")
        ...     _ = file.write_text('"torch.nn:Linear" = "he_normal"')
        ...     rules = kinit.load_rules(file)
        >>> rules
        {<class 'torch.nn.modules.linear.Linear'>: 'he_normal'}
        >>> str(kinit.plan(nn.Linear(3, 2), rules)["weight"].initializer)
        'he_normal'
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be a path of a file, got {checks.short(path)} of type {type(path).__name__}.")
    file = Path(path)
    kind = {".json": "JSON", ".toml": "TOML"}.get(file.suffix.lower())
    if kind is None:
        raise ValueError(f"Rules are read from files that end in .json or .toml, got {checks.short(str(file))}.")
    rules: dict[Any, Any] = {}
    written: dict[Any, str] = {}
    for text, value in _read(file, kind).items():
        with checks.context(f"The rules {file}"):
            if kind == "TOML":
                _refuse_broken_key(text, value)
            key = _key_of(text)
            if key in written:
                raise ValueError(f"{checks.short(written[key])} and {checks.short(text)} are the same key.")
        written[key], rules[key] = text, value
    return rules


def _read(file: Path, kind: str) -> Mapping[str, Any]:
    """The object that a file holds."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = tomllib.loads(text) if kind == "TOML" else json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        hint = f". {_QUOTES}" if isinstance(error, (json.JSONDecodeError, tomllib.TOMLDecodeError)) else ""
        if isinstance(error, tomllib.TOMLDecodeError) and "overwrite" in str(error):
            hint = ". A key is there twice."
        raise ValueError(f"The rules {file} are not {kind}: {checks.cut(str(error), 600)}{hint}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"The rules {file} must be one object, got a {type(found).__name__}.")
    return found


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose own reader would keep the last of equal keys in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {checks.short(twice)} is there twice")
    return found


def _refuse_broken_key(key: str, value: Any) -> None:
    """Raise for a table in a table, which TOML makes of a key with dots that has no quotes."""
    path = [key]
    while isinstance(value, Mapping) and value and "class_name" not in value:
        inner, value = next(((k, v) for k, v in value.items() if isinstance(v, Mapping)), next(iter(value.items())))
        path.append(inner)
    if len(path) > 2:
        whole = ".".join(path)
        like = f'"{".".join(path[:-1])}:{path[-1]}" if it is a class, else "{whole}"'
        raise ValueError(f"{checks.short(whole)} has no quotes, so TOML breaks it at its dots; write {like}.")


def _key_of(text: str) -> Any:
    """The key that a text stands for."""
    if text.startswith("re:"):
        try:
            return re.compile(text.removeprefix("re:"))
        except re.error as error:
            raise ValueError(f"The rule {checks.short(text)} is no regex: {error}") from error
    return _class_of(text) if ":" in text else text


def _class_of(address: str) -> type[nn.Module]:
    """Import the class at MODULE:NAME."""
    module_name, _, name = address.partition(":")
    if not module_name or not name:
        raise ValueError(f"A class is written MODULE:NAME, such as torch.nn:Linear, got {checks.short(address)}.")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"Cannot import {checks.short(module_name)}: {checks.cut(f'{type(error).__name__}: {error}', 600)}"
        ) from error
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        hint = checks.near(name, dir(module))
        raise ValueError(f"{module_name} has no {checks.short(name)}.{hint}") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise TypeError(
            f"A rule's key must be a module class, a glob over names or a regex, got {checks.short(found)} for "
            f"{checks.short(address)}."
        )
    return found
