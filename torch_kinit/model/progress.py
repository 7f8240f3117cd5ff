"""A progress bar, if tqdm is installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress_bar(items: Sequence[T]) -> Iterable[T]:
    """`items` behind a bar that shows after a second, if tqdm is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, desc="initializing", unit="tensor", delay=1)
    return bar
