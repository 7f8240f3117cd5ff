"""What a rule matches, and what it says: the rule dict's keys and values, and Keras' defaults."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.names import recipe
from torch_kinit.initializers.recipe import Recipe, array_
from torch_kinit.model.targets import Claim, Owner, canonical_paths

# Keras' initializer for each role, where a layer does not have its own (an LSTM's bias has: unit_forget_bias).
KERAS_DEFAULTS: dict[str, str] = {
    "kernel": "glorot_uniform",
    "depthwise_kernel": "glorot_uniform",
    "recurrent_kernel": "orthogonal",
    "projection_kernel": "glorot_uniform",
    "embeddings": "random_uniform",
    "bias": "zeros",
    "second_bias": "zeros",
    "gamma": "ones",
    "beta": "zeros",
    "alpha": "zeros",
    "moving_mean": "zeros",
    "moving_variance": "ones",
    "num_batches_tracked": "zeros",
}

# Keras calls a depthwise layer's weight "kernel" too, and its argument "depthwise_initializer".
_ALSO = {"depthwise_kernel": ("kernel",)}


class UnusedRuleError(ValueError):
    """A rule, or one of its roles, matched nothing in the model."""


class UncoveredParameterError(ValueError):
    """A parameter has no rule and no Keras default."""


class TiedParameterError(ValueError):
    """Two layers share a parameter, and rules ask for different initializers of it."""


class Skip:
    """The value of a rule that leaves parameters as they are: `kinit.skip`."""

    def __repr__(self) -> str:
        return "kinit.skip"


skip = Skip()
Value = Recipe | Skip


@dataclass
class Rule:
    """One entry of a rule dict, and what it has matched so far; `full` if its key names wrappers, too."""

    key: Any
    label: str
    bare: Value | None
    roles: dict[str, Value]
    full: bool = False
    matched: bool = False
    roles_used: set[str] = field(default_factory=set)
    roles_seen: set[str] = field(default_factory=set)

    def value_for(self, claim: Claim) -> Value | None:
        """What this rule says of a parameter, if it says anything."""
        by_name = self._matches_text(claim.name if self.full else claim.canonical)
        if not by_name and not any(map(self._matches_module, claim.modules)):
            return None
        if self.bare is not None:
            if not isinstance(self.bare, Skip):  # which leaves whole layers alone, statistics included
                if not by_name and not claim.main:
                    return None
                if claim.buffer and self.key not in (claim.name, claim.canonical):
                    return None  # a glob means weights, not a norm's statistics
            self.matched = True
            return _as_named(self.bare) if by_name else self.bare
        self.matched = True
        if claim.role is not None:
            self.roles_seen.add(claim.role)
            for role in (claim.role, *_ALSO.get(claim.role, ())):
                if role in self.roles:
                    self.roles_used.add(role)
                    return self.roles[role]
        return None

    def value_for_buffer(self, claim: Claim, unused: bool) -> Value | None:
        """What this rule says of a buffer of no layout, which only `skip` and an otherwise `unused` rule speak of.

        That a glob for biases also fits the name of a mask, "attention.bias", does not mean the mask.
        """
        by_name = self._matches_text(claim.name if self.full else claim.canonical)
        if isinstance(self.bare, Skip):
            found = by_name or any(map(self._matches_module, claim.modules))
        else:
            found = by_name and unused and self.bare is not None
        if not found or self.bare is None:
            return None
        self.matched = True
        return _as_named(self.bare)

    def _matches_text(self, text: str) -> bool:
        if isinstance(self.key, re.Pattern):
            return self.key.fullmatch(text) is not None
        return isinstance(self.key, str) and (text == self.key or fnmatch.fnmatchcase(text, self.key))

    def _matches_module(self, owner: Owner) -> bool:
        if isinstance(self.key, type):
            return isinstance(owner.module, self.key)
        return self._matches_text(owner.path if self.full else owner.canonical)


def _as_named(value: Value) -> Value:
    """An array given to a parameter by its own name has torch's shape; given to a role, Keras'."""
    if isinstance(value, Recipe) and value.function is array_:
        return Recipe(value.function, {**value.arguments, "layout": "torch"})
    return value


def parse_rules(rules: Mapping[Any, Any] | None) -> list[Rule]:
    """Read a rule dict, refusing keys and values that mean nothing."""
    if rules is None:
        return []
    if not isinstance(rules, Mapping):
        raise TypeError(f"`rules` must be a dict of rules, got {rules!r} of type {type(rules).__name__}.")
    return [_parse_rule(key, value) for key, value in rules.items()]


def _parse_rule(key: Any, value: Any) -> Rule:
    if isinstance(key, type) and issubclass(key, nn.Module):
        label = key.__name__
    elif isinstance(key, str):
        label = repr(key)
    elif isinstance(key, re.Pattern) and isinstance(key.pattern, str):
        label = f"re {key.pattern!r}"
    else:
        raise TypeError(
            f"A rule's key must be a module class, a glob over names or a compiled regex, got {key!r} "
            f"of type {type(key).__name__}."
        )
    if isinstance(value, Mapping) and "class_name" not in value:
        if not value:
            raise ValueError(f"Rule {label} is an empty dict; to leave parameters alone write kinit.skip.")
        return Rule(
            key, label, None, {_role(label, role): _value(f"{label}[{role!r}]", v) for role, v in value.items()}
        )
    return Rule(key, label, _value(label, value), {})


def _role(label: str, role: Any) -> str:
    """The name of a role; Keras' argument names, such as kernel_initializer, are taken too."""
    if not isinstance(role, str):
        raise TypeError(f"In rule {label} a role must be a string such as 'kernel', got {role!r}.")
    if not role.endswith("_initializer"):
        return role
    name = role.removesuffix("_initializer")
    return f"{name}_kernel" if name in ("recurrent", "depthwise") else name


def _value(label: str, value: Any) -> Value:
    if isinstance(value, Skip) or (isinstance(value, str) and value == "skip"):
        return skip
    if value is None:
        raise ValueError(
            f"Rule {label}: None is no initializer; write 'glorot_uniform' (what Keras takes it for) or kinit.skip."
        )
    try:
        return recipe(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Rule {label}: {error}") from None


def settle_names(rules: Iterable[Rule], claims: Sequence[Claim], buffers: Sequence[Claim]) -> None:
    """Let rules that fit no name of the bare model go by the names that it has with its wrappers."""
    if all(claim.canonical == claim.name for claim in (*claims, *buffers)):
        return
    for rule in rules:
        for claim in claims:
            rule.value_for(claim)
        rule.full = not rule.matched and all(rule.value_for_buffer(claim, unused=True) is None for claim in buffers)
        rule.matched = False


def refuse_unused(rules: Iterable[Rule], claims: Iterable[Claim], model: nn.Module) -> None:
    """Raise UnusedRuleError, listing every rule and every role of a rule that matched nothing."""
    problems = []
    for rule in rules:
        if not rule.matched:
            problems.append(f"{rule.label} matches nothing.{_hint(rule.key, claims, model)}")
        problems += [
            f"{rule.label} speaks of {role!r}, which what it matches lacks; "
            f"it has {', '.join(sorted(rule.roles_seen)) or 'no roles'}."
            f"{checks.near(role, rule.roles_seen)}"
            for role in rule.roles
            if rule.matched and role not in rule.roles_used
        ]
    if problems:
        raise UnusedRuleError("\n".join(["Rules that would do nothing:", *(f"  {p}" for p in problems)]))


def _hint(key: Any, claims: Iterable[Claim], model: nn.Module) -> str:
    """What the writer of a rule that matched nothing may have meant."""
    names = {claim.canonical: claim.name for claim in claims}
    if isinstance(key, type):
        inside = [path for path, module in model.named_modules() if isinstance(module, key)]
        if inside:
            own = any(True for _ in model.get_submodule(inside[0]).parameters(recurse=False))
            why = (
                "has no layout; name its parameters, or use register_layout"
                if own
                else ("holds no parameters of its own; name its layers' classes")
            )
            return f" {inside[0] or 'The model'} is one, but {why}."
        return checks.near(key.__name__, {type(m).__name__ for m in model.modules()})
    if isinstance(key, re.Pattern):
        return _near(key.pattern, names) or " A regex must match the whole name."
    modules = dict(model.named_modules(remove_duplicate=False))
    if meant := [path for path, short in canonical_paths(modules.items()).items() if key in (path, short)]:
        own = any(True for path in meant for _ in modules[path].parameters(recurse=False))
        why = "has no main weight" if own else "holds no parameters of its own"
        return f" That module {why}; write '{key}.*'." if key else ""
    if key.rpartition(".")[2] in {type(m).__name__ for m in model.modules()}:
        return " That is the name of a class; give the class itself, such as torch.nn.Linear, as the key."
    paths = {**names, **{owner.canonical: owner.path for claim in claims for owner in claim.modules}}
    inner = [path for path in paths if path.endswith(f".{key}")]
    if key and inner:
        return f" Did you mean {min(inner, key=len)!r}?"
    return _near(key, paths)


def _near(key: str, names: Mapping[str, str]) -> str:
    """What is near to a key among names without those of wrappers or, if nothing is, among those with them."""
    return checks.near(key, names) or checks.near(key, names.values())
