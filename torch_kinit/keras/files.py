"""Files that Keras saves, read as data: within limits, without following a link, and without running anything."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from torch_kinit import checks

LARGEST = 64 * 2**20  # bytes of a config; those of keras.applications have less than 2 MiB
DEEPEST = 200  # levels of a config; a model in a model takes four
_MOST_GROUPS_DEEP = 100
_EXPANSION = 1000  # more than this many times what is stored is a bomb, beyond `LARGEST`
_LINKS = {1: "soft link", 64: "link to another file"}
_H5 = (".h5", ".hdf5")
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)  # a password, a method


def parse(text: str | bytes, name: str) -> Any:
    """JSON as Python's data; `name` begins the error."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}.") from None
    check_depth(value, name)
    return value


def check_depth(value: Any, name: str) -> None:
    """Refuse data nested so deep that reading it would exhaust Python's stack."""
    left = [(value, 0)]
    while left:
        item, depth = left.pop()
        if depth > DEEPEST:
            raise _too_deep(name)
        if isinstance(item, Mapping):
            left += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, (list, tuple)):
            left += [(inner, depth + 1) for inner in item]


def _too_deep(name: str) -> ValueError:
    return ValueError(f"{name} is nested deeper than {DEEPEST} levels, which no Keras model is.")


def read_config(path: Path) -> Any:
    """The config in a .json, .keras or .h5 file; None if it is an .h5 file of weights alone."""
    if path.suffix == ".json":
        with path.open("rb") as file:
            return parse(_bounded(file, path), repr(str(path)))
    if path.suffix == ".keras":
        with _archive(path) as archive, _member(archive, path, "config.json", LARGEST) as file:
            return parse(_bounded(file, path), f"config.json in {str(path)!r}")
    if path.suffix in _H5:
        with open_h5(path) as root:
            config = attribute(root, "model_config")
        if config is not None and not isinstance(config, (str, bytes)):
            raise ValueError(f"The attribute model_config of {str(path)!r} is no text.")
        if config is not None and len(config) > LARGEST:
            raise _too_large(path, len(config))
        return None if config is None else parse(config, f"model_config in {str(path)!r}")
    raise ValueError(
        f"A config is read from a .json, .keras or .h5 file, got {str(path)[:200]!r}. "
        "model.save('model.keras') and model.to_json() make them."
    )


def _bounded(file: IO[bytes], path: Path) -> bytes:
    """All of a file, if it is no larger than a config may be, whatever its header says."""
    text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise _too_large(path, None)
    return text


def _too_large(path: Path, size: int | None) -> ValueError:
    found = "more" if size is None else f"{size / 2**20:.0f} MiB"
    return ValueError(f"The config in {str(path)!r} may have {LARGEST >> 20} MiB, and has {found}; it is not read.")


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A .keras file, and a clear error for a broken one."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (*_BROKEN_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which a wrong offset gives
            raise
        raise ValueError(
            f"{str(path)!r} is no model saved by Keras 3: it is no zip file, or a damaged one ({error})."
        ) from None


@contextmanager
def _member(archive: zipfile.ZipFile, path: Path, name: str, largest: int | None = None) -> Iterator[IO[bytes]]:
    """A file in an archive, if the size that it declares is allowed."""
    if name not in archive.namelist():
        raise ValueError(f"{str(path)!r} is no model saved by Keras 3: it is a zip file without {name}.")
    info = archive.getinfo(name)
    if largest is not None and info.file_size > largest:
        raise _too_large(path, info.file_size)
    if info.file_size > LARGEST + _EXPANSION * info.compress_size:
        raise ValueError(f"{name} in {str(path)!r} unpacks to {info.file_size} bytes from {info.compress_size}.")
    with archive.open(info) as file:
        yield file


@contextmanager
def open_h5(path: Path) -> Iterator[Any]:
    """The root group of an .h5 file, or of the one in a .keras file."""
    try:
        import h5py
    except ImportError:
        raise ModuleNotFoundError(
            f"{str(path)!r} is read with h5py, which is not installed: pip install torch_kinit[files]."
        ) from None
    if path.suffix != ".keras":
        with path.open("rb"), _told(path), h5py.File(path, "r") as root:  # `open`: a missing file is Python's error
            yield root
        return
    # A copy, because a zip member can only be read from its start; this checks its checksum, too.
    with tempfile.TemporaryFile() as copy:
        with _archive(path) as archive, _member(archive, path, "model.weights.h5") as file:
            shutil.copyfileobj(file, copy)
        with _told(path), h5py.File(copy, "r") as root:
            yield root


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """HDF5's errors say nothing of the file."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as HDF5; it may be truncated: {error}.") from None


def inside(group: Any) -> dict[str, Any]:
    """What a group holds, by name."""
    if not is_group(group):
        raise ValueError(f"{_where(group)} is an array where a layer is expected.")
    return {name: child(group, name) for name in group}


def child(group: Any, path: str) -> Any:
    """The group or dataset at a path in a group. No link is followed: it may lead to another file, or in a circle."""
    for name in path.split("/"):
        kind = _link(group, name) if is_group(group) else None
        if kind is None:
            raise ValueError(f"{_where(group)} lacks {name!r}: the file is incomplete.")
        if kind:
            raise ValueError(f"{_where(group)} has {name!r} as a {_LINKS.get(kind, 'link')}, which is not followed.")
        group = group[name]
        if group.name.count("/") > _MOST_GROUPS_DEEP:
            raise ValueError(f"{_where(group)[:80]}... is nested deeper than {_MOST_GROUPS_DEEP} groups.")
    return group


def has(group: Any, name: str) -> bool:
    """Whether a group holds something of this name, wherever it leads."""
    return _link(group, name) is not None


def _link(group: Any, name: str) -> int | None:
    """The kind of link that a name in a group is, 0 for the thing itself. `name in group` would open other files."""
    links, key = group.id.links, name.encode("utf-8", "surrogateescape")
    return int(links.get_info(key).type) if links.exists(key) else None


def is_group(item: Any) -> bool:
    import h5py

    return isinstance(item, h5py.Group)


def address(item: Any) -> int:
    """Where in its file an item is, the same for all its names."""
    import h5py

    return int(h5py.h5o.get_info(item.id).addr)


def _where(item: Any) -> str:
    return repr(item.name)


def attribute(group: Any, name: str) -> Any:
    """An attribute of a group, None if it has none of this name."""
    return group.attrs.get(name)


def texts(group: Any, name: str) -> list[str] | None:
    """A list of texts among the attributes; Keras cuts a long one into name0, name1, ..."""
    keys = [name] if name in group.attrs else [f"{name}{i}" for i in range(len(group.attrs))]
    parts = [group.attrs[key] for key in keys if key in group.attrs]
    if not all(getattr(part, "ndim", 0) == 1 for part in parts):
        raise ValueError(f"The attribute {name} of {_where(group)} is no list.")
    found = [text.decode("utf-8") if isinstance(text, bytes) else str(text) for part in parts for text in part]
    return found if parts else None


def shape_of(dataset: Any) -> tuple[int, ...]:
    """The shape of a dataset that holds real numbers of its own, in this file."""
    shape, dtype = getattr(dataset, "shape", None), getattr(dataset, "dtype", None)
    if shape is None or dtype is None:
        raise ValueError(f"{_where(dataset)} holds no array.")
    if dtype.kind not in "fiub" and not _is_bfloat16(dtype):
        raise ValueError(f"{_where(dataset)} holds values of dtype {dtype}, not real numbers.")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{_where(dataset)} keeps its values in another file, which is not opened.")
    if dataset.nbytes and not dataset.id.get_storage_size():
        raise ValueError(f"{_where(dataset)} was never written: the file is incomplete.")
    if dataset.nbytes > LARGEST + _EXPANSION * dataset.id.get_storage_size():
        raise ValueError(
            f"{_where(dataset)} unpacks to {dataset.nbytes} bytes from {dataset.id.get_storage_size()}; it is not read."
        )
    return tuple(shape)


def values_of(dataset: Any) -> Tensor:
    """A dataset's numbers, bit for bit."""
    import numpy as np

    shape_of(dataset)
    array = np.asarray(dataset[()])
    if _is_bfloat16(array.dtype):
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return checks.array(array.astype(array.dtype.newbyteorder("="), copy=False))


def _is_bfloat16(dtype: Any) -> bool:
    """Whether h5py shows it so: HDF5 has no such type, and Keras stores two opaque bytes for each."""
    return bool(dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None and dtype.subdtype is None)
