"""KerasSeed: the numbers that Keras itself draws for an integer seed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.shards import boxes
from torch_kinit.streams import captured, fused, keras_jax, keras_tensorflow, keras_torch
from torch_kinit.streams.laws import Law, TruncatedNormal
from torch_kinit.streams.pieces import fill_flat
from torch_kinit.streams.source import Source

BACKENDS = ("jax", "tensorflow", "torch")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RANGES = {"jax": (0, 2**32 - 1), "tensorflow": (-(2**63), 2**63 - 1)}


@dataclass(frozen=True)
class KerasSeed(Source):
    """The random numbers of Keras 3: give it as `generator=` to any initializer, or to `apply`.

    The tensor, seen in Keras' layout, then equals what Keras' initializer with this integer seed returns on the CPU,
    bit for bit in float32, float16 and bfloat16; neither Keras nor its backend is needed. Like a seed of Keras', it
    has no state: the same seed gives each tensor the same numbers, whatever was drawn before. Values are computed on
    the CPU, whatever the device of the tensor, and copied in pieces; but CUDA, ROCm and XPU have a kernel with the bits
    of JAX's float32, float16 and bfloat16.

    Args:
        seed: any int on torch (Keras takes it modulo 2**32), 0 to 2**32 - 1 on JAX, -2**63 to 2**63 - 1 on
            TensorFlow (which takes it modulo 2**31 - 2).
        backend: "jax", "tensorflow" or "torch", the backend on which Keras would draw.

    Raises:
        TypeError: `seed` is not an int.
        ValueError: `seed` is outside the backend's range, where Keras raises OverflowError or ValueError; or an
            unknown `backend`. From initializers: truncation other than at two, or a dtype Keras does not draw.

    What the promise rests on:
        * Keras 3.9 to 3.15 on JAX 0.10 (normals of older JAX differ by up to 3 ulp), TensorFlow 2.21, torch 2.13.
        * jax: Keras run on a CPU with fused multiply-add, as all are since 2013; jax_threefry_partitionable on, the
          default since JAX 0.5; for float64, jax_enable_x64, and then to 4 ulp. On CPUs with arithmetic in float16
          (AVX512-FP16) JAX rounds float16 less often; the values are those of the others.
        * tensorflow: Keras run with glibc 2.28 or later, whose logf and sincosf TensorFlow calls; float64 to 4 ulp.
        * torch: this process' own torch, and its CPU capability, draw the numbers. Its QR, and so `orthogonal_`, rounds
          otherwise with another number of threads.
        * `orthogonal_` is identical on torch and within 5e-5 on the others, whose QR rounds otherwise. Keras cannot
          draw it in bfloat16, nor in float16 but on TensorFlow; then the float32 matrix is rounded here, and
          TensorFlow's differs from it by up to 4e-3.
        * Keras on torch lets 4 in a million truncated values lie outside the bounds; they are reproduced.

    Example:
        >>> import torch
        >>> from torch_kinit import glorot_uniform_
        >>> glorot_uniform_(torch.empty(2, 3), generator=KerasSeed(42, backend="jax"))
        tensor([[ 0.1462, -0.2592,  0.6269],
                [-0.9518,  0.4644, -0.2127]])

    Source: keras/src/random/seed_generator.py and keras/src/backend/*/random.py.
    """

    seed: int
    backend: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checks.integer("seed", self.seed))
        checks.choice("backend", self.backend, BACKENDS)
        low, high = _RANGES.get(self.backend, (self.seed, self.seed))
        if not low <= self.seed <= high:
            raise ValueError(
                f"`seed` must be from {low} to {high} for Keras on {self.backend}, got {checks.short(self.seed)}."
            )

    @property
    def native_seed(self) -> int:
        """The seed of the torch.Generator that Keras makes on torch."""
        return self.seed & 0xFFFFFFFF

    @property
    def flushes(self) -> bool:  # type: ignore[override]
        return self.backend != "torch"

    @property
    def whole_in_double(self) -> bool:  # type: ignore[override]
        """Whether QR in float64 is nearest to the backend's own; on torch float32's is the backend's own."""
        return self.backend != "torch"

    def refuse(self, law: Law, dtype: torch.dtype) -> None:
        law.support(dtype)
        if isinstance(law, TruncatedNormal) and (law.lower, law.upper) != (-2, 2):
            raise ValueError(
                f"Keras truncates at two standard deviations, so `lower`={law.lower:g} and `upper`={law.upper:g} "
                "cannot be drawn from a KerasSeed."
            )
        if dtype not in _DTYPES:
            raise ValueError(f"Keras draws float16, bfloat16, float32 and float64, not {dtype}.")

    def draw(self, tensor: Tensor, law: Law) -> Tensor:
        """Fill what this process holds of `tensor`."""
        self.refuse(law, tensor.dtype)
        if torch.compiler.is_compiling():
            seed = self.native_seed if self.backend == "torch" else self.seed
            return captured.draw(self.backend, [seed], tensor, law)
        if self.backend == "jax" and self._draw_in_kernel(tensor, law):
            return tensor
        if self.backend == "torch":
            generator = torch.Generator().manual_seed(self.native_seed)
            return fill_flat(
                tensor, lambda out, start: keras_torch.draw(out, generator, law), keras_torch.CHUNK, divisible=False
            )
        if self.backend == "jax":
            chunk = keras_jax.chunk_of(tensor.dtype)
            return fill_flat(tensor, lambda out, start: keras_jax.draw(out, (self.seed, 0), start, law), chunk)
        chunk = keras_tensorflow.chunk_of(law)
        return fill_flat(tensor, lambda out, start: keras_tensorflow.draw(out, self.seed, start, law), chunk)

    def _draw_in_kernel(self, tensor: Tensor, law: Law) -> bool:
        """Draw what this process holds of a tensor on an accelerator; False leaves that to the CPU."""
        if tensor.device.type not in fused.DEVICES:
            return False
        held = boxes(tensor, torch.empty(tensor.shape, device="meta"))
        return all(mine.numel() == 0 or fused.fill_as_jax(mine, index, (self.seed, 0), law) for mine, index in held)


def _of(backend: str, numbers: Sequence[int]) -> KerasSeed:
    return KerasSeed(numbers[0], backend)


captured.SOURCES.update({backend: functools.partial(_of, backend) for backend in BACKENDS})
