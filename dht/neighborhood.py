"""Whom this node knows, kept true: newcomers are greeted with the records they should hold, silent members go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from hivemind.aio import TaskScope
from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.dht.storage import DHTLocalStorage, StoredValue
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.timed_storage import TimedStorage

__all__ = ["Neighborhood"]

logger = get_logger(__name__)

#: Newcomers that wait to be greeted; more are not: a flood of made-up ids costs no more than this.
MAX_WAITING: Final = 256
#: Seconds in which one peer is greeted once, whatever ids it comes under.
GREETING_PERIOD: Final = 10.0
#: Keys looked at before others on the network thread get their turn.
KEYS_AT_A_TIME: Final = 128
#: How long, and how many, peers that went silent are remembered: after a partition they are asked again.
LOST_SECONDS: Final = 1800.0
MAX_LOST: Final = 256

Record = tuple[DHTID, StoredValue, float]


class Neighborhood:
    """The routing table and what follows from its changes. Owned by the network thread.

    :param ping: calls a peer; it is `lost` if it does not answer
    :param push: stores records on a peer
    """

    def __init__(
        self,
        routing_table: RoutingTable,
        storage: DHTLocalStorage,
        num_replicas: int,
        scope: TaskScope,
        ping: Callable[[PeerID], Coroutine[Any, Any, object]],
        push: Callable[[PeerID, list[Record]], Coroutine[Any, Any, object]],
    ) -> None:
        self.routing_table = routing_table
        #: peers that went silent, longest ago first, each with the time when it is forgotten
        self.lost_peers: dict[PeerID, DHTExpiration] = {}
        self._storage = storage
        self._num_replicas = num_replicas
        self._scope = scope
        self._ping = ping
        self._push = push
        self._waiting: dict[PeerID, DHTID] = {}
        self._greeted: TimedStorage[PeerID, bool] = TimedStorage(4 * MAX_WAITING)
        self._greeter: asyncio.Task[None] | None = None

    def seen(self, node_id: DHTID, peer_id: PeerID) -> None:
        """A node has called, or has answered."""
        known = self.routing_table.uid_to_peer_id.get(node_id) == peer_id
        oldest = self.routing_table.add_or_update_node(node_id, peer_id)
        if oldest is not None:
            self._scope.start(self._ping(oldest[1]), name="ping of the member longest unseen")
        elif not known and self.routing_table.uid_to_peer_id.get(node_id) == peer_id:
            self.lost_peers.pop(peer_id, None)
            self._welcome(node_id, peer_id)

    def lost(self, peer_id: PeerID) -> None:
        """A peer has not answered."""
        node_id = self.routing_table.peer_id_to_uid.get(peer_id)
        if node_id is not None:
            del self.routing_table[node_id]
            self.remember(peer_id, get_dht_time() + LOST_SECONDS)

    def remember(self, peer_id: PeerID, until: DHTExpiration) -> None:
        """Keep a silent peer in mind: after a partition it may answer again."""
        self.lost_peers[peer_id] = until
        if len(self.lost_peers) > MAX_LOST:
            del self.lost_peers[next(iter(self.lost_peers))]

    def take_lost(self) -> tuple[PeerID, DHTExpiration] | None:
        """The peer lost longest ago that is still in mind; it is not any more."""
        while self.lost_peers:
            peer_id = next(iter(self.lost_peers))
            until = self.lost_peers.pop(peer_id)
            if until > get_dht_time() and peer_id not in self.routing_table:
                return peer_id, until
        return None

    def _welcome(self, node_id: DHTID, peer_id: PeerID) -> None:
        if not self._storage.data or peer_id in self._greeted or len(self._waiting) >= MAX_WAITING:
            return
        self._greeted.store(peer_id, True, get_dht_time() + GREETING_PERIOD)
        self._waiting[peer_id] = node_id
        if self._greeter is None or self._greeter.done():
            self._greeter = self._scope.start(self._greet(), name="records for newcomers")

    async def _greet(self) -> None:
        while self._waiting:
            peer_id, node_id = next(iter(self._waiting.items()))
            del self._waiting[peer_id]
            records: list[Record] = []
            for count, (key, (value, expiration)) in enumerate(self._storage.items(), start=1):
                if self.should_push(key, node_id):
                    records.append((key, value, expiration))
                if count % KEYS_AT_A_TIME == 0:
                    await asyncio.sleep(0)
            if records:
                await self._push(peer_id, records)

    def should_push(self, key: DHTID, newcomer: DHTID) -> bool:
        """Whether ``newcomer`` should hold ``key`` now and this node is the one to give it: of those it knows, this
        node is the nearest to the key, and the newcomer is among the nearest ``num_replicas``."""
        others = self.routing_table.get_nearest_neighbors(key, self._num_replicas, exclude=newcomer)
        if not others:
            return True
        if others[0][0] ^ key < self.routing_table.node_id ^ key:
            return False
        return len(others) < self._num_replicas or newcomer ^ key < others[-1][0] ^ key
