"""Tables laid out as text and HTML: long names go under headings, and nothing but long words is ever cut."""

from __future__ import annotations

import itertools
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
    order; then cells of several words wrap, and other words are cut. Names and numbers stay whole, and lines that need
    it are longer.
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
    return [max(len(row[i]) for row in _full(header, [header, *rows])) for i in range(len(header))]


def _full(header: list[str], rows: list[list[str]]) -> list[list[str]]:
    """The rows but for headings, which have one cell."""
    return [row for row in rows if len(row) == len(header)]


def _total(widths: list[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _narrower(
    header: list[str], rows: list[list[str]], width: int, usual: Mapping[str, str], optional: Sequence[str]
) -> tuple[list[str], list[list[str]], list[str]]:
    """The table with headings, without usual cells and optional columns, and lines that say what is left out."""
    ties = [f"one tensor: {row[0]}" for row in rows if TIE in row[0]]
    if header[0] == "name":
        header, rows = _with_headings(header, rows)
    absent = {t: cell for t, cell in usual.items() if t in header and any(cell in row[1:] for row in rows)}
    for title, cell in absent.items():
        i = header.index(title)
        rows = [[*row[:i], "" if row[i] == cell else row[i], *row[i + 1 :]] if row[1:] else row for row in rows]
    out: list[str] = []
    while _total(_widths(header, rows)) > width and len(out) < len(optional):
        out.append(optional[len(out)])
        i = header.index(out[-1])
        header, rows = _but(header, i), [_but(row, i) if row[1:] else row for row in rows]
    notes = [f"{title} where none is shown: {cell}" for title, cell in absent.items()]
    return header, rows, [*ties, *notes, *([f"not shown in {width} columns: {', '.join(out)}"] if out else [])]


def _with_headings(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The rows under headings, rows of one cell with the path of a module and what the column "layer" has of it."""
    column = header.index("layer") if "layer" in header else None
    listed: list[list[str]] = []
    above, kind = "", None
    for row in rows:
        name, layer = row[0].partition(TIE)[0], "" if column is None else row[column]
        path = name[: name.rfind(".") + 1]
        inside = name.startswith(above) if layer else path == above  # a layer's class may speak for modules inside it
        if kind != layer or not inside:
            above, kind = path, layer
            label = above.rstrip(".") or "(the model)"
            listed.append([f"{label}: {layer}" if layer else label])
        cells = [f"  {name.removeprefix(above)}", *row[1:]]
        listed.append(cells if column is None else _but(cells, column))
    return header if column is None else _but(header, column), listed


def _but(cells: list[str], i: int) -> list[str]:
    return cells[:i] + cells[i + 1 :]


def _narrowed(widths: list[int], header: list[str], rows: list[list[str]], width: int | None) -> list[int]:
    """The widths after columns of words gave way: the widest first, initializers last, names never."""
    if width is None:
        return widths
    full = _full(header, rows)
    words = [i for i in range(1, len(header)) if not all(_NUMBERS.fullmatch(row[i]) for row in full)]
    longest = {i: max(len(word) for row in [header, *full] for word in row[i].split() or [""]) for i in words}
    for least in (longest, dict.fromkeys(words, _LEAST)):  # wrap first, then cut
        while _total(widths) > width and (wide := [i for i in words if widths[i] > max(least[i], _LEAST)]):
            widths[max(wide, key=lambda i: (header[i] != "initializer", widths[i]))] -= 1
    return widths


def _row(row: list[str], widths: list[int], header: list[str], color: bool) -> str:
    """A row, over as many lines as its longest cell takes."""
    if len(row) < len(header):
        return _painted(row[0], _BOLD) if color else row[0]
    cells = [_fit(cell, w) for cell, w in zip(row, widths, strict=True)]
    colours = [_BOLD if row is header else _colour(title, cell) for title, cell in zip(header, row, strict=True)]
    lines = itertools.zip_longest(*cells, fillvalue="")
    return "\n".join(_line(parts, widths, colours if color else ()) for parts in lines)


def _line(parts: Sequence[str], widths: list[int], colours: Sequence[str] = ()) -> str:
    """A line of a row, without spaces at its end."""
    last = max((i for i, part in enumerate(parts) if part), default=0)
    padded = [*(part.ljust(w) for part, w in zip(parts[:last], widths, strict=False)), parts[last]]
    if colours:
        padded = [_painted(part, colour) if colour else part for part, colour in zip(padded, colours, strict=False)]
    return _GAP.join(padded)


def _colour(title: str, cell: str) -> str:
    if cell == "(left alone)":
        return _YELLOW
    return _CYAN if title == "rule" and cell != "Keras default" else ""


def _painted(text: str, colour: str) -> str:
    return f"{colour}{text}\033[0m"


def _fit(cell: str, width: int) -> list[str]:
    """The lines of a cell: where it is too wide a call loses its arguments, words wrap, and a long word its middle."""
    if len(cell) > width and len(call := _short_call(cell)) <= width:
        return [call]
    return [_cut(line, width) for line in _wrapped(cell, width)]


def _cut(word: str, width: int) -> str:
    if len(word) > width:
        word = _short_call(word)
    tail = (width - 1) // 2
    return word if len(word) <= width else word[: width - 1 - tail] + "…" + (word[-tail:] if tail else "")


def _short_call(text: str) -> str:
    """A call without its arguments, and what is none as it is."""
    return re.sub(r"^(\w+)\(.*\)(,?)$", r"\1(…)\2", text)


def _wrapped(text: str, width: int | None) -> list[str]:
    """The lines of a text that is too long for one, which end at spaces."""
    if width is None or len(text) <= width:
        return [text]
    import textwrap  # takes a while to import

    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def as_html(header: list[str], rows: list[list[str]], *, notes: Sequence[str] = ()) -> str:
    """The same as an HTML table, whole."""
    import html  # takes 5 ms to import

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    below = "<br>".join(map(html.escape, notes))
    foot = f'<tfoot><tr><td colspan="{len(header)}">{below}</td></tr></tfoot>' if notes else ""
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody>{foot}</table>"
