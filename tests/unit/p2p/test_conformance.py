"""The in-memory network keeps the transport's contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from hivemind.p2p import MemoryNetwork, MemoryTransport, Transport
from tests.support.conformance import TransportConformance


class MemorySwarm:
    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.transports: list[MemoryTransport] = []

    async def transport(self) -> Transport:
        return await self._started(self.network.transport())

    async def replica(self, of: Transport) -> Transport:
        return await self._started(self.network.transport(of.peer_id))

    async def _started(self, transport: MemoryTransport) -> MemoryTransport:
        await transport.start()
        self.transports.append(transport)
        return transport


@pytest_asyncio.fixture
async def swarm() -> AsyncIterator[MemorySwarm]:
    swarm = MemorySwarm()
    yield swarm
    for transport in reversed(swarm.transports):
        await transport.close()


class TestMemory(TransportConformance):
    """Runs it."""
