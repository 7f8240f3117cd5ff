"""Print nanoseconds a value on an accelerator, and the memory each fill takes beside its tensor.

    python -m tests.benchmarks.device [--device cuda] [--values 268435456] [--repeats 20]

Each fill is timed from and to a synchronization of the device, the fills in turns; the median is shown, and each has
its law. On the CPU, which is the default where there is no accelerator, no memory is counted.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from torch import nn

import torch_kinit as kinit
from tests.support.laws import N, Normal, TruncatedAtTwo, Uniform, check_law

VALUES = 256 << 20
TRUNCATED = TruncatedAtTwo(0, 0.05)


def fills(device):
    """What is compared: a call that fills a tensor on `device`, and the law of its values."""
    generator, key = torch.Generator(device).manual_seed(0), kinit.Key(0)
    keyed = {
        "kinit.trunc_normal_, Key": (partial(kinit.trunc_normal_, generator=key), TRUNCATED),
        "kinit.random_normal_, Key": (partial(kinit.random_normal_, generator=key), Normal(0, 0.05)),
        "kinit.random_uniform_, Key": (partial(kinit.random_uniform_, generator=key), Uniform(-0.05, 0.05)),
    }
    return {
        "tensor.uniform_": (lambda t: t.uniform_(), Uniform(0, 1)),
        "tensor.normal_": (lambda t: t.normal_(), Normal(0, 1)),
        "torch.nn.init.trunc_normal_": (partial(nn.init.trunc_normal_, std=0.05, a=-0.1, b=0.1), TRUNCATED),
        "kinit.trunc_normal_": (kinit.trunc_normal_, TRUNCATED),
        "kinit.trunc_normal_, generator": (partial(kinit.trunc_normal_, generator=generator), TRUNCATED),
        **keyed,
        **{f"{name}, compiled": (kinit.compiled()(call), law) for name, (call, law) in keyed.items()},
    }


def synchronize(device):
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def seconds(call, tensor):
    """How long one fill takes."""
    synchronize(tensor.device)
    start = time.perf_counter()
    call(tensor)
    synchronize(tensor.device)
    return time.perf_counter() - start


def extra_memory(call, tensor):
    """Fill the tensor; the most bytes of a CUDA device that this takes beside it the second time, None elsewhere."""
    call(tensor)  # compiling a kernel tries it out on copies
    if tensor.device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(tensor.device)
    torch.cuda.reset_peak_memory_stats(tensor.device)
    call(tensor)
    return torch.cuda.max_memory_allocated(tensor.device) - before


def check(name, device, tensor):
    """Raise AssertionError unless a fill has given what it should."""
    law = fills(device)[name][1]
    values = tensor.flatten()[-N:].double()
    # torch.nn.init rounds its bound to float32, which lies outside by half a spacing
    check_law(values.clamp(law.low, law.high) if name.startswith("torch") else values, law)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--values", type=int, default=VALUES)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    tensor, compared = torch.empty(options.values, device=options.device), fills(options.device)
    times, memory = {name: [] for name in compared}, {}
    for name, (call, _) in compared.items():
        memory[name] = extra_memory(call, tensor)
        check(name, options.device, tensor)
    for _ in range(options.repeats):
        for name, (call, _) in compared.items():
            times[name].append(seconds(call, tensor))
    where = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else options.device
    print(f"{options.values} float32 values, {where}, torch {torch.__version__}\n")
    print("| fill | ns a value | least | MiB beside the tensor |\n|---|---|---|---|")
    for name, taken in times.items():
        median, least = (1e9 * x / options.values for x in (statistics.median(taken), min(taken)))
        beside = "" if memory[name] is None else f"{memory[name] / 2**20:.1f}"
        print(f"| `{name}` | {median:.4f} | {least:.4f} | {beside} |")


if __name__ == "__main__":
    main()
