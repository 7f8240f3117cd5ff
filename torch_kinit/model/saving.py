"""A model's state dict as a file: the whole of it, or the file that was there before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

SUFFIXES = (".pt", ".safetensors")


def refuse_file(path: Path) -> None:
    """Raise if no state dict can be saved there: an unknown suffix, no folder, or no safetensors.

    Raises:
        ValueError: says which.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"A state dict is saved as {' or '.join(SUFFIXES)}, got {str(path)!r}.")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder, not a file to write.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {str(path.parent)!r} to write {path.name} in.")
    if path.suffix == ".safetensors":
        try:
            import safetensors.torch  # noqa: F401
        except ImportError:
            raise ValueError("A .safetensors file needs the package safetensors; .pt needs none.") from None


def save_state(model: nn.Module, path: Path) -> None:
    """Write the state dict of `model` to `path`, in the place of what may be there, all at once.

    Raises:
        ValueError: `refuse_file` would, the file cannot be written, or a .safetensors file cannot hold a value.
    """
    refuse_file(path)
    try:
        with _beside(path) as partial:
            if path.suffix == ".pt":
                with partial.open("wb") as file:  # in which torch notes no name
                    torch.save(model.state_dict(), file)
            else:
                _save_safetensors(model, partial)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}.") from error


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new file in the same folder, which takes the place of `path` at the end, and is gone after an error."""
    real = Path(os.path.realpath(path))  # of a link
    partial = real.with_name(f".{real.name}.{os.getpid()}")
    try:
        partial.touch(exist_ok=False)
        yield partial
        partial.replace(real)
    finally:
        partial.unlink(missing_ok=True)


def _save_safetensors(model: nn.Module, path: Path) -> None:
    """Write the tensors, those that share memory once for each name, so that all names are there to be loaded."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}, which .safetensors cannot hold; save as .pt.")
        memory = value.untyped_storage().data_ptr()
        tensors[name] = value.clone(memory_format=torch.contiguous_format) if memory in seen else value.contiguous()
        seen.add(memory)
    save_file(tensors, path, metadata={"format": "pt"})


def load_state(model: nn.Module, path: Path) -> None:
    """Load a state dict that torch.save or safetensors wrote into `model`; nothing in the file is executed.

    Raises:
        ValueError: the file holds no state dict, or another model's.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # an extra

            model.load_state_dict(load_file(path))
        else:
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{str(path)!r} is no state dict of the model: {type(error).__name__}: {said}") from error
