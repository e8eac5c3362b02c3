"""Memory that is free: kept by the C library for the next large message or tensor, or given back to the system."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["give_back", "keep_large_blocks"]

#: The largest block from which glibc learns (32 MiB on 64 bits), less what it adds itself.
_MOST_BYTES = 2**25 - 2**13


@functools.cache
def keep_large_blocks(length: int = _MOST_BYTES) -> None:
    """Have blocks of up to ``length`` bytes kept for the next one of their kind, from then on. Thread-safe.

    glibc maps blocks above a threshold from the system and unmaps them when they are freed: then each costs a page
    fault for every 4 KiB, which takes several times as long as copying what is to be there. The threshold follows the
    largest block that was ever freed (mallopt(3), M_MMAP_THRESHOLD), and twice as many bytes at the end of the heap are
    kept. This one is never touched, so that it takes no memory itself.

    :param length: at the most, and by default, almost 32 MiB; larger blocks are not kept by glibc, whatever it has seen
    """
    bytes(min(length, _MOST_BYTES))


def give_back() -> None:
    """Give whole pages that are free back to the system, wherever they lie: milliseconds. Thread-safe.

    For after something large was freed that nothing of its kind follows. Does nothing without glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
