"""How long a peer takes to start, and what it holds in memory while it does nothing: the bare peer, and a whole DHT."""

from __future__ import annotations

import asyncio
import os
import time

import uvloop
from common import LOCAL, Figure, child, emit, parse_arguments
from processes import children_of, find_daemon, memory_of

#: Seconds after which a process has got over its start.
SETTLED = 3.0


async def measure_peer() -> dict[str, Figure]:
    """Start one peer, connect another to it, and let both settle."""
    from hivemind.p2p import P2P

    started = time.perf_counter()
    p2p = await P2P.create(**LOCAL)
    ready = time.perf_counter() - started
    await asyncio.sleep(SETTLED)
    python, daemon = memory_of(os.getpid()), memory_of(find_daemon())
    stopping = time.perf_counter()
    await p2p.shutdown()
    return {
        "start a peer": (ready, "s"),
        "shut it down": (time.perf_counter() - stopping, "s"),
        "idle peer, Python, resident": (python.resident, "B"),
        "idle peer, Python, private": (python.private, "B"),
        "idle peer, daemon, resident": (daemon.resident, "B"),
        "idle peer, daemon, private": (daemon.private, "B"),
    }


def measure_dht() -> dict[str, Figure]:
    """A DHT node with all its processes; shared memory counts once."""
    from hivemind import DHT

    dht = DHT(start=True, **LOCAL)
    time.sleep(SETTLED)
    total = sum(memory_of(pid).proportional for pid in (os.getpid(), *children_of(os.getpid())))
    dht.shutdown()
    return {"idle DHT, all its processes": (total, "B")}


def main() -> None:
    """Each in a process of its own."""
    figures: dict[str, Figure] = {}
    for part in ("peer", "dht"):
        with child(__file__, "--part", part) as other:
            figures |= other.receive()
    emit(figures)


if __name__ == "__main__":
    options = parse_arguments(("--part", {"choices": ("peer", "dht")}))
    if options.part == "peer":
        emit(uvloop.run(measure_peer()))
    elif options.part == "dht":
        emit(measure_dht())
    else:
        main()
