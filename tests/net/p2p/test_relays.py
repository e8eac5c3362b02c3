"""Peers that nobody can connect to directly are reached through a relay, by their id alone."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from hivemind.errors import P2PDaemonError
from hivemind.p2p import P2P, RelayLimits, ensure_identity, read_peer_id
from hivemind.proto.test_pb2 import TestRequest as Request
from hivemind.proto.test_pb2 import TestResponse as Response
from tests.support.waiting import eventually

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
async def test_a_relay_with_limits_and_an_allowlist(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    identity = tmp_path / "member"
    ensure_identity(identity)
    member, hidden = read_peer_id(identity), {"announce_maddrs": [NOWHERE], "use_auto_relay": True}
    options = {"relay_limits": RelayLimits(circuit_bytes=2**20, circuit_seconds=600), "relay_allowlist": [member]}
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(await P2P.create(relay_service=True, **options))
        addresses = await relay.get_visible_maddrs()
        stranger = await stack.enter_async_context(await P2P.create(addresses, **hidden, auto_nat=False))
        with caplog.at_level("INFO"):
            inside = await P2P.create(addresses, **hidden, force_reachability="private", identity_path=identity)
        await stack.enter_async_context(inside)
        known = await inside.reachability()
        assert [(each.peer_id, each.bytes, each.seconds) for each in known.relays] == [(relay.peer_id, 2**20, 600)]
        # the line that users see
        assert f"it is reached through 1 relay ({relay.peer_id})" in caplog.text

        async def refused() -> bool:
            stats = await relay.stats()
            return stats["relay_refused"] > 0 and stats["relay_reservations"] == 1

        await eventually(refused, "the relay refuses the stranger, and no more")
        assert (await stranger.reachability()).relays == ()
        await inside.add_protobuf_handler("square", square, Request)
        ask = Request(number=12)
        with pytest.raises(P2PDaemonError):
            await stranger.call_protobuf_handler(inside.peer_id, "square", ask, Response, timeout=PATIENCE)
        await relay.set_relay_allowlist([member, str(stranger.peer_id)])

        async def connected() -> bool:
            # the library lets an address that has failed rest for a while, unless it is told to connect
            with suppress(P2PDaemonError):
                await stranger.connect(member, await inside.get_visible_maddrs(), timeout=PATIENCE)
                return True
            return False

        await eventually(connected, "the relay lets the stranger call")
        answer = await stranger.call_protobuf_handler(inside.peer_id, "square", ask, Response, timeout=PATIENCE)
        assert answer.number == 144
        stats = await relay.stats()
        assert stats["relay_circuits"] == 1
        assert stats["relay_bytes"] > 0
        with pytest.raises(P2PDaemonError, match="no relay"):
            await inside.set_relay_allowlist([])


@pytest.mark.asyncio
async def test_what_peers_observe() -> None:
    async with await P2P.create() as hub, await P2P.create(await hub.get_visible_maddrs()) as peer:

        async def observed() -> bool:
            return bool((await peer.reachability()).observed)

        await eventually(observed, "the hub has told where it sees the peer")
        known = await peer.reachability()
        (own,) = await peer.get_visible_maddrs()
        assert [str(each) for each in known.observed] == [str(own).partition("/p2p/")[0]]
        assert (known.nat_of_tcp, known.nat_of_udp, known.farthest_peer) == ("unknown", "unknown", "machine")


@pytest.mark.asyncio
async def test_a_fresh_peer_knows_nothing_of_its_reachability() -> None:
    async with await P2P.create(startup_timeout=PATIENCE) as peer:
        known = await peer.reachability()
        assert (known.verdict, known.forced, known.relays) == ("unknown", False, ())
        assert set(known.addresses.values()) == {"local"}
