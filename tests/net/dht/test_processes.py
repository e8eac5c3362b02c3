"""A DHT given to other processes: copies on the same daemon."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from hivemind.clock import get_dht_time
from hivemind.dht import DHT, DHTNode, RSAPrivateKey, RSASignatureValidator
from hivemind.errors import HivemindError, P2PDaemonError
from hivemind.p2p import P2P, P2PContext, ServicerBase
from hivemind.proto import test_pb2
from tests.support.authority import TokenAuthorizer
from tests.support.processes import is_alive
from tests.support.spawned import Connection, Spawned
from tests.support.waiting import PATIENCE, eventually_sync

LOCAL = {"auto_nat": False, "nat_port_map": False}


@pytest.fixture(autouse=True, scope="module")
def _resource_tracker() -> None:
    """A service of multiprocessing's own, which starts with the first process."""
    resource_tracker.ensure_running()


def serve(dht: DHT, commands: Connection) -> None:
    """Runs in the other process: calls what comes with the DHT, until None comes."""
    while (task := commands.recv()) is not None:
        function, arguments = task
        try:
            commands.send(function(dht, *arguments))
        except HivemindError as error:
            commands.send(f"{type(error).__name__}: {error}")
    dht.shutdown()


@contextmanager
def child_of(dht: DHT) -> Iterator[Spawned]:
    child = Spawned(serve, dht)
    try:
        yield child
    finally:
        code = child.end()
    assert code == 0


def who(dht: DHT) -> tuple[int, str, bool, bool, list[str]]:
    dht.wait_until_ready(PATIENCE)
    addresses = [str(each) for each in dht.get_visible_maddrs()]
    return os.getpid(), str(dht.peer_id), dht.client_mode, dht.node.client_mode, addresses


def store(dht: DHT, key: str, value: Any, expiration: float, subkey: Any = None) -> bool:
    return dht.store(key, value, expiration, subkey=subkey)


def get(dht: DHT, key: str) -> Any:
    return dht.get(key, latest=True)


async def _known(dht: DHT, node: DHTNode) -> list[str]:
    return [str(peer_id) for _, peer_id in node.protocol.routing_table]


def known(dht: DHT) -> list[str]:
    """The peers in its routing table."""
    return dht.run_coroutine(_known)


def look(dht: DHT) -> str:
    return str(dht.get_visible_maddrs(latest=True))


async def count(dht: DHT, node: DHTNode) -> int:
    found = await node.get("key", latest=True)
    return -1 if found is None else 2 * found.value


def run_coroutine(dht: DHT) -> int:
    return dht.run_coroutine(count)


class Square(ServicerBase):
    """A service of the other process on the daemon of this one."""

    async def rpc_square(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        return test_pb2.TestResponse(number=request.number**2)


async def add_service(dht: DHT, node: DHTNode) -> None:
    await Square().add_p2p_handlers(node.p2p)


def begin_service(dht: DHT) -> None:
    dht.run_coroutine(add_service)


def test_a_swarm_of_one_is_shared() -> None:
    """The records of a lone DHT are on its node, which its own daemon cannot call."""
    with DHT(start=True, **LOCAL) as dht, child_of(dht) as child:
        pid, peer_id, client_mode, node_is_client, addresses = child.run(who)
        assert pid != os.getpid()
        assert peer_id == str(dht.peer_id)
        assert (client_mode, node_is_client) == (False, True), "the peer answers, through this process"
        assert addresses == [str(each) for each in dht.get_visible_maddrs()]
        expiration = get_dht_time() + 120
        assert dht.store("key", 21, expiration)
        assert child.run(get, "key") == (21, expiration)
        assert child.run(run_coroutine) == 42
        assert child.run(store, "from there", ["text", 2.5], expiration)
        assert dht.get("from there", latest=True) == (["text", 2.5], expiration)
        assert child.run(store, "large", bytes(1 << 20), expiration)
        assert len(dht.get("large").value) == 1 << 20  # type: ignore[union-attr]


def test_a_copy_in_a_swarm() -> None:
    """Records and services of the copy are there for others; it goes, and the original goes on."""
    with ExitStack() as stack:
        first = stack.enter_context(DHT(start=True, **LOCAL))
        address = first.get_visible_maddrs()
        others = [DHT(initial_peers=address, start=True, await_ready=False, **LOCAL) for _ in range(2)]
        peers = [first, *map(stack.enter_context, others)]
        expiration = get_dht_time() + 120
        with child_of(peers[1]) as child:
            assert child.run(store, "key", 1, expiration)
            for dht in peers:
                assert dht.get("key", latest=True) == (1, expiration)
            assert first.store("key", 2, expiration + 1)
            assert child.run(get, "key") == (2, expiration + 1)
            child.run(begin_service)

            async def call(dht: DHT, node: DHTNode) -> int:
                stub = Square.get_stub(node.p2p, peers[1].peer_id)
                return int((await stub.rpc_square(test_pb2.TestRequest(number=7), timeout=PATIENCE)).number)

            assert first.run_coroutine(call) == 49
        assert peers[1].store("key", 3, expiration + 2)
        with pytest.raises(P2PDaemonError, match="protocol not supported"):
            first.run_coroutine(call)


def test_validators_and_authorizer_travel() -> None:
    ours, key = RSASignatureValidator(RSAPrivateKey()), RSAPrivateKey()
    expiration = get_dht_time() + 120
    with ExitStack() as stack:
        first = stack.enter_context(DHT(start=True, authorizer=TokenAuthorizer("first", key=key), **LOCAL))
        theirs = RSASignatureValidator(RSAPrivateKey())
        first.add_validators([theirs])
        dht = stack.enter_context(
            DHT(
                initial_peers=first.get_visible_maddrs(),
                start=True,
                record_validators=[ours],
                authorizer=TokenAuthorizer("second", key=key),
                **LOCAL,
            )
        )
        child = stack.enter_context(child_of(dht))
        assert str(first.peer_id) in child.run(known), "it is let in"
        assert child.run(store, "key", 1, expiration, ours.local_public_key), "signed with the key of the original"
        assert not child.run(store, "key", 1, expiration, theirs.local_public_key), "not its key"
        found = first.get("key", latest=True)
        assert found is not None
        assert {owner: entry.value for owner, entry in found.value.items()} == {ours.local_public_key: 1}


def test_a_copy_of_a_client() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(DHT(start=True, **LOCAL))
        client = DHT(initial_peers=first.get_visible_maddrs(), start=True, client_mode=True, **LOCAL)
        stack.enter_context(client)
        child = stack.enter_context(child_of(client))
        assert child.run(who)[2:4] == (True, True)
        expiration = get_dht_time() + 60
        assert child.run(store, "key", 1, expiration)
        assert first.get("key", latest=True) == (1, expiration)


def test_a_child_that_is_killed_and_a_parent_that_ends() -> None:
    with DHT(start=True, **LOCAL) as dht:
        killed = Spawned(serve, dht)
        assert killed.run(store, "key", 1, get_dht_time() + 60)
        killed.kill()
        assert killed.end() == -signal.SIGKILL
        assert dht.get("key", latest=True) is not None
        orphan = Spawned(serve, dht)
        assert orphan.run(get, "key") is not None
        daemon = dht.p2p._child
        assert daemon is not None
        pid = daemon.pid
        folder = daemon.control_path.parent
    assert pid is not None
    assert not is_alive(pid), "copies do not keep the daemon"
    assert not folder.exists()
    assert "the p2p daemon has died" in orphan.run(look)
    assert orphan.run(store, "key", 2, get_dht_time() + 60) is False
    assert orphan.end() == 0


def test_nobody_at_the_door() -> None:
    with DHT(start=True, **LOCAL) as dht:
        data = pickle.dumps(dht)
        assert dht._door is not None
        door = dht._door.path
        assert Path(door).exists()
    with pytest.raises(P2PDaemonError, match="no p2p daemon answers"), pickle.loads(data) as late:
        late.wait_until_ready(PATIENCE)


def test_a_copy_within_the_process() -> None:
    """`copy.copy` pickles too: one more node on the same daemon, with an end of its own."""
    with DHT(start=True, **LOCAL) as dht:
        expiration = get_dht_time() + 60
        with copy.copy(dht) as twin, copy.copy(twin) as triplet:
            assert triplet.store("key", 1, expiration)
            assert twin.get("key") == (1, expiration)
            assert triplet.peer_id == dht.peer_id
        assert dht.get("key") == (1, expiration)


def test_a_copy_finds_home_through_others() -> None:
    """Its own peer id in the answers of others is the original."""
    with ExitStack() as stack:
        other = stack.enter_context(DHT(start=True, **LOCAL))
        dht = stack.enter_context(DHT(other.get_visible_maddrs(), start=True, **LOCAL))
        twin = stack.enter_context(copy.copy(dht))
        home = dht.node.node_id

        async def forget_and_search(twin: DHT, node: DHTNode) -> bool:
            del node.protocol.routing_table[home]
            return home in (await node.find_nearest_nodes([home]))[home]

        assert twin.run_coroutine(forget_and_search)


def test_strange_guests_at_the_door() -> None:
    """What does not speak the language of the door costs itself the call."""

    async def knock(path: str, data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(data)
            writer.write_eof()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()

    with DHT(start=True, **LOCAL) as dht:
        pickle.dumps(dht)
        assert dht._door is not None
        path = str(dht._door.path)
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0\xff", b"\xff\xff\xff\xff\x02", b"\0\0\0\x09\x01x"):
            assert asyncio.run(knock(path, data)) == b""
        assert b"DecodeError" in asyncio.run(knock(path, b"\0\0\0\x04\x02\xff\xff\xff\xff"))
        eventually_sync(lambda: not dht._door._scope.tasks, "all calls have ended")  # type: ignore[union-attr]
        with copy.copy(dht) as twin:
            twin.wait_until_ready(PATIENCE)


def test_a_replica_of_a_copy() -> None:
    """Code of hivemind 1.1 asks a DHT that it was given for a peer in its own loop."""
    with DHT(start=True, **LOCAL) as dht, copy.copy(dht) as twin:

        async def main() -> None:
            p2p: P2P = await twin.replicate_p2p()
            assert p2p.peer_id == dht.peer_id
            await p2p.shutdown()

        asyncio.run(main())
