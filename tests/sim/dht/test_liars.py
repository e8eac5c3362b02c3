"""Nodes among liars: what a peer does wrong costs its own calls only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest

from hivemind.clock import Deadline, get_dht_time
from hivemind.dht import DHTID
from hivemind.dht.records import MAX_ENTRIES, MAX_KEYS_PER_FIND, MAX_RECORDS_PER_STORE
from hivemind.errors import P2PHandlerError
from hivemind.p2p import P2P
from hivemind.proto import dht_pb2
from hivemind.virtual_clock import run_virtual
from tests.support.dht import DHTSwarm, dht_swarm

Lie = Callable[[dht_pb2.FindRequest, bytes], bytes]


def found(request: dht_pb2.FindRequest, own_id: bytes, **result: Any) -> bytes:
    results = [dht_pb2.FindResult(**result) for _ in request.keys]
    return dht_pb2.FindResponse(results=results, peer=dht_pb2.NodeInfo(node_id=own_id)).SerializeToString()


def dictionary_of(entries: int) -> bytes:
    content = [[number, b"", 4e9] for number in range(entries)]
    return msgpack.packb(msgpack.ExtType(0x50, msgpack.packb([FOREVER, 4e9, content])))


FOREVER = float("inf")
HUGE = dictionary_of(200_000)
NEVER = Deadline.never()
LIES: dict[str, Lie] = {
    "bytes that are no message": lambda request, own: b"\xff" * 100,
    "an answer without results": lambda request, own: dht_pb2.FindResponse(
        peer=dht_pb2.NodeInfo(node_id=own)
    ).SerializeToString(),
    "another node's id": lambda request, own: found(request, bytes(19) + b"\x05"),
    "an id of 1000 bytes": lambda request, own: found(request, bytes(1000)),
    "a value that cannot be decoded": lambda request, own: found(
        request, own, type=dht_pb2.FOUND_REGULAR, value=b"\xc1garbage", expiration_time=FOREVER
    ),
    "a dictionary that is none": lambda request, own: found(
        request, own, type=dht_pb2.FOUND_DICTIONARY, value=b"\xc7\xff\x50", expiration_time=FOREVER
    ),
    "a dictionary that is too large": lambda request, own: found(
        request, own, type=dht_pb2.FOUND_DICTIONARY, value=HUGE, expiration_time=4e9
    ),
    "an expiration that is no number": lambda request, own: found(
        request, own, type=dht_pb2.FOUND_REGULAR, value=b"\x01", expiration_time=float("nan")
    ),
    "nodes that do not exist": lambda request, own: found(
        request,
        own,
        nearest_node_ids=[(int.from_bytes(request.keys[0], "big") ^ n).to_bytes(20, "big") for n in range(1, 500)],
        nearest_peer_ids=[b"nobody " + n.to_bytes(2, "big") for n in range(1, 500)],
    ),
    "nonsense as nodes": lambda request, own: found(
        request, own, nearest_node_ids=[b"x" * 50, b"", b"\x01"], nearest_peer_ids=[b"", b"y" * 1000, b""]
    ),
}


#: those that count as no answer at all, so that the peer is dropped
NO_ANSWERS = set(list(LIES)[:4])


@asynccontextmanager
async def liar(swarm: DHTSwarm, node_id: DHTID, lie: Lie) -> AsyncIterator[P2P]:
    """A peer that joins as any other and answers finds with ``lie``, stores with a promise it does not keep."""
    own = node_id.to_bytes()

    async def find(request: Any, remote: Any) -> bytes:
        return lie(dht_pb2.FindRequest.FromString(bytes(request)), own)

    async def store(request: Any, remote: Any) -> bytes:
        count = len(dht_pb2.StoreRequest.FromString(bytes(request)).keys)
        return dht_pb2.StoreResponse(store_ok=[True] * count, peer=dht_pb2.NodeInfo(node_id=own)).SerializeToString()

    async def ping(request: Any, remote: Any) -> bytes:
        return dht_pb2.PingResponse(peer=dht_pb2.NodeInfo(node_id=own), available=True).SerializeToString()

    async with await swarm.net.create_p2p() as p2p:
        for name, handler in (("find", find), ("store", store), ("ping", ping)):
            await p2p.transport.listen_unary(f"DHTProtocol.rpc_{name}", handler)
        for node in swarm.nodes:
            await p2p.transport.call(
                node.peer_id,
                "DHTProtocol.rpc_ping",
                dht_pb2.PingRequest(peer={"node_id": own}).SerializeToString(),
                NEVER,
            )
        yield p2p


@pytest.mark.parametrize("what", LIES)
def test_liars_hide_nothing(what: str) -> None:
    """Four liars sit nearest to the key; honest nodes store and find as if they were not there."""

    async def main() -> None:
        async with dht_swarm(12) as swarm:
            key = DHTID.generate(source="key")
            expiration = get_dht_time() + 3600
            async with (
                liar(swarm, DHTID(key ^ 1), LIES[what]),
                liar(swarm, DHTID(key ^ 2), LIES[what]),
                liar(swarm, DHTID(key ^ 3), LIES[what]),
                liar(swarm, DHTID(key ^ 4), LIES[what]),
            ):
                assert all(DHTID(key ^ 1) in node.protocol.routing_table for node in swarm.nodes)
                if what in NO_ANSWERS:
                    asker, unlikely = swarm.nodes[11].protocol, DHTID(key ^ 1)
                    assert await asker.call_find(asker.routing_table.uid_to_peer_id[unlikely], [key], unlikely) is None
                assert await swarm.nodes[0].store("key", "truth", expiration)
                assert await swarm.nodes[0].store("many", "truth", expiration, subkey="a")
                for node in swarm.nodes:
                    assert await node.get("key") == ("truth", expiration)
                    assert await node.get("key", latest=True) == ("truth", expiration)
                    many = await node.get("many", latest=True)
                    assert many is not None
                    assert many.value == {"a": ("truth", expiration)}

    run_virtual(main)


def test_values_of_others_cannot_hide_behind_a_store() -> None:
    """What cannot be decoded is stored, as by any node without its validator, and hides nothing that can."""

    async def main() -> None:
        async with dht_swarm(6) as swarm:
            expiration = get_dht_time() + 60
            assert await swarm.nodes[0].store("key", "truth", expiration, subkey="a")
            for node in swarm.nodes[1:]:
                ids = [DHTID.generate(source="key")]
                assert await swarm.nodes[0].protocol.call_store(node.peer_id, ids, [b"\xc1"], FOREVER, ["b"]) == [True]
            found = await swarm.nodes[0].get("key", latest=True)
            assert found is not None
            assert found.value == {"a": ("truth", expiration)}

    run_virtual(main)


def test_garbage_requests_cost_only_the_call() -> None:
    async def main() -> None:
        async with dht_swarm(2) as swarm:
            node = swarm.nodes[0]
            key = DHTID(5).to_bytes()
            requests: list[tuple[str, bytes]] = [(name, b"\xff\x00garbage") for name in ("ping", "store", "find")]
            requests += [
                ("ping", dht_pb2.PingRequest(peer={"node_id": bytes(300)}).SerializeToString()),
                ("store", dht_pb2.StoreRequest(keys=[key]).SerializeToString()),
                ("find", dht_pb2.FindRequest(keys=[bytes(21)]).SerializeToString()),
                ("find", dht_pb2.FindRequest(keys=[key] * (MAX_KEYS_PER_FIND + 1)).SerializeToString()),
            ]
            too_many = MAX_RECORDS_PER_STORE + 1
            many = dht_pb2.StoreRequest(
                keys=[key] * too_many,
                subkeys=[b"\xc0"] * too_many,
                values=[b""] * too_many,
                expiration_time=[1.0] * too_many,
                in_cache=[False] * too_many,
            )
            requests.append(("store", many.SerializeToString()))
            async with await swarm.net.create_p2p() as stranger:
                for name, raw in requests:
                    with pytest.raises(P2PHandlerError):
                        await stranger.transport.call(node.peer_id, f"DHTProtocol.rpc_{name}", raw, NEVER)
            assert not node.protocol.storage
            assert await swarm.nodes[1].store("key", 1, get_dht_time() + 60)

    run_virtual(main)


def test_dictionaries_are_bounded_also_together() -> None:
    async def main() -> None:
        async with dht_swarm(2) as swarm:
            half = dictionary_of(MAX_ENTRIES // 2 + 1)
            values = [half, HUGE, half, dictionary_of(3)]
            request = dht_pb2.StoreRequest(
                keys=[DHTID(number).to_bytes() for number in range(4)],
                subkeys=[b""] * 4,
                values=values,
                expiration_time=[4e9] * 4,
                in_cache=[False] * 4,
            )
            async with await swarm.net.create_p2p() as stranger:
                raw = await stranger.transport.call(
                    swarm.nodes[0].peer_id, "DHTProtocol.rpc_store", request.SerializeToString(), NEVER
                )
            answer = dht_pb2.StoreResponse.FromString(bytes(raw))
            assert list(answer.store_ok) == [True, False, False, False]

    run_virtual(main)


def test_a_flood_of_made_up_nodes_is_bounded() -> None:
    async def main() -> None:
        async with dht_swarm(3) as swarm:
            node = swarm.nodes[0]
            assert await node.store("key", 1, get_dht_time() + 600)
            async with await swarm.net.create_p2p() as stranger:
                for _ in range(1000):
                    request = dht_pb2.FindRequest(keys=[b"k"], peer={"node_id": DHTID.generate().to_bytes()})
                    await stranger.transport.call(
                        node.peer_id, "DHTProtocol.rpc_find", request.SerializeToString(), NEVER
                    )
                assert len(node.protocol.routing_table) <= 3, "one peer has one id"
            assert await node.get("key", latest=True) is not None

    run_virtual(main)
