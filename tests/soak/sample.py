"""What a peer's two processes hold at one moment, and whether that grows."""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P
from tests.support.processes import resident_bytes

__all__ = ["Sample", "growth", "leftovers", "take"]

MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """Counts of one moment; sizes in bytes."""

    python_memory: int
    python_files: int
    tasks: int
    threads: int
    daemon_memory: int
    daemon_files: int
    goroutines: int

    def line(self) -> str:
        """Short, for people."""
        return (
            f"Python {self.python_memory / MIB:.0f} MiB {self.python_files} fds {self.tasks} tasks, "
            f"daemon {self.daemon_memory / MIB:.0f} MiB {self.daemon_files} fds {self.goroutines} goroutines"
        )


def _files(pid: int | str) -> int:
    return len(os.listdir(Path("/proc") / str(pid) / "fd"))


async def take(p2p: P2P) -> dict[str, Any]:
    """A sample of this process and of the daemon of ``p2p``."""
    child = p2p._child
    assert child is not None
    assert child.pid is not None
    stats = await p2p.stats()
    sample = Sample(
        python_memory=resident_bytes(),
        python_files=_files("self"),
        tasks=len(asyncio.all_tasks()),
        threads=threading.active_count(),
        daemon_memory=resident_bytes(child.pid),
        daemon_files=_files(child.pid),
        goroutines=stats["goroutines"],
    )
    return asdict(sample)


#: By how much the second half of the samples under load may exceed the first: a part, and an amount on top. Memory
#: settles slowly; what leaks does so with every call, thousands of them in a minute.
_PARTS = {"python_memory": 0.15, "daemon_memory": 0.25}
_AMOUNTS = {"python_memory": 12 * MIB, "daemon_memory": 24 * MIB}
#: Others vary with what is in flight at the moment: 200 calls, each with a few goroutines and perhaps a task.
_PART, _AMOUNT = 0.25, 300


def growth(samples: Sequence[Sample]) -> list[str]:
    """What grew from the first to the second half of ``samples``, by their medians; needs four samples."""
    if len(samples) < 4:
        return [f"{len(samples)} samples are too few"]
    half = len(samples) // 2
    found = []
    for name in asdict(samples[0]):
        first, second = (
            statistics.median(getattr(each, name) for each in part) for part in (samples[:half], samples[half:])
        )
        if second > first * (1 + _PARTS.get(name, _PART)) + _AMOUNTS.get(name, _AMOUNT):
            found.append(f"{name} grew from {first:.0f} to {second:.0f}")
    return found


#: What may be there at rest that was not before the load: connections of peers that have just died, timers.
_SPARE = {"python_files": 2, "tasks": 2, "threads": 4, "daemon_files": 6, "goroutines": 60}


def leftovers(before: Sample, after: Sample) -> list[str]:
    """What is there at rest after the load beyond what was before it. Memory is not looked at: it is kept for later."""
    return [
        f"{name}: {getattr(before, name)} before, {getattr(after, name)} after"
        for name, spare in _SPARE.items()
        if getattr(after, name) > getattr(before, name) + spare
    ]
