"""Tensors of any strides are cut into pieces in row-major order, and `for_row` gives a stretch of a stream."""

import itertools
import os
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.backends import NAMES, same_bits
from tests.support.memory import PeakMemory
from torch_kinit import KerasSeed, Normal, TruncatedNormal, Uniform, random_normal_, trunc_normal_
from torch_kinit.streams import generator, pieces
from torch_kinit.streams.pieces import CHUNK, SERIAL, fill_flat, paced, views

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
every_backend = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.usefixtures("_one_thread")


class Counter:
    """A draw whose value at each index is the index; it keeps where its pieces began and how long they were."""

    def __init__(self):
        self.pieces = []

    def __call__(self, out, start):
        assert out.ndim == 1
        assert out.is_contiguous()
        assert out.device.type == "cpu"
        self.pieces.append((start, out.numel()))
        out.copy_(torch.arange(start, start + out.numel()))


def check_pieces(pieces, total, chunk):
    """Raise AssertionError unless the pieces follow each other, as the docstring of `fill_flat` has it."""
    starts, counts = zip(*pieces, strict=True)
    assert [*starts[1:], total] == list(itertools.accumulate(counts))
    assert all(start % chunk == 0 for start in starts)
    assert counts[-1] >= min(16, total)
    assert max(counts) < chunk + 16


@st.composite
def strided(draw):
    """A float64 view of up to five axes, in any memory order, stepping over some of a larger tensor; and that."""
    shape = draw(st.lists(st.integers(0, 7), max_size=5))
    step = [draw(st.integers(1, 3)) for _ in shape]
    before = [draw(st.integers(0, 2)) for _ in shape]
    order = draw(st.permutations(range(len(shape))))
    large = torch.full([before[a] + step[a] * shape[a] for a in order], -1.0, dtype=torch.float64)
    inner = large.permute([order.index(a) for a in range(len(shape))])
    return large, inner[tuple(slice(b, None, s) for b, s in zip(before, step, strict=True))]


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(pair=strided(), chunk=st.sampled_from([16, 32, 48, 1024]))
def test_any_strides(pair, chunk):
    """Each element has the value of its index in row-major order, and memory outside the view is left alone."""
    large, view = pair
    count = Counter()
    assert fill_flat(view, count, chunk) is view
    for value, index in zip(itertools.count(), itertools.product(*map(range, view.shape))):
        assert view[index].item() == value  # a plain loop
    if view.numel():
        check_pieces(count.pieces, view.numel(), chunk)
    else:
        assert count.pieces == []
    view.fill_(-1.0)
    assert bool((large == -1.0).all())


@pytest.mark.parametrize("more", [-1, 0, 1, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 15, CHUNK + 16])
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_pieces_of_the_usual_size(more, contiguous):
    """Tensors just below and above one and two chunks are cut where the contract has it."""
    total = CHUNK + more
    tensor = torch.empty(total) if contiguous else torch.empty(total, 2)[:, 1]
    count = Counter()
    fill_flat(tensor, count, divisible=False)
    check_pieces(count.pieces, total, CHUNK)
    assert torch.equal(tensor, torch.arange(total, dtype=torch.float32))


@pytest.mark.parametrize("more", [-1, 0, 1, 15, 16, 17, CHUNK + 15])
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_a_divisible_draw_is_cut_further(more, contiguous):
    """A short draw whose parts can be drawn by themselves goes in parts that torch does not share among threads."""
    total = CHUNK + more
    tensor = torch.empty(total) if contiguous else torch.empty(total, 2)[:, 1]
    count = Counter()
    fill_flat(tensor, count)
    starts, counts = zip(*count.pieces, strict=True)
    assert [*starts[1:], total] == list(itertools.accumulate(counts))
    assert all(start % SERIAL == 0 for start in starts)
    assert max(counts) == SERIAL == 1 << 15  # the grain size of torch's loops
    assert torch.equal(tensor, torch.arange(total, dtype=torch.float32))


@pytest.mark.parametrize("fast", [True, False], ids=["serial", "wide"])
def test_the_faster_way_is_kept(fast, monkeypatch):
    """A long draw tries one piece wide between two serial ones, and goes on with what took less time."""
    clock, taken = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for piece, serial in paced(range(40)):
        assert piece == len(taken)
        taken.append(serial)
        clock[0] += 1.0 if serial == fast else 2.0
    assert taken == [True, False, True, *[fast] * 37]


def test_the_way_is_left_when_it_gets_slow(monkeypatch):
    """If others begin to use the cores, a wide draw goes back to serial pieces."""
    clock, taken = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for piece, serial in paced(range(40)):
        taken.append(serial)
        clock[0] += 2.0 if serial else (1.0 if piece < 10 else 5.0)
    assert taken == [True, False, True, *[False] * 8, *[True] * 29]


@pytest.mark.parametrize(("pieces", "threads"), [(7, 2), (40, 1)], ids=["a short draw", "one thread"])
def test_nothing_is_tried_without_need(pieces, threads, monkeypatch):
    """A draw of a few pieces, or on one thread, is serial."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert [serial for _, serial in paced(range(pieces))] == [True] * pieces


def test_wrong_pieces_are_rejected():
    """The check of pieces fails for a gap, a short end, a piece too long and a start between two chunks."""
    for wrong in ([(0, 16), (32, 16)], [(0, 32), (32, 8)], [(0, 48)], [(0, 20), (20, 20)]):
        with pytest.raises(AssertionError):
            check_pieces(wrong, sum(count for _, count in wrong), 16)


def test_contiguous_tensors_are_filled_in_place():
    """A contiguous tensor's own memory is handed to the draw, whatever offset it has; no other is made."""
    tensor = torch.zeros(40)[3:]
    where = []
    with PeakMemory(tensor) as memory:
        fill_flat(tensor, lambda out, start: where.append(out.data_ptr() - 4 * start), 16)
    assert set(where) == {tensor.data_ptr()}
    assert memory.peak == 0


def test_nothing_to_fill():
    """Nothing is drawn for a tensor on the meta device or without values."""
    for tensor in (torch.empty(3, 4, device="meta"), torch.empty(0), torch.empty(4, 0, 3)):
        count = Counter()
        assert fill_flat(tensor, count) is tensor
        assert count.pieces == []


def test_no_gradient_is_recorded():
    """A leaf that requires gradients, or a view of one, is filled without a record."""
    leaf = torch.empty(20, 3, requires_grad=True)
    fill_flat(leaf, Counter(), 16)
    with torch.no_grad():
        fill_flat(leaf[:, 1], Counter(), 16)
    assert leaf.grad_fn is None
    assert torch.equal(leaf[:, 1].detach(), torch.arange(20.0))


# --- views -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(pair=strided(), limit=st.sampled_from([1, 2, 5, 16, 1024]))
def test_views_follow_each_other(pair, limit):
    """Views of at most `limit` values, one after the other, are the tensor in row-major order, cut like their index."""
    _, tensor = pair
    tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    index = torch.empty(tensor.shape, device="meta")
    seen = []
    for piece, where in views((tensor, index), limit):
        assert 0 < piece.numel() <= limit
        flat = torch.arange(tensor.numel()).as_strided(where.shape, where.stride(), where.storage_offset())
        assert torch.equal(piece, flat.double())  # the index tells the same places
        seen += piece.flatten().tolist()
    assert seen == list(range(tensor.numel()))


def test_views_are_of_nearly_one_size():
    """A tensor a little larger than the limit is not cut into a large piece and a tiny one."""
    sizes = [piece.numel() for (piece,) in views((torch.empty(1001),), 1000)]
    assert sizes == [501, 500]


# --- streams: stretches, memory--------------------------------------------------------------------------------------

LAWS = {
    "uniform": Uniform(-0.3, 0.2),
    "normal": Normal(0.1, 0.2),
    "truncated": TruncatedNormal(0.1, 0.2),
}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


@every_backend
@every_law
@settings(deadline=None, derandomize=True, database=None, max_examples=25)
@given(
    start=st.integers(0, 60),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    rest=st.integers(0, 60),
    dtype=st.sampled_from(DTYPES),
)
def test_a_stretch(name, law, start, shape, rest, dtype):
    """A stretch has the values of the whole from its start on, in its own row-major order."""
    tensor = torch.empty(shape, dtype=dtype)
    stream, total = KerasSeed(5, name), start + tensor.numel() + rest
    whole = stream.draw(torch.empty(total, dtype=dtype), law)
    stretch = stream.for_row(start, total)
    assert stretch.draw(tensor, law) is tensor
    assert same_bits(tensor.flatten(), whole[start : start + tensor.numel()])
    assert (stretch.native_seed, stretch.whole_in_double) == (stream.native_seed, stream.whole_in_double)
    assert stretch.layout == stream.layout


@every_backend
@every_law
def test_a_stretch_of_a_stretch(name, law):
    """A stretch of a stretch counts from that stretch's own start."""
    stream = KerasSeed(5, name)
    whole, found = stream.draw(torch.empty(100), law), torch.empty(2, 10).t()
    stream.for_row(30, 100).for_row(10, 50).draw(found, law)
    assert same_bits(found.flatten(), whole[40:60])


@every_backend
@every_law
def test_a_stretch_on_meta(name, law):
    """A stretch leaves a tensor on the meta device alone."""
    tensor = torch.empty(3, 2, device="meta")
    assert KerasSeed(5, name).for_row(6, 12).draw(tensor, law) is tensor


def peak(law, stream, dtype, chunks):
    """The memory that a strided tensor of so many chunks takes beside it."""
    large = torch.empty(chunks * CHUNK // 64 + 1, 2, 64, dtype=dtype)
    with PeakMemory(large) as memory:
        stream.draw(large[:, 0].t(), law)
    return memory.peak


@pytest.mark.slow
@every_backend
@every_law
@pytest.mark.parametrize(
    ("dtype", "threads"),
    [*((dtype, 1) for dtype in DTYPES), (torch.float32, 2)],
    ids=lambda value: {1: "serial", 2: "wide"}.get(value, str(value)),
)
def test_memory(name, law, dtype, threads, monkeypatch):
    """At most 16 MiB are taken beside the tensor, and no more for twice its size, whichever way pieces are drawn."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # with two, long draws try both ways
    stream, sizes = KerasSeed(1, name), (4, 8) if threads == 1 else (16, 32)
    small, large = (peak(law, stream, dtype, chunks) for chunks in sizes)
    assert 0 < large <= 16 * 2**20
    assert large <= 1.01 * small  # truncation takes a little more where chance has it


def test_memory_of_a_whole_copy_is_seen():
    """The measure of memory counts what a stream must not do: draw the whole beside the tensor."""
    whole = KerasSeed(1, "torch").for_row(0, 4 * CHUNK)
    tensor = torch.empty(4 * CHUNK)
    with PeakMemory(tensor) as memory:
        whole.draw(tensor, Normal(0.0, 1.0))
    assert memory.peak == 4 * tensor.numel()


# --- DTensors --------------------------------------------------------------------------------------------------------

BOXES = {
    "rows": lambda t: [t[3:7]],
    "columns": lambda t: [t[..., 2:5]],
    "rows and columns": lambda t: [t[4:9, 1:6]],
    "two boxes": lambda t: [t[:2, :, 3:], t[9:, :, 3:]],
    "one element": lambda t: [t[5:6, 2:3, 4:5]],
    "nothing": lambda t: [],
}


@pytest.mark.parametrize("divisible", [True, False], ids=["divisible", "serial"])
@pytest.mark.parametrize("chunk", [16, 48, 1024])
@pytest.mark.parametrize("cut", BOXES.values(), ids=BOXES)
def test_boxes(cut, chunk, divisible, monkeypatch):
    """Each box gets the values at its flat indices; no piece is drawn without need, but before one that has it."""
    whole = torch.arange(12 * 7 * 6, dtype=torch.float64).view(12, 7, 6)
    boxes = [(torch.full_like(box, -1), index) for box, index in zip(cut(whole), cut(whole.to("meta")), strict=True)]
    monkeypatch.setattr(pieces, "_boxes", lambda tensor: boxes)
    count = Counter()
    fill_flat(whole.clone(), count, chunk, divisible=divisible)
    for (mine, _), box in zip(boxes, cut(whole), strict=True):
        assert torch.equal(mine, box)
    starts = {start - start % chunk for start, _ in count.pieces}
    ends = [(box.min(), box.max()) for box in cut(whole)]
    needed = [start for start, stop in pieces._cut(504, chunk) if any(a < stop and start <= b for a, b in ends)]
    assert sorted(starts) == (needed if divisible else list(range(0, max(needed, default=-1) + 1, chunk)))


# --- to an accelerator ---------------------------------------------------------------------------------------------


class Event:
    """What is recorded and waited for on an `Accelerator`."""

    def __init__(self, device):
        self.device, self.place = device, 0

    def record(self, stream):
        assert stream is self.device
        self.place = len(stream.copies)

    def synchronize(self):
        self.device.run(self.place)


class Accelerator(TorchDispatchMode):
    """Stands for a device and its stream: what is copied to it without waiting is read as late as it may be."""

    def __init__(self):
        super().__init__()
        self.copies, self.done, self.locked = [], 0, []

    def Event(self):  # noqa: N802  # as torch has it
        return Event(self)

    def current_stream(self, device):
        return self

    def lock(self, size, dtype):
        self.locked.append(size * dtype.itemsize)
        return torch.empty(size, dtype=dtype)

    def run(self, stop):
        for to, values in self.copies[self.done : stop]:
            to.copy_(values)
        self.done = max(self.done, stop)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and len(args) > 2 and args[2]:
            self.copies.append(args[:2])
            return args[0]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def accelerator(monkeypatch):
    """An `Accelerator` on which all tensors lie that are filled."""
    device = Accelerator()
    monkeypatch.setattr(pieces, "_lies_on", lambda tensor, device: False)
    monkeypatch.setattr(pieces, "_ASYNCHRONOUS", ("cpu",))
    monkeypatch.setattr(pieces, "_locked", device.lock)
    monkeypatch.setattr(torch, "get_device_module", lambda of: device)
    return device


def sent(device, tensor, draw, *arguments, **options):
    """Fill a tensor on the device, and wait for it."""
    with device:
        fill_flat(tensor, draw, *arguments, **options)
    device.run(len(device.copies))
    return tensor


PLACED = {
    "contiguous": lambda: torch.empty(1000),
    "transposed": lambda: torch.empty(25, 40).t(),
    "strided": lambda: torch.empty(10, 2, 100)[:, 1],
    "three axes": lambda: torch.empty(4, 10, 25).permute(2, 0, 1),
}


@pytest.mark.parametrize("make", PLACED.values(), ids=PLACED)
def test_pieces_are_copied_while_the_next_is_drawn(make, accelerator):
    """Each value arrives, out of two rooms by turns; while a piece is drawn only the one before is under way."""
    rooms, count = set(), Counter()

    def draw(out, start):
        under_way = [values.untyped_storage().data_ptr() for _, values in accelerator.copies[accelerator.done :]]
        here = out.untyped_storage().data_ptr()
        rooms.add(here)
        assert here not in under_way
        assert under_way or start == 0  # which nobody has waited for
        count(out, start)

    tensor = sent(accelerator, make(), draw, 64)
    assert torch.equal(tensor.flatten(), torch.arange(1000.0))
    check_pieces(count.pieces, 1000, 64)
    assert accelerator.locked == [4 * (64 + 15)] * 2
    assert len(rooms) == 2


def test_values_of_another_dtype_are_rounded_before_they_are_copied(accelerator):
    """What is drawn in float32 for a tensor of another dtype crosses in that dtype, likewise by turns."""
    tensor = sent(accelerator, torch.empty(25, 10, dtype=torch.float16).t(), Counter(), 64, dtype=torch.float32)
    assert torch.equal(tensor.flatten(), torch.arange(250.0).half())
    assert accelerator.locked == [2 * (64 + 15)] * 2
    assert len(accelerator.copies) > 3


def test_a_room_used_too_early_is_seen(accelerator, monkeypatch):
    """The stand-in for a device tells when a piece is drawn over one that is still to be copied."""
    monkeypatch.setattr(Event, "synchronize", lambda self: None)
    assert not torch.equal(sent(accelerator, torch.empty(1000), Counter(), 64), torch.arange(1000.0))


def test_large_pieces_have_one_room(accelerator, monkeypatch):
    """Where two rooms would take more than 16 MiB, there is one, which is waited for."""
    monkeypatch.setattr(pieces, "_MOST_LOCKED", 4 * 2 * 78)
    assert torch.equal(sent(accelerator, torch.empty(1000), Counter(), 64), torch.arange(1000.0))
    assert accelerator.locked == [4 * (64 + 15)]


def test_where_no_memory_is_locked(accelerator, monkeypatch):
    """Without page-locked memory, and for a single piece, copies are waited for."""

    def fails(size, dtype):
        raise RuntimeError("cannot lock memory")

    assert torch.equal(sent(accelerator, torch.empty(64), Counter(), 64), torch.arange(64.0))
    assert accelerator.locked == []
    monkeypatch.setattr(pieces, "_locked", fails)
    assert torch.equal(sent(accelerator, torch.empty(1000), Counter(), 64), torch.arange(1000.0))
    assert accelerator.copies == []


@pytest.mark.slow
@every_backend
@every_law
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_beside_a_tensor_on_an_accelerator(name, law, dtype, accelerator):
    """Beside it the CPU has at most 16 MiB, and no more for twice its size; the values are those of the CPU."""
    peaks = []
    for chunks in (4, 8):
        tensor = torch.empty(64, chunks * CHUNK // 64, dtype=dtype).t()
        with accelerator, PeakMemory(tensor) as memory:
            KerasSeed(1, name).draw(tensor, law)
        accelerator.run(len(accelerator.copies))
        peaks.append(memory.peak)
    assert 0 < peaks[1] <= 16 * 2**20
    assert peaks[1] <= 1.01 * peaks[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_lies_on", lambda tensor, device: True)
        assert same_bits(tensor, KerasSeed(1, name).draw(torch.empty(tensor.shape, dtype=dtype), law))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("draw", [trunc_normal_, random_normal_])
def test_memory_beside_a_tensor_that_a_cpu_generator_fills(draw, dtype, accelerator, monkeypatch):
    """Likewise of torch's own generator on the CPU, but for the 4 MiB of random bits that large draws take."""
    monkeypatch.setattr(generator, "_SCRATCH_CHUNK", generator._CROSSING_CHUNK)  # the stand-in's tensors lie on the CPU
    tensor = torch.empty(1 << 11, 1 << 11, 2, dtype=dtype)[..., 0]
    with accelerator, PeakMemory(tensor) as memory:
        draw(tensor, generator=torch.Generator().manual_seed(1))
    accelerator.run(len(accelerator.copies))
    assert len(accelerator.locked) == 2
    assert 0 < memory.peak <= (16 if dtype == torch.float64 else 12) * 2**20
    monkeypatch.setattr(pieces, "_lies_on", lambda tensor, device: True)
    other = draw(torch.empty(1 << 11, 1 << 11, dtype=dtype), generator=torch.Generator().manual_seed(1))
    assert same_bits(tensor, other)


# --- threads and instructions --------------------------------------------------------------------------------------

DIGEST = """
import hashlib, sys, torch, torch_kinit as kinit

torch.set_num_threads(int(sys.argv[1]))
for name in sys.argv[2:]:
    for draw in (kinit.random_uniform_, kinit.random_normal_, kinit.he_normal_):
        for dtype in (torch.float32, torch.bfloat16):
            values = draw(torch.empty(200, 301, dtype=dtype), generator=kinit.KerasSeed(3, name))
            print(name, draw.__name__, dtype, hashlib.sha256(values.view(torch.int16).numpy()).hexdigest())
"""


def digests(threads, *names, **environment):
    command = [sys.executable, "-c", DIGEST, str(threads), *names]
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_threads_and_instruction_sets():
    """Values do not depend on the number of threads, nor, except on torch, on the vector instructions it may use."""
    processes = [digests(1, *NAMES), digests(2, *NAMES), digests(2, *NAMES[:2], ATEN_CPU_CAPABILITY="default")]
    one, two, default = (process.communicate(timeout=300)[0].splitlines() for process in processes)
    assert len(set(one)) == len(one) == 18
    assert two == one
    assert default == one[:12]
