"""A swarm of DHTs one of which loses its daemon."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hivemind.clock import get_dht_time
from hivemind.dht import DHT, DHTNode
from hivemind.errors import HivemindError
from hivemind.p2p import P2PContext, ServicerBase
from hivemind.proto import test_pb2
from tests.support.waiting import PATIENCE, eventually_sync

LOCAL = {"auto_nat": False, "nat_port_map": False}


class Square(ServicerBase):
    """A service beside the DHT's own."""

    async def rpc_square(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        return test_pb2.TestResponse(number=request.number**2)


async def add_service(dht: DHT, node: DHTNode) -> None:
    await Square().add_p2p_handlers(node.p2p)


def kill_daemon(dht: DHT) -> None:
    child = dht.p2p._child
    assert child is not None
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)


def store(dht: DHT, key: str) -> bool:
    try:
        return dht.store(key, 1, get_dht_time() + 300)
    except HivemindError:
        return False  # its call was under way when the daemon died


def found(dht: DHT, key: str) -> bool:
    try:
        return dht.get(key, latest=True) is not None
    except HivemindError:
        return False


def calls(dht: DHT, callee: DHT) -> bool:
    async def call(dht: DHT, node: DHTNode) -> int:
        stub = Square.get_stub(node.p2p, callee.peer_id)
        return int((await stub.rpc_square(test_pb2.TestRequest(number=7), timeout=5)).number)

    try:
        return dht.run_coroutine(call) == 49
    except HivemindError:
        return False


@pytest.fixture
def swarm() -> Iterator[list[DHT]]:
    with ExitStack() as stack:
        first = stack.enter_context(DHT(start=True, **LOCAL))
        address = first.get_visible_maddrs()
        others = [DHT(initial_peers=address, start=True, await_ready=False, **LOCAL) for _ in range(2)]
        yield [first, *map(stack.enter_context, others)]


@pytest.mark.parametrize("victim", [0, 1], ids=["that others have joined through", "that has joined"])
def test_a_daemon_that_is_killed_comes_back(swarm: list[DHT], victim: int) -> None:
    dht = swarm[victim]
    others = [each for each in swarm if each is not dht]
    dht.run_coroutine(add_service)
    assert store(dht, "before")
    assert all(calls(other, dht) for other in others)
    peer_id, addresses = dht.peer_id, dht.get_visible_maddrs()
    for number in range(2):
        kill_daemon(dht)
        eventually_sync(lambda n=number: store(dht, f"after {n}"), "it stores")
        assert found(dht, f"after {number}")
        eventually_sync(lambda n=number: all(found(each, f"after {n}") for each in swarm), "all find it")
        assert all(found(each, "before") for each in swarm)
        eventually_sync(lambda: all(calls(other, dht) for other in others), "others reach its handlers")
    assert dht.peer_id == peer_id
    assert dht.get_visible_maddrs(latest=True) == addresses


def test_a_copy_survives_the_restart(swarm: list[DHT]) -> None:
    """Its way to the daemon and its way to the node of the original are in one folder."""
    with pickle.loads(pickle.dumps(swarm[1])) as twin:
        twin.wait_until_ready(PATIENCE)
        twin.run_coroutine(add_service)
        kill_daemon(swarm[1])
        eventually_sync(lambda: store(twin, "by the copy"), "it stores")
        eventually_sync(lambda: all(found(each, "by the copy") for each in swarm), "all find it")
        eventually_sync(lambda: calls(swarm[0], swarm[1]), "the copy's handlers are there")
