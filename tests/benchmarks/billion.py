"""Print time and memory of initializing a model of a billion float32 values, by four ways, each in its own process.

    python -m tests.benchmarks.billion [--millions N]

The memory is the most the process held at a time, less what it held before and less the model itself.
"""

import argparse
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

import torch_kinit as kinit


def model(millions):
    """An embedding of a quarter of the values and square layers, without memory."""
    layers = max(1, round(0.75 * millions * 1e6 / 4096**2))
    with torch.device("meta"):
        embedding = nn.Embedding(round(millions * 1e6 / 4 / 4096), 4096)
        return nn.Sequential(embedding, *(nn.Linear(4096, 4096, bias=False) for _ in range(layers)))


def by_torch(network):
    """torch's truncated normal, parameter by parameter."""
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)


def by_kinit(network, **source):
    """The same law, by the library."""
    kinit.materialize(network, "cpu")
    rules = dict.fromkeys((name for name, _ in network.named_parameters()), "trunc_normal(std=0.02)")
    kinit.apply(network, rules, **source)


def compiled(network):
    """The same from a seed, in compiled kernels, that this process compiles or finds compiled."""
    with kinit.compiled():
        by_kinit(network, seed=0)


WAYS = {
    "`torch.nn.init.trunc_normal_`": by_torch,
    "`apply(model, rules)`": by_kinit,
    "`apply(model, rules, seed=0)`": partial(by_kinit, seed=0),
    "the same, `compiled()`": compiled,
}


def held(field):
    """What /proc says of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def run(way, millions):
    """The seconds it takes, and the MiB beside the model."""
    network = model(millions)
    size = sum(4 * parameter.numel() for parameter in network.parameters())
    WAYS[way](model(20))  # imports what is imported late, and compiles
    before, start = held("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
    WAYS[way](network)
    return time.perf_counter() - start, (held("VmHWM") - before - size) / 2**20


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=1000)
    parser.add_argument("--way", choices=WAYS)
    options = parser.parse_args()
    if options.way:
        print(*run(options.way, options.millions))
        return
    print(f"| {options.millions} million float32 values | seconds | MiB beside the model |\n|---|---|---|")
    for way in WAYS:
        command = [sys.executable, "-m", "tests.benchmarks.billion", "--millions", str(options.millions), "--way", way]
        seconds, memory = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        print(f"| {way} | {seconds:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
