"""What MODULE:NAME stands for, and the model that it makes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from torch_kinit import checks


def imported(address: str) -> Any:
    """What stands at MODULE:NAME.

    Raises:
        ValueError: it cannot be imported, whatever the module does, or the module has no such name.
    """
    module_name, colon, name = address.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(f"Expected MODULE:NAME such as torch.nn:Transformer, got {address!r}.")
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"Cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except (Exception, SystemExit) as error:
            hint = checks.near(part, dir(found)) if isinstance(error, AttributeError) else f" {error}"
            raise ValueError(f"{module_name} has no {name!r}.{hint}") from error
    return found


def made_model(address: str, settings: Mapping[str, Any]) -> nn.Module:
    """The model that the factory at MODULE:NAME makes; a module that stands there is taken as it is.

    Raises:
        ValueError: `imported` does, the factory raises or exits, or what it gives is no module.
    """
    factory = imported(address)
    if isinstance(factory, nn.Module) and not settings:
        return factory
    if not callable(factory):
        raise ValueError(f"{address} is not callable.")
    try:
        model = factory(**settings)
    except (Exception, SystemExit) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise ValueError(f"{address}({shown}) raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{address} gave a {type(model).__name__}, not a torch.nn.Module.")
    return model
