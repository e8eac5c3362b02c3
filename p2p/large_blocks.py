"""Keep the C library from giving the memory of each large message back to the system."""

from __future__ import annotations

import functools

__all__ = ["keep_large_blocks"]

#: Several times the longest unary message: it is received, parsed, built and serialized in blocks of its own.
_BYTES = 16 * 1024 * 1024


@functools.cache
def keep_large_blocks() -> None:
    """Have blocks of up to 16 MiB kept for the next message; once per process, from then on. Thread-safe.

    glibc maps blocks above a threshold from the system and unmaps them when they are freed: then each message costs a
    page fault for every 4 KiB, half of Python's time for calls of 1 MiB. The threshold follows the largest block that
    was ever freed (mallopt(3), M_MMAP_THRESHOLD). This one is never touched, so that it takes no memory itself.
    """
    bytes(_BYTES)
