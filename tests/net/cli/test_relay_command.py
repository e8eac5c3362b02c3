"""``hivemind-relay`` as a process: a peer behind it is reached."""

from __future__ import annotations

import signal

import pytest
from multiaddr import Multiaddr

from hivemind.networking import is_relayed
from hivemind.p2p import P2P, P2PContext, ServicerBase
from hivemind.proto import test_pb2
from tests.support.commands import STARTED, command
from tests.support.waiting import PATIENCE, eventually

HOST = ["--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--refresh_period", "0.5"]


class Square(ServicerBase):
    async def rpc_square(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        return test_pb2.TestResponse(number=request.number**2)


@pytest.mark.asyncio
async def test_a_peer_behind_the_relay_is_reached() -> None:
    with command("relay", *HOST) as relay:
        started = STARTED.search(relay.line())
        assert started
        option, *addresses = started.group(1).split(" ")
        assert option == "--initial_peers"
        relay.line()
        assert "1 DHT nodes (including this one)" in relay.line()
        assert "Local storage contains 0 keys" in relay.line()
        assert "0 peers are connected" in relay.line()
        hidden = {"use_auto_relay": True, "force_reachability": "private", "nat_port_map": False}
        async with await P2P.create(initial_peers=addresses, **hidden) as behind:
            ways: list[Multiaddr] = []

            async def is_reserved() -> bool:
                ways[:] = [each for each in await behind.get_visible_maddrs(latest=True) if is_relayed(each)]
                return bool(ways)

            await eventually(is_reserved, "the relay takes calls for it")
            await Square().add_p2p_handlers(behind)
            async with await P2P.create(initial_peers=addresses, nat_port_map=False) as caller:
                await caller.connect(behind.peer_id, ways, timeout=PATIENCE)
                stub = Square.get_stub(caller, behind.peer_id)
                assert (await stub.rpc_square(test_pb2.TestRequest(number=9), timeout=PATIENCE)).number == 81
                relay.until("2 peers are connected")
        assert relay.end(signal.SIGTERM) == 0
