"""In-place functions on a DTensor write a rank's slice of what they write to a plain tensor; see fake_run.py."""

import contextlib
import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torch_kinit as kinit
from tests.support.fake_run import chunk, distributed, on_ranks
from tests.support.sharded_run import RULES, Net
from torch_kinit.initializers.others import sinusoids_, time_step_bias_

if not torch.distributed.is_available():
    pytest.skip("torch without torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard

RANKS = [0, 5]  # of 8, of which the second holds nothing of some
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
KEY = kinit.Key(3)
WEIGHTS = [(13, 6), (1, 9), (6, 5, 2, 3), (0, 4)]

# name: (the call, the shapes it is for)
FILLS = {
    "he_normal": (partial(kinit.he_normal_, generator=KEY), [*WEIGHTS, (9,), ()]),
    "he_normal, keras": (partial(kinit.he_normal_, layout="keras", generator=KEY), WEIGHTS),
    "trunc_normal": (partial(kinit.trunc_normal_, generator=KEY), [*WEIGHTS, (9,), ()]),
    "trunc_normal, keras": (partial(kinit.trunc_normal_, layout="keras", generator=KEY), WEIGHTS),
    "random_uniform": (partial(kinit.random_uniform_, generator=KEY), [*WEIGHTS, (9,), ()]),
    "random_uniform, keras": (partial(kinit.random_uniform_, layout="keras", generator=KEY), WEIGHTS),
    "random_normal": (partial(kinit.random_normal_, generator=KEY), [*WEIGHTS, (9,), ()]),
    "random_normal, keras": (partial(kinit.random_normal_, layout="keras", generator=KEY), WEIGHTS),
    "orthogonal": (partial(kinit.orthogonal_, generator=KEY), WEIGHTS),
    "orthogonal, keras": (partial(kinit.orthogonal_, layout="keras", generator=KEY), WEIGHTS),
    "a KerasSeed": (partial(kinit.he_normal_, generator=kinit.KerasSeed(1, "jax")), WEIGHTS),
    "a KerasSeed, keras": (partial(kinit.he_uniform_, layout="keras", generator=kinit.KerasSeed(1, "jax")), WEIGHTS),
    "a KerasSeed of TensorFlow": (partial(kinit.he_normal_, generator=kinit.KerasSeed(1, "tensorflow")), WEIGHTS),
    "a KerasSeed of torch": (partial(kinit.he_normal_, generator=kinit.KerasSeed(1, "torch")), WEIGHTS),
    "a KerasSeed's orthogonal": (partial(kinit.orthogonal_, generator=kinit.KerasSeed(1, "jax")), WEIGHTS),
    "identity": (partial(kinit.identity_, gain=0.5), [(13, 6), (6, 13), (1, 9)]),
    "constant": (partial(kinit.constant_, value=0.25), [*WEIGHTS, (9,), ()]),
    "constant array": (partial(kinit.constant_, value=torch.arange(13.0)), [(13, 6), (13, 4, 3)]),
    "constant array, keras": (partial(kinit.constant_, value=torch.arange(6.0), layout="keras"), [(13, 6), (4, 5, 6)]),
    "stft": (kinit.stft_, [(9, 1, 16)]),
    "stft, keras": (partial(kinit.stft_, layout="keras"), [(16, 1, 9)]),
    "unit_forget_bias": (kinit.unit_forget_bias_, [(12,), (36,)]),
    "unit_forget_bias of normals": (
        partial(kinit.unit_forget_bias_, others=kinit.random_normal_, generator=KEY),
        [(12,), (36,)],
    ),
    "sinusoids": (sinusoids_, [(13, 6), (1, 8)]),
    "time_step_bias": (partial(time_step_bias_, generator=KEY), [*WEIGHTS, (9,), ()]),
    "zeros": (kinit.zeros_, [*WEIGHTS, (9,), ()]),
    "ones": (kinit.ones_, [*WEIGHTS, (9,), ()]),
}

# name: (the mesh's shape, the placements)
PLACED = {
    "whole": ((8,), (Replicate(),)),
    "rows": ((8,), (Shard(0),)),
    "columns": ((8,), (Shard(1),)),
    "rows and columns": ((4, 2), (Shard(0), Shard(1))),
    "rows twice": ((2, 4), (Shard(0), Shard(0))),
    "FSDP2 over tensor parallelism": ((4, 2), (_StridedShard(0, split_factor=2), Shard(0))),
    "HSDP over tensor parallelism": ((2, 2, 2), (Replicate(), _StridedShard(0, split_factor=2), Shard(0))),
}

SETTINGS = {
    "a leaf": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "transposed memory": contextlib.nullcontext,
    "counting collectives": CommDebugMode,
}


def cut(whole, placements, mesh):
    """The slice of a plain tensor: each Shard takes a chunk in turn, FSDP2's strided ones of what is left at last."""
    split = zip(placements, mesh.shape, mesh.get_coordinate(), strict=True)
    for placement, size, place in sorted(split, key=lambda axis: isinstance(axis[0], _StridedShard)):
        if placement != Replicate():
            whole = chunk(whole, size, place, placement.dim)
    return whole


def made(shape, placements, mesh, dtype=torch.float32, transposed=False, device="cpu"):
    """A DTensor of NaN; the memory of its part here lies in reverse order if `transposed`."""
    whole = torch.empty(shape, device="meta")
    local = torch.full(cut(whole, placements, mesh).shape, float("nan"), dtype=dtype, device=device)
    if transposed:
        axes = tuple(reversed(range(local.ndim)))
        local = local.permute(axes).contiguous().permute(axes)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def wrong(fill, whole, placements, mesh, setting):
    """What a fill of a DTensor does wrong, in words."""
    with SETTINGS[setting]() as counted:
        tensor = made(whole.shape, placements, mesh, whole.dtype, setting == "transposed memory")
        local = tensor._local_tensor
        if setting == "a leaf":
            tensor.requires_grad_()
        try:
            same = fill(tensor) is tensor and tensor._local_tensor is local and tensor.grad_fn is None
        except Exception as error:
            return repr(error)
    if not same:
        return "does not work in place"
    if isinstance(counted, CommDebugMode) and counted.get_total_counts():
        return "communicates"
    return "" if torch.equal(local, cut(whole, placements, mesh)) else "has other values"


def compared(rank):
    """For each fill and dtype, where it goes wrong."""
    meshes = {shape: init_device_mesh("cpu", shape) for shape, _ in PLACED.values()}
    found = {}
    for name, (fill, shapes) in FILLS.items():
        for dtype in DTYPES:
            found[name, str(dtype)] = failures = []
            settings = SETTINGS if dtype == torch.float32 else ["a leaf"]
            for whole in [fill(torch.empty(shape, dtype=dtype)) for shape in shapes]:
                for how, setting in itertools.product(PLACED, settings):
                    mesh, placements = PLACED[how]
                    if any(p != Replicate() and p.dim >= whole.ndim for p in placements):
                        continue
                    if setting == "a leaf" or how in ("columns", "FSDP2 over tensor parallelism"):
                        failure = wrong(fill, whole, placements, meshes[mesh], setting)
                        failures += [(whole.shape, how, setting, failure)] if failure else []
    return found


@pytest.fixture(scope="module")
def comparisons():
    """What each of the ranks finds."""
    return on_ranks(8, RANKS, compared)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FILLS)
def test_values_are_the_slice_of_a_plain_tensors(name, dtype, comparisons):
    """However it is sharded and its part lies in memory, as a leaf and in inference mode; nothing is sent."""
    assert [found[name, str(dtype)] for found in comparisons] == [[]] * len(RANKS)


# --- refusals --------------------------------------------------------------------------------------------------------

RANDOM = [kinit.he_normal_, kinit.random_uniform_, kinit.random_normal_, kinit.trunc_normal_, kinit.orthogonal_]
FIXED = [kinit.zeros_, kinit.ones_, kinit.constant_, kinit.identity_]


def refusal(tensor, call, *arguments, **keywords):
    """The message with which a call is refused; none if there is none, or if the tensor has changed."""
    try:
        call(*arguments, **keywords)
    except ValueError as error:
        return str(error) if tensor._local_tensor.isnan().all() else ""
    return ""


def refused(rank):
    """The messages for torch's generators, for Partial placements, and for a model that has such a parameter last."""
    mesh = init_device_mesh("cpu", (8,))
    rows, summands = made((8, 4), (Shard(0),), mesh), made((8, 4), (Replicate(),), mesh)
    summands = DTensor.from_local(summands._local_tensor, mesh, (Partial(),), run_check=False)
    native = [refusal(rows, fill, rows, generator=g) for fill in RANDOM for g in (None, torch.Generator())]
    partial_ = [refusal(summands, fill, summands, generator=KEY) for fill in RANDOM]
    partial_ += [refusal(summands, fill, summands) for fill in FIXED]
    model = nn.Module()
    model.first, model.last = nn.Parameter(rows), nn.Parameter(summands)
    for rule in ("he_normal", "ones"):
        partial_.append(refusal(rows, kinit.apply, model, {"first": "zeros", "last": rule}, seed=1))
    return native, partial_


def test_what_has_no_right_answer_is_refused():
    """A torch.Generator or none, and a tensor of summands, raise; the tensor and the rest of its model keep theirs."""
    [(native, partial_)] = on_ranks(8, [5], refused)
    assert len(native) == 2 * len(RANDOM)
    assert all(text.startswith("`tensor` is a DTensor") and "generator=Key(seed)" in text for text in native)
    assert len(partial_) == len(RANDOM) + len(FIXED) + 2
    assert all("only Shard and Replicate can be initialized" in text for text in partial_)


def guarded(rank):
    """What is said of an orthogonal matrix too large for each process, and whether one of the limit passes."""
    rows = made((8, 4), (Shard(0),), init_device_mesh("cpu", (8,)))
    model = nn.ParameterDict({"first": nn.Parameter(rows)})
    small = partial(kinit.orthogonal_, max_elements=31)
    said = [
        refusal(rows, small, rows, generator=KEY),
        refusal(rows, kinit.apply, model, {"first": small}, seed=1),
    ]
    kinit.apply(model, {"first": partial(kinit.orthogonal_, max_elements=32)}, seed=1)
    return said, bool(rows._local_tensor.isfinite().all())


def test_orthogonal_matrices_have_a_limit():
    """One with more elements than `max_elements` is refused, which is named with what to set it to."""
    [(said, fits)] = on_ranks(8, [5], guarded)
    assert ["partial(kinit.orthogonal_, max_elements=32)" in text for text in said] == [True, True]
    assert fits


# --- where there is nothing to write, and what is touched ------------------------------------------------------------


def unwritten(rank):
    """Which fills do not leave a tensor on meta as it is, or one of a mesh that the rank is not in."""
    mesh, others = init_device_mesh("cpu", (8,)), DeviceMesh("cpu", [0, 1])
    found = []
    for name, (fill, shapes) in FILLS.items():
        for shape in shapes:
            meta = made(shape, (Shard(0),) if shape else (Replicate(),), mesh, device="meta")
            like = {"shape": meta.shape, "stride": meta.stride()}
            outside = DTensor.from_local(torch.empty(0), others, (Replicate(),), run_check=False, **like)
            kept = fill(meta) is meta and meta.is_meta and fill(outside) is outside and outside.to_local().shape == (0,)
            found += [] if kept else [(name, shape)]
    return found


def test_nothing_is_written_where_nothing_is_held():
    """A DTensor on the meta device, and one of a mesh that the rank is not in, are returned as they are."""
    assert on_ranks(8, [5], unwritten) == [[]]


class Largest(TorchDispatchMode):
    """The bytes of the largest storage that operations take or give while it is active."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in (*args, result):
            if isinstance(value, torch.Tensor) and not isinstance(value, DTensor) and not value.is_meta:
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


def touched(rank):
    """The largest storage of each draw over that of the rank's part, 16 MiB of 128."""
    mesh, found = init_device_mesh("cpu", (8,)), []
    for fill, layout, dim in itertools.product(RANDOM[:-1], ("torch", "keras"), (0, 1)):
        tensor = made((8192, 4096), (Shard(dim),), mesh)
        with Largest() as largest:
            fill(tensor, layout=layout, generator=KEY)
        found.append(largest.bytes / tensor._local_tensor.untyped_storage().nbytes())
    return found


def test_no_operation_touches_more_than_the_part():
    """The largest storage that a draw reads or writes is the rank's own part of the tensor."""
    [found] = on_ranks(8, [5], touched)
    assert found == [1.0] * 16


def planned(rank, mesh):
    """The steps of a distributed model's plan as plain data, and the fans of two of its weights."""
    with torch.device("meta"):
        model = distributed(Net(), mesh)
    return kinit.plan(model, RULES).to_dict()["steps"], [kinit.fans(model.up.weight), kinit.fans(model.down.weight)]


@pytest.mark.parametrize("mesh", [{"tensor": 8}, {"replica": 2, "shard": 4}], ids=lambda mesh: "+".join(mesh))
def test_a_plan_sees_the_whole(mesh):
    """Shapes, fans and laws are those of the model before it was distributed."""
    [(steps, fans)] = on_ranks(8, [5], planned, mesh)
    want = {step["name"]: step for step in kinit.plan(Net(), RULES).to_dict()["steps"]}
    assert {step["name"]: {**step, "layer": want[step["name"]]["layer"]} for step in steps} == want  # FSDPLinear
    assert fans == [(8, 13), (13, 8)]
