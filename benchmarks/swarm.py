"""A DHT of 16 peers and one of 64: its start, stores and gets one at a time and many at once, a batch as a server of
experts declares it, and what each peer takes of memory and processor.

All peers are made by one process, as both libraries do it: 1.1.12 forks one for each, this library runs them on one
thread. Gets are those of a client, which keeps no records: each crosses the network.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from common import LOCAL, Figure, child, emit, median, parse_arguments, percentile
from processes import children_of, cpu_of, memory_of

SIZES = (16, 64)
VALUE = b"x" * 200
LIFETIME = 3600.0
#: Gets that are under way at a time.
IN_FLIGHT = 64
#: Rows and columns of the grid of experts that are declared as one batch.
GRID, QUICK_GRID = 32, 16
#: Seconds for which idle peers are watched.
IDLE = 10.0


async def store_numbers(count: int, until: float, dht: Any, node: Any) -> None:
    """Store ``count`` values under the keys that `read_one` asks for."""
    keys = [f"number {number}" for number in range(count)]
    await node.store_many(keys, [VALUE] * count, until)


async def declare_experts(grid: int, until: float, dht: Any, node: Any) -> tuple[float, int]:
    """Store a square of experts and their prefixes as one batch, as a server of experts does.

    :returns: the seconds that took, and how many records are said not to be stored
    """
    peer = node.peer_id.to_base58()
    keys, values, subkeys = [], [], []
    for row in range(grid):
        for column in range(grid):
            uid = f"expert.{row}.{column}"
            keys += [uid, f"expert.{row}."]
            values += [peer, (uid, peer)]
            subkeys += [None, column]
        keys.append("expert.")
        values.append((f"expert.{row}.0", peer))
        subkeys.append(row)
    started = time.perf_counter()
    stored = await node.store_many(keys, values, until, subkeys=subkeys)
    return time.perf_counter() - started, len(stored) - sum(stored.values())


def read_one(reader: Any, number: int, **options: Any) -> None:
    """Get one of the values that were stored."""
    check(reader.get(f"number {number}", **options))


def check(found: Any) -> None:
    if found is None or found.value != VALUE:
        raise RuntimeError("a value was not found")


def read_many(reader: Any, numbers: range) -> float:
    """Gets a second, `IN_FLIGHT` of them under way at any time."""
    under_way: deque[Any] = deque()
    started = time.perf_counter()
    for number in numbers:
        if len(under_way) >= IN_FLIGHT:
            check(under_way.popleft().result())
        under_way.append(reader.get(f"number {number}", return_future=True))
    for future in under_way:
        check(future.result())
    return len(numbers) / (time.perf_counter() - started)


def one_by_one(figures: dict[str, Figure], name: str, action: Callable[[int], object], numbers: range) -> None:
    """Add how long each call takes, and the processor time of all peers for one."""
    seconds = []
    before = all_cpu()
    for number in numbers:
        started = time.perf_counter()
        action(number)
        seconds.append(time.perf_counter() - started)
    figures[f"{name}, median"], figures[f"{name}, p99"] = median(seconds), percentile(seconds, 0.99)
    figures[f"{name}, processor time of all"] = ((all_cpu() - before) / len(numbers), "s")


def all_processes() -> list[int]:
    return [os.getpid(), *children_of(os.getpid())]


def all_cpu() -> float:
    """Processor seconds of all peers so far."""
    return sum(map(cpu_of, all_processes()))


@contextlib.contextmanager
def running_swarm(size: int) -> Iterator[tuple[list[Any], float]]:
    """Peers that joined one after another, and the seconds that took."""
    from hivemind import DHT

    started = time.perf_counter()
    dhts = [DHT(start=True, **LOCAL)]
    maddrs = [str(maddr) for maddr in dhts[0].get_visible_maddrs()]
    dhts += [DHT(initial_peers=maddrs, start=True, **LOCAL) for _ in range(size - 1)]
    yield dhts, time.perf_counter() - started
    for dht in reversed(dhts):
        dht.shutdown()


def measure(size: int, repeat: int, grid: int) -> dict[str, Any]:
    """All figures of one swarm."""
    from hivemind import DHT
    from hivemind.utils import get_dht_time

    until = get_dht_time() + LIFETIME
    figures: dict[str, Figure] = {}
    with running_swarm(size) as (dhts, start):
        figures["start"] = (start, "s")
        maddrs = [str(maddr) for maddr in dhts[0].get_visible_maddrs()]
        reader = DHT(initial_peers=maddrs, start=True, client_mode=True, **LOCAL)
        one_by_one(figures, "store", lambda n: dhts[n % size].store(f"own {n}", VALUE, until), range(repeat))
        dhts[1].run_coroutine(partial(store_numbers, 6 * repeat, until))
        one_by_one(figures, "get", partial(read_one, reader), range(repeat))
        one_by_one(figures, "get the latest", partial(read_one, reader, latest=True), range(repeat, 2 * repeat))
        figures[f"gets, {IN_FLIGHT} in flight"] = (read_many(reader, range(2 * repeat, 6 * repeat)), "/s")
        seconds, missing = dhts[2].run_coroutine(partial(declare_experts, grid, until))
        figures[f"declare {grid**2:,} experts"] = (seconds, "s")
        memory = sum(memory_of(pid).proportional for pid in all_processes())
        figures["memory of a peer"] = (memory / (size + 1), "B")
        before = all_cpu()
        time.sleep(IDLE)
        idle = (all_cpu() - before) / (size + 1)
        figures["processor time of an idle peer in a minute"] = (idle * 60 / IDLE, "s")
        reader.shutdown()
    notes = [f"{size} peers: {missing} records of the batch are said not to be stored"] if missing else []
    return {**{f"{size} peers: {name}": figure for name, figure in figures.items()}, "notes": notes}


def main(sizes: tuple[int, ...], quick: bool) -> None:
    """Each swarm in a process of its own."""
    figures: dict[str, Any] = {}
    notes: list[str] = []
    for size in sizes:
        with child(__file__, "--size", str(size), *(["--quick"] if quick else [])) as swarm:
            found = swarm.receive()
            notes += found.pop("notes")
            figures |= found
    emit({**figures, "notes": notes})


if __name__ == "__main__":
    options = parse_arguments(("--size", {"type": int}))
    if options.size:
        emit(measure(options.size, *((60, QUICK_GRID) if options.quick else (300, GRID))))
    else:
        main(SIZES[:1] if options.quick else SIZES, options.quick)
