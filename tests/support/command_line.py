"""The command line called as users do, and what it is called with."""

import os
import subprocess
import sys

from torch import nn

import torch_kinit as kinit

DEMO = "torch_kinit.inspection.demo:PictureAndText"
LINEAR = ("torch.nn:Linear", "--set", "in_features=20", "--set", "out_features=5")


def stack(layers, gaps=False):
    """Layers that are alike, with others between if there are `gaps`."""
    made = [nn.Linear(4, 4) for _ in range(layers)]
    return nn.Sequential(*(inner for layer in made for inner in (layer, nn.ReLU())[: 1 + gaps]))


def process(*arguments, cwd=None):
    """Call it as users do."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(kinit.__file__)))
    return subprocess.run(
        [sys.executable, "-m", "torch_kinit", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root, "COLUMNS": "160"},
    )
