"""The tables of docs/compare.md, made from the package's own: `python -m tests.support.compare_table`.

A test finds what it prints on the page.
"""

from torch_kinit.inspection.activations import TABLE
from torch_kinit.inspection.compare.differences import MEASURED
from torch_kinit.inspection.compare.fields import FIELDS
from torch_kinit.inspection.compare.optimizers import SETTINGS


def _codes(names):
    return ", ".join(f"`{name}`" for name in names)


def _classes(classes):
    return (
        "any"
        if classes[0].__name__ == "Module"
        else _codes(dict.fromkeys(cls.__name__.rstrip("123d") for cls in classes))
    )


def arguments():
    """A line for each row of the table of arguments."""
    yield "| Keras | argument | torch | attribute | if it differs |"
    yield "|---|---|---|---|---|"
    for row in FIELDS:
        key = f"`{row.key}`" if row.key else "always"
        attribute = f"`{row.attribute}`" if row.attribute else "has none"
        yield f"| {_codes(row.layers)} | {key} | {_classes(row.modules)} | {attribute} | {MEASURED[row.weight]} |"


def activations():
    """The activations that have a module in torch."""
    pairs = (f"`{name}` (`{row.cls.__name__}`)" for name, row in TABLE.items() if row.cls)
    yield f"{', '.join(pairs)}."


def optimizers():
    """A line for each optimizer."""
    yield "| torch | arguments, and what a difference does |"
    yield "|---|---|"
    for name, settings in SETTINGS.items():
        yield f"| `{name}` | {'; '.join(f'`{s.name}`: {MEASURED[s.weight]}' for s in settings)} |"


if __name__ == "__main__":
    for table in (arguments, activations, optimizers):
        print(*table(), sep="\n", end="\n\n")
