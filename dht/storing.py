"""Stores: records placed on the nodes nearest to their keys."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from hivemind.dht.contacts import Contacts
from hivemind.dht.finding import Finder
from hivemind.dht.lookup import Lookup
from hivemind.dht.outgoing import Record
from hivemind.dht.retries import Retries
from hivemind.dht.routing import DHTID
from hivemind.identity import PeerID

__all__ = ["Placement"]


#: Nodes nearest to a key that must have answered before a record goes to those that they have named.
_WITNESSES: Final = 3
#: Where nodes crowd around a key, a record goes to so many times the replicas.
_CROWD_FACTOR: Final = 3


@dataclass
class _Target:
    """Where the records of one key go."""

    records: list[Record]
    #: nodes that are to have it
    wanted: int
    #: nodes that may hold it, nearest first; None stands for this node
    nodes: list[PeerID | None] = field(default_factory=list)
    #: nodes that were asked to hold it
    asked: set[PeerID | None] = field(default_factory=set)
    #: nodes that should hold it and did not answer
    owed: set[PeerID] = field(default_factory=set)
    responded: int = 0
    #: whether all nodes that were asked, for others or to hold it, have answered
    smooth: bool = True

    def take(self, count: int) -> list[PeerID | None]:
        taken, self.nodes = self.nodes[:count], self.nodes[count:]
        self.asked.update(taken)
        return taken


class Placement:
    """Places records on ``num_replicas`` nodes each. Owned by the network thread.

    The few nodes nearest to a key know each other: when they have answered, the record goes to the nearest of all that
    they have named. Only where one of those does not answer, others are looked for and have to answer before.

    :param exclude_self: this node does not count as one of them
    """

    def __init__(
        self,
        contacts: Contacts,
        finder: Finder,
        retries: Retries,
        records: Iterable[Record],
        *,
        exclude_self: bool,
    ) -> None:
        self._contacts = contacts
        self._finder = finder
        self._retries = retries
        self._exclude_self = exclude_self
        self._replicas = contacts.options.num_replicas
        self._targets: dict[DHTID, _Target] = {}
        self._not_accepted = 0
        for record in records:
            self._targets.setdefault(record.key, _Target([], self._replicas)).records.append(record)
            self._not_accepted += 1
        #: set once each record was accepted by some node
        self.accepted_once = asyncio.Event()

    async def run(self, num_workers: int, beam_size: int | None) -> None:
        """Find the nodes, then store until enough have answered or there is none left.

        :param beam_size: nodes that must have answered before; None: see above
        """
        if beam_size is None:
            await self._find_nodes(self._targets, num_workers, min(_WITNESSES, self._replicas), answered_only=False)
            await self._place()
            targets = self._targets.items()
            lacking = [key for key, each in targets if each.responded < each.wanted and not each.smooth]
        else:
            lacking = list(self._targets)
        if lacking:
            # somewhat wider than the replicas: tables are incomplete, and nodes have gone
            width = min(self._contacts.protocol.bucket_size, 2 * self._replicas) if beam_size is None else beam_size
            await self._find_nodes(lacking, num_workers, max(width, self._replicas), answered_only=True)
            await self._place()

    async def _find_nodes(
        self, keys: Iterable[DHTID], num_workers: int, beam_size: int, *, answered_only: bool
    ) -> None:
        """Set the nodes of targets.

        :param answered_only: only those that have answered; otherwise also those that they have named
        """
        own_id = self._contacts.node_id

        def on_finished(lookup: Lookup) -> None:
            target, found = self._targets[lookup.target], lookup.known(2 * self._replicas)
            if lookup.density is not None:
                # most of the nearest may be up to no good: others get it too
                found = lookup.spread(_CROWD_FACTOR * self._replicas)
                target.wanted = len(found)
            elif answered_only:
                found = lookup.nearest(beam_size)
            nodes: list[tuple[int, PeerID | None]] = [(each ^ lookup.target, peer) for each, peer in found]
            if not self._exclude_self:
                nodes.append((own_id ^ lookup.target, None))
            target.smooth = not lookup.failures
            for silent in lookup.silent(self._replicas):
                if silent not in target.owed:
                    target.owed.add(silent)
                    self._retries.add(silent, target.records)
            target.nodes = [peer for _, peer in sorted(nodes, key=lambda each: each[0]) if peer not in target.asked]

        lookups = [self._finder.lookup(key, beam_size) for key in keys]
        # as hivemind 1.1 does: the more keys, the more of them in one request
        chunk_size = max(self._contacts.options.chunk_size, math.isqrt(len(lookups)))
        ask = self._finder.ask_for_nodes
        await self._finder.run(lookups, ask, on_finished, num_workers, chunk_size=chunk_size, beyond_crowds=True)

    async def _place(self) -> None:
        while batches := self._next_batches():
            here = batches.pop(None, [])
            for record in here:
                self._note(record, record.store_in(self._contacts.protocol.storage))
            for key in {record.key for record in here}:
                self._targets[key].responded += 1
            async with asyncio.TaskGroup() as group:
                for peer, records in batches.items():
                    group.create_task(self._store_on(peer, records))

    def _next_batches(self) -> dict[PeerID | None, list[Record]]:
        """What each node is asked to store next: all keys advance together, so that nodes get few requests."""
        batches: dict[PeerID | None, list[Record]] = defaultdict(list)
        for target in self._targets.values():
            for peer in target.take(target.wanted - target.responded):
                batches[peer].extend(target.records)
        return batches

    async def _store_on(self, peer: PeerID | None, records: list[Record]) -> None:
        assert peer is not None
        # nobody waits for one that was silent the last time
        doubted = self._contacts.doubts(peer)
        answers = None if doubted else await self._contacts.store(peer, records)
        if answers is None:
            self._retries.add(peer, records, at_once=doubted)
            for record in records:
                self._targets[record.key].smooth = False
                self._targets[record.key].owed.add(peer)
            return
        for record, ok in zip(records, answers, strict=True):
            self._note(record, ok)
        for key in {record.key for record in records}:
            self._targets[key].responded += 1

    def _note(self, record: Record, accepted: bool) -> None:
        if not accepted or record.accepted:
            return
        record.accepted = True
        self._not_accepted -= 1
        if self._not_accepted == 0:
            self.accepted_once.set()
