"""Which tensors each rule matches, what it says of them, and which rules say nothing."""

from __future__ import annotations

import bisect
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.plain import array_
from torch_kinit.initializers.recipe import Recipe
from torch_kinit.model.rules import KERAS_DEFAULTS, Decision, Rule, Skip, UnusedRuleError, Value, role_named
from torch_kinit.model.targets import Claim, canonical_paths
from torch_kinit.model.wildcards import warn_of_random_values

_MAGIC = re.compile(r"[*?[]")
_ROOM, _HINTS = 1400, 5  # characters of an error that names problems, and how many of them are looked into
# Keras calls a depthwise layer's weight "kernel" too, and its argument "depthwise_initializer".
_ALSO = {"depthwise_kernel": ("kernel",)}


class Said(NamedTuple):
    """What a rule says of a tensor: a value, if it says anything, and in which of its roles."""

    value: Value | None
    role: str | None = None


def answers(rules: Sequence[Rule], claims: Sequence[Claim], model: nn.Module) -> dict[int, Decision]:
    """What the last rule that speaks of it says of each claim, by its place.

    A key matches names of the bare model, without wrappers; one that matches none of them, names with wrappers; and one
    that matches nothing and is no module's path, a role of all layers.

    Raises:
        UnusedRuleError: a rule, or one of its roles, says nothing of anything.
    """
    spoken: dict[int, tuple[Rule, Value]] = {}
    if not rules:
        return {}
    bare, full = _Index(claims, full=False), None
    problems: list[str] = []
    for rule in rules:
        said = _ask(rule, bare, claims)
        if not said and not rule.of_classes:
            full = full or _Index(claims, full=True)
            said = _ask(rule, full, claims)
        if not said and _is_role(rule, claims, model):
            rule = rule.of_role()
            said = _ask(rule, bare, claims)
        spoken |= {i: (rule, words.value) for i, words in said.items() if words.value is not None}
        if not said:
            hint = _hint(rule.key, claims, model) if len(problems) < _HINTS else ""
            problems.append(f"{rule.label} matches nothing.{hint}")
            continue
        used = {words.role for words in said.values()}
        seen = {role for i in said if rule.roles and (role := claims[i].role)}
        problems += [
            f"{rule.label} speaks of {checks.short(role)}, which what it matches lacks; "
            f"it has {checks.listed(sorted(seen)) or 'no roles'}.{_role_meant(role, [claims[i] for i in said])}"
            for role in rule.roles
            if role not in used
        ]
    if problems:
        listed = checks.bounded([f"  {problem}" for problem in problems], _ROOM)
        raise UnusedRuleError("\n".join(["Rules that would do nothing:", *listed]))
    warn_of_random_values(spoken, claims)
    return {i: Decision(value, rule.label) for i, (rule, value) in spoken.items()}


def _role_meant(role: str, matched: Sequence[Claim]) -> str:
    """What the writer of a role that a rule's tensors lack may have meant: torch's name for one, or a near miss."""
    roles = {claim.role for claim in matched if claim.role}
    called = sorted({claim.role for claim in matched if claim.role and claim.name.rpartition(".")[2] == role})
    return f" Its {role} is the {' or '.join(called)}." if called else checks.near(role, roles)


def _is_role(rule: Rule, claims: Sequence[Claim], model: nn.Module) -> bool:
    """Whether a key that matches no name is a role which layers of the model have."""
    if rule.bare is None or not isinstance(rule.key, str) or role_named(rule.key) not in _roles(claims):
        return False
    return rule.key not in canonical_paths(model.named_modules(remove_duplicate=False)).values()


def _roles(claims: Iterable[Claim]) -> set[str]:
    """The roles that the layers of a model have."""
    roles = {claim.role for claim in claims if claim.role}
    return roles | {also for role in roles for also in _ALSO.get(role, ())}


def _ask(rule: Rule, index: _Index, claims: Sequence[Claim]) -> dict[int, Said]:
    """What a rule says of the claims that its key matches.

    Of a buffer of no layout only `skip` speaks, and a rule that says nothing else: that a glob for biases also fits
    the name of a mask, "attention.bias", does not mean the mask.
    """
    hits = index.find(rule.key)
    found = ((i, _said_of(rule, claims[i], by_name)) for i, by_name in hits.items() if not claims[i].extra)
    said = {i: words for i, words in found if words}
    if rule.bare is not None:
        whole = isinstance(rule.bare, Skip)
        extra = [i for i, by_name in hits.items() if claims[i].extra and (whole or (by_name and not said))]
        said |= dict.fromkeys(extra, Said(_as_named(rule.bare)))
    return said


def _said_of(rule: Rule, claim: Claim, by_name: bool) -> Said | None:
    """What a rule whose key matches a claim by its name, or by one of its modules, says of it; None if no word."""
    if rule.bare is None:
        roles = [role for role in (claim.role, *_ALSO.get(claim.role or "", ())) if role in rule.roles]
        return Said(rule.roles[roles[0]], roles[0]) if roles else Said(None)
    if not isinstance(rule.bare, Skip):  # which leaves whole layers alone, statistics included
        if not by_name and not claim.main:
            return None
        if claim.buffer and rule.key not in (claim.name, claim.canonical):
            return None  # a glob means weights, not a norm's statistics
    return Said(_as_named(rule.bare) if by_name else rule.bare)


def _as_named(value: Value) -> Value:
    """An array given to a parameter by its own name has torch's shape; given to a role, Keras'."""
    if isinstance(value, Recipe) and value.function is array_:
        return Recipe(value.function, {**value.arguments, "layout": "torch"})
    return value


class _Index:
    """The names of claims and the paths of their modules, to be searched by the keys of many rules."""

    def __init__(self, claims: Sequence[Claim], *, full: bool) -> None:
        self._names = _Texts((claim.name if full else claim.canonical, i) for i, claim in enumerate(claims))
        self._owners = [(owner, i) for i, claim in enumerate(claims) for owner in claim.modules]
        self._paths = _Texts((owner.path if full else owner.canonical, i) for owner, i in self._owners)

    def find(self, key: Any) -> dict[int, bool]:
        """The places of the claims that a key matches, in their order, and whether it matches the very name."""
        if isinstance(key, (type, tuple)):
            return {i: False for owner, i in self._owners if isinstance(owner.module, key)}
        hits = dict.fromkeys(self._paths.find(key), False) | dict.fromkeys(self._names.find(key), True)
        return dict(sorted(hits.items()))


class _Texts:
    """Texts, each of some places: found by themselves, by a glob or by a regex."""

    def __init__(self, texts: Iterable[tuple[str, int]]) -> None:
        self._places: dict[str, list[int]] = {}
        for text, place in texts:
            self._places.setdefault(text, []).append(place)
        self._sorted = sorted(self._places)
        self._mirrored = sorted(text[::-1] for text in self._places)

    def find(self, key: str | re.Pattern[str]) -> Iterator[int]:
        return (place for text in self._matching(key) for place in self._places[text])

    def _matching(self, key: str | re.Pattern[str]) -> Iterable[str]:
        if isinstance(key, re.Pattern):
            return filter(key.fullmatch, self._sorted)
        magic = _MAGIC.search(key)
        if magic is None:
            return [key] if key in self._places else []
        matches = re.compile(fnmatch.translate(key)).match
        ending = "" if "]" in key else _MAGIC.split(key)[-1]
        narrow = min(
            _starting(self._sorted, key[: magic.start()]),
            [text[::-1] for text in _starting(self._mirrored, ending[::-1])] if ending else self._sorted,
            key=len,
        )
        return [text for text in narrow if text == key or matches(text)]


def _starting(texts: list[str], prefix: str) -> list[str]:
    """Those of sorted texts that begin so, which stand together."""
    return texts[bisect.bisect_left(texts, prefix) : bisect.bisect_left(texts, prefix + chr(0x10FFFF))]


def _hint(key: Any, claims: Sequence[Claim], model: nn.Module) -> str:
    """What the writer of a rule that matched nothing may have meant."""
    if isinstance(key, (type, tuple)):
        classes = key if isinstance(key, tuple) else (key,)
        return next(filter(None, (_hint_of_class(cls, model) for cls in classes)), "")
    names = {claim.canonical: claim.name for claim in claims}
    if hint := _hint_of_modules(key, model):
        return hint
    if isinstance(key, re.Pattern):
        return _near(key.pattern, names) or " A regex must match the whole name."
    modules = dict(model.named_modules(remove_duplicate=False))
    if meant := [path for path, short in canonical_paths(modules.items()).items() if key in (path, short)]:
        own = [p for path in meant for p in modules[path].parameters(recurse=False)]
        why = "has no main weight" if own else "holds no parameters of its own"
        return f" That module {why}; write '{key}.*'." if key else ""
    if re.split("[.:]", key)[-1] in {type(m).__name__ for m in model.modules()}:
        return (
            " That is the name of a class; give the class itself, such as torch.nn.Linear, as the key, or in a rule "
            'file "torch.nn:Linear".'
        )
    roles = _roles(claims)
    if (role := role_named(key)) in KERAS_DEFAULTS:
        if role in roles:
            return " It is a role of all layers, so its value is an initializer, not a dict."
        return f" No layer has this role; there are {checks.listed(sorted(roles), 12) or 'no roles'}."
    paths = {**names, **{owner.canonical: owner.path for claim in claims for owner in claim.modules}}
    if key and (inner := [path for path in paths if path.endswith(f".{key}")]):
        return f" Did you mean {checks.short(min(inner, key=len))}?"
    return _near(key, {**paths, **{role: role for role in roles}})


def _hint_of_modules(key: str | re.Pattern[str], model: nn.Module) -> str:
    """Why a wildcard that matches modules says nothing of them; empty if it matches none, or is none."""
    if isinstance(key, str) and not _MAGIC.search(key):
        return ""
    paths = _Texts((path, i) for i, path in enumerate(dict(model.named_modules())))
    modules = list(model.modules())
    found = [modules[i] for i in paths.find(key)]
    if not found:
        return ""
    owners = [module for module in found if list(module.parameters(recurse=False))]
    kind = type((owners or found)[0]).__name__
    inside = f", such as {checks.short(f'{key}.weight')}," if isinstance(key, str) else ""
    if owners:
        why = f"without a layout; name their parameters{inside} or use kinit.register_layout"
    else:
        why = "without parameters of their own; name those inside" + (f", {checks.short(f'{key}.*')}" if inside else "")
    return f" It matches {len(owners or found)} modules, such as {kind}, {why}."


def _hint_of_class(cls: type, model: nn.Module) -> str:
    """Why a rule for a class matched nothing."""
    if inside := [path for path, module in model.named_modules() if isinstance(module, cls)]:
        if list(model.get_submodule(inside[0]).parameters(recurse=False)):
            why = "has no layout; name its parameters, or use register_layout"
        else:
            why = "holds no parameters of its own; name its layers' classes"
        return f" {inside[0] or 'The model'} is one, but {why}."
    return checks.near(cls.__name__, {type(m).__name__ for m in model.modules()})


def _near(key: str, names: Mapping[str, str]) -> str:
    """What is near to a key among names without those of wrappers or, if nothing is, among those with them."""
    return checks.near(key, names) or checks.near(key, names.values())
