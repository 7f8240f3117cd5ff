"""Pictures: a law beside what is drawn from it, a plan beside its model, a signal through the depth of a network.

They need matplotlib (`pip install torch_kinit[plot]`), which is imported when the first one is drawn. Each function
draws on `ax`, or on a new figure, and returns what it drew on; nothing is shown or saved, and no setting is changed.
Colours are Okabe and Ito's, told apart by the colour-blind, with a marker and a line style of its own for each.

Example:
    >>> import torch_kinit as kinit
    >>> kinit.plot.law("he_normal", (64, 100)).get_xlabel()
    'value of a weight'
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_kinit.initializers import names
from torch_kinit.initializers.axes import shape_of
from torch_kinit.initializers.recipe import Recipe
from torch_kinit.model.plan import Plan
from torch_kinit.model.plan_table import observe
from torch_kinit.model.steps import Step
from torch_kinit.model.targets import holder_of
from torch_kinit.streams.key import Key
from torch_kinit.streams.laws import Entries

__all__ = ["audit", "law", "plan", "probes"]

BLUE, VERMILLION, GREEN, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#8C8C8C"
_COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", SKY, "#000000")
_MARKERS = "os^DvPX"
_LINES = ("-", "--", "-.", ":")
_VERDICTS = {"ok": (BLUE, "o", 4), "off": (VERMILLION, "s", 5), "looks trained": (GREEN, "^", 5)}
_ENOUGH = 1 << 15  # values, for a histogram that shows the law; small weights are drawn several times
_MOST_NAMES = 60


def law(identifier: Any, shape: Any, *, layout: str = "torch", fans: Any = None, ax: Any = None) -> Any:
    """Draw the histogram of a weight that an initializer filled, and the exact density of its law.

    Args:
        identifier: an initializer, or anything else `get` takes.
        shape: that of the weight, or a tensor of that shape. A weight of few values is drawn several times.
        layout, fans: as for `torch_kinit.law`.
        ax: the Axes to draw on; None for new ones.

    Returns:
        The Axes. Dotted lines are the law's bounds; an orthogonal matrix, whose values depend on each other, has no
        density.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nobody knows the law (see `torch_kinit.law`), or the weight has no values.

    Example:
        >>> import torch_kinit as kinit
        >>> ax = kinit.plot.law("he_normal", (64, 100))
        >>> print(ax.get_title())
        he_normal, shape (64, 100)
        mean 0, std 0.1414
    """
    known, recipe = names.law(identifier, shape, layout=layout, fans=fans), names.recipe(identifier)
    values = _drawn(recipe, shape_of(shape), layout, fans)
    ax = _new_axes((6, 3.6))[0] if ax is None else ax
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or abs(high) or 1.0
    label = f"{values.numel():,} values drawn"
    if known.std == 0:
        ax.bar([low], [1.0], width=margin / 20, color=SKY, label=label)
        ax.set_xlim(low - margin, low + margin)
    else:
        ax.hist(values.numpy(), bins=60, range=(low, high), density=True, color=SKY, label=label)
    if known.std and not isinstance(known, Entries):
        x = torch.linspace(low - margin, high + margin, 1001, dtype=torch.float64)
        ax.plot(x.numpy(), known.pdf(x).numpy(), color="black", linewidth=1.4, label="exact density")
        for bound, name in zip(known.bounds, ("least", "greatest"), strict=True):
            if math.isfinite(bound):
                ax.axvline(bound, color=VERMILLION, linestyle=":", linewidth=1.4, label=f"{name} value {bound:.4g}")
    ax.set_title(f"{recipe}, shape {tuple(shape_of(shape))}\nmean {known.mean:.4g}, std {known.std:.4g}", fontsize=10)
    _dress(ax, "value of a weight", "density (share per unit of value)" if known.std else "share of the values")
    return ax


def _drawn(recipe: Recipe, shape: Sequence[int], layout: str, fans: Any) -> Tensor:
    """The values of as many weights as a histogram needs, from a fixed key."""
    if 0 in shape:
        raise ValueError(f"`shape` must have values to draw, got {tuple(shape)}.")
    count = min(1000, math.ceil(_ENOUGH / math.prod(shape)))
    weights = [torch.empty(tuple(shape), device="cpu") for _ in range(count)]
    for i, weight in enumerate(weights):
        recipe.without_generator()(weight, layout=layout, fans=fans, generator=Key(0).fold_in(i))
    return torch.stack(weights).flatten()


def plan(plan: Plan, *, ax: Any = None) -> Any:
    """Draw the std that the law of each parameter has, and the one that its values have now.

    Args:
        plan: a plan. One that was read from data has no model, and shows its laws alone.
        ax: the Axes to draw on; None for new ones, as high as there are parameters.

    Returns:
        The Axes: a line a parameter, in the order of the plan. A diamond is the law's std, a dot that of the values.
        Parameters of one value, both by the law and in the model, are left out.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: it is no plan.

    Example:
        >>> import torch_kinit as kinit
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> ax = kinit.plot.plan(kinit.plan(model))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"`plan` must be a Plan, such as kinit.plan(model), got one of type {type(plan).__name__}.")
    named = [(step.name, step.law.std, _std_now(step, plan)) for step in plan if step.law and step.kind == "parameter"]
    shown = [(name, by_law, now) for name, by_law, now in named if by_law or now]
    ax = _beside([name for name, _, _ in shown], [by_law for _, by_law, _ in shown], ax)
    held = [(place, by_law, now) for place, (_, by_law, now) in enumerate(shown) if now is not None]
    _measured(ax, held, "the model now", color=VERMILLION, marker="o", markersize=4)
    return ax


def audit(report: Any, *, ax: Any = None) -> Any:
    """Draw the std of each parameter that an audit measured, beside that of its law, and what is off with its cause.

    Args:
        report: what `torch_kinit.audit` returned, or its `to_dict()`.
        ax: the Axes to draw on; None for new ones, as high as there are parameters.

    Returns:
        The Axes: a line a parameter. A diamond is the law's std; a dot that of values that fit, a square of those
        that are off, a triangle of trained ones, a cross of others. Constants that fit are left out.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: it is no audit.

    Example:
        >>> import torch_kinit as kinit
        >>> finding = {"name": "0.weight", "verdict": "off", "cause": "fans look swapped"}
        >>> finding |= {"measured": {"std": 0.2}, "expected": {"std": 0.1}}
        >>> ax = kinit.plot.audit({"findings": [finding]})
        >>> [text.get_text() for text in ax.texts]
        ['fans look swapped']
    """
    data = report.to_dict() if hasattr(report, "to_dict") else report
    if not isinstance(data, Mapping) or "findings" not in data:
        raise TypeError(f"`report` must be what kinit.audit returned, got one of type {type(report).__name__}.")
    stds = [(finding, finding["measured"].get("std"), finding["expected"].get("std")) for finding in data["findings"]]
    shown = [f for f, now, by_law in stds if None not in (now, by_law) and (now or by_law or f["verdict"] != "ok")]
    by_law = [finding["expected"]["std"] for finding in shown]
    ax = _beside([finding["name"] for finding in shown], by_law, ax, width=10)
    for verdict in dict.fromkeys(finding["verdict"] for finding in shown):
        of_it = [i for i, finding in enumerate(shown) if finding["verdict"] == verdict]
        colour, marker, size = _VERDICTS.get(verdict, ("black", "x", 5))
        held = [(i, by_law[i], shown[i]["measured"]["std"]) for i in of_it]
        _measured(ax, held, verdict, color=colour, marker=marker, markersize=size)
    for place, finding in enumerate(shown):
        if finding["cause"]:
            cause = textwrap.shorten(finding["cause"], 60, placeholder=" …")
            ax.text(1.01, place, cause, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    return ax


def _beside(names: Sequence[str], by_law: Sequence[float], ax: Any, width: float = 7) -> Any:
    """Axes with a line a parameter, from top to bottom, and a diamond at the std of its law."""
    count = len(names)
    ax = _new_axes((width, 1.6 + 0.22 * min(count, _MOST_NAMES)))[0] if ax is None else ax
    style = {"color": "black", "markerfacecolor": "none", "markersize": 7, "linestyle": "none"}
    ax.plot(by_law, range(count), "D", label="law", **style)
    ticks = range(0, count, max(1, math.ceil(count / _MOST_NAMES)))
    ax.set_yticks(list(ticks), [_short(names[place]) for place in ticks], fontsize=8)
    ax.set_ylim(count - 0.4, -0.6)
    _measured(ax, [])
    return ax


def _measured(ax: Any, held: Sequence[tuple[int, float, float]], label: str = "", **style: Any) -> None:
    """Points at the std of values, each joined to the law's, on an axis that is logarithmic from the smallest on."""
    for place, by_law, std in held:
        ax.plot([by_law, std], [place, place], color=GREY, linewidth=1, zorder=1)
    if held:
        stds, places = [std for _, _, std in held], [place for place, _, _ in held]
        ax.plot(stds, places, linestyle="none", label=label, **style)
    drawn = [std for line in ax.get_lines() for std in line.get_xdata() if std] or [1.0]
    ax.set_xscale("symlog", linthresh=10 ** math.floor(math.log10(min(drawn))), linscale=0.3)
    ax.set_xlim(0, 1.5 * max(drawn))
    _dress(ax, "std of a parameter's values (logarithmic, from 0)", "")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, fontsize=8)


def _std_now(step: Step, plan: Plan) -> float | None:
    if plan.model is None:
        return None
    std = observe(getattr(*holder_of(plan.model, step.name)))[1]
    return std if math.isfinite(std) else None


def _short(name: str) -> str:
    return name if len(name) <= 48 else "…" + name[-47:]


def probes(reports: Mapping[str, Any], *, ax: Any = None) -> tuple[Any, ...]:
    """Draw how the signal and the gradient pass through the depth of a model, of several probes at once.

    Args:
        reports: what `torch_kinit.probe` returned, by the name that the legend has for it, such as the law of the
            weights.
        ax: Axes for the outputs, or a pair, the second for the gradients; None for new ones.

    Returns:
        The Axes, one or two: for each layer with weights the std of its outputs, and the norm of their gradient.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `reports` are not reports by name.

    Example:
        >>> import torch
        >>> import torch_kinit as kinit
        >>> from torch import nn
        >>> model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(8)])
        >>> reports = {}
        >>> for law in ("glorot_normal", "he_normal"):
        ...     _ = kinit.apply(model, {nn.Linear: law}, seed=0)
        ...     reports[law] = kinit.probe(model, torch.ones(4, 64))
        >>> outputs, gradients = kinit.plot.probes(reports)
        >>> outputs.get_ylabel(), gradients.get_ylabel()
        ('std of the outputs', 'norm of the gradient of the outputs')
    """
    if not isinstance(reports, Mapping) or not all(hasattr(report, "weighted") for report in reports.values()):
        raise TypeError("`reports` must be a dict from names to what kinit.probe returned: {'he_normal': report}.")
    backward = any(report.gradient is not None for report in reports.values())
    axes = _new_axes((9 if backward else 5, 3.6), 1 + backward) if ax is None else ax
    axes = tuple(axes) if isinstance(axes, Sequence) else (axes,)
    for i, (name, report) in enumerate(reports.items()):
        rows = report.weighted
        signals = [row.std for row in rows], [row.gradient_norm for row in rows]
        for each, values, growth in zip(axes, signals, (report.growth, report.gradient_growth), strict=False):
            factor = "" if growth is None else f" (× {growth:.2f} a layer)"
            _line(each, values, i, name + factor)
    for each, label in zip(axes, ("std of the outputs", "norm of the gradient of the outputs"), strict=False):
        each.set_yscale("log")
        each.set_ylim(*_decades(each))
        _dress(each, "layer with weights, from the input to the output", label)
    if len(axes) > 1:
        axes[1].legend(title="backwards", fontsize=8, title_fontsize=8)
    return axes


def _line(ax: Any, values: Sequence[float | None], index: int, label: str) -> None:
    """A line of a colour, marker and style of its own; without points where there is nothing on a logarithmic axis."""
    drawn = [value if value and math.isfinite(value) else math.nan for value in values]
    style = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}
    ax.plot(
        range(1, len(values) + 1),
        drawn,
        **style,
        linestyle=_LINES[index % len(_LINES)],
        markevery=(index % 3, max(1, len(values) // 12)) if len(values) > 24 else None,
        markersize=5,
        linewidth=1.6,
        label=label,
    )


def _decades(ax: Any) -> tuple[float, float]:
    """The limits of what is drawn, two decades apart at least, so that a steady signal looks steady."""
    drawn = [value for line in ax.get_lines() for value in line.get_ydata() if value > 0] or [1.0]
    middle = math.sqrt(min(drawn)) * math.sqrt(max(drawn))
    return min(min(drawn) / 2, middle / 10), max(max(drawn) * 2, middle * 10)


def _new_axes(size: tuple[float, float], columns: int = 1) -> list[Any]:
    """The Axes of a new figure, which matplotlib shows as its user has it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib, which is missing: pip install torch_kinit[plot].") from error
    return list(plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)[1][0])


def _dress(ax: Any, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8)
