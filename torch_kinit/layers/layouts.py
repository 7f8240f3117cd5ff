"""The old place of names that now stand in table and variable; to go once nothing imports it."""

from torch_kinit.layers.table import layout_of, register_layout
from torch_kinit.layers.variable import CONVENTIONS, Options, Variable

__all__ = ["CONVENTIONS", "Options", "Variable", "layout_of", "register_layout"]
