"""Which tensors each rule matches, what it says of them, and which rules say nothing."""

from __future__ import annotations

import bisect
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.model.rules import Rule, Said, UnusedRuleError, said_of, said_of_buffer
from torch_kinit.model.targets import Claim, canonical_paths

_Hits = dict[int, bool]  # the places of claims, and whether the key matches the very name
_MAGIC = re.compile(r"[*?[]")
_LISTED, _HINTS = 30, 5  # problems named in an error, and looked into


@dataclass
class Answers:
    """What each rule says of each claim, by places: of `claims`, and then of `buffers` of which no layout speaks."""

    of_claims: list[list[tuple[Rule, Said]]]
    of_buffers: list[list[tuple[Rule, Said]]]


def answers(rules: Sequence[Rule], claims: Sequence[Claim], buffers: Sequence[Claim], model: nn.Module) -> Answers:
    """Ask all rules, in their order.

    A key matches names of the bare model, without wrappers; one that matches none of them, names with wrappers.

    Raises:
        UnusedRuleError: a rule, or one of its roles, says nothing of anything.
    """
    found = Answers([[] for _ in claims], [[] for _ in buffers])
    if not rules:
        return found
    bare = _Index(claims, full=False), _Index(buffers, full=False)
    full = None
    problems: list[str] = []
    for rule in rules:
        said, said_of_buffers = _ask(rule, *bare, claims)
        if not said and not said_of_buffers and not isinstance(rule.key, type):
            full = full or (_Index(claims, full=True), _Index(buffers, full=True))
            said, said_of_buffers = _ask(rule, *full, claims)
        for i, words in said.items():
            found.of_claims[i].append((rule, words))
        for i, words in said_of_buffers.items():
            found.of_buffers[i].append((rule, words))
        if not said and not said_of_buffers:
            hint = _hint(rule.key, [*claims, *buffers], model) if len(problems) < _HINTS else ""
            problems.append(f"{rule.label} matches nothing.{hint}")
            continue
        used = {words.role for words in said.values()}
        seen = {role for i in said if rule.roles and (role := claims[i].role)}
        problems += [
            f"{rule.label} speaks of {role!r}, which what it matches lacks; "
            f"it has {', '.join(sorted(seen)) or 'no roles'}.{checks.near(role, seen)}"
            for role in rule.roles
            if role not in used
        ]
    if problems:
        more = [f"  ... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        listed = [f"  {problem}" for problem in problems[:_LISTED]]
        raise UnusedRuleError("\n".join(["Rules that would do nothing:", *listed, *more]))
    return found


def _ask(
    rule: Rule, index: _Index, buffers: _Index, claims: Sequence[Claim]
) -> tuple[dict[int, Said], dict[int, Said]]:
    """What a rule says of claims, and of buffers of which no layout speaks."""
    said = {i: words for i, by_name in index.find(rule.key).items() if (words := said_of(rule, claims[i], by_name))}
    unused = not said
    return said, {
        i: words for i, by_name in buffers.find(rule.key).items() if (words := said_of_buffer(rule, by_name, unused))
    }


class _Index:
    """The names of claims and the paths of their modules, to be searched by the keys of many rules."""

    def __init__(self, claims: Sequence[Claim], *, full: bool) -> None:
        self._names = _Texts((claim.name if full else claim.canonical, i) for i, claim in enumerate(claims))
        self._owners = [(owner, i) for i, claim in enumerate(claims) for owner in claim.modules]
        self._paths = _Texts((owner.path if full else owner.canonical, i) for owner, i in self._owners)

    def find(self, key: Any) -> _Hits:
        """The claims that a key matches, in their order."""
        if isinstance(key, type):
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
        for text in self._matching(key):
            yield from self._places[text]

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
