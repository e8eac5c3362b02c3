"""libp2p through the daemon keeps the transport's contract, on asyncio's own loop and on uvloop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from hivemind.p2p import P2P, Transport
from tests.support.conformance import TransportConformance


class DaemonSwarm:
    def __init__(self) -> None:
        self.peers: list[P2P] = []

    async def transport(self) -> Transport:
        first = await self.peers[0].get_visible_maddrs() if self.peers else None
        self.peers.append(await P2P.create(initial_peers=first, startup_timeout=60))
        return self.peers[-1].transport

    async def replica(self, of: Transport) -> Transport:
        owner = next(peer for peer in self.peers if peer.transport is of)
        self.peers.append(await P2P.replicate(owner.daemon_listen_maddr))
        return self.peers[-1].transport


@pytest_asyncio.fixture
async def swarm() -> AsyncIterator[DaemonSwarm]:
    swarm = DaemonSwarm()
    yield swarm
    for peer in reversed(swarm.peers):
        await peer.shutdown()


class TestDaemon(TransportConformance):
    """Runs it."""
