"""How exactly timers wake the daemon.

Go's runtime has a thread that looks after the others whenever the process has woken up, every 20 µs for a while:
several times for each small call, on both sides, which costs where processors are few. Nothing that the daemon waits
for needs its timers to be so exact.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator

__all__ = ["SLACK_SECONDS", "coarse_timers"]

#: How late the kernel may wake the daemon for a timer: half of what Go waits for at least where a timer is all it waits
#: for, so that what is sent at a pace (QUIC) keeps it.
SLACK_SECONDS = 0.0005

_PR_SET_TIMERSLACK = 29
_PR_GET_TIMERSLACK = 30


@contextlib.contextmanager
def coarse_timers() -> Iterator[None]:
    """A process that this thread starts within the block may be woken late by `SLACK_SECONDS` by its timers, as this
    thread may meanwhile. Only on Linux: elsewhere the block is as any other."""
    prctl = _prctl()
    if prctl is None:
        yield
        return
    before = prctl(_PR_GET_TIMERSLACK, 0)
    prctl(_PR_SET_TIMERSLACK, round(SLACK_SECONDS * 1e9))
    try:
        yield
    finally:
        prctl(_PR_SET_TIMERSLACK, before)


def _prctl() -> Callable[[int, int], int] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)
    return prctl
