"""Peers that nobody can connect to directly are reached through a relay, by their id alone."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from hivemind.p2p import P2P
from hivemind.proto.test_pb2 import TestRequest as Request
from hivemind.proto.test_pb2 import TestResponse as Response

pytestmark = pytest.mark.timeout(180)
PATIENCE = 60.0

#: Nobody listens there: peers that announce it are dialled in vain, as behind a NAT.
NOWHERE = "/ip4/127.0.0.1/tcp/1"


async def square(request: Request, _: object) -> Response:
    return Response(number=request.number**2)


@pytest.mark.asyncio
async def test_hidden_peers_call_each_other() -> None:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(await P2P.create(relay_service=True, startup_timeout=PATIENCE))
        addresses = await relay.get_visible_maddrs()
        hidden = [
            await stack.enter_async_context(
                await P2P.create(
                    addresses,
                    announce_maddrs=[NOWHERE],
                    use_auto_relay=True,
                    trusted_relays=addresses,
                    force_reachability="private",
                    startup_timeout=PATIENCE,
                )
            )
            for _ in range(2)
        ]
        for peer in hidden:
            await peer.add_protobuf_handler("square", square, Request)
        for caller, callee in (hidden, reversed(hidden)):
            answer = await caller.call_protobuf_handler(
                callee.peer_id, "square", Request(number=12), Response, timeout=PATIENCE
            )
            assert answer.number == 144
        for peer in hidden:
            known = await peer.reachability()
            assert (known.verdict, known.forced) == ("private", True)
            assert [each.peer_id for each in known.relays] == [relay.peer_id]
            assert known.relays[0].bytes >= 2**30, "too little for training"
            assert "relayed" in known.addresses.values()
            assert (known.relayed_peers, known.direct_peers) == (1, 1)


@pytest.mark.asyncio
async def test_a_fresh_peer_knows_nothing_of_its_reachability() -> None:
    async with await P2P.create(startup_timeout=PATIENCE) as peer:
        known = await peer.reachability()
        assert (known.verdict, known.forced, known.relays) == ("unknown", False, ())
        assert set(known.addresses.values()) == {"local"}
