"""Rule dicts: their keys and values, Keras' defaults, and the errors of rules that do not fit a model."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.names import recipe
from torch_kinit.initializers.recipe import Recipe

# Keras' initializer for each role, where a layer does not have its own (an LSTM's bias has: unit_forget_bias).
KERAS_DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
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
)
_DEFAULT = " default"  # what the rule of a default ends in, after whose it is; that of no other rule does


class UnusedRuleError(ValueError):
    """A rule, or one of its roles, matched nothing in the model.

    Example:
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> try:
        ...     kinit.plan(nn.Linear(3, 2), {"wieght": "he_normal"})
        ... except kinit.UnusedRuleError as error:
        ...     print(error)
        Rules that would do nothing:
          'wieght' matches nothing. Did you mean 'weight'?
    """


class UncoveredParameterError(ValueError):
    """A parameter has no rule and no Keras default, such as a raw nn.Parameter.

    Example:
        >>> from torch import nn
        >>> import torch, torch_kinit as kinit
        >>> model = nn.ParameterDict({"scale": nn.Parameter(torch.ones(3))})
        >>> try:
        ...     kinit.plan(model)
        ... except kinit.UncoveredParameterError as error:
        ...     print(str(error).splitlines()[1])
          scale (3,) of ParameterDict
        >>> kinit.plan(model, {"scale": "ones"})
        <Plan of 1 steps>
    """


class TiedParameterError(ValueError):
    """Two layers share a parameter, and rules ask for different initializers of it.

    Example:
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        >>> model[1].weight = model[0].weight
        >>> try:
        ...     kinit.plan(model, {"0": "he_normal", "1": "he_uniform"})
        ... except kinit.TiedParameterError as error:
        ...     print(str(error).partition(". ")[0])
        0.weight and 1.weight are one tensor, but 0.weight gets he_normal ('0') and 1.weight gets he_uniform ('1')
    """


class Skip:
    """The type of `skip`, the value of a rule that leaves tensors as they are.

    Example:
        >>> import torch_kinit as kinit
        >>> kinit.plan(nn.Linear(3, 2), {"bias": kinit.skip})["bias"].initializer is None
        True
    """

    def __repr__(self) -> str:
        return "kinit.skip"

    def __reduce__(self) -> str:
        return "skip"  # there is one, in torch_kinit


Skip.__module__ = "torch_kinit"  # where pickle looks for it
skip = Skip()
Value = Recipe | Skip


class Decision(NamedTuple):
    """What is to be done with a tensor, and which rule says so; None for one of which nothing is said."""

    value: Value | None
    rule: str

    @property
    def explicit(self) -> bool:
        return self.value is not None and not self.rule.endswith(_DEFAULT)


UNDECIDED = Decision(None, "")


@functools.lru_cache(256)
def keras_default(role: str | None, own: Any = None, origin: str = "Keras") -> Decision:
    """What Keras decides for a variable of a role, whose layer may have a default of its own, or of its authors'."""
    given = KERAS_DEFAULTS.get(role or "") if own is None else own
    return UNDECIDED if given is None else Decision(recipe(given), origin + _DEFAULT)


class Rule(NamedTuple):
    """One entry of a rule dict."""

    key: Any
    label: str
    bare: Value | None
    roles: Mapping[str, Value]

    @property
    def of_classes(self) -> bool:
        """Whether the key is a module class, or several."""
        return isinstance(self.key, (type, tuple))

    def of_role(self) -> Rule:
        """The rule that its key, a role, stands for: its value for this role of every layer."""
        role = role_named(self.key)
        return Rule("*", f"role {checks.short(role)}", None, {role: self.bare} if self.bare is not None else {})


def parse_rules(rules: Mapping[Any, Any] | None) -> list[Rule]:
    """Read a rule dict, refusing keys and values that mean nothing."""
    if not isinstance(rules, Mapping | None):
        raise TypeError(f"`rules` must be a dict of rules, got {checks.short(rules)} of type {type(rules).__name__}.")
    return [_parse_rule(key, value) for key, value in (rules or {}).items()]


def _parse_rule(key: Any, value: Any) -> Rule:
    label = _label(key)
    if not isinstance(value, Mapping) or "class_name" in value:
        return Rule(key, label, _value(label, value), {})
    if not value:
        raise ValueError(f"Rule {label} is an empty dict; to leave parameters alone write kinit.skip.")
    return Rule(
        key, label, None, {_role(label, role): _value(f"{label}[{checks.short(role)}]", v) for role, v in value.items()}
    )


def _label(key: Any) -> str:
    """How a plan and errors name the rule of this key."""
    if is_module_class(key):
        return str(key.__name__)
    if isinstance(key, tuple) and key and all(map(is_module_class, key)):
        return f"({', '.join(cls.__name__ for cls in key)})"
    if isinstance(key, str):
        return checks.short(key)
    if isinstance(key, re.Pattern) and isinstance(key.pattern, str):
        return f"re {checks.short(key.pattern)}"
    wanted = "a module class, a tuple of them, a glob over names, a compiled regex or a role"
    raise TypeError(f"A rule's key must be {wanted}, got {checks.short(key)} of type {type(key).__name__}.")


def is_module_class(key: Any) -> bool:
    """Whether a rule's key is a class of modules."""
    return isinstance(key, type) and issubclass(key, nn.Module)


def _role(label: str, role: Any) -> str:
    """The name of a role in a rule's value."""
    if not isinstance(role, str):
        raise TypeError(f"In rule {label} a role must be a string such as 'kernel', got {checks.short(role)}.")
    return role_named(role)


def role_named(role: str) -> str:
    """The name of a role; Keras' argument names, such as kernel_initializer, are taken too."""
    name = role.removesuffix("_initializer")
    return f"{name}_kernel" if role in ("recurrent_initializer", "depthwise_initializer") else name


def _value(label: str, value: Any) -> Value:
    if isinstance(value, Skip) or (isinstance(value, str) and value == "skip"):
        return skip
    with checks.context(f"Rule {label}"):
        if value is None:
            raise ValueError("None is no initializer; write 'glorot_uniform' (what Keras takes it for) or kinit.skip.")
        return recipe(value)
