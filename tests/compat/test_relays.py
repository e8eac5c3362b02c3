"""Peers that cannot be connected to are reached through relays of either kind, by either kind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from multiaddr import Multiaddr

from hivemind.errors import P2PDaemonError
from hivemind.p2p import PeerID
from tests.compat.pairs import KINDS, Kind, LegacyCaller, OurCaller, eventually, other, start_caller
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

pytestmark = pytest.mark.asyncio

KIB = 1 << 10
#: Nobody listens there: peers that announce it are dialled in vain, as behind a NAT.
NOWHERE = "/ip4/127.0.0.1/tcp/1"
#: 1.1.12 looks for 3 minutes whether it finds so many relays before it is content with fewer.
LEGACY_CANDIDATES = 4

Peer = OurCaller | LegacyCaller


@asynccontextmanager
async def start_relays(kind: Kind, legacy: LegacyPeers, number: int) -> AsyncIterator[list[str]]:
    """So many relays in one swarm; their addresses."""
    # 1.1.12 grants 4 GiB at times where it is told that it is public, always 128 KiB where it knows nothing
    options: dict[str, Any] = {"relay_service": True, "force_reachability": "public"} if kind == "ours" else {}
    addresses: list[str] = []
    async with AsyncExitStack() as stack:
        for _ in range(number):
            relay = await stack.enter_async_context(start_caller(kind, legacy, addresses, **options))
            addresses = [*addresses, *relay.maddrs]
        yield addresses


@asynccontextmanager
async def start_hidden(kind: Kind, legacy: LegacyPeers, relays: Sequence[str]) -> AsyncIterator[Peer]:
    """A peer that serves ``Arithmetic`` and is reached through relays only."""
    hidden = {"use_auto_relay": True, "trusted_relays": relays, "force_reachability": "private"}
    async with start_caller(kind, legacy, list(relays), announce_maddrs=[NOWHERE], **hidden) as peer:
        await peer.serve()
        yield peer


async def meet(one: Peer, another: Peer, relays: list[str]) -> None:
    """The first call. Ours are found by their id. A peer of 1.1.12 tells nobody which relay takes calls for it where
    relays are on loopback, so that all are tried; itself it cannot be told of an address by way of a relay."""
    ways = [Multiaddr(f"{relay}/p2p-circuit") for relay in relays]

    async def answers() -> bool:
        if isinstance(one, OurCaller) and another.kind == "legacy":
            with suppress(P2PDaemonError):
                await one.p2p.connect(PeerID.from_base58(another.peer_id), ways)
        return bool(await one.call(another.peer_id, "square", 5) == 25)

    assert await eventually(answers), f"{one.kind} reaches {another.kind}"
    assert await one.is_relayed(another.peer_id), "there was another way"


@pytest.mark.parametrize("caller", KINDS)
@repeat_on_legacy_fault
async def test_both_are_behind_our_relays(legacy: LegacyPeers, caller: Kind) -> None:
    """A peer of either kind calls one of the other kind and is called back; 1 MiB passes each way."""
    async with (
        start_relays("ours", legacy, LEGACY_CANDIDATES) as relays,
        start_hidden(other(caller), legacy, relays) as callee,
        start_hidden(caller, legacy, relays) as calling,
    ):
        await meet(calling, callee, relays)
        blob = os.urandom(KIB * KIB)
        for one, another in ((calling, callee), (callee, calling)):
            assert await one.call(another.peer_id, "square", 7) == 49
            assert await one.call(another.peer_id, "mirror", blob) == blob[::-1]
            assert await one.call(another.peer_id, "sum", [1, 2, 3]) == 6
        assert await callee.is_relayed(calling.peer_id)


@pytest.mark.parametrize("caller", KINDS)
@repeat_on_legacy_fault
async def test_our_peer_is_behind_a_relay_of_1_1_12(legacy: LegacyPeers, caller: Kind) -> None:
    """A peer of either kind calls it, by its id alone, and is called back. The relay ends a connection after
    128 KiB: the call that goes beyond fails, and the next one makes another connection."""
    async with (
        start_relays("legacy", legacy, 1) as relays,
        start_hidden("ours", legacy, relays) as callee,
        start_caller(caller, legacy, relays) as calling,
    ):
        await calling.serve()
        await meet(calling, callee, relays)
        assert isinstance(callee, OurCaller)
        assert await callee.call(calling.peer_id, "square", 7) == 49
        blob = os.urandom(32 * KIB)
        assert await calling.call(callee.peer_id, "mirror", blob) == blob[::-1]
        assert await callee.is_relayed(calling.peer_id)

        limits = (await callee.p2p.reachability()).relays
        assert [each.bytes for each in limits] == [128 * KIB]
        assert "raised" in await calling.call(callee.peer_id, "mirror", os.urandom(256 * KIB))
        await meet(calling, callee, relays)
