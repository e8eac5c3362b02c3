"""The searches that hivemind 1.1 has as functions: on graphs drawn at random, against brute force."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.dht.routing import DHTID
from hivemind.dht.traverse import simple_traverse_dht, traverse_dht
from hivemind.errors import ConfigError

ids = st.integers(0, DHTID.MAX - 1).map(DHTID)
LINE = {DHTID(n): [DHTID(n - 1), DHTID(n + 1)] for n in range(1, 200)} | {DHTID(0): [], DHTID(200): []}


def nearest(nodes: Collection[DHTID], query: DHTID, count: int) -> list[DHTID]:
    return sorted(nodes, key=query.__xor__)[:count]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(ids, min_size=1, max_size=80, unique=True),
    st.lists(ids, min_size=1, max_size=5, unique=True),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sets(st.integers(1, 79), max_size=10),
)
def test_finds_the_nearest(
    network: list[DHTID], queries: list[DHTID], beam: int, workers: int, per_call: int, excluded: set[int]
) -> None:
    """Every node knows those nearest to the query, one hundred of them: more than an answer of the network may have."""
    visited_before = {queries[0]: {network[n] for n in excluded if n < len(network)}}
    under_way = most = 0
    told: dict[DHTID, list[DHTID]] = {}

    async def ask(peer: DHTID, asked: Collection[DHTID]) -> dict[DHTID, tuple[list[DHTID], bool]]:
        nonlocal under_way, most
        assert 1 <= len(asked) <= per_call
        assert all(peer not in visited_before.get(query, ()) for query in asked)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return {query: (nearest(network, query, 100), False) for query in asked}

    async def found(query: DHTID, nodes: list[DHTID], visited: set[DHTID]) -> None:
        await asyncio.sleep(0)
        assert query not in told
        told[query] = nodes

    result, visited = asyncio.run(
        traverse_dht(queries, network[:1], beam, workers, per_call, ask, found, visited_nodes=visited_before)
    )
    assert list(result) == list(visited) == queries
    for query in queries:
        allowed = set(network) - visited_before.get(query, set())
        assert result[query] == nearest(allowed, query, beam)
        assert visited[query] >= set(result[query]) | visited_before.get(query, set())
    assert told == result, "each callback has ended"
    assert most <= workers


def test_stops_where_it_is_told_to() -> None:
    async def step(node: DHTID) -> tuple[list[DHTID], bool]:
        return LINE[node], node == 50

    # a beam of one crawls along the line, farther than any search of the network would go
    found, visited = asyncio.run(simple_traverse_dht(DHTID(0), [DHTID(63)], 1, step))
    assert found == (49,)
    assert visited == set(range(50, 64))


def test_a_simple_search_is_that_of_one_query() -> None:
    async def step(node: DHTID) -> tuple[list[DHTID], bool]:
        return LINE[node], False

    async def ask(node: DHTID, queries: Collection[DHTID]) -> dict[DHTID, tuple[list[DHTID], bool]]:
        return dict.fromkeys(queries, (LINE[node], False))

    query, skipped = DHTID(17), {DHTID(16)}
    simple = asyncio.run(simple_traverse_dht(query, [DHTID(20)], 4, step, skipped))
    general = asyncio.run(traverse_dht([query], [DHTID(20)], 4, 1, 1, ask, visited_nodes={query: skipped}))
    assert simple == (tuple(general[0][query]), general[1][query])
    assert 16 not in simple[0]
    assert 16 in simple[1]
    assert asyncio.run(simple_traverse_dht(query, [], 4, step)) == ((), set())
    assert asyncio.run(traverse_dht([], [DHTID(1)], 4, 1, 1, ask)) == ({}, {})


def test_what_goes_wrong_ends_it() -> None:
    async def broken(node: DHTID, queries: Collection[DHTID]) -> dict[DHTID, tuple[list[DHTID], bool]]:
        raise OSError(f"node {int(node)}")

    async def silent(node: DHTID, queries: Collection[DHTID]) -> dict[DHTID, tuple[list[DHTID], bool]]:
        return {}

    async def callback(query: DHTID, nodes: list[DHTID], visited: set[DHTID]) -> None:
        raise KeyError(query)

    with pytest.raises(OSError, match="node 5"):
        asyncio.run(traverse_dht([DHTID(1)], [DHTID(5)], 2, 1, 1, broken))
    assert asyncio.run(traverse_dht([DHTID(1)], [DHTID(5)], 2, 1, 1, silent)) == ({DHTID(1): []}, {DHTID(1): {5}})
    with pytest.raises(KeyError):
        asyncio.run(traverse_dht([DHTID(1)], [DHTID(5)], 2, 1, 1, silent, callback))
    with pytest.raises(ConfigError, match="beam_size"):
        asyncio.run(traverse_dht([DHTID(1)], [DHTID(5)], 0, 1, 1, silent))
