"""What a rank of eight spends on its shard: `pytest tests/benchmarks/test_sharded_speed.py --benchmark-enable`.

`python -m tests.benchmarks.test_sharded_speed` prints the time per value a rank holds, over that of a whole tensor.
"""

import statistics
import sys
import time

import pytest
import torch
import torch.distributed as dist

import torch_kinit as kinit

WORLD, RANK = 8, 3
SHAPES = {"matrix": (4096, 4096), "embedding": (50256, 768), "short rows": (262144, 64), "conv": (512, 512, 3, 3)}
LAWS = {"trunc_normal_": kinit.trunc_normal_, "random_uniform_": kinit.random_uniform_}
LIMIT = 1.5


@pytest.fixture(scope="module", autouse=True)
def _group():
    """This process as one rank of a group that sends nothing."""
    join()
    yield
    dist.destroy_process_group()


def join():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=WORLD)


def held(shape, axis):
    """A tensor of which this rank holds its chunk along `axis`; a plain one of the whole for None."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    if axis is None:
        return torch.empty(shape)
    whole = torch.empty(shape, device="meta")
    local = torch.empty(whole.chunk(WORLD, axis)[RANK].shape)
    like = {"shape": whole.shape, "stride": whole.stride()}
    return DTensor.from_local(local, init_device_mesh("cpu", (WORLD,)), [Shard(axis)], run_check=False, **like)


def fill(law, tensor):
    """One draw, of what this rank holds."""
    return LAWS[law](tensor, generator=kinit.Key(0))


@pytest.mark.slow
@pytest.mark.benchmark(group="a shard of eight", min_rounds=3)
@pytest.mark.parametrize("axis", [None, 0, 1], ids=["whole", "rows", "columns"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", SHAPES)
def test_shard(benchmark, name, law, axis):
    """A rank's chunk has the values that the whole has there."""
    rows, *others = SHAPES[name]
    shape = (rows if benchmark.enabled else rows // 8, *others)
    tensor = benchmark(fill, law, held(shape, axis))
    if axis is not None:
        want = fill(law, torch.empty(shape)).chunk(WORLD, axis)[RANK]
        assert torch.equal(tensor.to_local(), want)


def costs(name, law, repeats):
    """The median time per value held of chunks of rows and of columns, over that of the whole, in turns."""
    tensors = [held(SHAPES[name], axis) for axis in (None, 0, 1)]
    turns = []
    for _ in range(repeats + 1):
        spent = []
        for tensor in tensors:
            start = time.perf_counter()
            fill(law, tensor)
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            spent.append((time.perf_counter() - start) / local.numel())
        turns.append([spent[1] / spent[0], spent[2] / spent[0]])
    return [statistics.median(ratios) for ratios in zip(*turns[1:], strict=True)]  # the first warms up


def main():
    torch.set_num_threads(1)
    join()
    kept = True
    print(f"time per value held by a rank of {WORLD}, over that of the whole; limit {LIMIT}\n")
    for name in SHAPES:
        for law in LAWS:
            rows, columns = costs(name, law, 5)
            print(f"{law}, {name} {SHAPES[name]}: rows {rows:.2f}, columns {columns:.2f}", flush=True)
            kept &= max(rows, columns) <= LIMIT
    dist.destroy_process_group()
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
