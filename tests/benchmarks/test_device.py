"""How draws run on a CUDA device: within little memory, without waiting for it, in graphs and compiled kernels.

`python -m tests.benchmarks.device` prints how fast.
"""

from contextlib import contextmanager

import pytest
import torch

from tests.benchmarks import device as timed
from tests.conftest import DEVICES
from tests.support.devices import LAWS, ON_CPU, SHAPE, SOURCES, every_dtype, sources
from tests.support.draws import DRAWS, every_draw
from tests.support.laws import TruncatedAtTwo, check_law
from tests.support.memory import PeakMemory
from torch_kinit import Key
from torch_kinit.streams import key

CUDA = torch.device("cuda")
on_cuda = pytest.mark.skipif("cuda" not in DEVICES, reason="asks CUDA itself, which is not here")
MIB = 1 << 20


@contextmanager
def no_waiting():
    """A context in which CUDA operations that wait for the device raise."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # torch says so once a process
@every_dtype
@sources("global", "generator of the device", "Key")
@every_draw
def test_no_draw_waits_for_the_device(draw, source, dtype):
    """torch's own check of synchronizations finds none, in one piece and in several."""
    for rows in (100, 400_000):
        tensor, generator = torch.empty(rows, 8, dtype=dtype, device=CUDA), source(CUDA)
        with no_waiting():
            draw(tensor, generator=generator)


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_check_for_waiting_sees_it():
    """The check above can fail: reading a value back raises."""
    total = torch.ones(3, device=CUDA).sum()
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        total.item()


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_draw
def test_draws_are_captured_in_a_graph(draw, dtype):
    """Each replay of a CUDA graph draws anew from the global generator, and the same from a Key."""
    free, keyed = (torch.empty(512, 512, dtype=dtype, device=CUDA) for _ in range(2))
    want = draw(torch.empty_like(keyed), generator=Key(1))
    draw(free)
    graph, replays = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        draw(free)
        draw(keyed, generator=Key(1))
    for _ in range(2):
        keyed.zero_()
        graph.replay()
        assert torch.equal(keyed, want)
        replays.append(free.clone())
    assert not torch.equal(*replays)
    if draw is DRAWS["truncated"] and dtype == torch.float32:
        check_law(replays[1], TruncatedAtTwo(0, 0.05))


@on_cuda
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores", "ignore:Skipping serialization of skipfiles")
@pytest.mark.parametrize("name", ["trunc_normal", "he_normal"])
def test_compiled_draws_have_their_law(name):
    """torch.compile(fullgraph=True) makes a kernel of a draw from the global generator, which keeps the law."""
    torch._dynamo.reset()
    draw, law = LAWS[name]
    check_law(torch.compile(lambda t: draw(t), fullgraph=True)(torch.empty(SHAPE, device=CUDA)), law)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@every_draw
@sources(*SOURCES)
def test_memory_beside_a_large_tensor(source, draw, dtype):
    """A tensor of 256 MiB takes at most 16 MiB of the device beside itself."""
    if source in [SOURCES[name] for name in ON_CPU] and (draw, dtype) != (DRAWS["truncated"], torch.float32):
        pytest.skip("values drawn on the CPU come in pieces of one size, whatever the law")
    tensor, generator = torch.empty(4096, 65536 // dtype.itemsize, dtype=dtype, device=CUDA), source(CUDA)
    assert timed.extra_memory(lambda t: draw(t, generator=generator), tensor) <= 16 * MIB


@pytest.mark.slow
@every_dtype
@every_draw
def test_the_pieces_of_accelerators_fit(draw, dtype, monkeypatch):
    """In pieces as accelerators get them without Triton, a Key's draw takes at most 256 MiB; here an eighth."""
    monkeypatch.setattr(key, "CHUNK", key._DEVICE_CHUNK // 8)
    monkeypatch.setattr(key, "SERIAL", key._DEVICE_CHUNK // 8)
    tensor = torch.empty(2, 9 * MIB // 32, dtype=dtype).t()
    with PeakMemory(tensor, torch.empty(0, device="meta")) as memory:
        draw(tensor, generator=Key(0))
    assert 8 * MIB < memory.peak <= 32 * MIB


@pytest.mark.slow
@pytest.mark.benchmark(group="16 M values on a device", min_rounds=3)
@pytest.mark.parametrize("name", timed.fills("cpu"))
def test_fill(benchmark, name, device):
    """A fill of 16 M values, which has its law."""
    tensor = torch.empty((16 if benchmark.enabled else 1) * MIB, device=device)
    call = timed.fills(device)[name][0]
    benchmark(timed.seconds, call, tensor)
    timed.check(name, device, tensor)
