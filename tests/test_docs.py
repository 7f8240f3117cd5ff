"""The documentation says what the package does."""

import re
from pathlib import Path

import pytest

import torch_kinit as kinit
from tests.support import compare_table, layer_table

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_layers_is_the_packages():
    """The page of layers is what `python -m tests.support.layer_table` prints, with a row of each class."""
    assert (DOCS / "reference" / "layers.md").read_text(encoding="utf-8") == layer_table.page()


def test_every_public_name_is_in_the_reference():
    """Each public name has an entry in the reference, of `plot` each of its own, and each entry is a public name."""
    pages = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
    entries = re.findall(r"^\.\. auto(?:function|class|data|exception|module):: (\S+)$", pages, re.MULTILINE)
    pictures = [f"torch_kinit.plot.{name}" for name in kinit.plot.__all__]
    assert sorted(entries) == sorted({*kinit.__all__, *pictures} - {"plot"})


@pytest.mark.parametrize("table", [compare_table.arguments, compare_table.activations, compare_table.optimizers])
def test_the_tables_of_comparison_are_the_packages(table):
    """The page has what `python -m tests.support.compare_table` prints, a line for each row of the package's tables."""
    assert "\n".join(table()) in (DOCS / "compare.md").read_text(encoding="utf-8")
