"""Lookups of one node: where they begin, whom they may ask, and what they count."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from hivemind.clock import Deadline
from hivemind.dht.lookup import Lookup, Request
from hivemind.dht.routing import DHTID
from hivemind.dht.search import Answer, Patience, run_lookups
from hivemind.identity import PeerID

if TYPE_CHECKING:
    from hivemind.dht.node import DHTNode

__all__ = ["Finder"]

#: A search ends after so many times ``wait_timeout``, with what it has found.
_SEARCH_ROUNDS: Final = 10


class Finder:
    """The lookups of one node. Owned by the network thread."""

    def __init__(self, node: DHTNode) -> None:
        self._node = node
        self._patience = Patience()

    def lookup(
        self,
        target: DHTID,
        beam_size: int,
        begin: Mapping[DHTID, PeerID] | None = None,
        *,
        quorum: int | None = None,
    ) -> Lookup:
        """A lookup that begins at ``begin`` or at the nodes known nearest; peers on the blacklist are left out."""
        node = self._node
        lookup = Lookup(target, beam_size, own_id=node.node_id, quorum=quorum)
        table = node.protocol.routing_table
        known = table.get_nearest_neighbors(target, node.protocol.bucket_size) if begin is None else begin.items()
        lookup.hear(each for each in known if each[1] not in node.blacklist)
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
    ) -> None:
        """Run lookups to their end, which is bounded; see `search.run_lookups`.

        :param chunk_size: ids in one request; default that of the node
        """
        counters = self._node.counters

        def on_end(lookup: Lookup) -> None:
            counters.lookups += 1
            counters.hops += lookup.hops
            on_finished(lookup)

        await run_lookups(
            lookups,
            ask,
            on_end,
            num_workers=num_workers,
            chunk_size=self._node.chunk_size if chunk_size is None else chunk_size,
            patience=self._patience,
            deadline=Deadline.after(_SEARCH_ROUNDS * self._node.options.wait_timeout),
            one_first=one_first,
        )

    async def ask_for_nodes(self, request: Request) -> Answer:
        """Send a request of a lookup that wants no values."""
        answer = await self._node.call_find(request.peer_id, request.targets, request.node_id, values=False)
        return None if answer is None else {key: nearest.items() for key, (_, nearest) in answer.items()}

    async def nearest(
        self,
        queries: Iterable[DHTID],
        count: int,
        beam_size: int,
        num_workers: int,
        begin: Mapping[DHTID, PeerID] | None = None,
    ) -> dict[DHTID, list[tuple[DHTID, PeerID]]]:
        """Up to ``count`` nodes nearest to each of ``queries`` that answer, nearest first, without this one."""
        results: dict[DHTID, list[tuple[DHTID, PeerID]]] = {}

        def on_finished(lookup: Lookup) -> None:
            results[lookup.target] = lookup.nearest(count)

        lookups = [self.lookup(query, max(beam_size, count), begin) for query in dict.fromkeys(queries)]
        await self.run(lookups, self.ask_for_nodes, on_finished, num_workers)
        return {lookup.target: results[lookup.target] for lookup in lookups}
