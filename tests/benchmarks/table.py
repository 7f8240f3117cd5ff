"""Print the README's table of speed and memory: ratios measured in one run, beside the limit each must keep.

    python -m tests.benchmarks.table [--threads N] [--busy] [--repeats N]

The compared calls take turns and each ratio is the median over the turns, since machines are noisy. `--busy`
keeps one core busy with something else meanwhile. The exit code is 1 if a limit is missed.
"""

import argparse
import functools
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

os.environ["KERAS_BACKEND"] = "torch"

import torch

import torch_kinit as kinit
from tests.benchmarks import work
from tests.support import backends
from tests.support.memory import PeakMemory


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratio(name, base, repeats):
    """The median of name's time over base's, in turns."""
    first, second = work.FILLS[name][0], work.FILLS[base][0]
    first(), second()
    return statistics.median(seconds(first) / seconds(second) for _ in range(repeats))


def peak_memory():
    """The most MiB beside the tensor, of any law and dtype."""
    peaks = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for bounds in ((-2, 2), (3, float("inf"))):
            tensor = torch.empty(work.SIZE // 2, dtype=dtype)
            with PeakMemory(tensor) as memory:
                kinit.trunc_normal_(tensor, lower=bounds[0], upper=bounds[1])
            peaks.append(memory.peak)
    return max(peaks) / 2**20


def bookkeeping(repeats):
    """Milliseconds of planning and applying 400 parameters, the fills taken off."""
    model = work.model()
    pairs = [
        (seconds(lambda: work.plan_and_apply(model)), seconds(lambda: work.fill_bare(model))) for _ in range(repeats)
    ]
    return 1e3 * statistics.median(whole - fills for whole, fills in pairs)


def import_time(repeats):
    """Milliseconds of `import torch_kinit` after `import torch`."""
    code = "import time, torch; a = time.perf_counter(); import torch_kinit; print(time.perf_counter() - a)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)  # writes bytecode
    runs = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        for _ in range(repeats)
    )
    return 1e3 * statistics.median(float(run.stdout) for run in runs)


@functools.cache
def rank():
    """Seconds, and MiB beside the shard, of one rank; see tests.benchmarks.scale."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.scale", "405B"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    taken, memory = re.search(r"([\d.]+) s, (\d+) MiB", printed).groups()
    return float(taken), float(memory)


@contextmanager
def busy_core(enabled):
    """A process that uses one core, if enabled."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if enabled else None
    try:
        yield
    finally:
        if process:
            process.kill()


KERAS_CALL = """
import time
import keras
initializer = getattr(keras.initializers, law)(seed=0)
def call():
    start = time.perf_counter()
    values = initializer(shape)
    if backend == "jax":
        values.block_until_ready()
    return time.perf_counter() - start
call()
result = [call() for _ in range(repeats)]
"""


def streams(repeats):
    """Nanoseconds a value of each of Keras' streams, here and by Keras itself, in turns."""
    for backend in backends.NAMES:
        for law, fill in (("RandomUniform", kinit.random_uniform_), ("TruncatedNormal", kinit.trunc_normal_)):
            call = functools.partial(
                fill, torch.empty(work.SHAPE), layout="keras", generator=kinit.KerasSeed(0, backend)
            )
            call()
            ours, keras = [], []
            for _ in range(repeats):
                ours.append(seconds(call))
                keras += backends.backend(backend)(KERAS_CALL, law=law, backend=backend, shape=work.SHAPE, repeats=1)
            here, there = (1e9 * statistics.median(times) / work.SIZE for times in (ours, keras))
            yield (
                f"`{fill.__name__}(generator=KerasSeed(0, {backend!r}))`",
                f"{here:.1f} ns a value (Keras on {backend}: {there:.1f})",
                "<= 30 ns",
                here <= 30,
            )


def nanoseconds(calls, repeats):
    """The median a value of each call, in turns, from the second on."""
    times = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            times[name].append(1e9 * seconds(call) / work.SIZE)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def keyed(repeats):
    """A Key's draws, eager and compiled, beside torch.nn.init's."""
    tensor, key = torch.empty(work.SHAPE), kinit.Key(0)
    laws = {
        kinit.random_uniform_: (torch.nn.init.uniform_, 12, 1.1),
        kinit.trunc_normal_: (functools.partial(torch.nn.init.trunc_normal_, std=0.05, a=-0.1, b=0.1), 15, 2.3),
        kinit.random_normal_: (torch.nn.init.normal_, None, 2.5),
    }
    for fill, (theirs, most, limit) in laws.items():
        eager = functools.partial(fill, tensor, generator=key)
        calls = {"torch": functools.partial(theirs, tensor), "eager": eager, "compiled": kinit.compiled()(eager)}
        took = nanoseconds(calls, repeats)
        yield (
            f"`{fill.__name__}(generator=Key(0))`, float32, eager",
            f"{took['eager']:.1f} ns a value (`torch.nn.init`: {took['torch']:.1f})",
            f"<= {most} ns" if most else "",
            most is None or took["eager"] <= most,
        )
        yield "the same, compiled", f"{took['compiled']:.1f} ns a value", f"<= {limit} ns", took["compiled"] <= limit


def rows(repeats):
    """(what, measured, limit, whether it holds)."""

    def at_most(what, value, limit, unit):
        return what, f"{value:.2f}{unit}" if value < 10 else f"{value:.0f}{unit}", f"<= {limit}{unit}", value <= limit

    truncated = "kinit.trunc_normal_"
    yield at_most("`trunc_normal_`, float32", ratio(truncated, "tensor.uniform_", repeats), 1.4, " x `uniform_()`")
    against_torch = 1 / ratio(truncated, "torch.nn.init.trunc_normal_", max(3, repeats // 4))
    yield (
        "the same, against `torch.nn.init.trunc_normal_`",
        f"{against_torch:.1f} x faster",
        ">= 10 x",
        against_torch >= 10,
    )
    against_keras = 1 / ratio(truncated, "Keras' TruncatedNormal on torch", max(3, repeats // 4))
    yield "the same, against Keras' TruncatedNormal on torch", f"{against_keras:.1f} x faster", "", True
    half = ratio(truncated + ", bfloat16", "tensor.uniform_", repeats)
    yield at_most("`trunc_normal_`, bfloat16", half, 1.6, " x float32 `uniform_()`")
    tail = ratio(truncated + ", a tail", "tensor.uniform_", max(3, repeats // 4))
    yield "`trunc_normal_(lower=3, upper=inf)`", f"{tail:.1f} x `uniform_()`", "", True
    yield at_most("`he_uniform_`", ratio("kinit.he_uniform_", "tensor.uniform_", 2 * repeats), 1.05, " x `uniform_()`")
    yield at_most(
        "`random_normal_`", ratio("kinit.random_normal_", "tensor.normal_", 2 * repeats), 1.05, " x `normal_()`"
    )
    yield at_most("memory beside the tensor, any draw", peak_memory(), 16, " MiB")
    yield at_most("`plan` and `apply` of 400 parameters, fills excluded", bookkeeping(2 * repeats), 20, " ms")
    yield at_most("`import torch_kinit` after `import torch`", import_time(5), 50, " ms")
    yield at_most("a rank of a model of 405 billion parameters on 4,096: `materialize`, `apply`", rank()[0], 3, " s")
    yield at_most("memory beside its shard", rank()[1], 16, " MiB")
    yield from keyed(max(3, repeats // 2))
    yield from streams(max(3, repeats // 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--repeats", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    state = "one core busy" if options.busy else "idle"
    print(f"16 M values, CPU, torch {torch.__version__}, {options.threads} threads, {os.cpu_count()} cores, {state}\n")
    print("| work | measured | limit |\n|---|---|---|")
    kept = True
    with busy_core(options.busy):
        for what, measured, limit, holds in rows(options.repeats):
            print(f"| {what} | {measured} | {limit}{'' if holds else ' **missed**'} |", flush=True)
            kept &= holds
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
