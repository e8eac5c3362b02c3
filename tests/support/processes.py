"""Looking at processes from outside: do they live, how much memory have they."""

from __future__ import annotations

from pathlib import Path

__all__ = ["children_of", "is_alive", "resident_bytes"]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        # the name, in parentheses, may hold anything
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


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
