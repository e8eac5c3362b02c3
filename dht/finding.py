"""Lookups of one node: where they begin, whom they may ask, and what they count."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from hivemind.clock import Deadline
from hivemind.dht.contacts import Contacts
from hivemind.dht.crowds import density_around, detours
from hivemind.dht.lookup import Lookup, Node, Request
from hivemind.dht.routing import DHTID
from hivemind.dht.search import Answer, Patience, run_lookups
from hivemind.identity import PeerID

__all__ = ["Finder"]

#: A search ends after so many times ``wait_timeout``, with what it has found.
_SEARCH_ROUNDS: Final = 10
#: Seconds for which an estimate of the density of the swarm is used.
_DENSITY_SECONDS: Final = 5.0
#: Nodes that must have answered to tell who is near a place.
_WITNESSES: Final = 3


class Finder:
    """The lookups of one node. Owned by the network thread."""

    def __init__(self, contacts: Contacts) -> None:
        self._contacts = contacts
        self._patience = Patience()
        self._known_density: float | None = None
        # by the clock of the loop
        self._density_until = -math.inf

    def lookup(
        self,
        target: DHTID,
        beam_size: int,
        begin: Mapping[DHTID, PeerID] | None = None,
        *,
        enough: int | None = None,
        quorum: int | None = None,
    ) -> Lookup:
        """A lookup that begins at ``begin`` or at the nodes known nearest; peers on the blacklist are left out."""
        contacts = self._contacts
        lookup = Lookup(target, beam_size, own_id=contacts.node_id, enough=enough, quorum=quorum)
        if begin is None:
            lookup.hear(contacts.near(target, contacts.protocol.bucket_size))
        else:
            lookup.hear(each for each in begin.items() if each[1] not in contacts.blacklist)
        return lookup

    async def run(
        self,
        lookups: Iterable[Lookup],
        ask: Callable[[Request], Awaitable[Answer]],
        on_finished: Callable[[Lookup], None],
        num_workers: int,
        *,
        chunk_size: int | None = None,
        one_first: bool = False,
        beyond_crowds: bool = False,
        most_workers: int | None = None,
    ) -> None:
        """Run lookups to their end, which is bounded; see `search.run_lookups`.

        :param chunk_size: ids in one request; default that of the node
        :param beyond_crowds: where many nodes crowd around the target, go on behind them; see `crowds`
        """
        options, counters = self._contacts.options, self._contacts.protocol.counters
        deadline = Deadline.after(_SEARCH_ROUNDS * options.wait_timeout)
        density = self._density() if beyond_crowds else None
        crowded: list[Lookup] = []

        def on_end(lookup: Lookup) -> None:
            if density is not None and lookup.density is None and lookup.crowded(density):
                crowded.append(lookup)
                return
            counters.lookups += 1
            counters.hops += lookup.hops
            on_finished(lookup)

        chunk = options.chunk_size if chunk_size is None else chunk_size
        run = partial(
            run_lookups, num_workers=num_workers, chunk_size=chunk, patience=self._patience, deadline=deadline
        )
        await run(lookups, ask, on_end, one_first=one_first, most_workers=most_workers)
        if density is not None and crowded:
            counters.crowded += len(crowded)
            await self._find_others(crowded, density, run)
            await run(crowded, ask, on_end)

    async def _find_others(
        self, lookups: Sequence[Lookup], density: float, run: Callable[..., Awaitable[None]]
    ) -> None:
        """Find nodes behind the crowds around targets, and have the lookups go on with them."""
        contacts, bucket_size = self._contacts, self._contacts.protocol.bucket_size
        crowd = {node_id for lookup in lookups for node_id in lookup.crowd(density)}
        around = {lookup.target: detours(lookup.target, density) for lookup in lookups}
        found: dict[DHTID, list[Node]] = {}

        def on_end(lookup: Lookup) -> None:
            found[lookup.target] = lookup.known(bucket_size)

        searches = []
        for place in dict.fromkeys(place for places in around.values() for place in places):
            search = Lookup(place, _WITNESSES, own_id=contacts.node_id)
            search.ignore(crowd)
            search.hear(contacts.near(place, bucket_size + len(crowd)))
            searches.append(search)
        await run(searches, self.ask_for_nodes, on_end)
        for lookup in lookups:
            others = [each for place in around[lookup.target] for each in found[place]]
            lookup.look_beyond(density, bucket_size, others)

    def swarm_size(self) -> float:
        """How many nodes the swarm has, rather too few than too many."""
        density = self._estimate_density()
        return len(self._contacts.protocol.routing_table) if density is None else density * DHTID.MAX

    def _density(self) -> float | None:
        """How dense the swarm is; None if too few nodes are known to tell. At most so many seconds old."""
        now = asyncio.get_running_loop().time()
        if now >= self._density_until:
            self._known_density = self._estimate_density()
            self._density_until = now + _DENSITY_SECONDS
        return self._known_density

    def _estimate_density(self) -> float | None:
        own_id, protocol = self._contacts.node_id, self._contacts.protocol
        nearest = protocol.routing_table.get_nearest_neighbors(own_id, protocol.bucket_size)
        return density_around(own_id, [node_id for node_id, _ in nearest])

    async def ask_for_nodes(self, request: Request) -> Answer:
        """Send a request of a lookup that wants no values."""
        answer = await self._contacts.find(request.peer_id, request.targets, request.node_id, values=False)
        return None if answer is None else {key: nearest.items() for key, (_, nearest) in answer.items()}

    async def nearest(
        self,
        queries: Iterable[DHTID],
        count: int,
        beam_size: int,
        num_workers: int,
        begin: Mapping[DHTID, PeerID] | None = None,
        *,
        most_workers: int | None = None,
    ) -> dict[DHTID, list[tuple[DHTID, PeerID]]]:
        """Up to ``count`` nodes nearest to each of ``queries`` that answer, nearest first, without this one."""
        results: dict[DHTID, list[tuple[DHTID, PeerID]]] = {}

        def on_finished(lookup: Lookup) -> None:
            results[lookup.target] = lookup.nearest(count)

        lookups = [self.lookup(query, max(beam_size, count), begin) for query in dict.fromkeys(queries)]
        await self.run(lookups, self.ask_for_nodes, on_finished, num_workers, most_workers=most_workers)
        return {lookup.target: results[lookup.target] for lookup in lookups}

    async def around_self(self, begin: Mapping[DHTID, PeerID] | None = None) -> None:
        """Look for the nodes nearest to this one, to know them.

        :param begin: where to begin; default the nodes known nearest
        """
        count = self._contacts.protocol.bucket_size
        await self.nearest([self._contacts.node_id], count, count, self._contacts.options.num_workers, begin)
