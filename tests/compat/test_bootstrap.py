"""A peer joins through a bootstrap peer of either kind, and finds others by their id alone (libp2p's Kademlia)."""

from __future__ import annotations

import pytest

from tests.compat.pairs import KINDS, Kind, other, start_caller
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

pytestmark = [pytest.mark.asyncio, pytest.mark.parametrize("caller", KINDS)]


@pytest.mark.parametrize("bootstrap", KINDS)
@repeat_on_legacy_fault
async def test_a_peer_is_found_by_its_id(legacy: LegacyPeers, caller: Kind, bootstrap: Kind) -> None:
    """Two peers know only the bootstrap peer; one calls the other, and is called back, by id."""
    async with (
        start_caller(bootstrap, legacy, []) as middle,
        start_caller(other(caller), legacy, middle.maddrs) as callee,
        start_caller(caller, legacy, middle.maddrs) as calling,
    ):
        await callee.serve()
        await calling.serve()
        assert await calling.call(callee.peer_id, "square", 6) == 36
        assert await callee.call(calling.peer_id, "square", 7) == 49


@repeat_on_legacy_fault
async def test_a_peer_that_does_not_listen_calls(legacy: LegacyPeers, caller: Kind) -> None:
    """``no_listen`` with a client's DHT mode: the peer calls others, over its own connections."""
    async with start_caller(other(caller), legacy, []) as callee:
        await callee.serve()
        async with start_caller(caller, legacy, callee.maddrs, no_listen=True, dht_mode="client") as calling:
            assert await calling.call(callee.peer_id, "square", 8) == 64


@repeat_on_legacy_fault
async def test_a_dead_bootstrap_peer_among_live_ones(legacy: LegacyPeers, caller: Kind) -> None:
    """One of three bootstrap peers is gone; the peer joins through the others, whichever kind they are."""
    async with start_caller(other(caller), legacy, []) as gone:
        dead = gone.maddrs
    async with (
        start_caller("legacy", legacy, []) as first,
        start_caller("ours", legacy, first.maddrs) as second,
        start_caller(caller, legacy, dead + first.maddrs + second.maddrs) as calling,
    ):
        for callee in (first, second):
            await callee.serve()
            assert await calling.call(callee.peer_id, "square", 9) == 81
