"""What a table says of a plan's steps and of the values they drew: a row a tensor, and a last line that sums up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from torch_kinit.model.folding import folded
from torch_kinit.model.report import Table
from torch_kinit.model.steps import Step
from torch_kinit.model.targets import holder_of


class PlanTable(NamedTuple):
    """A header, rows as wide as it, and lines to stand below them."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def plan_table(steps: Sequence[Step], *, fold: bool = True) -> PlanTable:
    """A row a step: name, layer, role, initializer, fans, std, rule, and its seeds if any step has some.

    Blocks that repeat have the rows of one if `fold`, and a rule that all share stands below.
    """
    header = ["name", "layer", "role", "initializer", "fans", "std"]
    rows = [_cells(step) for step in steps]
    rules = dict.fromkeys(step.rule for step in steps)
    if len(rules) != 1:
        header.append("rule")
        rows = [[*row, step.rule] for row, step in zip(rows, steps, strict=True)]
    if any(step.seeds for step in steps):
        header.append("Keras seed")
        rows = [
            [*row, ", ".join(str(s.seed) for s in step.seeds) or "-"] for row, step in zip(rows, steps, strict=True)
        ]
    shared = f"; rule of all: {next(iter(rules))}" if len(rules) == 1 else ""
    return PlanTable(header, folded(rows) if fold else rows, [_summary(steps) + shared])


def _cells(step: Step) -> list[str]:
    std = "-" if step.std is None else f"{step.std:.4g}"
    layer = f"{step.layer} after {step.flattened}" if step.flattened else step.layer
    return [" = ".join((step.name, *step.tied)), layer, step.role or "-", step.becomes, step.told_fans, std]


def _summary(steps: Sequence[Step]) -> str:
    values = sum(math.prod(step.shape) for step in steps)
    left = sum(step.initializer is None for step in steps)
    parts = [_counted(len(steps), "tensor"), _counted(values, "value")] + [f"{left} left alone"] * (left > 0)
    return ", ".join(parts)


def _counted(number: int, what: str) -> str:
    """A number in three digits, or whole if it is small, and what it counts."""
    for size, letter in ((10**9, " B"), (10**6, " M"), (10**4, " K")):
        if number >= size:
            digits = number / (size if letter != " K" else 1000)
            return f"{digits:.3g}{letter} {what}s"
    return f"{number:,} {what}{'s' * (number != 1)}"


def values_table(steps: Iterable[Step], model: nn.Module) -> Table:
    """A row a tensor: its mean, std, least and greatest in `model`, each beside what the law says."""
    rows = []
    for step in steps:
        mean, std, low, high = observe(getattr(*holder_of(model, step.name)))
        by_law = "-" if step.law is None else f"{step.law.std:.4g}"
        bounds = "-" if step.law is None else "[{:.4g}, {:.4g}]".format(*step.law.bounds)
        seen = [f"{mean:+.2e}", f"{std:.4g}", by_law, f"{low:.4g}", f"{high:.4g}", bounds]
        rows.append([step.name, step.becomes, *seen])
    return ["name", "initializer", "mean", "std", "std by law", "min", "max", "law's bounds"], rows


def values(steps: Iterable[Step], model: nn.Module) -> dict[str, dict[str, float | None]]:
    """The same as plain data, by name; None where a tensor has no values."""
    found = {step.name: observe(getattr(*holder_of(model, step.name))) for step in steps}
    names = ("mean", "std", "min", "max")
    return {
        name: {key: None if math.isnan(x) else x for key, x in zip(names, seen, strict=True)}
        for name, seen in found.items()
    }


def observe(tensor: Tensor) -> tuple[float, float, float, float]:
    """Mean, std, least and greatest of a tensor's values; NaN where it has none."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return (float("nan"),) * 4
    values = tensor.detach().float() if tensor.dtype.itemsize < 4 else tensor.detach()
    values = values if values.is_floating_point() else values.double()
    low, high = values.aminmax()
    return float(values.mean()), float(values.std(correction=0)), float(low), float(high)
