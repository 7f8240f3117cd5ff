"""Keras' initializers whose values depend on each other: orthogonal, identity, and the Fourier kernels of STFT."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.initializers.axes import LAYOUTS, keras_view
from torch_kinit.numerics.subnormals import flush_
from torch_kinit.shards import by_the_whole, is_distributed
from torch_kinit.streams.generator import AnyGenerator, source_for
from torch_kinit.streams.laws import Normal
from torch_kinit.streams.source import Source

_STANDARD = Normal(0.0, 1.0)


def orthogonal_(
    tensor: Tensor,
    gain: float = 1.0,
    *,
    layout: str = "torch",
    generator: AnyGenerator = None,
    max_elements: int = 1 << 24,
) -> Tensor:
    """Fill `tensor` with a random (semi-)orthogonal matrix, times `gain`.

    In Keras' layout all axes but the last are flattened to rows; the shorter of rows and columns are then
    orthonormal, and the matrix is uniform among all such (Haar's measure). Keras' last axis is torch's first for
    Linear and Conv weights, so there `torch.nn.init.orthogonal_` has the same law; it has not for depthwise and
    attention kernels. float16 and bfloat16 matrices are computed in float32, and in float64 from a Key; LAPACK rounds
    the last bits of that otherwise with another number of threads, of which a float32 value shows one in ten million.
    The whole matrix is held three times while QR runs. Of a DTensor each process computes the whole matrix and
    keeps its part: the time (1.3 s for 2048 x 2048) grows with the cube of the size, and more processes save none.

    Args:
        tensor: what to fill, with at least two axes.
        gain: a finite factor, the singular value of every direction.
        layout: the axes' order, "torch" or "keras".
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.
        max_elements: of a DTensor, the most elements the whole may have; raise it for larger ones.

    Raises:
        ValueError: `tensor` has fewer than two axes, or is a DTensor of more than `max_elements`; or `gain` is not
            finite.

    Example:
        >>> import torch
        >>> w = orthogonal_(torch.empty(3, 5, dtype=torch.float64), gain=2.0)
        >>> torch.allclose(w @ w.T, 4 * torch.eye(3, dtype=torch.float64))
        True

    Source: `keras.initializers.Orthogonal`; Saxe et al., "Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks", 2013; Mezzadri, "How to generate random matrices from the classical compact
    groups", 2006, for the signs.
    """
    checks.tensor(tensor)
    gain = checks.number("gain", gain)
    checks.choice("layout", layout, LAYOUTS)
    source = source_for(generator, tensor)
    max_elements = checks.integer("max_elements", max_elements)
    if tensor.ndim < 2:
        raise ValueError(f"`tensor` must have at least two axes to be orthogonal, got shape {tuple(tensor.shape)}.")
    refuse_large(tensor, max_elements)
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return tensor
    return _fill_orthogonal(tensor, gain, layout, source)


@by_the_whole
def _fill_orthogonal(tensor: Tensor, gain: float, layout: str, source: Source) -> Tensor:
    with torch.no_grad():
        view = keras_view(tensor, layout)
        rows, columns = math.prod(view.shape[:-1]), view.shape[-1]
        q, r = torch.linalg.qr(_normal_matrix(view, (max(rows, columns), min(rows, columns)), source))
        # R's diagonal made positive: that makes the factorization unique, and so Q as uniform as the draw.
        q = q.mul_(torch.copysign(torch.ones_like(r.diagonal()), r.diagonal()).mul_(gain))
        if rows < columns:
            q = q.t()
        view.copy_(q.reshape(view.shape))
        if source.flushes:
            flush_(view, gain)
    return tensor


def refuse_large(tensor: Tensor, max_elements: int, name: str = "`tensor`") -> None:
    """Raise if an orthogonal DTensor has too many elements for each process to compute them all."""
    if is_distributed(tensor) and tensor.numel() > max_elements:
        raise ValueError(
            f"{name} is a DTensor of {tensor.numel()} elements, and each process would compute all of an orthogonal "
            f"one, in time that grows with the cube of its size; raise `max_elements`={max_elements} if that is meant: "
            f"partial(kinit.orthogonal_, max_elements={tensor.numel()})."
        )


def _normal_matrix(view: Tensor, shape: tuple[int, int], source: Source) -> Tensor:
    """Standard normal values for QR to work on, where and in the precision in which it can."""
    # torch has no QR on MPS, and none of its backends a QR of half precision.
    device = torch.device("cpu") if source.on_cpu or view.device.type == "mps" else view.device
    dtype = torch.float64 if view.dtype == torch.float64 else torch.float32
    # new_empty of an expanded value, not torch.empty, so that vmap batches the draw.
    matrix = source.draw(view.new_empty(shape, dtype=dtype, device=device), _STANDARD)
    return matrix.double() if source.whole_in_double else matrix


@by_the_whole
def identity_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill the matrix `tensor` with `gain` on its main diagonal and zeros elsewhere; it need not be square.

    Args:
        tensor: what to fill, with two axes; its transpose is filled alike, so no layout is asked.
        gain: a finite factor.

    Raises:
        ValueError: `tensor` has not two axes, or `gain` is not finite.

    Example:
        >>> import torch
        >>> identity_(torch.empty(2, 3), gain=0.5)
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.0000]])

    Source: `keras.initializers.Identity`; Le et al., "A Simple Way to Initialize Recurrent Networks of Rectified
    Linear Units", 2015.
    """
    checks.tensor(tensor)
    gain = checks.number("gain", gain)
    if tensor.ndim != 2:
        raise ValueError(f"`tensor` must have two axes to be an identity, got shape {tuple(tensor.shape)}.")
    if abs(gain) > torch.finfo(tensor.dtype).max:
        raise ValueError(f"`gain` {checks.short(gain)} does not fit in {tensor.dtype}.")
    with torch.no_grad():
        tensor.zero_().diagonal().fill_(gain)
    return tensor


_WINDOWS = ("bartlett", "blackman", "boxcar", "cosine", "hamming", "hann", "nuttall")


@by_the_whole
def stft_(
    tensor: Tensor,
    side: str = "real",
    window: str | Tensor | Any | None = "hann",
    scaling: str | None = "density",
    periodic: bool = False,
    *,
    layout: str = "torch",
) -> Tensor:
    """Fill a 1-D convolution's kernel with windowed cosines or sines, one frequency an output channel.

    In Keras' layout (frame_length, 1, fft_length // 2 + 1), with N = fft_length, the value at (t, 0, k) is
    `window[t] * cos(-2*pi*t*k / N) / c`, or the sine for side "imag". c is the root of the window's sum of
    squares ("density"), its sum of absolute values ("spectrum"), or 1 (None).

    Args:
        tensor: the kernel, torch (frequencies, 1, frame_length) or Keras (frame_length, 1, frequencies).
        side: "real" or "imag".
        window: a name, one of bartlett, blackman, boxcar, cosine, hamming, hann and nuttall; a vector of
            frame_length values for any other window; or None for no window and no scaling.
        scaling: "density", "spectrum" or None.
        periodic: whether a named window is periodic (for spectra) or symmetric.
        layout: the axes' order, "torch" or "keras".

    Raises:
        ValueError: an unknown name, a kernel of another shape, or a window of another length.

    Example:
        >>> import torch
        >>> stft_(torch.empty(3, 1, 4), window=None).squeeze(1).abs().round()
        tensor([[1., 1., 1., 1.],
                [1., 0., 1., 0.],
                [1., 1., 1., 1.]])

    Source: `keras.initializers.STFT`, which computes in float32 where this rounds once from float64.
    """
    checks.tensor(tensor)
    checks.choice("side", side, ("real", "imag"))
    if scaling is not None:
        checks.choice("scaling", scaling, ("density", "spectrum"))
    checks.choice("layout", layout, LAYOUTS)
    view = keras_view(tensor, layout)
    if view.ndim != 3 or view.shape[1] != 1 or view.shape[2] < 2:
        raise ValueError(
            "`tensor` must have shape (frame_length, 1, fft_length // 2 + 1) in Keras' layout, with at least two "
            f"frequencies; got {tuple(view.shape)}."
        )
    frame, _, frequencies = view.shape
    values = _window(window, frame, periodic)  # refuses a wrong window on meta tensors too
    if tensor.device.type == "meta":
        return tensor
    cycle = 2 * (frequencies - 1)
    # t*k modulo the cycle, in integers: the angle is exact however long the frame is.
    turns = torch.outer(torch.arange(frame, device="cpu"), torch.arange(frequencies, device="cpu")).remainder_(cycle)
    angle = turns.to(torch.float64) * (-2 * math.pi / cycle)
    kernel = angle.cos_() if side == "real" else angle.sin_()
    if values is not None:
        kernel = kernel * values[:, None]
        if scaling is not None:
            kernel /= values.square().sum().sqrt() if scaling == "density" else values.abs().sum()
    with torch.no_grad():
        view.copy_(kernel[:, None, :])
    return tensor


def _window(window: Any, length: int, periodic: bool) -> Tensor | None:
    """The window's values in float64 on the CPU."""
    if window is None:
        return None
    if isinstance(window, str):
        if window not in _WINDOWS:
            hint = checks.near(window, _WINDOWS)
            raise ValueError(
                f"`window` must be one of {', '.join(_WINDOWS)}, None or a vector of values, got "
                f"{checks.short(window)}.{hint} Any other window of SciPy's goes in as "
                "scipy.signal.get_window(name, length)."
            )
        if window == "boxcar":
            return torch.ones(length, dtype=torch.float64, device="cpu")
        make = getattr(torch.signal.windows, window)
        values: Tensor = make(length, sym=not periodic, dtype=torch.float64, device="cpu")
        return values
    values = checks.array(window).to("cpu", torch.float64)
    if values.shape != (length,):
        raise ValueError(f"`window` must be a vector of frame_length={length} values, got shape {tuple(values.shape)}.")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("`window` must hold finite values.")
    return values
