"""Swarms of DHT nodes on the in-memory network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from multiaddr import Multiaddr

from hivemind.dht import DHTID, DHTNode
from hivemind.p2p import MemoryNetwork

__all__ = ["DHTSwarm", "dht_swarm"]


class DHTSwarm:
    """Nodes on one in-memory network; `node` adds one, `kill` ends one as ``kill -9`` does."""

    def __init__(self, seed: int = 0) -> None:
        self.net = MemoryNetwork(seed)
        self.nodes: list[DHTNode] = []
        self._made = 0

    async def node(self, joins: DHTNode | Iterable[DHTNode] | None = None, **options: Any) -> DHTNode:
        """A node that joins through others, by default through the first; its id depends on its number only."""
        if joins is None:
            joins = self.nodes[:1]
        elif isinstance(joins, DHTNode):
            joins = [joins]
        addresses: list[Multiaddr] = []
        for other in joins:
            addresses += await other.get_visible_maddrs()
        p2p = await self.net.create_p2p()
        node_id = DHTID.generate(source=f"node {self._made}")
        self._made += 1
        node = await DHTNode.create(p2p, node_id, addresses or None, **options)
        self.nodes.append(node)
        return node

    async def grow(self, count: int, **options: Any) -> None:
        """Add nodes until there are ``count``."""
        while len(self.nodes) < count:
            await self.node(**options)

    async def kill(self, node: DHTNode) -> None:
        """End a node without a word to others."""
        self.nodes.remove(node)
        self.net.kill(node.p2p)
        await _end(node)

    async def close(self) -> None:
        """End all."""
        await asyncio.gather(*(_end(node) for node in self.nodes))


async def _end(node: DHTNode) -> None:
    await node.shutdown()
    await node.p2p.shutdown()


@asynccontextmanager
async def dht_swarm(count: int = 0, *, seed: int = 0, **options: Any) -> AsyncIterator[DHTSwarm]:
    """A swarm of ``count`` nodes with ``options``."""
    swarm = DHTSwarm(seed)
    try:
        await swarm.grow(count, **options)
        yield swarm
    finally:
        await swarm.close()
