"""Arrays in plain JSON data, as base64 or in an .npz file beside it; read back without NumPy."""

from __future__ import annotations

import ast
import base64
import binascii
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.bool,
)}  # fmt: skip
_NUMPY = {"<f2": "float16", "<f4": "float32", "<f8": "float64", "|i1": "int8", "<i2": "int16", "<i4": "int32"}
_NUMPY |= {"<i8": "int64", "|u1": "uint8", "|b1": "bool"}
_MAGIC = b"\x93NUMPY"
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, struct.error, SyntaxError)


def as_tensor(value: Any) -> Tensor:
    """An array of any backend of Keras as a tensor on the CPU that shares no memory with it."""
    tensor = checks.array(value).cpu().clone().contiguous()
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise TypeError(f"Arrays of {tensor.dtype} are not written.")
    return tensor


def content(tensor: Tensor) -> bytes:
    """The bytes of a tensor, row by row."""
    flat = tensor.reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def encoded(tensor: Tensor) -> dict[str, Any]:
    """A tensor as plain data: its shape, its dtype, and its bytes in base64, least significant first."""
    name = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": name, "base64": base64.b64encode(content(tensor)).decode("ascii")}


def decoded(entry: Any, name: str) -> Tensor:
    """The tensor that `encoded` gave; `name` begins the error."""
    try:
        data = base64.b64decode(entry["base64"], validate=True)
        return _tensor(data, tuple(entry["shape"]), entry["dtype"])
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"{name} is no array as kinit.keras_config writes it: {error!r}.") from None


def write_npz(path: str | Path, tensors: Sequence[Tensor]) -> None:
    """Write tensors as `array_0`, `array_1`, ... of an .npz file, bfloat16 as float32."""
    import numpy

    values = [tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in tensors]
    numpy.savez_compressed(path, **{f"array_{i}": value.numpy() for i, value in enumerate(values)})  # type: ignore[arg-type]


def read_npz(path: Path, count: int) -> list[Tensor]:
    """The tensors that `write_npz` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [_array(archive.read(f"array_{i}.npy")) for i in range(count)]
    except (*_BROKEN, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not the .npz that kinit.keras_config wrote: {error}") from None


def _array(data: bytes) -> Tensor:
    """A member of an .npz: a magic word, a version, a header that is a Python dict, and the values."""
    if not data.startswith(_MAGIC):
        raise ValueError("a member is no array.")
    wide = data[len(_MAGIC)] > 1
    start = len(_MAGIC) + 2 + (4 if wide else 2)
    (size,) = struct.unpack("<I" if wide else "<H", data[len(_MAGIC) + 2 : start])
    header = ast.literal_eval(data[start : start + size].decode("latin1"))
    if header["descr"] not in _NUMPY:
        raise ValueError(f"an array has the dtype {header['descr']}.")
    shape = tuple(header["shape"])
    values = data[start + size :]
    if header["fortran_order"]:
        return _tensor(values, shape[::-1], _NUMPY[header["descr"]]).permute(*reversed(range(len(shape))))
    return _tensor(values, shape, _NUMPY[header["descr"]])


def _tensor(data: bytes, shape: tuple[int, ...], dtype: str) -> Tensor:
    kind = DTYPES[dtype]
    if any(not isinstance(size, int) or size < 0 for size in shape):
        raise ValueError(f"a shape is {shape}")
    if len(data) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{len(data)} bytes for shape {shape} of {dtype}")
    return torch.frombuffer(bytearray(data), dtype=kind).reshape(shape) if data else torch.empty(shape, dtype=kind)


def sampled(tensor: Tensor, count: int = 64) -> list[float]:
    """At most so many values of a tensor, evenly spaced over it."""
    flat = tensor.reshape(-1)
    places = torch.arange(min(count, flat.numel())) * flat.numel() // max(1, min(count, flat.numel()))
    return [float(value) for value in flat[places].double()]


def plain(value: Any) -> Any:
    """What of a config is plain JSON data; None for the rest."""
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else None
