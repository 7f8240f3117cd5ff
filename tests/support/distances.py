"""How far a call travels through the package: `python -m tests.support.distances` prints the table.

Counted with sys.setprofile: the calls of the package's functions (comprehensions and lambdas aside); those of them that
carry a generator, a Key or a KerasSeed as an argument; and how often two of these, one after the other, stand in
different modules ("hops").
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import torch_kinit as kinit

PACKAGE = str(Path(kinit.__file__).parent)
SOURCES = (torch.Generator, kinit.Key, kinit.KerasSeed)


@dataclass
class Distance:
    """What was counted during one call."""

    calls: int
    carrying: list
    depth: int

    @property
    def hops(self):
        return sum(a != b for a, b in zip(self.carrying, self.carrying[1:], strict=False))


def distance(function):
    """Count what a call of `function` takes, the second time, when caches are warm."""
    function()
    counted, depth = Distance(0, [], 0), 0

    def profile(frame, event, argument):
        nonlocal depth
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name.startswith("<"):
            return
        if event == "call":
            depth += 1
            counted.calls += 1
            counted.depth = max(counted.depth, depth)
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(isinstance(frame.f_locals.get(name), SOURCES) for name in names):
                counted.carrying.append(code.co_filename)
        elif event == "return":
            depth -= 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counted


def journeys():
    """The calls whose distance is told, by name."""
    weight, linear, port = torch.empty(8, 4), nn.Linear(4, 8, bias=False), nn.Sequential(nn.Linear(4, 8))
    return {
        "he_normal_(generator=Key)": lambda: kinit.he_normal_(weight, generator=kinit.Key(0)),
        "apply(seed=0), one Linear weight": lambda: kinit.apply(linear, seed=0),
        "replay_keras, Linear with bias": lambda: kinit.replay_keras(port, 0, backend="jax"),
    }


if __name__ == "__main__":
    print(f"{'call':34}{'calls':>7}{'carrying':>10}{'hops':>6}{'modules':>9}{'depth':>7}")
    for name, function in journeys().items():
        found = distance(function)
        modules = len(set(found.carrying))
        print(f"{name:34}{found.calls:7}{len(found.carrying):10}{found.hops:6}{modules:9}{found.depth:7}")
