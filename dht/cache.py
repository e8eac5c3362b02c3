"""Which copies of records are kept, given to others, and renewed."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from hivemind.aio import TaskScope
from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.getting import KeySearch
from hivemind.dht.lookup import Node
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue, StoredValue
from hivemind.identity import PeerID

if TYPE_CHECKING:
    from hivemind.dht.node import DHTNode

__all__ = ["CachePolicy"]

#: Cached keys that wait to be renewed; more expire and are looked for again when they are asked for.
MAX_RENEWALS: Final = 4096
#: Keys due within so many seconds are renewed by one search.
RENEW_TOGETHER_SECONDS: Final = 0.5


class CachePolicy:
    """The copies that one node keeps and gives. Owned by the network thread."""

    def __init__(self, node: DHTNode, scope: TaskScope) -> None:
        self._node = node
        self._scope = scope
        # (when, key) of cached values in use; the set holds the same keys
        self._renewals: list[tuple[DHTExpiration, DHTID]] = []
        self._renewing: set[DHTID] = set()
        self._renewer: asyncio.Task[None] | None = None
        self._sooner = asyncio.Event()

    def keep(self, key: DHTID, value: StoredValue, expiration_time: DHTExpiration) -> None:
        """Keep a copy here."""
        cache = self._node.protocol.cache
        if isinstance(value, DictionaryDHTValue):
            cache.store_dictionary(key, value)
        else:
            cache.store(key, value, expiration_time)

    def note_found(self, search: KeySearch, nearest: Iterable[Node]) -> None:
        """A search has ended; ``nearest`` are the nodes that have answered it, nearest first."""
        found, options = search.found, self._node.options
        if found is None:
            return
        if options.cache_locally:
            self.keep(search.key, found.value, found.expiration_time)
        for node_id, peer_id in list(nearest)[: int(options.cache_nearest)]:
            if search.expiration_at.get(node_id, float("-inf")) < found.expiration_time:
                give = self._give(peer_id, search.key, found.value, found.expiration_time)
                self._scope.start(give, name="copy for the nearest node")

    async def _give(self, peer: PeerID, key: DHTID, value: StoredValue, expiration_time: DHTExpiration) -> None:
        await self._node.protocol.call_store(peer, [key], [value], [expiration_time], in_cache=True)

    def note_use(self, key: DHTID, expiration_time: DHTExpiration) -> None:
        """A copy was used: it is renewed before it expires."""
        early = self._node.options.cache_refresh_before_expiry
        if not early or key in self._renewing or len(self._renewals) >= MAX_RENEWALS or expiration_time == float("inf"):
            return
        self._renewing.add(key)
        heapq.heappush(self._renewals, (expiration_time - early, key))
        self._sooner.set()
        if self._renewer is None or self._renewer.done():
            self._renewer = self._scope.start(self._renew(), name="renewal of cached values")

    async def _renew(self) -> None:
        while self._renewals:
            wait = self._renewals[0][0] - get_dht_time()
            if wait > 0:
                self._sooner.clear()
                try:
                    async with asyncio.timeout(wait):
                        await self._sooner.wait()
                except TimeoutError:
                    continue
                continue
            due: list[DHTID] = []
            while self._renewals and self._renewals[0][0] <= get_dht_time() + RENEW_TOGETHER_SECONDS:
                due.append(heapq.heappop(self._renewals)[1])
            self._renewing.difference_update(due)
            await self._node.renew(due)
