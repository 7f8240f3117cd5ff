"""Tables as text and HTML, and a progress bar; what to say of a step is decided here, what a step is elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import Tensor

from torch_kinit.model.steps import Step

T = TypeVar("T")
Table = tuple[list[str], list[list[str]]]


def plan_table(steps: Sequence[Step]) -> Table:
    """A row a step: name, layer, role, initializer, fans, std, rule, and its seeds if any step has some."""
    header = ["name", "layer", "role", "initializer", "fans", "std", "rule"]
    rows = []
    for step in steps:
        packed = f"{step.blocks} x " if step.blocks > 1 else ""
        fans = "-" if step.fans is None else f"{packed}({step.fans[0]}, {step.fans[1]})"
        std = "-" if step.std is None else f"{step.std:.4g}"
        name = " = ".join((step.name, *step.tied))
        layer = f"{step.layer} after {step.flattened}" if step.flattened else step.layer
        rows.append([name, layer, step.role or "-", _initializer(step), fans, std, step.rule])
    if any(step.seeds for step in steps):
        header.append("Keras seed")
        for row, step in zip(rows, steps, strict=True):
            row.append(", ".join(str(seed.seed) for seed in step.seeds) or "-")
    return header, rows


def _initializer(step: Step) -> str:
    if step.initializer is None:
        return "(left alone)"
    return ", then ".join((str(step.initializer), *step.parametrizations))


def values_table(values: Iterable[tuple[Step, Tensor]]) -> Table:
    """A row a tensor: its mean, std, least and greatest, each beside what the law says."""
    rows = []
    for step, tensor in values:
        mean, std, low, high = observe(tensor)
        by_law = "-" if step.law is None else f"{step.law.std:.4g}"
        bounds = "-" if step.law is None else "[{:.4g}, {:.4g}]".format(*step.law.bounds)
        seen = [f"{mean:+.2e}", f"{std:.4g}", by_law, f"{low:.4g}", f"{high:.4g}", bounds]
        rows.append([step.name, _initializer(step), *seen])
    return ["name", "initializer", "mean", "std", "std by law", "min", "max", "law's bounds"], rows


def observe(tensor: Tensor) -> tuple[float, float, float, float]:
    """Mean, std, least and greatest of a tensor's values; NaN where it has none."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return (float("nan"),) * 4
    values = tensor.detach().float() if tensor.dtype.itemsize < 4 else tensor.detach()
    values = values if values.is_floating_point() else values.double()
    low, high = values.aminmax()
    return float(values.mean()), float(values.std(correction=0)), float(low), float(high)


def as_text(header: list[str], rows: list[list[str]], width: int | None = None) -> str:
    """A table whose lines are no longer than `width`, by default the terminal's."""
    width = shutil.get_terminal_size((120, 24)).columns if width is None else width
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 1:
        others = widths[1:]  # the names give way last
        widest = 1 + others.index(max(others)) if max(others) > 12 else widths.index(max(widths))
        widths[widest] -= 1
    lines = ["  ".join(_fit(cell, w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]]
    rule = "  ".join("-" * w for w in widths)
    return "\n".join(line[:width] for line in [lines[0], rule, *lines[1:]])


def _fit(cell: str, width: int) -> str:
    """`cell` padded to `width`, its middle cut out where it is longer."""
    if len(cell) <= width:
        return cell.ljust(width)
    tail = (width - 1) // 2
    return cell[: width - 1 - tail] + "…" + (cell[-tail:] if tail else "")


def as_html(header: list[str], rows: list[list[str]]) -> str:
    """The same as an HTML table, whole."""
    import html  # takes 5 ms to import

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"


def progress_bar(items: Sequence[T]) -> Iterable[T]:
    """`items` behind a bar, if tqdm is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, desc="initializing", unit="tensor")
    return bar
