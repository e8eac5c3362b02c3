"""How many requests of a search are under way at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from hivemind.clock import Deadline
from hivemind.dht.lookup import Lookup, Request
from hivemind.dht.routing import DHTID
from hivemind.dht.search import Answer, run_lookups
from hivemind.identity import PeerID


def requests_under_way(failing: set[int], **options: Any) -> list[int]:
    """For each request of a search among twenty nodes how many are under way when it is sent."""
    lookup = Lookup(DHTID(0), 8)
    lookup.hear((DHTID(number), PeerID(b"peer %d" % number)) for number in range(1, 21))
    under_way, counts = 0, []

    async def ask(request: Request) -> Answer:
        nonlocal under_way
        under_way += 1
        counts.append(under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return None if request.node_id in failing else {lookup.target: []}

    run = run_lookups(
        [lookup],
        ask,
        lambda _: None,
        num_workers=2,
        chunk_size=1,
        patience=None,
        deadline=Deadline.after(30),
        **options,
    )
    asyncio.run(run)
    return counts


def test_answers_widen_a_search_and_failures_do_not() -> None:
    assert max(requests_under_way(set(), one_first=True)) > 2
    among_dead = requests_under_way(set(range(1, 13)), one_first=True)
    assert among_dead[:13] == [1] * 13
    assert max(among_dead) > 1


def test_a_search_is_as_wide_as_it_may() -> None:
    assert requests_under_way(set())[:2] == [1, 2]
    assert max(requests_under_way(set(), most_workers=2)) == 2
