"""Which copies of records are kept, given to others, and renewed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from hivemind.aio import TaskScope
from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.config import DHTNodeOptions
from hivemind.dht.key_search import KeySearch
from hivemind.dht.lookup import Node
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue, StoredValue
from hivemind.identity import PeerID
from hivemind.timed_storage import TimedStorage

__all__ = ["CachePolicy", "CacheRefreshQueue"]

#: Cached keys that wait to be renewed; more expire and are looked for again when they are asked for.
MAX_RENEWALS: Final = 4096
#: Keys due within so many seconds are renewed by one search.
RENEW_TOGETHER_SECONDS: Final = 0.5


class CacheRefreshQueue(TimedStorage[DHTID, DHTExpiration]):
    """Keys of cached values that are in use, each until it is renewed. They leave it by `take_due` only."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen = True

    def take_due(self, until: DHTExpiration) -> list[DHTID]:
        """Those to be renewed up to a time, soonest first; they are no longer in it."""
        due: list[DHTID] = []
        while (first := self.top()) is not None and first[1].expiration_time <= until:
            due.append(first[0])
            del self[first[0]]
        return due


class CachePolicy:
    """The copies that one node keeps and gives. Owned by the network thread.

    :param renew: looks for newer values of keys
    """

    def __init__(
        self,
        protocol: DHTProtocol,
        options: DHTNodeOptions,
        renew: Callable[[list[DHTID]], Awaitable[None]],
        scope: TaskScope,
    ) -> None:
        self._protocol = protocol
        self._options = options
        self._renew_values = renew
        self._scope = scope
        self.refresh_queue = CacheRefreshQueue()
        self._renewer: asyncio.Task[None] | None = None
        self._sooner = asyncio.Event()

    def keep(self, key: DHTID, value: StoredValue, expiration_time: DHTExpiration) -> None:
        """Keep a copy here."""
        cache = self._protocol.cache
        if isinstance(value, DictionaryDHTValue):
            cache.store_dictionary(key, value)
        else:
            cache.store(key, value, expiration_time)

    def note_found(self, search: KeySearch, nearest: Iterable[Node]) -> None:
        """A search has ended; ``nearest`` are the nodes that have answered it, nearest first."""
        found, options = search.found, self._options
        if found is None:
            return
        if options.cache_locally:
            self.keep(search.key, found.value, found.expiration_time)
        for node_id, peer_id in list(nearest)[: int(options.cache_nearest)]:
            if search.expiration_at.get(node_id, float("-inf")) < found.expiration_time:
                give = self._give(peer_id, search.key, found.value, found.expiration_time)
                self._scope.start(give, name="copy for the nearest node")

    async def _give(self, peer: PeerID, key: DHTID, value: StoredValue, expiration_time: DHTExpiration) -> None:
        await self._protocol.call_store(peer, [key], [value], [expiration_time], in_cache=True)

    def note_use(self, key: DHTID, expiration_time: DHTExpiration) -> None:
        """A copy was used: it is renewed before it expires."""
        early = self._options.cache_refresh_before_expiry
        queue = self.refresh_queue
        if not early or key in queue or len(queue) >= MAX_RENEWALS or expiration_time == float("inf"):
            return
        queue.store(key, expiration_time - early, expiration_time - early)
        self._sooner.set()
        if self._renewer is None or self._renewer.done():
            self._renewer = self._scope.start(self._renew(), name="renewal of cached values")

    async def _renew(self) -> None:
        while (first := self.refresh_queue.top()) is not None:
            wait = first[1].expiration_time - get_dht_time()
            if wait > 0:
                self._sooner.clear()
                try:
                    async with asyncio.timeout(wait):
                        await self._sooner.wait()
                except TimeoutError:
                    continue
                continue
            await self._renew_values(self.refresh_queue.take_due(get_dht_time() + RENEW_TOGETHER_SECONDS))
