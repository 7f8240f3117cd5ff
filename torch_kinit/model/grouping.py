"""Many tensors in few lines: those of one class whose names differ in numbers alone, under one pattern."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch_kinit import checks
from torch_kinit.model.targets import Target

_LONGEST = 70  # characters of a name or pattern in a message


class Group(NamedTuple):
    """Tensors of one class, and the name, glob or regex that matches them and nothing else."""

    pattern: str
    is_regex: bool
    targets: list[Target]

    @property
    def key(self) -> str:
        """The key of a rule for them, as Python writes it."""
        return f"re.compile(r{self.pattern!r})".replace("\\\\", "\\") if self.is_regex else repr(self.pattern)

    def __str__(self) -> str:
        first = self.targets[0]
        name, layer = checks.cut(self.pattern, _LONGEST), checks.cut(first.claims[0].layer, 40)
        if len(self.targets) == 1:
            return f"{name} {tuple(first.tensor.shape)} of {layer}"
        return f"{name}: {len(self.targets)} tensors of {layer}"


def grouped(targets: Iterable[Target], others: Iterable[str] = ()) -> list[Group]:
    """The targets by class and pattern, in their order; a pattern matches none of the `others`, names of tensors."""
    alike: dict[tuple[str, str], list[Target]] = {}
    for target in targets:
        alike.setdefault((target.claims[0].layer, _tail(target.claims[0].canonical)), []).append(target)
    known = {target.claims[0].canonical for each in alike.values() for target in each}.union(others)
    return [Group(*_pattern(each, known), each) for each in alike.values()]


def lines_of(targets: Iterable[Target], room: int = 1000) -> list[str]:
    """A line for each group of the targets, as many as a message has room for."""
    return checks.bounded([f"  {group}" for group in grouped(targets)], room)


def _parts(name: str) -> list[str]:
    """The parts of a name with a star for each number."""
    return re.sub(r"\d+", "*", name).split(".")


def _tail(name: str) -> str:
    """What follows the last part that has a number, or all if that is the last one."""
    parts = _parts(name)
    numbered = [i for i, part in enumerate(parts) if "*" in part]
    return ".".join(parts[numbered[-1] + 1 :] if numbered and numbered[-1] + 1 < len(parts) else parts)


def _pattern(targets: Sequence[Target], known: set[str]) -> tuple[str, bool]:
    """A short pattern that matches these of the known names and no other, and whether it is a regex."""
    names = [target.claims[0].canonical for target in targets]
    if len(names) == 1:
        return names[0], False
    wholes = list(dict.fromkeys(".".join(_parts(name)) for name in names))
    candidates = [f"*.{_tail(names[0])}", *wholes[: len(wholes) == 1]]
    for glob in candidates:
        if set(fnmatch.filter(known, glob)) == set(names):
            return glob, False
    return "|".join(re.escape(whole).replace(r"\*", r"\d+") for whole in wholes), True
