"""Print what a small parameter takes: `python -m tests.benchmarks.small` has a model of 20,000 of them.

Beside `apply(seed=...)`, bookkeeping of `plan` included, stand draws one by one, and torch's own `reset_parameters`.
"""

import time
from unittest import mock

from torch import nn

import torch_kinit as kinit

LAYERS = 10_000


def microseconds(call, parameters):
    """How long a call takes, a parameter."""
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start) / parameters


def main():
    model = nn.ModuleList([nn.Linear(8, 8) for _ in range(LAYERS)])
    count = 2 * LAYERS
    kinit.apply(model, seed=0)
    together = microseconds(lambda: kinit.apply(model, seed=0), count)
    with mock.patch("torch_kinit.model.execute.joins", return_value=False):
        alone = microseconds(lambda: kinit.apply(model, seed=0), count)
    own = microseconds(lambda: [layer.reset_parameters() for layer in model], count)
    print(f"{count} parameters, microseconds each:")
    print(f"apply(seed=) {together:.0f}, one by one {alone:.0f}, reset_parameters {own:.0f}")


if __name__ == "__main__":
    main()
