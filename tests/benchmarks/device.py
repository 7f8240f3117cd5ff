"""Print nanoseconds a value on an accelerator for tensors of many sizes, beside torch's own fills.

    python -m tests.benchmarks.device [--device cuda] [--dtype float32] [--sizes 10 16 22 28 30] [--repeats 20]
        [--keras jax tensorflow torch]

A size n is 2**n values, float32 or float64. `--keras` names the backends of KerasSeed that take part: a kernel draws
JAX's float32 values, the CPU all others, which takes seconds for large sizes. Each fill is timed from and to a
synchronization of the device, the fills in turns; the median is shown, and each has its law. Of the largest size it
also prints the share of `fill_`'s speed that a fill reaches, which writes as much and computes nothing, and the memory
it takes beside the tensor (not on the CPU, which is the default where there is no accelerator). Then the seconds to the
first value of a Key in a new process.
"""

import argparse
import statistics
import subprocess
import sys
import time
from functools import partial

import torch
from torch import nn

import torch_kinit as kinit
from tests.support.laws import N, Normal, TruncatedAtTwo, Uniform, check_law
from torch_kinit.streams.keras_seed import BACKENDS

SIZES = (10, 16, 22, 28, 30)
TRUNCATED = TruncatedAtTwo(0, 0.05)


def of_keras(backends):
    """Fills from a KerasSeed of each backend."""
    seeds = {name: kinit.KerasSeed(0, name) for name in backends}
    return {
        f"kinit.trunc_normal_, KerasSeed on {name}": (partial(kinit.trunc_normal_, generator=seed), TRUNCATED)
        for name, seed in seeds.items()
    }


def fills(device, keras=("jax",)):
    """What is compared: a call that fills a tensor on `device`, and the law of its values."""
    generator, key, cpu = torch.Generator(device).manual_seed(0), kinit.Key(0), torch.device(device).type == "cpu"
    keyed = {
        "kinit.trunc_normal_, Key": (partial(kinit.trunc_normal_, generator=key), TRUNCATED),
        "kinit.random_normal_, Key": (partial(kinit.random_normal_, generator=key), Normal(0, 0.05)),
        "kinit.random_uniform_, Key": (partial(kinit.random_uniform_, generator=key), Uniform(-0.05, 0.05)),
    }
    return {
        "tensor.fill_": (lambda t: t.fill_(0.5), None),
        "tensor.uniform_": (lambda t: t.uniform_(), Uniform(0, 1)),
        "tensor.normal_": (lambda t: t.normal_(), Normal(0, 1)),
        "torch.nn.init.trunc_normal_": (partial(nn.init.trunc_normal_, std=0.05, a=-0.1, b=0.1), TRUNCATED),
        "kinit.trunc_normal_": (kinit.trunc_normal_, TRUNCATED),
        "kinit.trunc_normal_, generator": (partial(kinit.trunc_normal_, generator=generator), TRUNCATED),
        **keyed,
        **of_keras(keras),
        **({f"{name}, compiled": (kinit.compiled()(call), law) for name, (call, law) in keyed.items()} if cpu else {}),
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
    law = fills(device, BACKENDS)[name][1]
    values = tensor.flatten()[-N:].double()
    if law is None:
        assert torch.equal(values, torch.full_like(values, 0.5))
        return
    # torch.nn.init rounds its bound to float32, which lies outside by half a spacing; Keras on torch lets 4 in a
    # million lie outside.
    outside = name.startswith("torch") or name.endswith("on torch")
    check_law(values.clamp(law.low, law.high) if outside else values, law)


FIRST = """
import time, torch, torch_kinit as kinit
tensor = torch.empty(1000, device={device!r})
start = time.perf_counter()
kinit.{name}(tensor, generator=kinit.Key(0)).cpu()
print(time.perf_counter() - start)
"""


def seconds_to_first_value(name, device):
    """How long a first draw from a Key takes in a new process."""
    command = [sys.executable, "-W", "ignore", "-c", FIRST.format(name=name, device=str(device))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(size, dtype, device, repeats, keras):
    """The median of nanoseconds a value of each fill, and the bytes that it takes beside 2**size values."""
    tensor, compared = torch.empty(1 << size, dtype=dtype, device=device), fills(device, keras)
    times, memory = {name: [] for name in compared}, {}
    for name, (call, _) in compared.items():
        memory[name] = extra_memory(call, tensor)
        if tensor.numel() >= N:
            check(name, device, tensor)
    for _ in range(repeats):
        for name, (call, _) in compared.items():
            times[name].append(seconds(call, tensor))
    return {name: 1e9 * statistics.median(taken) / (1 << size) for name, taken in times.items()}, memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--keras", nargs="*", choices=BACKENDS, default=["jax"])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    settings = getattr(torch, options.dtype), options.device, options.repeats, options.keras
    measured = [measure(size, *settings) for size in sorted(options.sizes)]
    where = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else options.device
    print(f"Nanoseconds a {options.dtype} value, {where}, torch {torch.__version__}\n")
    heads = ["fill", *(f"2**{size}" for size in sorted(options.sizes)), "of fill_", "MiB beside the tensor"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    largest, memory = measured[-1]
    for name, nanoseconds in largest.items():
        share = f"{largest['tensor.fill_'] / nanoseconds:.0%}"
        beside = "" if memory[name] is None else f"{memory[name] / 2**20:.1f}"
        cells = [f"`{name}`", *(f"{found[name]:.4g}" for found, _ in measured), share, beside]
        print(f"| {' | '.join(cells)} |")
    print()
    for name in ("random_uniform_", "trunc_normal_", "random_normal_"):
        print(
            f"Seconds to the first value of {name} in a new process: {seconds_to_first_value(name, options.device):.2f}"
        )


if __name__ == "__main__":
    main()
