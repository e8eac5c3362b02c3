"""Beam search on any graph of ids, by the names of hivemind 1.1: the search of `DHTNode` without its network."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from hivemind.clock import Deadline
from hivemind.config import check_count
from hivemind.dht.lookup import Lookup, Request
from hivemind.dht.routing import DHTID
from hivemind.dht.search import Answer, run_lookups
from hivemind.identity import PeerID

__all__ = ["simple_traverse_dht", "traverse_dht"]

#: Neighbours of one node, and whether to stop the search.
Neighbors = tuple[Collection[DHTID], bool]
FoundCallback = Callable[[DHTID, list[DHTID], set[DHTID]], Awaitable[Any]]


async def simple_traverse_dht(
    query_id: DHTID,
    initial_nodes: Collection[DHTID],
    beam_size: int,
    get_neighbors: Callable[[DHTID], Awaitable[Neighbors]],
    visited_nodes: Collection[DHTID] = (),
) -> tuple[tuple[DHTID, ...], set[DHTID]]:
    """`traverse_dht` for one query, one request at a time.

    :param get_neighbors: the neighbours of a node, and whether to stop. (The documentation of hivemind 1.1 calls the
        flag "should continue"; its code has stopped on True.)
    :returns: up to ``beam_size`` nodes, nearest first; all nodes that were asked, and ``visited_nodes``
    """

    async def ask(node: DHTID, queries: Collection[DHTID]) -> dict[DHTID, Neighbors]:
        return {query_id: await get_neighbors(node)}

    nearest, visited = await traverse_dht(
        [query_id], initial_nodes, beam_size, 1, 1, ask, visited_nodes={query_id: visited_nodes}
    )
    return tuple(nearest[query_id]), visited[query_id]


async def traverse_dht(
    queries: Collection[DHTID],
    initial_nodes: Collection[DHTID],
    beam_size: int,
    num_workers: int,
    queries_per_call: int,
    get_neighbors: Callable[[DHTID, Collection[DHTID]], Awaitable[Mapping[DHTID, Neighbors]]],
    found_callback: FoundCallback | None = None,
    await_all_tasks: bool = True,
    visited_nodes: Mapping[DHTID, Collection[DHTID]] | None = None,
) -> tuple[dict[DHTID, list[DHTID]], dict[DHTID, set[DHTID]]]:
    """For each query find the nodes nearest to it, as `hivemind.dht.lookup` does. Has no bound in time but that of
    ``get_neighbors``.

    :param initial_nodes: where to begin; they can be found themselves
    :param beam_size: how many of the nearest nodes must have answered
    :param num_workers: requests under way at a time
    :param queries_per_call: queries in one request
    :param get_neighbors: asks a node; for each query its neighbours, and True to end the search for this query. A node
        does not count for a query that its answer leaves out; what is raised ends the traversal
    :param found_callback: called and awaited once for each query as soon as its search has ended, with the nearest and
        the visited nodes; what it raises ends the traversal
    :param await_all_tasks: accepted for hivemind 1.1. All callbacks have always ended when this returns; requests that
        are no longer needed are cancelled
    :param visited_nodes: for each query nodes that are neither asked nor found
    :returns: for each query up to ``beam_size`` nodes, nearest first; and all that were asked about it, with
        ``visited_nodes``
    :raises ConfigError: if a number is none or less than 1
    """
    for name, count in (("beam_size", beam_size), ("num_workers", num_workers), ("queries_per_call", queries_per_call)):
        check_count(name, count)
    known = visited_nodes or {}
    nearest: dict[DHTID, list[DHTID]] = {}
    visited: dict[DHTID, set[DHTID]] = {}
    lookups: dict[DHTID, Lookup] = {}
    for query in dict.fromkeys(queries):
        lookups[query] = lookup = Lookup(query, beam_size, contacts_per_beam=math.inf)
        lookup.ignore(known.get(query, ()))
        lookup.hear((node, _peer_of(node)) for node in initial_nodes)

    async def ask(request: Request) -> Answer:
        answer = await get_neighbors(request.node_id, tuple(request.targets))
        for query, (_, stop) in answer.items():
            if stop and query in lookups:
                lookups[query].stop()
        return {query: [(node, _peer_of(node)) for node in found] for query, (found, _) in answer.items()}

    try:
        async with asyncio.TaskGroup() as callbacks:

            def on_finished(lookup: Lookup) -> None:
                query = lookup.target
                nearest[query] = [node for node, _ in lookup.known(beam_size)]
                visited[query] = lookup.asked | set(known.get(query, ()))
                if found_callback is not None:
                    callbacks.create_task(_call(found_callback, query, nearest[query], visited[query]))

            await run_lookups(
                lookups.values(),
                ask,
                on_finished,
                num_workers=num_workers,
                most_workers=num_workers,
                chunk_size=queries_per_call,
                patience=None,
                deadline=Deadline.after(None),
            )
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return {query: nearest[query] for query in lookups}, {query: visited[query] for query in lookups}


async def _call(callback: FoundCallback, query: DHTID, nearest: list[DHTID], visited: set[DHTID]) -> None:
    await callback(query, list(nearest), set(visited))


def _peer_of(node: DHTID) -> PeerID:
    """A search names peers too; here there are only ids."""
    return PeerID(node.to_bytes())
