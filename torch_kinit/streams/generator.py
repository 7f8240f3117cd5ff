"""torch's own generators as a source, and what `generator=` may be.

What holds for every law, as far as values come from torch's generators:

* One pass of element-wise operations: no rejection, no loop that depends on data, no host synchronization.
* At most 16 MiB beside the tensor on the CPU, whatever its size, dtype or strides.
* float16, bfloat16 and float8 tensors get the float32 draw, rounded once.
* No value leaves the law's support as the tensor's own dtype can express it, so rounding cannot cross a bound.
* For float32 and narrower dtypes no float64 tensor is made (MPS has none); scalars are computed in Python.
* The values of a tensor, in the order of its memory, do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.numerics.exact import Functions
from torch_kinit.shards import is_distributed
from torch_kinit.streams.inverse import inverse_cdf, work_dtype
from torch_kinit.streams.laws import Law, Normal, TruncatedNormal
from torch_kinit.streams.paired import pairs
from torch_kinit.streams.pieces import fill_flat
from torch_kinit.streams.source import Source

AnyGenerator = torch.Generator | Source | None  # what `generator=` takes

# Values a pass covers at a time. One thread gains from chunks that stay in its L2 cache (256 KiB of float32).
# With several, each operation waits for all of them, long where another process has a core: few large passes,
# over the whole tensor where no scratch memory is needed. Measured on two cores, one of them busy, against
# uniform_: chunks of 2**16 cost 4.2 times, 2**18 3.4, 2**21 1.7, the whole 1.4.
_CACHE_CHUNK = 1 << 16
_SCRATCH_CHUNK = 2 << 20  # 8 MiB of float32
_CROSSING_CHUNK = 1 << 20  # for an accelerator: float32, and page-locked memory for two pieces of the tensor's dtype
_DEVICE_CHUNK = 3 << 20  # drawn on an accelerator, whose generators give other values in other chunks
_TAIL_CHUNK = 1 << 18  # a normal's tail keeps five scratch buffers, 10 MiB of float64
_NATIVE = Functions(lambda x, largest: x.erfinv_(), Tensor.log_, Tensor.log1p_, Tensor.sqrt_, torch.special.erfcx)


def source_for(value: object, tensor: Tensor) -> Source:
    """The source that a `generator` argument means for `tensor`; for a DTensor only a Key or KerasSeed is one."""
    source = as_source(value, tensor.device)
    if is_distributed(tensor) and isinstance(source, TorchSource):
        raise ValueError(
            "`tensor` is a DTensor, which torch's generators fill with values that depend on how it is sharded, or "
            f"with the same on each process; pass generator=Key(seed), equal on all, not {checks.short(value)}."
        )
    return source


def as_source(value: object, device: torch.device) -> Source:
    """The source that a `generator` argument means for tensors on `device`."""
    if isinstance(value, Source):
        return value
    if value is None:
        return TorchSource(None)
    if not isinstance(value, torch.Generator):
        hint = ""
        if isinstance(value, int) and not isinstance(value, bool):
            hint = f" For a seed, pass torch.Generator().manual_seed({value}) or Key({value})."
        raise TypeError(
            f"`generator` must be a torch.Generator, a Key, a KerasSeed or None, got {checks.short(value)}.{hint}"
        )
    same = value.device.type == device.type and (None in (value.device.index, device.index) or value.device == device)
    if not same and value.device.type != "cpu" and device.type != "meta":
        raise ValueError(
            f"`generator` is on {value.device} and the tensor on {device}; "
            "pass a generator of the tensor's device, or a CPU one."
        )
    return TorchSource(value)


class TorchSource(Source):
    """A torch.Generator; or, for None, torch's global generator of each tensor's device."""

    layout = None
    on_cpu = False

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator

    def __repr__(self) -> str:
        return repr(self.generator)

    @property
    def native_seed(self) -> int:
        """A seed, drawn."""
        device = "cpu" if self.generator is None else self.generator.device
        return int(torch.randint(2**62, (), generator=self.generator, device=device))

    @property
    def argument(self) -> torch.Generator | None:
        return self.generator

    def for_row(self, start: int, total: int) -> Source:
        return self

    def draw(self, tensor: Tensor, law: Law) -> Tensor:
        fill, chunk = self._filler(law, tensor)
        if tensor.is_meta or tensor.numel() == 0:
            return tensor
        dtype = work_dtype(tensor.dtype)
        device = tensor.device if self.generator is None else self.generator.device
        direct = tensor.dtype == dtype and tensor.device.type == device.type
        with torch.no_grad():
            if torch.compiler.is_compiling() or tensor.numel() <= _CACHE_CHUNK:  # compilers make loops of their own
                out = tensor if direct else torch.empty_like(tensor, dtype=dtype, device=device)
                fill(out)
                if not direct:
                    tensor.copy_(out)
                return tensor
            if device.type == "cpu" and torch.get_num_threads() == 1:
                chunk = _CACHE_CHUNK
            in_memory = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
            if chunk is None:
                chunk = tensor.numel() if direct and in_memory.is_contiguous() else _scratch_for(tensor, device)
            fill_flat(in_memory, lambda out, start: fill(out), chunk, dtype=dtype, device=device, divisible=False)
        return tensor

    def _filler(self, law: Law, tensor: Tensor) -> tuple[Callable[[Tensor], object], int | None]:
        """What fills float32 or float64 tensors with values for `tensor`, and how many it may get at a time at most."""
        if isinstance(law, TruncatedNormal) and law.scale > 0 and law.lower == -math.inf and law.upper == math.inf:
            law = Normal(law.loc, law.scale)
        if isinstance(law, Normal):
            law.support(tensor.dtype)
            mean, std = law.mean, law.std
            return lambda out: out.normal_(mean, std, generator=self.generator), None
        inverse = inverse_cdf(law, tensor.dtype)
        single = inverse.tail is None and inverse.scale != 0 and work_dtype(tensor.dtype) == torch.float32
        if single and (in_pairs := pairs(tensor, inverse, self.generator, _NATIVE)) is not None:
            return lambda out: in_pairs.fill(out, inverse), None

        def uniform(out: Tensor, low: float, high: float) -> None:
            out.uniform_(low, high, generator=self.generator)

        return lambda out: inverse.fill(out, uniform, _NATIVE), None if inverse.tail is None else _TAIL_CHUNK


def _scratch_for(tensor: Tensor, device: torch.device) -> int:
    """How many values for `tensor` are drawn on a device before they go where they belong."""
    if device.type != "cpu":
        return _DEVICE_CHUNK
    return _SCRATCH_CHUNK if tensor.device.type == "cpu" else _CROSSING_CHUNK
