"""How searches of the DHT grow with the swarm: the node's own code on the in-memory network, under the virtual clock.

One run is one size: ``make sim-dht ARGS='--nodes 1000 --keys 10000 --churn 0.3'`` prints its figures as JSON. Hops,
messages and virtual seconds are those of one get; with ``--churn``, also of gets after some minutes of it, for keys
that some node still holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import resource
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from hivemind.clock import get_dht_time
from hivemind.dht import DHTID, DHTNode
from hivemind.p2p import MemoryNetwork
from hivemind.virtual_clock import run_virtual

#: Nodes that join at a time, and users that act at a time.
_JOINERS = 32
_USERS = 64
#: One-way delay in seconds, and its jitter.
_DELAY, _JITTER = 0.02, 0.02
_DAY = 86400.0


class Swarm:
    """Nodes of one run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.net = MemoryNetwork(seed)
        self.nodes: list[DHTNode] = []
        self._made = 0

    async def grow(self, count: int) -> None:
        """Add nodes, some at a time, each through a member chosen at random."""
        while len(self.nodes) < count:
            batch = min(_JOINERS, count - len(self.nodes), max(1, len(self.nodes)))
            self.nodes += await asyncio.gather(*(self._node() for _ in range(batch)))

    async def _node(self) -> DHTNode:
        number, self._made = self._made, self._made + 1
        through = self.random.choice(self.nodes) if self.nodes else None
        p2p = await self.net.create_p2p()
        addresses = await through.get_visible_maddrs() if through is not None else None
        return await DHTNode.create(p2p, DHTID.generate(source=f"node {number}"), addresses)

    async def kill(self, node: DHTNode) -> None:
        """End a node without a word to others."""
        self.nodes.remove(node)
        self.net.kill(node.p2p)
        await node.shutdown()
        await node.p2p.shutdown()

    async def close(self) -> None:
        for start in range(0, len(self.nodes), _USERS):
            batch = self.nodes[start : start + _USERS]
            await asyncio.gather(*(node.shutdown() for node in batch))
            await asyncio.gather(*(node.p2p.shutdown() for node in batch))


async def in_batches(work: Callable[[int], Awaitable[Any]], numbers: Sequence[int]) -> list[Any]:
    """``work(number)`` for each, `_USERS` at a time."""
    results: list[Any] = []
    for start in range(0, len(numbers), _USERS):
        results += await asyncio.gather(*(work(number) for number in numbers[start : start + _USERS]))
    return results


async def store_all(swarm: Swarm, keys: int, batch: int = 100) -> int:
    """Store ``keys`` values in batches by nodes chosen at random; how many were accepted."""
    until = get_dht_time() + _DAY

    async def some(start: int) -> int:
        names = [f"key {number}" for number in range(start, min(start + batch, keys))]
        stored = await swarm.random.choice(swarm.nodes).store_many(names, list(range(len(names))), until)
        return sum(stored.values())

    return sum(await in_batches(some, list(range(0, keys, batch))))


async def look_up(swarm: Swarm, wanted: Iterable[int], *, latest: bool = False) -> dict[str, float]:
    """Get keys, each from a node chosen at random that has not seen it: shares, hops, messages, virtual seconds."""
    loop = asyncio.get_running_loop()

    async def one(number: int) -> tuple[bool, float, float, float]:
        node = swarm.random.choice(swarm.nodes)
        before, began = node.stats(), loop.time()
        found = await node.get(f"key {number}", latest=latest)
        after = node.stats()
        return found is not None, after.hops - before.hops, after.requests - before.requests, loop.time() - began

    # one at a time, so that the counts of a node are those of one get
    results = [await one(number) for number in wanted]
    hops, messages, seconds = (sorted(each) for each in list(zip(*results, strict=True))[1:])
    return {
        "found": sum(result[0] for result in results) / len(results),
        "hops": sum(hops) / len(hops),
        "hops_p99": hops[int(0.99 * len(hops))],
        "messages": sum(messages) / len(messages),
        "seconds": sum(seconds) / len(seconds),
    }


async def churn(swarm: Swarm, share: float, minutes: int) -> None:
    """Each minute ``share`` of the nodes dies, one after the other, and as many join."""
    size = len(swarm.nodes)
    for _ in range(minutes):
        doomed = swarm.random.sample(swarm.nodes, int(share * size))
        for node in doomed:
            await asyncio.gather(swarm.kill(node), asyncio.sleep(60 / len(doomed)))
            if len(swarm.nodes) < size - _JOINERS:
                await swarm.grow(size)
        await swarm.grow(size)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    swarm, began = Swarm(options.seed), time.perf_counter()
    figures: dict[str, Any] = {"nodes": options.nodes, "keys": options.keys, "log2": round(math.log2(options.nodes), 1)}
    try:
        await swarm.grow(options.nodes)
        figures["joined_in"] = time.perf_counter() - began
        swarm.net.delay(_DELAY, jitter=_JITTER)
        accepted = await store_all(swarm, options.keys)
        figures["stored"] = accepted / options.keys
        sample = swarm.random.sample(range(options.keys), min(options.gets, options.keys))
        figures |= await look_up(swarm, sample)
        if options.churn:
            await churn(swarm, options.churn, options.minutes)
            kept = {key for node in swarm.nodes for key in node.protocol.storage.data}
            numbers = [number for number in range(options.keys) if DHTID.generate(source=f"key {number}") in kept]
            figures["kept"] = len(numbers) / options.keys
            after = await look_up(swarm, swarm.random.sample(numbers, min(options.gets, len(numbers))), latest=True)
            figures |= {f"churned_{name}": value for name, value in after.items()}
        figures["known"] = sum(node.stats().known_nodes for node in swarm.nodes) / len(swarm.nodes)
    finally:
        await swarm.close()
    figures["cpu_seconds"] = time.process_time()
    figures["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--keys", type=int, default=10000)
    parser.add_argument("--gets", type=int, default=500)
    parser.add_argument("--churn", type=float, default=0.0, help="share of the nodes replaced in a minute")
    parser.add_argument("--minutes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result: list[dict[str, Any]] = []

    async def run() -> None:
        result.append(await measure(options))

    run_virtual(run)
    print(json.dumps(result[0]))


if __name__ == "__main__":
    main()
