"""A wildcard that gives random values to what starts from zeros or ones: one warning a plan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch_kinit import checks
from torch_kinit.initializers.recipe import Recipe
from torch_kinit.initializers.table import BY_FUNCTION
from torch_kinit.model.rules import Rule, Value
from torch_kinit.model.targets import Claim

_MAGIC = re.compile(r"[*?[]")
_STEADY = ("gamma", "beta", "alpha", "bias", "second_bias", "moving_mean", "moving_variance")
_NOT_RANDOM = ("zeros_", "ones_", "constant_", "eye_", "dirac_")  # of torch.nn.init
_SHOWN, _LONGEST = 2, 60  # wildcards named in the warning, and characters of an initializer in its examples


def warn_of_random_values(spoken: Mapping[int, tuple[Rule, Value]], claims: Sequence[Claim]) -> None:
    """Warn if a wildcard with a value by itself is the last word, a random one, on what is no weight.

    Args:
        spoken: by the place of each claim, the last rule that speaks of it and its value.
        claims: all claims.
    """
    hit: dict[Any, list[int]] = {}
    for i, (rule, value) in spoken.items():
        if rule.bare is not None and _is_wildcard(rule.key, claims[i]) and _is_random(value):
            hit.setdefault(rule.key, []).append(i)
    sentences = []
    for places in hit.values():
        roles = Counter(claims[i].role for i in places)
        steady = {role: roles[role] for role in _STEADY if role in roles}
        if steady:
            weights = [role for role in roles if role and role not in steady]
            sentences.append(_sentence(*spoken[places[0]], steady, weights))
    if sentences:
        more = f" Wildcards that do the same: {len(sentences) - _SHOWN} more." if len(sentences) > _SHOWN else ""
        checks.warn(" ".join(sentences[:_SHOWN]) + more)


def _sentence(rule: Rule, value: Value, steady: Mapping[str, int], weights: Sequence[str]) -> str:
    """What a wildcard does, and what to write in its place."""
    if isinstance(rule.key, re.Pattern):
        pattern = f"re.compile({checks.short(rule.key.pattern)})"
    else:
        pattern = "'*'" if rule.key == "*.weight" else checks.short(rule.key)
    text = str(value)
    shown = repr(text) if isinstance(value, Recipe) and value.ours and len(text) < _LONGEST else "..."

    def written(key: str, roles: Sequence[str]) -> str:
        return f"{{{key}: {{{', '.join(f'{role!r}: {shown}' for role in roles[:3])}}}}}"

    instead = written(pattern, weights) if weights else written("'*'", ["kernel"])
    counted = ", ".join(f"{count} {role}" for role, count in steady.items())
    return (
        f"The wildcard {rule.label} gives random values, {checks.cut(text)}, to what starts from zeros or ones: "
        f"{counted}. For weights alone write {instead}; "
        f"if you mean it, name the roles: {written(pattern, list(steady))}."
    )


def _is_wildcard(key: Any, claim: Claim) -> bool:
    if isinstance(key, re.Pattern):
        return True
    return isinstance(key, str) and bool(_MAGIC.search(key)) and key not in (claim.name, claim.canonical)


def _is_random(value: Value) -> bool:
    """Whether an initializer draws; of others' functions, only torch's are known to."""
    if not isinstance(value, Recipe):
        return False
    if value.ours:
        return BY_FUNCTION[value.function].random and value.function.__name__ != "unit_forget_bias_"
    name = getattr(value.function, "__name__", "")
    return getattr(value.function, "__module__", "") == "torch.nn.init" and name not in _NOT_RANDOM
