"""What an audit found: a verdict a tensor, as text, HTML and plain data."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch_kinit import checks
from torch_kinit.inspection import plot
from torch_kinit.model import report

OK, SMALL, OFF, TRAINED = "ok", "too small to tell", "off", "looks trained"
BEYOND, LEFT, EMPTY = "beyond", "left alone", "empty"
VERDICTS = (OFF, TRAINED, BEYOND, SMALL, LEFT, EMPTY, OK)  # in the order of a report


@dataclass(frozen=True)
class Finding:
    """What an audit says of one tensor.

    Attributes:
        name: its qualified name; `tied` has others of the same tensor, `layer` its owner's class, `role` Keras' name.
        initializer: what the plan says.
        verdict: "ok"; "off"; "looks trained"; "too small to tell", where one of the usual mistakes would pass as well;
            "beyond", where no law is known; "left alone" by the plan; or "empty".
        cause: the law that the values have instead, by name, or why there is no other verdict.
        measured, expected: the mean, std, least and greatest of the values (of packed variables, of the first that is
            off), of a law the greatest distance to its distribution function (`law`), or what else was compared.
        failed: the tests that failed: "support", "mean", "std", "range" (extremes
            too near to the mean for so many values), "law", "values" (NaN or infinite), "singular values".

    Example:
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> found = kinit.audit(nn.Linear(64, 256))["weight"]
        >>> found.verdict, found.cause
        ('off', "looks like torch's default kaiming_uniform(a=sqrt 5)")
    """

    name: str
    layer: str
    role: str | None
    initializer: str
    verdict: str
    cause: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is against the plan."""
        return self.verdict not in (OFF, TRAINED)

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain data that JSON can hold."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {**plain, "measured": _finite(self.measured), "expected": _finite(self.expected)}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True)
class Audit:
    """What `audit` found: iterate over its findings, index by parameter name, print, save as JSON.

    Attributes:
        findings: one a tensor of the plan, in its order.
        alpha: the probability, at most, that a rightly initialized model is said to be off.

    Example:
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> model = nn.Linear(64, 256)
        >>> plan = kinit.apply(model, seed=0)
        >>> report = plan.audit()
        >>> report.ok, [(found.name, found.verdict) for found in report]
        (True, [('weight', 'ok'), ('bias', 'ok')])
    """

    findings: tuple[Finding, ...]
    alpha: float

    @property
    def ok(self) -> bool:
        """Whether no tensor is off or looks trained."""
        return all(found.ok for found in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, name: str) -> Finding:
        for found in self.findings:
            if name in (found.name, *found.tied):
                return found
        names = [each for found in self.findings for each in (found.name, *found.tied)]
        raise KeyError(f"The audit has no parameter {checks.short(name)}.{checks.near(str(name), names)}")

    def __repr__(self) -> str:
        return f"<Audit of {len(self)} tensors, {sum(not found.ok for found in self.findings)} off>"

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, width: int | None = None, *, color: bool = False) -> str:
        """The audit as a table: what is off first, and a last line that sums up; `width` and `color` as of a plan."""
        header, rows = self._table()
        return report.as_text(header, rows, width, notes=[self._summary()], color=color)

    def _repr_html_(self) -> str:
        return report.as_html(*self._table(), notes=[self._summary()])

    def plot(self, ax: Any = None) -> Any:
        """Draw the std of each parameter beside that of its law, and the causes; see `torch_kinit.plot.audit`."""
        return plot.audit(self, ax=ax)

    def to_dict(self) -> dict[str, Any]:
        """The audit as plain data that JSON can hold."""
        return {"ok": self.ok, "alpha": self.alpha, "findings": [found.to_dict() for found in self.findings]}

    def _table(self) -> report.Table:
        rows = [
            [" = ".join((f.name, *f.tied)), f.verdict, f.initializer, *_compared(f), f.cause]
            for f in sorted(self.findings, key=lambda found: VERDICTS.index(found.verdict))
        ]
        return ["name", "verdict", "initializer", "measured", "expected", "cause"], rows

    def _summary(self) -> str:
        counts = collections.Counter(found.verdict for found in self.findings)
        listed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        tensors = f"{len(self)} tensor{'s' * (len(self) != 1)}"
        return f"{tensors}: {listed or 'none'}; a false alarm in one of {1 / self.alpha:,.0f} audits at most"


def _compared(found: Finding) -> tuple[str, str]:
    """The number that tells most, measured and expected."""
    key = next((name for name in found.failed if name in found.measured), None)
    if key == "support":
        high = found.measured["max"] - found.expected["max"] > found.expected["min"] - found.measured["min"]
        key = "max" if high else "min"
    if key is None:
        key = next((name for name in ("std", "value", "singular values") if name in found.measured), None)
    if key is None:
        return "-", "-"
    return f"{key} {found.measured[key]:.4g}", f"{found.expected[key]:.4g}" if key in found.expected else "-"
