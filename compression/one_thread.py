"""Torch's operations in the calling thread alone, however many threads torch has."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["can_limit", "one_thread"]


@functools.cache
def _setter() -> Callable[[int], object] | None:
    """``omp_set_num_threads`` of the OpenMP that torch computes with; None where it is not to be found."""
    try:
        setter: Callable[[int], object] = ctypes.PyDLL(None).omp_set_num_threads
    except (AttributeError, OSError, TypeError):  # torch has other threads, or the system finds no names like this
        return None
    before = torch.get_num_threads()
    setter(before + 1)
    belongs_to_torch = torch.get_num_threads() == before + 1
    setter(before)
    return setter if belongs_to_torch else None


def can_limit() -> bool:
    """Whether `one_thread` has an effect."""
    return _setter() is not None


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, torch computes in the calling thread alone. Nothing changes for other threads. Thread-safe.

    ``torch.set_num_threads`` sets what OpenMP keeps for the calling thread as well, but also what each thread begins
    with that uses torch for the first time.
    """
    before, setter = torch.get_num_threads(), _setter()
    if setter is None or before == 1:
        yield
        return
    setter(1)
    try:
        yield
    finally:
        setter(before)
