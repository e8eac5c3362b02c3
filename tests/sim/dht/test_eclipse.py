"""Liars that sit nearest to a key and answer as honest nodes do, except that they keep nothing and name each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from hivemind.clock import Deadline, get_dht_time
from hivemind.dht import DHTID
from hivemind.p2p import P2P
from hivemind.proto import dht_pb2
from hivemind.virtual_clock import run_virtual
from tests.support.dht import DHTSwarm, dht_swarm

LIARS = 20
NEVER = Deadline.never()


class Ring:
    """Peers around a key that know all the others of their kind.

    :param delay: seconds before they answer
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.members: dict[DHTID, P2P] = {}
        self.taken = 0

    async def join(self, swarm: DHTSwarm, node_id: DHTID) -> P2P:
        """Add one, and let all nodes meet it."""
        p2p = self.members[node_id] = await swarm.net.create_p2p()
        info = dht_pb2.NodeInfo(node_id=node_id.to_bytes())

        async def find(raw: bytes, remote: object) -> bytes:
            await asyncio.sleep(self.delay)
            request = dht_pb2.FindRequest.FromString(bytes(raw))
            names = [each.to_bytes() for each in self.members if each != node_id]
            peers = [each.peer_id.to_bytes() for member, each in self.members.items() if member != node_id]
            result = dht_pb2.FindResult(nearest_node_ids=names, nearest_peer_ids=peers)
            return dht_pb2.FindResponse(results=[result] * len(request.keys), peer=info).SerializeToString()

        async def store(raw: bytes, remote: object) -> bytes:
            await asyncio.sleep(self.delay)
            self.taken += 1
            count = len(dht_pb2.StoreRequest.FromString(bytes(raw)).keys)
            return dht_pb2.StoreResponse(store_ok=[True] * count, peer=info).SerializeToString()

        async def ping(raw: bytes, remote: object) -> bytes:
            return dht_pb2.PingResponse(peer=info, available=True).SerializeToString()

        for name, handler in (("find", find), ("store", store), ("ping", ping)):
            await p2p.transport.listen_unary(f"DHTProtocol.rpc_{name}", handler)
        greeting = dht_pb2.PingRequest(peer=info).SerializeToString()
        for node in swarm.nodes:
            await p2p.transport.call(node.peer_id, "DHTProtocol.rpc_ping", greeting, NEVER)
        return p2p


@contextlib.asynccontextmanager
async def surrounded(swarm: DHTSwarm, key: str, spread: int, delay: float = 0.0) -> AsyncIterator[Ring]:
    """`LIARS` of them at distances of up to ``2 ** spread`` from a key."""
    ring, place = Ring(delay), DHTID.generate(source=key)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(1, LIARS + 1):
            p2p = await ring.join(swarm, DHTID(place ^ (number << (spread - 5))))
            stack.push_async_callback(p2p.shutdown)
        yield ring


# of 64 nodes the nearest to a key are some 2 ** 154 away
@pytest.mark.parametrize(("spread", "honest"), [(5, 24), (120, 64), (150, 24), (154, 64)])
def test_a_surrounded_key_is_stored_and_found(spread: int, honest: int) -> None:
    async def main() -> None:
        async with dht_swarm(honest) as swarm:
            swarm.net.delay(0.01)
            expiration = get_dht_time() + 3600
            async with surrounded(swarm, "key", spread) as ring:
                assert await swarm.nodes[3].store("key", "truth", expiration, exclude_self=True)
                assert ring.taken > 0, "they were asked, too"
                key = DHTID.generate(source="key")
                holders = [node for node in swarm.nodes if key in node.protocol.storage]
                assert len(holders) >= 3
                for node in swarm.nodes[::5]:
                    node.protocol.cache.clear()
                    assert await node.get("key") == ("truth", expiration)
                    node.protocol.cache.clear()
                    assert await node.get("key", latest=True) == ("truth", expiration)
                assert await swarm.nodes[5].store_many(["a", "key", "b"], [1, 2, 3], expiration + 1)
                assert await swarm.nodes[7].get("key", latest=True) == (2, expiration + 1)
                stranger = await swarm.node(joins=swarm.nodes[9], client_mode=True)
                assert await stranger.get("key", latest=True) == (2, expiration + 1)

    run_virtual(main)


def test_a_key_that_was_stored_before_they_came_is_found() -> None:
    async def main() -> None:
        async with dht_swarm(40) as swarm:
            swarm.net.delay(0.01)
            expiration = get_dht_time() + 3600
            assert await swarm.nodes[3].store("key", "truth", expiration)
            async with surrounded(swarm, "key", 120):
                for node in swarm.nodes:
                    node.protocol.cache.clear()
                    assert await node.get("key", latest=True) == ("truth", expiration)

    run_virtual(main)


def test_slow_liars_cost_seconds_and_not_a_minute() -> None:
    async def main() -> None:
        async with dht_swarm(40) as swarm:
            swarm.net.delay(0.01)
            expiration = get_dht_time() + 3600
            async with surrounded(swarm, "key", 120, delay=2.9):
                loop = asyncio.get_running_loop()
                began = loop.time()
                assert await swarm.nodes[3].store("key", "truth", expiration)
                assert loop.time() - began < 15
                began = loop.time()
                assert await swarm.nodes[5].get("key") == ("truth", expiration)
                assert loop.time() - began < 10

    run_virtual(main)


def test_honest_swarms_are_not_taken_for_crowds() -> None:
    async def main() -> None:
        async with dht_swarm(60) as swarm:
            expiration = get_dht_time() + 3600
            names = [f"key {number}" for number in range(300)]
            assert all((await swarm.nodes[0].store_many(names, names, expiration)).values())
            for number in range(0, 300, 3):
                node = swarm.nodes[number % 60]
                assert await node.get(f"key {number}", latest=True) is not None
                assert await node.get(f"no key {number}") is None
            searched = sum(node.stats().lookups for node in swarm.nodes)
            assert sum(node.stats().crowded for node in swarm.nodes) <= searched / 100

    run_virtual(main)
