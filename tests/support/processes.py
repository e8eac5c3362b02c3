"""Looking at processes from outside: do they live, how much memory have they."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["children_of", "is_alive", "is_stopped", "offspring", "resident_bytes"]


def is_alive(pid: int) -> bool:
    """Whether a thread of the process runs, and so holds its descriptors; a zombie's does not."""
    return any(state not in "ZX" for state in _thread_states(pid))


def is_stopped(pid: int) -> bool:
    """Whether all threads of the process have stopped: SIGSTOP reaches one after the other."""
    return all(state in "TZX" for state in _thread_states(pid))


def _thread_states(pid: int) -> list[str]:
    """The letters of proc(5) for the threads of a process; none if there is no such process."""
    states = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process has gone
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has
                # the name, in parentheses, may hold anything
                states.append((thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[0])
    return states


def children_of(pid: int) -> list[int]:
    """The child processes of ``pid`` that run: of a peer, its daemon."""
    return [child for child, state in offspring(pid) if state not in "ZX"]


def offspring(pid: int) -> Iterator[tuple[int, str]]:
    """All child processes of ``pid``, each with its state, a letter of proc(5).

    Read without Path and file objects: each test looks through all processes of the machine twice.
    """
    if not Path("/proc").is_dir():  # as on macOS
        return
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # the process has gone
            stat = os.open(f"/proc/{name}/stat", os.O_RDONLY)
            try:
                # the name, in parentheses, may hold anything
                state, parent = os.read(stat, 4096).rpartition(b")")[2].split(None, 2)[:2]
            finally:
                os.close(stat)
            if int(parent) == pid:
                yield int(name), state.decode()


def resident_bytes(pid: int | str = "self") -> int:
    """Memory of the process that is in RAM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmRSS of process {pid}")
