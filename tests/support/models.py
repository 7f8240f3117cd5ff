"""Models that several tests use, and the generator that they are drawn from."""

import torch
from torch import nn
from torch.nn.utils import parametrize


def seeded():
    return torch.Generator().manual_seed(7)


def linear():
    return nn.Linear(4, 4)


def network():
    return nn.ModuleDict(
        {
            "words": nn.Embedding(10, 8, padding_idx=0),
            "stem": nn.Conv2d(4, 8, 3, groups=4),
            "norm": nn.BatchNorm2d(8),
            "read": nn.LSTM(8, 6, bidirectional=True),
            "sum": nn.GRU(12, 6),
            "attend": nn.MultiheadAttention(12, 3),
            "head": nn.Linear(12, 2),
        }
    )


def tied():
    model = nn.ModuleDict({"words": nn.Embedding(10, 8), "head": nn.Linear(8, 10)})
    model["head"].weight = model["words"].weight
    return model


class Child(nn.Linear):
    """A subclass of a known layer."""


class Grandchild(Child):
    """A subclass of a subclass."""


def lineage():
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "norm": nn.BatchNorm2d(8),
            "body": nn.Sequential(nn.Linear(8, 8), Child(8, 8), Grandchild(8, 8)),
            "read": nn.LSTM(8, 8),
            "head": nn.Linear(8, 2),
        }
    )


class Positions(nn.Module):
    """A module with a parameter of its own, of no known layout."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(5, 4))
        self.token = nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, 2)


class Symmetric(nn.Module):
    """torch's own example of a parametrization, with or without a way back."""

    def forward(self, x):
        return x.triu() + x.triu(1).T


def symmetric(step):
    module = nn.Linear(4, 4)
    parametrize.register_parametrization(module, "weight", step)
    return module


class Twice(nn.Module):
    """A parametrization that loses no bit, and has a way back."""

    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def on_meta(make):
    """The model, on the meta device."""
    with torch.device("meta"):
        return make()
