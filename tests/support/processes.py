"""Looking at processes from outside: do they live, how much memory have they."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["children_of", "is_alive", "is_stopped", "resident_bytes"]


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
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] not in "ZX":
            found.append(int(entry.name))
    return found


def resident_bytes(pid: int | str = "self") -> int:
    """Memory of the process that is in RAM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmRSS of process {pid}")
