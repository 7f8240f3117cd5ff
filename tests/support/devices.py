"""What draws are tried with on each device: sources of numbers, laws and dtypes."""

import math
from functools import partial

import pytest
import torch

import torch_kinit as kinit
from tests.conftest import DEVICES
from tests.support.laws import Normal, TruncatedAtTwo, Uniform
from torch_kinit import KerasSeed, Key
from torch_kinit.streams.keras_seed import BACKENDS

ACCELERATOR = torch.device(DEVICES[-1])  # or the CPU, where there is none
DTYPES = [torch.float32, torch.bfloat16, torch.float16, *([] if ACCELERATOR.type == "mps" else [torch.float64])]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SOURCES = {  # from a device to what draws for a tensor there
    "global": lambda device: None,
    "generator of the device": lambda device: torch.Generator(device).manual_seed(3),
    "Key": lambda device: Key(3),
    "CPU generator": lambda device: torch.Generator().manual_seed(3),
    **{f"KerasSeed of {name}": lambda device, name=name: KerasSeed(3, name) for name in BACKENDS},
}


def sources(*names):
    return pytest.mark.parametrize("source", [SOURCES[name] for name in names], ids=names)


ON_CPU = list(SOURCES)[3:]  # drawn on the CPU and copied
SHAPE, FAN_IN, FAN_OUT = (256, 128, 3, 3), 128 * 9, 256 * 9
LAWS = {  # the call, and the law that it has on SHAPE
    "random_uniform": (kinit.random_uniform_, Uniform(-0.05, 0.05)),
    "shifted uniform": (lambda t, **g: kinit.random_uniform_(t, 0.1, 0.3, **g), Uniform(0.1, 0.3)),
    "random_normal": (kinit.random_normal_, Normal(0, 0.05)),
    "trunc_normal": (kinit.trunc_normal_, TruncatedAtTwo(0, 0.05)),
    "shifted trunc_normal": (lambda t, **g: kinit.trunc_normal_(t, 1.5, 0.2, **g), TruncatedAtTwo(1.5, 0.2)),
    "untruncated": (partial(kinit.variance_scaling_, distribution="untruncated_normal"), Normal(0, FAN_IN**-0.5)),
}
for name, variance in ("lecun", 1 / FAN_IN), ("glorot", 2 / (FAN_IN + FAN_OUT)), ("he", 2 / FAN_IN):
    std, limit = math.sqrt(variance) / 0.87962566103423978, math.sqrt(3 * variance)
    LAWS[f"{name}_normal"] = getattr(kinit, f"{name}_normal_"), TruncatedAtTwo(0, std)
    LAWS[f"{name}_uniform"] = getattr(kinit, f"{name}_uniform_"), Uniform(-limit, limit)
