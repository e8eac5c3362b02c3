"""Crowds of DHT nodes on the in-memory network: what is measured of them, at sizes from a hundred to ten thousand.

The nodes run their own code and join as any node does, each through a member chosen at random. Everything follows from
the seed. Small crowds serve the tests of `tests/sim`, large ones `benchmarks/dht_scale.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hivemind.clock import get_dht_time
from hivemind.dht import DHTID, CompositeValidator, DHTNode, DHTRecord, RecordValidatorBase
from hivemind.p2p import MemoryNetwork
from hivemind.proto import dht_pb2

__all__ = ["Crowd", "Gets", "churn", "corrupt", "key_name"]

#: One-way delay in seconds, and its jitter.
DELAY, JITTER = 0.02, 0.02
#: Nodes that join at a time, at most and as a share of the members.
JOINERS, JOINING_SHARE = 256, 0.25
#: Users that act at a time, and keys that one of them stores together.
USERS, BATCH = 64, 250
DAY = 86400.0

#: Nodes that hold a record, as the nodes have it by default.
REPLICAS = 5

T = TypeVar("T")


def key_name(number: int) -> str:
    """The name of a key; its value is the number."""
    return f"key {number}"


@dataclass(frozen=True)
class Gets:
    """What several gets came to: shares, and of one get hops, requests and seconds of virtual time."""

    count: int
    #: share of those that gave the right value, and of those that gave a wrong one
    found: float
    wrong: float
    hops: float
    hops_p99: float
    requests: float
    seconds: float
    seconds_p99: float


class Seal(RecordValidatorBase):
    """Stands for a signature, at less cost: the liars do not know the secret."""

    _BYTES = 8

    def _seal(self, record: DHTRecord, value: bytes) -> bytes:
        whole = b"secret" + record.key + record.subkey + value
        return hashlib.blake2b(whole, digest_size=self._BYTES).digest()

    def validate(self, record: DHTRecord) -> bool:
        value = record.value[: -self._BYTES]
        return record.value[-self._BYTES :] == self._seal(record, value)

    def sign_value(self, record: DHTRecord) -> bytes:
        return record.value + self._seal(record, record.value)

    def strip_value(self, record: DHTRecord) -> bytes:
        return record.value[: -self._BYTES]


class Crowd:
    """Nodes on one network; `grow` adds some, `kill` ends one as ``kill -9`` does.

    :param sealed: records carry a `Seal`
    :param options: of each node
    """

    def __init__(self, seed: int = 0, *, sealed: bool = False, **options: Any) -> None:
        self.random = random.Random(seed)
        self.net = MemoryNetwork(seed)
        self.net.delay(DELAY, jitter=JITTER)
        self.nodes: list[DHTNode] = []
        self._sealed = sealed
        self._options = options
        self._made = 0

    async def grow(self, count: int) -> None:
        """Add nodes until there are ``count``."""
        while len(self.nodes) < count:
            joiners = max(1, min(JOINERS, int(JOINING_SHARE * len(self.nodes))))
            await asyncio.gather(*(self.join() for _ in range(min(joiners, count - len(self.nodes)))))

    async def join(self, through: Sequence[DHTNode] | None = None) -> None:
        """Add a node that joins through these, by default through one chosen at random."""
        number, self._made = self._made, self._made + 1
        if through is None:
            through = [self.random.choice(self.nodes)] if self.nodes else []
        addresses = [address for other in through for address in await other.get_visible_maddrs()]
        validator = CompositeValidator([Seal()]) if self._sealed else None
        node_id = DHTID.generate(source=f"node {number}")
        p2p = await self.net.create_p2p()
        self.nodes.append(await DHTNode.create(p2p, node_id, addresses, record_validator=validator, **self._options))

    def kill(self, node: DHTNode) -> None:
        """End a node without a word to others."""
        self.nodes.remove(node)
        self.net.kill(node.p2p)

    async def close(self, *others: Iterable[DHTNode]) -> None:
        """End all, and ``others``."""
        await in_turn(_end, [*self.nodes, *itertools.chain(*others)])

    async def store(self, numbers: Sequence[int], by: Sequence[DHTNode] | None = None) -> float:
        """Store the keys of ``numbers``, some together, each time by a node chosen at random of ``by``.

        :returns: the share that was accepted
        """
        until = get_dht_time() + DAY
        batches = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]

        async def some(batch: Sequence[int]) -> int:
            node = self.random.choice(by or self.nodes)
            return sum((await node.store_many([key_name(number) for number in batch], batch, until)).values())

        return sum(await in_turn(some, batches)) / len(numbers)

    async def get(self, numbers: Iterable[int], by: Sequence[DHTNode] | None = None, **options: Any) -> Gets:
        """Get the keys of ``numbers``, several at a time, each by another node of ``by``.

        A get's requests are what its node has sent meanwhile: now and then one of the node's upkeep is among them.
        """
        loop = asyncio.get_running_loop()
        results: list[tuple[bool, bool, int, int, float]] = []

        async def one(node: DHTNode, number: int) -> None:
            counters, began = node.counters, loop.time()
            hops, requests = counters.hops, counters.requests
            found = await node.get(key_name(number), **options)
            right, wrong = found is not None and found.value == number, found is not None and found.value != number
            results.append((right, wrong, counters.hops - hops, counters.requests - requests, loop.time() - began))

        wanted = list(numbers)
        nodes = list(by or self.nodes)
        width = min(USERS, len(nodes))
        for start in range(0, len(wanted), width):
            batch = wanted[start : start + width]
            users = self.random.sample(nodes, len(batch))
            await asyncio.gather(*(one(node, number) for node, number in zip(users, batch, strict=True)))
        right, wrong, hops, requests, seconds = (sorted(column) for column in zip(*results, strict=True))
        count, p99 = len(results), int(0.99 * len(results))
        return Gets(
            count=count,
            found=sum(right) / count,
            wrong=sum(wrong) / count,
            hops=sum(hops) / count,
            hops_p99=hops[p99],
            requests=sum(requests) / count,
            seconds=sum(seconds) / count,
            seconds_p99=seconds[p99],
        )

    def living(self, numbers: Iterable[int]) -> list[int]:
        """Those of ``numbers`` whose key some node holds."""
        held = {key for node in self.nodes for key in node.protocol.storage.data}
        return [number for number in numbers if DHTID.generate(source=key_name(number)) in held]

    def held_where_due(self, numbers: Iterable[int]) -> list[int]:
        """For each of ``numbers``, how many of the nodes that should hold its key do."""
        counts: list[int] = []
        for number in numbers:
            key = DHTID.generate(source=key_name(number))
            nearest = heapq.nsmallest(REPLICAS, self.nodes, key=lambda node: node.node_id ^ key)
            counts.append(sum(key in node.protocol.storage.data for node in nearest))
        return counts


async def in_turn(work: Callable[[T], Awaitable[Any]], things: Sequence[T]) -> list[Any]:
    """``work`` on each of ``things``, `USERS` at a time."""
    results: list[Any] = []
    for start in range(0, len(things), USERS):
        results += await asyncio.gather(*(work(each) for each in things[start : start + USERS]))
    return results


async def _end(node: DHTNode) -> None:
    await node.shutdown()
    await node.p2p.shutdown()


async def churn(crowd: Crowd, share: float, seconds: float) -> None:
    """For so long, nodes die at random, ``share`` of them a minute, and for each that dies another one joins."""
    size = len(crowd.nodes)
    deaths = int(share * size * seconds / 60)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(deaths):
            await asyncio.sleep(max(0.0, began + (number + 1) * seconds / deaths - loop.time()))
            victim = crowd.random.choice(crowd.nodes)
            crowd.kill(victim)
            group.create_task(_end(victim))
            group.create_task(crowd.join())


Lie = Callable[[dht_pb2.FindRequest, dht_pb2.NodeInfo, random.Random], bytes]


def _nonsense(request: dht_pb2.FindRequest, own: dht_pb2.NodeInfo, chance: random.Random) -> bytes:
    return chance.randbytes(100)


def _nothing(request: dht_pb2.FindRequest, own: dht_pb2.NodeInfo, chance: random.Random) -> bytes:
    return dht_pb2.FindResponse(results=[{} for _ in request.keys], peer=own).SerializeToString()


def _nobody(request: dht_pb2.FindRequest, own: dht_pb2.NodeInfo, chance: random.Random) -> bytes:
    """Twenty peers that do not exist, nearer to the key than any that does."""
    results = [
        dht_pb2.FindResult(
            nearest_node_ids=[key[:-2] + chance.randbytes(2) for _ in range(20)],
            nearest_peer_ids=[b"nobody " + chance.randbytes(8) for _ in range(20)],
        )
        for key in request.keys
    ]
    return dht_pb2.FindResponse(results=results, peer=own).SerializeToString()


def _forged(request: dht_pb2.FindRequest, own: dht_pb2.NodeInfo, chance: random.Random) -> bytes:
    """A value that nobody has stored, and that expires later than any other."""
    forged = {"type": dht_pb2.FOUND_REGULAR, "value": b"\x2a" + bytes(8), "expiration_time": get_dht_time() + 100 * DAY}
    return dht_pb2.FindResponse(results=[forged for _ in request.keys], peer=own).SerializeToString()


LIES: tuple[Lie, ...] = (_nonsense, _nothing, _nobody, _forged)


async def corrupt(crowd: Crowd, share: float) -> list[DHTNode]:
    """From now on ``share`` of the nodes lie when they are asked, each in one of four ways, and throw away what they
    are given to keep; the others are left in `Crowd.nodes`.

    :returns: the liars
    """
    liars = crowd.random.sample(crowd.nodes, int(share * len(crowd.nodes)))
    for number, liar in enumerate(liars):
        crowd.nodes.remove(liar)
        await _corrupt(liar, LIES[number % len(LIES)], random.Random(number))
    return liars


async def _corrupt(node: DHTNode, lie: Lie, chance: random.Random) -> None:
    own = node.protocol.node_info

    async def find(request: Any, remote: Any) -> bytes:
        return lie(dht_pb2.FindRequest.FromString(bytes(request)), own, chance)

    async def store(request: Any, remote: Any) -> bytes:
        count = len(dht_pb2.StoreRequest.FromString(bytes(request)).keys)
        return dht_pb2.StoreResponse(store_ok=[True] * count, peer=own).SerializeToString()

    for name, handler in (("DHTProtocol.rpc_find", find), ("DHTProtocol.rpc_store", store)):
        await node.p2p.transport.unlisten(name)
        await node.p2p.transport.listen_unary(name, handler)
