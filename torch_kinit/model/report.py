"""Tables laid out as text and HTML: nothing but words is ever cut, and long names go under headings."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch_kinit.model.folding import TIE

Table = tuple[list[str], list[list[str]]]  # a header, and rows as wide as it

_GAP = "  "
_LEAST = 8  # characters that a column of words keeps
_NUMBERS = re.compile(r"(?:[-+\d.,eEx%/()\[\] ]|inf|nan)*")
_BOLD, _DIM, _YELLOW, _CYAN = "\033[1m", "\033[2m", "\033[33m", "\033[36m"


def as_text(
    header: list[str],
    rows: list[list[str]],
    width: int | None = None,
    *,
    notes: Sequence[str] = (),
    usual: Mapping[str, str] = MappingProxyType({}),
    optional: Sequence[str] = (),
    color: bool = False,
) -> str:
    """A table with lines below it.

    It is whole unless it is wider than `width`, by default the terminal's if the output is one. Then names go under the
    headings of their modules; cells of a column that are as `usual` are left out; then the `optional` columns, in this
    order; and then words are cut. Names and numbers stay whole, and lines that need it are longer.
    """
    width = terminal_width() if width is None else width
    color = color and not os.environ.get("NO_COLOR")
    if width is not None and _total(_widths(header, rows)) > width:
        header, rows, more = _narrower(header, rows, width, usual, optional)
        notes = [*more, *notes]
    widths = _narrowed(_widths(header, rows), header, rows, width)
    rule = _GAP.join("-" * w for w in widths)
    below = [line for note in notes for line in _wrapped(note, width)]
    if color:
        rule, below = _painted(rule, _DIM), [_painted(line, _DIM) for line in below]
    body = [_row(row, widths, header, color) for row in rows]
    return "\n".join([_row(header, widths, header, color), rule, *body, *([rule] if below else []), *below])


def terminal_width() -> int | None:
    """The width of the terminal that the output goes to; None where it goes elsewhere."""
    try:
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    except (AttributeError, ValueError):  # no output at all, or a closed one
        return None


def _widths(header: list[str], rows: list[list[str]]) -> list[int]:
    return [max(len(row[i]) for row in [header, *rows] if len(row) > 1) for i in range(len(header))]


def _total(widths: list[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _narrower(
    header: list[str], rows: list[list[str]], width: int, usual: Mapping[str, str], optional: Sequence[str]
) -> tuple[list[str], list[list[str]], list[str]]:
    """The table with headings, without usual cells and optional columns, and lines that say what is left out."""
    ties = [f"one tensor: {row[0]}" for row in rows if TIE in row[0]]
    if header[0] == "name":
        header, rows = _with_headings(header, rows)
    absent = {title: cell for title, cell in usual.items() if title in header}
    for title, cell in absent.items():
        i = header.index(title)
        rows = [[*row[:i], "" if row[i] == cell else row[i], *row[i + 1 :]] if len(row) > 1 else row for row in rows]
    out: list[str] = []
    while _total(_widths(header, rows)) > width and len(out) < len(optional):
        out.append(optional[len(out)])
        i = header.index(out[-1])
        header, rows = _but(header, i), [_but(row, i) if len(row) > 1 else row for row in rows]
    notes = [f"{title} where none is shown: {cell}" for title, cell in absent.items()]
    return header, rows, [*ties, *notes, *([f"not shown in {width} columns: {', '.join(out)}"] if out else [])]


def _with_headings(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The rows under headings, rows of one cell with the path of a module and what the column "layer" has of it."""
    column = header.index("layer") if "layer" in header else None
    listed: list[list[str]] = []
    above, kind = "", None
    for row in rows:
        name, layer = row[0].partition(TIE)[0], "" if column is None else row[column]
        if kind is None or kind != layer or not (layer and name.startswith(above)):
            above, kind = name[: name.rfind(".") + 1], layer
            label = above.rstrip(".") or "(the model)"
            listed.append([f"{label}: {layer}" if layer else label])
        cells = [f"  {name.removeprefix(above)}", *row[1:]]
        listed.append(cells if column is None else _but(cells, column))
    return header if column is None else _but(header, column), listed


def _but(cells: list[str], i: int) -> list[str]:
    return cells[:i] + cells[i + 1 :]


def _narrowed(widths: list[int], header: list[str], rows: list[list[str]], width: int | None) -> list[int]:
    """The widths after columns of words have given way: the widest first, initializers last, names never."""
    if width is None:
        return widths
    full = [row for row in rows if len(row) > 1]
    words = [i for i in range(1, len(header)) if not all(_NUMBERS.fullmatch(row[i]) for row in full)]
    while _total(widths) > width and (wide := [i for i in words if widths[i] > _LEAST]):
        widths[max(wide, key=lambda i: (header[i] != "initializer", widths[i]))] -= 1
    return widths


def _row(row: list[str], widths: list[int], header: list[str], color: bool) -> str:
    if len(row) == 1:
        return _painted(row[0], _BOLD) if color else row[0]
    cells = [_fit(cell, w) for cell, w in zip(row, widths, strict=True)]
    last = max((i for i, cell in enumerate(row) if cell), default=0)
    cells = [*cells[:last], cells[last].rstrip()]
    if color:
        colours = [_BOLD if row is header else _colour(title, cell) for title, cell in zip(header, row, strict=True)]
        cells = [_painted(cell, colour) if colour else cell for cell, colour in zip(cells, colours, strict=False)]
    return _GAP.join(cells)


def _colour(title: str, cell: str) -> str:
    if cell == "(left alone)":
        return _YELLOW
    return _CYAN if title == "rule" and cell != "Keras default" else ""


def _painted(text: str, colour: str) -> str:
    return f"{colour}{text}\033[0m"


def _fit(cell: str, width: int) -> str:
    """`cell` padded to `width`; where it is longer a call loses its arguments, or else the middle is cut out."""
    if len(cell) <= width:
        return cell.ljust(width)
    call = cell.partition("(")[0] + "(…)"
    if cell.endswith(")") and 3 < len(call) <= width:
        return call.ljust(width)
    tail = (width - 1) // 2
    return cell[: width - 1 - tail] + "…" + (cell[-tail:] if tail else "")


def _wrapped(note: str, width: int | None) -> list[str]:
    """A line below the table as several where it is too long, cut at spaces alone."""
    if width is None or len(note) <= width:
        return [note]
    import textwrap  # takes a while to import

    return textwrap.wrap(note, width, break_long_words=False, break_on_hyphens=False)


def as_html(header: list[str], rows: list[list[str]], *, notes: Sequence[str] = ()) -> str:
    """The same as an HTML table, whole."""
    import html  # takes 5 ms to import

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    below = "<br>".join(map(html.escape, notes))
    foot = f'<tfoot><tr><td colspan="{len(header)}">{below}</td></tr></tfoot>' if notes else ""
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody>{foot}</table>"
