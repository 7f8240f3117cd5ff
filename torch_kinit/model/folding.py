"""Blocks that repeat in a list of names, told once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

TIE = " = "  # between the names of one tensor
_WORTH = 4  # where fewer rows are saved, every block is told

Rows = list[list[str]]


@dataclass
class _Branch:
    """What stands below a part of a name: the row of that name, if there is one, and longer ones by their next part."""

    cells: list[str] | None = None
    ties: str = ""
    parts: dict[str, _Branch] = field(default_factory=dict)

    def leaves(self) -> int:
        """How many rows it has."""
        return (self.cells is not None) + sum(part.leaves() for part in self.parts.values())


def folded(rows: Rows) -> Rows:
    """The rows, whose first cells are names, with runs of equal blocks as one: "layers.0-5.linear1.weight"."""
    return list(_rows(_fold(_tree(rows)), ()))


def _tree(rows: Rows) -> _Branch:
    root = _Branch()
    for name, *cells in rows:
        path, tie, others = name.partition(TIE)
        branch = root
        for part in path.split("."):
            branch = branch.parts.setdefault(part, _Branch())
        branch.cells, branch.ties = cells, tie + others
    return root


def _rows(branch: _Branch, path: tuple[str, ...]) -> Iterator[list[str]]:
    if branch.cells is not None:
        yield [".".join(path) + branch.ties, *branch.cells]
    for name, part in branch.parts.items():
        yield from _rows(part, (*path, name))


def _fold(branch: _Branch) -> _Branch:
    """The branch with each run of equal, numbered parts as one."""
    parts = [(name, _fold(part)) for name, part in branch.parts.items()]
    runs: list[tuple[list[str], _Branch]] = []
    for name, part in parts:
        if runs and part == runs[-1][1] and _goes_on(runs[-1][0], name):
            runs[-1][0].append(name)
        else:
            runs.append(([name], part))
    found: dict[str, _Branch] = {}
    for names, part in runs:
        span, saved = _span(names), (len(names) - 1) * part.leaves()
        found |= {span: part} if saved >= _WORTH and span not in branch.parts else dict.fromkeys(names, part)
    return _Branch(branch.cells, branch.ties, found)


def _goes_on(names: Sequence[str], name: str) -> bool:
    """Whether a name is the next number of a run."""
    if not (name.isdecimal() and names[-1].isdecimal()):
        return False
    return len(names) == 1 or int(name) - int(names[-1]) == int(names[1]) - int(names[0])


def _span(names: Sequence[str]) -> str:
    """All names of a run in short: 0-5, or 0,2…18 where numbers between stand for something without tensors."""
    if len(names) > 1 and int(names[1]) - int(names[0]) == 1:
        return f"{names[0]}-{names[-1]}"
    return ",".join(names) if len(names) < 4 else f"{names[0]},{names[1]}…{names[-1]}"
