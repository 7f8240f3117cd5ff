"""How much memory an operation allocates beside what there was."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while it is active; `peak` is the most alive at a time."""

    def __init__(self, *known):
        super().__init__()
        self.peak = self.live = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage):
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer in self._seen:
            return
        self._seen.add(pointer)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, pointer, size)

    def _release(self, pointer, size):
        self.live -= size
        self._seen.discard(pointer)
