"""`only=`: which tensors a plan is for, by name or by a function of the name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from torch_kinit import checks
from torch_kinit.model.pending import awaits
from torch_kinit.model.steps import Decision, is_spoken_of, left_alone
from torch_kinit.model.targets import Target, extra_states, stored_names

Only = Iterable[str] | Callable[[str], bool] | None


Decided = list[tuple[Target, list[Decision]]]


def restrict(decided: Decided, only: Any, model: nn.Module) -> Decided:
    """The decisions, and for tensors not all of whose names are chosen that they are left alone."""
    found = [target for target, _ in decided]
    chosen = _chosen_by(only, found) if _is_predicate(only) else _chosen_from(_names(only), found, model)
    return [
        (target, made)
        if all(each) or not (is_spoken_of(target, made) or awaits(target, model))
        else (target, [left_alone(target, each)] * len(made))
        for (target, made), each in zip(decided, chosen, strict=True)
    ]


def _is_predicate(only: Any) -> bool:
    return callable(only) and not isinstance(only, (type, nn.Module))


def _chosen_by(only: Callable[[str], Any], found: list[Target]) -> list[list[bool]]:
    """For each target, of which of its claims a function of the name holds."""
    chosen = [[bool(only(claim.canonical)) for claim in target.claims] for target in found]
    if any(map(any, chosen)):
        return chosen
    return [[bool(only(claim.name)) for claim in target.claims] for target in found]


def _chosen_from(names: set[str], found: list[Target], model: nn.Module) -> list[list[bool]]:
    """For each target, which of its claims have one of the names."""
    known = [[set(stored_names(claim, target, model)) for claim in target.claims] for target in found]
    left = names.difference(*(each for stored in known for each in stored))
    if left and (unknown := sorted(left - extra_states(model))):
        hint = checks.near(unknown[0], {name for stored in known for each in stored for name in each})
        raise ValueError(
            f"`only` has {', '.join(map(repr, unknown))}, which no parameter or buffer of the model is called.{hint}"
        )
    return [[not names.isdisjoint(each) for each in stored] for stored in known]


def _names(only: Any) -> set[str]:
    if isinstance(only, (str, Tensor, nn.Module)) or not isinstance(only, Iterable):
        raise TypeError(
            f"`only` must be a list of names or a function of a name, got {only!r} of type {type(only).__name__}."
        )
    names = list(only)
    if strangers := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"`only` must hold names, which are strings, got one of type {type(strangers[0]).__name__}.")
    return set(names)
