"""Print what a small parameter takes: `python -m tests.benchmarks.small [DEVICE]` has a model of 20,000 of them.

Beside `apply(seed=...)`, bookkeeping of `plan` included, stand draws one by one, and torch's own `reset_parameters`.
"""

import sys
import time
from unittest import mock

import torch
from torch import nn

import torch_kinit as kinit

LAYERS = 10_000


def microseconds(call, parameters, device):
    """How long a call takes, a parameter, until the device has done it."""
    start = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return 1e6 * (time.perf_counter() - start) / parameters


def main():
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    model = nn.ModuleList([nn.Linear(8, 8) for _ in range(LAYERS)]).to(device)
    count = 2 * LAYERS
    kinit.apply(model, seed=0)
    together = microseconds(lambda: kinit.apply(model, seed=0), count, device)
    with mock.patch("torch_kinit.model.execute.joins", return_value=False):
        kinit.apply(model[:1], seed=0)  # its kernel is built
        alone = microseconds(lambda: kinit.apply(model, seed=0), count, device)
    own = microseconds(lambda: [layer.reset_parameters() for layer in model], count, device)
    print(f"{count} parameters on {device}, microseconds each:")
    print(f"apply(seed=) {together:.0f}, one by one {alone:.0f}, reset_parameters {own:.0f}")


if __name__ == "__main__":
    main()
