"""What a node does unasked: bucket refresh, a look whether neighbours live, another try with peers that went silent or
did not answer when it joined.

After a partition has healed, both halves have forgotten each other; a lost peer that answers again leads this node back
to the others, and as a newcomer it is given the records it should hold. Two swarms that never knew of each other become
one as soon as one node knows members of both: whoever meets a stranger asks it whom it knows.
"""

from __future__ import annotations

import asyncio
from typing import Final

from hivemind.aio import TaskScope
from hivemind.clock import get_dht_time
from hivemind.dht.bootstrap import Reunion, bootstrap
from hivemind.dht.contacts import Contacts
from hivemind.dht.finding import Finder
from hivemind.dht.routing import DHTID, KBucket
from hivemind.errors import HivemindError
from hivemind.log import get_logger

__all__ = ["Maintenance"]

logger = get_logger(__name__)

#: Seconds between two rounds, and lost peers tried in each.
PERIOD: Final = 15.0
LOST_PER_ROUND: Final = 4
#: Neighbours that were not heard of for so many seconds are asked whether they live, so many in each round. Where
#: somebody was lost lately, more often: a record is lost for good once all its holders have gone unnoticed.
NEIGHBOR_SECONDS: Final = 60.0
NEIGHBORS_PER_ROUND: Final = 4
RESTLESS_SECONDS: Final = 15.0
RESTLESS_PER_ROUND: Final = 10
#: Other members of the table that are asked whether they live in each round, where nodes die so fast that many would be
#: dead otherwise.
DOUBTED_PER_ROUND: Final = 16
#: Nodes met through one stranger: near this node, and elsewhere.
MET_NEARBY: Final = 8
MET_ELSEWHERE: Final = 2


class Maintenance:
    """The background rounds of one node. Owned by the network thread."""

    def __init__(self, contacts: Contacts, finder: Finder, scope: TaskScope) -> None:
        self._contacts = contacts
        self._protocol = contacts.protocol
        self._finder = finder
        self._scope = scope
        self._reunion = Reunion(contacts)

    def start(self) -> None:
        """Begin; ends with the scope."""
        self._scope.start(self._run(), name="maintenance of DHTNode")

    async def _run(self) -> None:
        refresh = self._contacts.options.refresh_timeout
        period = PERIOD if refresh is None else min(PERIOD, refresh)
        while True:
            await asyncio.sleep(period)
            try:
                await self.round()
            except HivemindError as error:
                logger.debug("maintenance: %s", error)

    async def round(self) -> None:
        """One round."""
        refresh_timeout = self._contacts.options.refresh_timeout
        await self._ask_neighbors()
        await self._ask_stranger()
        back = await self._try_lost_peers()
        if not len(self._protocol.routing_table) and self._contacts.initial_peers:
            back = await bootstrap(self._contacts, self._finder, self._scope) or back
        elif await self._reunion.round():
            # all ranges: what this node hears of, it names to others
            await self._finder.around_self()
            await self._refresh(0.0)
        elif back:
            await self._finder.around_self()
        if refresh_timeout is not None:
            await self._refresh(refresh_timeout)

    async def _ask_neighbors(self) -> None:
        """Those who share the records of this node: when one is gone, others take its place. And those who may be dead,
        so that searches do not ask many dead nodes."""
        protocol = self._protocol
        if protocol.neighborhood.restless(NEIGHBOR_SECONDS):
            silent = protocol.neighborhood.unheard(RESTLESS_SECONDS, RESTLESS_PER_ROUND)
        else:
            silent = protocol.neighborhood.unheard(NEIGHBOR_SECONDS, NEIGHBORS_PER_ROUND)
        silent += protocol.neighborhood.doubtful(DOUBTED_PER_ROUND)
        await asyncio.gather(*(protocol.call_ping(peer) for peer in dict.fromkeys(silent)))

    async def _ask_stranger(self) -> None:
        """Meet whom a node that this one had not known knows: near this node, where the holders of its records are, and
        near some other id, so that news from another swarm gets about."""
        protocol = self._protocol
        stranger, protocol.neighborhood.stranger = protocol.neighborhood.stranger, None
        if stranger is None:
            return
        node_id, peer_id = stranger
        own = self._contacts.node_id
        elsewhere = DHTID.generate(source=own.to_bytes() + node_id.to_bytes())
        answer = await self._contacts.find(peer_id, [own, elsewhere], node_id, values=False)
        if answer is None:
            return
        table = protocol.routing_table
        near = table.get_nearest_neighbors(own, protocol.bucket_size)
        farthest = near[-1][0] ^ own if len(near) == protocol.bucket_size else DHTID.MAX
        unknown = {
            target: [each for each in sorted(named, key=target.__xor__) if each not in table]
            for target, (_, named) in answer.items()
        }
        nearby = [answer[own][1][each] for each in unknown[own] if each ^ own < farthest]
        others = [answer[elsewhere][1][each] for each in unknown[elsewhere]]
        met = dict.fromkeys(nearby[:MET_NEARBY] + others[:MET_ELSEWHERE])
        await asyncio.gather(*(protocol.call_ping(peer) for peer in met))

    async def _try_lost_peers(self) -> bool:
        """
        :returns: whether one has answered
        """
        neighborhood = self._protocol.neighborhood
        tried = [lost for _ in range(LOST_PER_ROUND) if (lost := neighborhood.take_lost()) is not None]
        answers = await asyncio.gather(*(self._protocol.call_ping(peer) for peer, _ in tried))
        for (peer, until), node_id in zip(tried, answers, strict=True):
            if node_id is None:
                neighborhood.remember(peer, until)
            else:
                self._contacts.blacklist.register_success(peer)
        return any(node_id is not None for node_id in answers)

    async def _refresh(self, refresh_timeout: float) -> None:
        """Search in the ranges of buckets in which nothing has happened."""
        before = get_dht_time() - refresh_timeout
        stale = [bucket for bucket in self._protocol.routing_table.buckets if bucket.last_updated < before]
        if stale:
            count, workers = self._protocol.bucket_size, self._contacts.options.num_workers
            await self._finder.nearest([_random_id(bucket) for bucket in stale], count, count, workers)
        for bucket in stale:
            bucket.last_updated = get_dht_time()


def _random_id(bucket: KBucket) -> DHTID:
    return DHTID(bucket.lower + DHTID.generate() % (bucket.upper - bucket.lower))
