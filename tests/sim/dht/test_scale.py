"""What `make sim-dht` shows at ten thousand nodes, at sizes that take seconds."""

from __future__ import annotations

import asyncio
import math

from hivemind.virtual_clock import run_virtual
from tests.support.dht_crowd import Crowd, churn, corrupt
from tests.support.waiting import eventually


def test_hops_and_requests_grow_with_the_logarithm() -> None:
    async def main() -> None:
        crowd = Crowd()
        for size in (32, 128):
            await crowd.grow(size)
            keys = range(size, 2 * size)
            assert await crowd.store(keys) == 1.0
            gets = await crowd.get(keys)
            assert gets.found == 1.0
            assert gets.hops <= 0.3 * math.log2(size)
            assert gets.hops_p99 <= 0.6 * math.log2(size)
            assert gets.requests <= 0.8 * math.log2(size)
        await crowd.close()

    run_virtual(main)


def test_newcomers_do_not_take_the_swarm_for_a_crowd() -> None:
    """How dense it is they know as soon as they have joined."""

    async def main() -> None:
        crowd = Crowd()
        await crowd.grow(150)
        await crowd.store(range(600))
        counters = [node.counters for node in crowd.nodes]
        assert sum(each.crowded for each in counters) <= 0.02 * sum(each.lookups for each in counters)
        await crowd.close()

    run_virtual(main)


def test_living_keys_are_found_under_churn() -> None:
    """30 % of the nodes die and are replaced each minute; no record is lost, and gets do not get dearer
    with that."""

    async def main() -> None:
        crowd = Crowd()
        await crowd.grow(60)
        keys = range(150)
        await crowd.store(keys)
        for _ in range(4):
            await churn(crowd, 0.3, 60.0)
            assert crowd.living(keys) == list(keys)
            gets = await crowd.get(keys)
            assert gets.found == 1
            assert gets.requests <= 2.5
            alive = {node.node_id for node in crowd.nodes}
            known = [node_id for node in crowd.nodes for node_id, _ in node.protocol.routing_table]
            assert sum(node_id in alive for node_id in known) >= 0.75 * len(known)
        await eventually(lambda: min(crowd.held_where_due(keys)) >= 4, "records are where they should be", seconds=60)
        await crowd.close()

    run_virtual(main)


def test_liars_hide_and_forge_nothing() -> None:
    """Every twentieth node answers with nonsense, nothing, peers that do not exist, or values of its own."""

    async def main() -> None:
        crowd = Crowd(sealed=True)
        await crowd.grow(80)
        liars = await corrupt(crowd, 0.05)
        keys = range(150)
        assert await crowd.store(keys) == 1.0
        for latest in (False, True):
            gets = await crowd.get(keys, latest=latest)
            assert (gets.found, gets.wrong) == (1.0, 0.0)
        await crowd.close(liars)

    run_virtual(main)


def test_two_swarms_become_one_when_they_share_a_peer() -> None:
    """They have grown apart; one node knows somebody of each."""

    async def main() -> None:
        crowd = Crowd()
        await crowd.grow(40)
        left = list(crowd.nodes)
        crowd.nodes.clear()
        await crowd.grow(40)
        right = list(crowd.nodes)
        await crowd.store(range(40), by=left)
        await crowd.store(range(40, 80), by=right)
        assert (await crowd.get(range(40, 80), by=left)).found == 0.0
        crowd.nodes = [*left, *right]
        await crowd.join(through=[left[3], right[3]])
        await asyncio.sleep(180)
        assert (await crowd.get(range(40, 80), by=left)).found == 1.0
        assert (await crowd.get(range(40), by=right)).found == 1.0
        await crowd.close()

    run_virtual(main)
