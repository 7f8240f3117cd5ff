"""What a probe found: a row a call, the growth of the signal, and a verdict in sentences."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch_kinit.inspection import plot
from torch_kinit.inspection.probe.following import LAWS
from torch_kinit.model.report import Table, as_html, as_text

FACTOR = 10.0  # through the whole depth: beyond it a signal vanishes or explodes
SHALLOW = 4  # with fewer layers with weights, the scale of one of them says as much as the depth
SAME = 1.05  # two scales within this factor are one


@dataclass(frozen=True)
class ProbeRow:
    """What came out of one call of a layer, from `probe`.

    Attributes:
        name, layer: its path, "" for the model itself, and its class; `call` counts from 1.
        shape: that of its output, or of the first tensor of several.
        mean, std, zeros: of the output's values; `zeros` is the share that is exactly 0.
        dead: the share of units that are 0 for every example and position, of a ReLU layer; None for others.
        gradient, gradient_norm: std and norm of the gradient with respect to the output; None where there is none.
        weighted: whether the layer multiplies its input by weights; `norm` whether it normalizes it.
        activation: of a layer with weights the function after it, such as "relu"; None where it cannot be told.
        to_law: the std of the law that suits that, over the std of the weights.

    Example:
        >>> import torch
        >>> import torch_kinit as kinit
        >>> row = kinit.probe(torch.nn.ReLU(), torch.tensor([[3.0, -4.0], [5.0, -6.0]])).rows[0]
        >>> row.layer, row.shape, row.mean, row.zeros, row.dead
        ('ReLU', (2, 2), 2.0, 0.5, 0.5)
    """

    name: str
    layer: str
    call: int
    shape: tuple[int, ...]
    mean: float
    std: float
    zeros: float
    dead: float | None
    gradient: float | None
    gradient_norm: float | None
    weighted: bool
    norm: bool
    activation: str | None
    to_law: float | None

    @property
    def title(self) -> str:
        """Its path and, from the second on, the number of the call."""
        return (self.name or "(model)") + (f" [{self.call}]" if self.call > 1 else "")

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data that JSON can hold."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class ProbeReport:
    """How a signal and its gradient passed through a model, from `probe`: print it, plot it, or take its `rows`.

    Example:
        >>> import torch
        >>> import torch_kinit as kinit
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> report = kinit.probe(model, torch.ones(3, 2), backward=False)
        >>> report, [row.activation for row in report.weighted]
        (<ProbeReport of 3 calls: signal too shallow, gradient None>, ['tanh', None])
    """

    rows: tuple[ProbeRow, ...]

    @property
    def weighted(self) -> list[ProbeRow]:
        """The rows of layers with weights, through which growth is counted."""
        return [row for row in self.rows if row.weighted]

    @property
    def _stds(self) -> list[float | None]:
        return [None if 0 in row.shape else row.std for row in self.weighted]

    @functools.cached_property
    def growth(self) -> float | None:
        """The factor by which the std of the outputs changes from a layer with weights to the next."""
        return _growth(self._stds)

    @functools.cached_property
    def gradient_growth(self) -> float | None:
        """The factor by which the norm of the gradient changes from a layer with weights to the one before it.

        The norm, since a law of fan_in keeps it where widths and strides change, and with them the number of values.
        """
        return _growth([row.gradient_norm for row in reversed(self.weighted)])

    @property
    def signal(self) -> str:
        """Whether the std of the outputs is "steady", "vanishing" or "exploding"; or "too shallow" to tell."""
        return _word(self._stds, self.growth)

    @property
    def gradient(self) -> str | None:
        """The same of the gradient; None if there is none."""
        found = [row.gradient_norm for row in reversed(self.weighted)]
        return _word(found, self.gradient_growth) if any(norm is not None for norm in found) else None

    @functools.cached_property
    def _suiting(self) -> tuple[str, str, float] | None:
        """The law that suits most layers, the activation it suits, and its std over that of their weights."""
        known = [(row.activation, row.to_law) for row in self.weighted if row.activation and row.to_law]
        if not known:
            return None
        name, _ = Counter(LAWS[activation] for activation, _ in known).most_common(1)[0]
        suited = [(activation, ratio) for activation, ratio in known if LAWS[activation] == name]
        activation, _ = Counter(activation for activation, _ in suited).most_common(1)[0]
        return name, activation, math.exp(sum(math.log(ratio) for _, ratio in suited) / len(suited))

    @property
    def law(self) -> str | None:
        """The Keras name of the law that would hold the scale; None if all is steady, or the law is not the cause."""
        troubles = {self.signal, self.gradient} & {"vanishing", "exploding"}
        if not troubles or self._suiting is None:
            return None
        name, _, ratio = self._suiting
        mends = {"vanishing": ratio > SAME, "exploding": ratio < 1 / SAME}
        told = mends.get(self.signal, not 1 / SAME <= ratio <= SAME)
        return name if told else None

    @property
    def verdict(self) -> str:
        """All of that in sentences."""
        norms = [row.gradient_norm for row in self.weighted]
        said = [_sentence("signal", self.signal, self.growth, "std", "a layer", self._stds)]
        if self.gradient is not None:
            said.append(_sentence("gradient", self.gradient, self.gradient_growth, "norm", "a layer backwards", norms))
        if {self.signal, self.gradient} & {"vanishing", "exploding"}:
            said.append(self._advice())
        if resets := sum(row.norm for row in self.rows):
            said.append(
                f"{resets} normalization layer{'s reset' if resets > 1 else ' resets'} the scale of the signal."
            )
        if dead := [row for row in self.rows if row.dead]:
            worst = max(dead, key=lambda row: row.dead or 0)
            said.append(f"ReLU units are dead in {len(dead)} of the layers, most in {worst.title} ({worst.dead:.0%}).")
        return "\n".join(said)

    def _advice(self) -> str:
        if self._suiting is None:
            return "Which law would hold it cannot be told: no activation was seen after a layer with one kernel."
        name, activation, ratio = self._suiting
        if self.law is None:
            return (
                f"The weights have {ratio:.2f} of the scale of {name}, which suits {activation}: another law would not "
                "mend it. Look at narrow layers, at what is added or averaged between the layers, and at their depth."
            )
        return f"{name} would hold it: it suits {activation}, and its std is {ratio:.2f} times that of the weights."

    def _table(self) -> Table:
        header = ["name", "layer", "mean", "std", "zeros", "dead units", "gradient std"]
        rows = []
        for row in self.rows:
            dead = "-" if row.dead is None else f"{row.dead:.1%}"
            gradient = "-" if row.gradient is None else f"{row.gradient:.3g}"
            seen = [f"{row.mean:+.2e}", f"{row.std:.3g}", f"{row.zeros:.1%}" if row.zeros else "-", dead, gradient]
            rows.append([row.title, row.layer, *seen])
        return header, rows

    def __repr__(self) -> str:
        return f"<ProbeReport of {len(self.rows)} calls: signal {self.signal}, gradient {self.gradient}>"

    def __str__(self) -> str:
        return as_text(*self._table(), notes=self.verdict.splitlines())

    def _repr_html_(self) -> str:
        import html  # takes 5 ms to import

        return as_html(*self._table()) + f"<p>{html.escape(self.verdict)}</p>".replace("\n", "<br>")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that JSON can hold."""
        names = ("signal", "growth", "gradient", "gradient_growth", "law", "verdict")
        found = {name: _plain(getattr(self, name)) for name in names}
        return {**found, "rows": [row.to_dict() for row in self.rows]}

    def plot(self, ax: Any = None) -> Any:
        """Draw the std of outputs and gradients through the depth; see `torch_kinit.plot.probes`."""
        return plot.probes({"this model": self}, ax=ax)


def _growth(found: Sequence[float | None]) -> float | None:
    """The exponential of the median slope between any two logarithms (Theil and Sen's), at most 500 apart."""
    points = [(i, math.log(value)) for i, value in enumerate(found) if value is not None and 0 < value < math.inf]
    slopes = [(y - x) / (j - i) for k, (j, y) in enumerate(points) for i, x in points[max(0, k - 500) : k]]
    return math.exp(_median(slopes)) if slopes else None


def _median(values: list[float]) -> float:
    """As statistics.median, whose module takes 5 ms to import."""
    ordered, half = sorted(values), len(values) // 2
    return (ordered[half] + ordered[~half]) / 2


def _word(found: Sequence[float | None], growth: float | None) -> str:
    """The verdict on values in the order of the signal."""
    if any(value is not None and not math.isfinite(value) for value in found):
        return "exploding"
    if len(found) < SHALLOW:
        return "too shallow"
    if growth is None or not any(found[-2:]):
        return "vanishing"
    total = math.log(growth) * (len(found) - 1)
    if abs(total) <= math.log(FACTOR):
        return "steady"
    return "exploding" if total > 0 else "vanishing"


def _sentence(what: str, word: str, growth: float | None, scale: str, per: str, found: Sequence[float | None]) -> str:
    does = {"vanishing": "vanishes", "exploding": "explodes", "steady": "is steady"}
    depth = f"{len(found)} layer{'s' * (len(found) != 1)} with weights"
    if word == "too shallow":
        return f"The {what} passes {depth}, too few to tell how it grows."
    if not all(math.isfinite(value) for value in found if value is not None):
        return f"The {what} {does[word]}: it is not finite in some of {depth}."
    if growth is None:
        return f"The {what} {does[word]}: it is zero in all but one of {depth}."
    total = growth ** (len(found) - 1)
    return f"The {what} {does[word]}: its {scale} changes by a factor of {growth:.2f} {per}, {total:.2g} over {depth}."
