"""What the processes of a peer take: memory and processor time of this one and its children, from Linux's ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes of a process.

    :param resident: all that is in memory, shared libraries included
    :param private: what no other process shares: given back if it ended
    :param proportional: private memory and its share of the shared
    """

    resident: int
    private: int
    proportional: int


def memory_of(pid: int) -> Memory:
    """
    :raises OSError: there is no such process, or no ``/proc``
    """
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    return Memory(sizes["Rss"], sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Pss"])


def cpu_of(pid: int) -> float:
    """Processor seconds of a process so far, in all its threads.

    :raises OSError: there is no such process, or no ``/proc``
    """
    # after the name, which may hold anything: the 14th and 15th field of all are user and system time
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """The processes below ``pid``, all generations."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except FileNotFoundError:  # a thread that has ended meanwhile
            continue
        for child in map(int, children):
            found += [child, *children_of(child)]
    return found


def find_daemon() -> int:
    """The process id of this process's p2pd.

    :raises RuntimeError: not exactly one runs
    """
    daemons = [pid for pid in children_of(os.getpid()) if Path(f"/proc/{pid}/comm").read_text().startswith("p2pd")]
    if len(daemons) != 1:
        raise RuntimeError(f"{len(daemons)} daemons run")
    return daemons[0]
