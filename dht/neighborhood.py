"""Whom this node knows, kept true: newcomers are greeted with the records they should hold, silent members go, and what
they held is given to those who are nearest now."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, Final

from hivemind.aio import TaskScope
from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.mortality import Mortality
from hivemind.dht.replication import heirs, is_due
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

#: Seconds between the first silent member and the look at what it held: others may have gone with it.
INHERITANCE_DELAY: Final = 2.0
#: Nodes whose records are looked for together, and records given to one peer at a time.
MAX_GONE: Final = 256
MAX_INHERITED: Final = 1024

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
        # those whose records are to be looked for, and when each was last heard of, by the clock of the loop
        self._gone: dict[DHTID, float] = {}
        self._executor: asyncio.Task[None] | None = None
        # when each member of the table was first and last heard of, by the clock of the loop
        self._met: dict[DHTID, float] = {}
        self._heard: dict[DHTID, float] = {}
        self._mortality = Mortality()
        self._last_loss = -math.inf
        #: the node heard of last of which this one did not know
        self.stranger: tuple[DHTID, PeerID] | None = None

    def seen(self, node_id: DHTID, peer_id: PeerID) -> None:
        """A node has called, or has answered."""
        if self._scope.closed:
            return  # this one is leaving
        table = self.routing_table
        now = asyncio.get_running_loop().time()
        if table.touch(node_id, peer_id):
            self._mortality.note(now - self._heard.get(node_id, now), now, died=False)
            self._heard[node_id] = now
            return
        self.stranger = (node_id, peer_id)
        oldest = table.add_or_update_node(node_id, peer_id)
        if oldest is not None:
            self._scope.start(self._ping(oldest[1]), name="ping of the member longest unseen")
        elif table.uid_to_peer_id.get(node_id) == peer_id:
            self._met[node_id] = self._heard[node_id] = now
            self._gone.pop(node_id, None)
            self.lost_peers.pop(peer_id, None)
            self._welcome(node_id, peer_id)

    def lost(self, peer_id: PeerID) -> None:
        """A peer has not answered."""
        if self._scope.closed:
            return  # it may be this one that has ended the call
        node_id = self.routing_table.peer_id_to_uid.get(peer_id)
        if node_id is not None:
            del self.routing_table[node_id]
            self._last_loss = now = asyncio.get_running_loop().time()
            self._met.pop(node_id, None)
            heard = self._heard.pop(node_id, now)
            self._mortality.note(now - heard, now, died=True)
            self._bequeath(node_id, heard)
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
        """See `is_due`."""
        if self.routing_table.has_nearer(key, newcomer):
            return False
        others = self.routing_table.get_nearest_neighbors(key, self._num_replicas, exclude=newcomer)
        return is_due(key, newcomer, self.routing_table.node_id, others, self._num_replicas)

    def restless(self, seconds: float) -> bool:
        """Whether a member of the table was lost in the last ``seconds``."""
        return asyncio.get_running_loop().time() - self._last_loss < seconds

    def unheard(self, seconds: float, count: int) -> list[PeerID]:
        """Of the nodes nearest to this one, with which it shares what it holds, those that were not heard of for
        ``seconds``: longest ago first, at most ``count``."""
        before = asyncio.get_running_loop().time() - seconds
        near = self.routing_table.get_nearest_neighbors(self.routing_table.node_id, 2 * self._num_replicas)
        silent = sorted((self._heard.get(node_id, 0.0), peer_id) for node_id, peer_id in near)
        return [peer_id for heard, peer_id in silent if heard < before][:count]

    def doubtful(self, count: int) -> list[PeerID]:
        """Members of the table that were silent for so long that too many of them will be dead, as nodes die at
        present: longest ago first, at most ``count``."""
        now = asyncio.get_running_loop().time()
        before = now - self._mortality.patience(now)
        silent = ((self._heard.get(node_id, -math.inf), peer_id) for node_id, peer_id in self.routing_table)
        doubted = (each for each in silent if before > each[0])
        return [peer_id for _, peer_id in heapq.nsmallest(count, doubted)]

    def _bequeath(self, node_id: DHTID, heard: float) -> None:
        if not self._storage.data or len(self._gone) >= MAX_GONE:
            return
        self._gone[node_id] = heard
        if self._executor is None or self._executor.done():
            self._executor = self._scope.start(self._execute(), name="records of nodes that are gone")

    async def _execute(self) -> None:
        """Give what gone nodes held to those who are nearest to it now."""
        while self._gone:
            await asyncio.sleep(INHERITANCE_DELAY)
            gone, self._gone = self._gone, {}
            for peer_id, records in (await self._legacies(gone)).items():
                for start in range(0, len(records), MAX_INHERITED):
                    await self._push(peer_id, records[start : start + MAX_INHERITED])

    async def _legacies(self, gone: dict[DHTID, float]) -> dict[PeerID, list[Record]]:
        table, replicas = self.routing_table, self._num_replicas
        legacies: dict[PeerID, list[Record]] = defaultdict(list)
        for count, (key, (value, expiration)) in enumerate(tuple(self._storage.items()), start=1):
            others = table.get_nearest_neighbors(key, 2 * replicas)
            for _, peer_id in heirs(key, table.node_id, gone, others, self._met, replicas):
                legacies[peer_id].append((key, value, expiration))
            if count % KEYS_AT_A_TIME == 0:
                await asyncio.sleep(0)
        return legacies
