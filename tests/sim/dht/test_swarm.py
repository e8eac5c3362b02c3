"""Fifty nodes on the in-memory network under the virtual clock: records everywhere, churn, a partition that heals."""

from __future__ import annotations

import asyncio
import random

from hivemind.clock import get_dht_time
from hivemind.dht import DHTNode
from hivemind.virtual_clock import run_virtual
from tests.support.dht import DHTSwarm, dht_swarm

#: Rounds of maintenance that must be enough for what they are to mend, in virtual seconds.
MENDING = 90.0


def test_records_are_found_from_everywhere() -> None:
    async def main() -> None:
        async with dht_swarm(50) as swarm:
            swarm.net.delay(0.02, jitter=0.02)
            expiration = get_dht_time() + 600
            for number, node in enumerate(swarm.nodes):
                assert await node.store(f"key {number}", number, expiration)
                assert await node.store("all", number, expiration + number, subkey=f"peer {number}")
            for number, node in enumerate(swarm.nodes):
                other = (number * 7 + 11) % 50
                assert await node.get(f"key {other}") == (other, expiration)
            found = await swarm.nodes[33].get("all", latest=True)
            assert found is not None
            assert {subkey: value for subkey, (value, _) in found.value.items()} == {f"peer {n}": n for n in range(50)}
            assert found.expiration_time == expiration + 49
            assert await swarm.nodes[0].get("nothing") is None

    run_virtual(main)


def test_newer_value_replaces_older_everywhere() -> None:
    async def main() -> None:
        async with dht_swarm(20) as swarm:
            expiration = get_dht_time() + 60
            assert await swarm.nodes[1].store("key", "old", expiration)
            assert not await swarm.nodes[2].store("key", "same age", expiration)
            assert await swarm.nodes[3].store("key", "new", expiration + 1)
            for node in swarm.nodes:
                assert await node.get("key", latest=True) == ("new", expiration + 1)
            await asyncio.sleep(62)
            for node in swarm.nodes:
                assert await node.get("key", latest=True) is None

    run_virtual(main)


def test_churn() -> None:
    """A fifth of the nodes dies at once; as many join; all that was stored is found."""

    async def main() -> None:
        async with dht_swarm(50) as swarm:
            swarm.net.delay(0.01)
            expiration = get_dht_time() + 3600
            keys = [f"key {number}" for number in range(60)]
            assert all((await swarm.nodes[5].store_many(keys, list(range(60)), expiration)).values())
            doomed = random.Random(1).sample(swarm.nodes[6:], 10)
            for node in doomed:
                await swarm.kill(node)
            for number in range(20):
                assert await swarm.nodes[number].get(keys[number], latest=True) == (number, expiration)
            # those that are left can store, too
            assert await swarm.nodes[10].store("after", 1, expiration)
            await swarm.grow(50)
            await asyncio.sleep(MENDING)
            newcomer = swarm.nodes[-1]
            found = await newcomer.get_many(keys)
            assert {key: value.value for key, value in found.items() if value} == dict(
                zip(keys, range(60), strict=True)
            )
            assert (await newcomer.get("after")) == (1, expiration)

    run_virtual(main)


def test_newcomers_hold_what_they_should() -> None:
    """Records wander to new nodes near their keys, so that all the old nodes may go."""

    async def main() -> None:
        async with dht_swarm(8) as swarm:
            expiration = get_dht_time() + 3600
            keys = [f"key {number}" for number in range(20)]
            assert all((await swarm.nodes[0].store_many(keys, list(range(20)), expiration)).values())
            assert await swarm.nodes[0].store("all", 1, expiration, subkey="a")
            await swarm.grow(24)
            await asyncio.sleep(5)
            for node in swarm.nodes[:8]:
                await swarm.kill(node)
            found = await swarm.nodes[9].get_many(keys, float("inf"))
            assert sum(value is not None for value in found.values()) >= 19
            assert (await swarm.nodes[9].get("all", latest=True)) is not None

    run_virtual(main)


def test_holders_that_leave_have_heirs() -> None:
    """Three of four nodes die, one by one; whatever they held is still there."""

    async def main() -> None:
        async with dht_swarm(24) as swarm:
            swarm.net.delay(0.01)
            expiration = get_dht_time() + 36000
            writer = swarm.nodes[1]
            keys = [f"key {number}" for number in range(40)]
            assert all((await writer.store_many(keys, list(range(40)), expiration)).values())
            for name in ("a", "b"):
                assert await writer.store("all", name, expiration, subkey=name)
            for node in [writer, *random.Random(2).sample([node for node in swarm.nodes if node is not writer], 17)]:
                await swarm.kill(node)
                await asyncio.sleep(2 * MENDING)
            for node in swarm.nodes:
                found = await node.get_many(keys, float("inf"))
                assert [value.value if value else None for value in found.values()] == list(range(40))
            found_all = await swarm.nodes[0].get("all", latest=True)
            assert found_all is not None
            assert found_all.value.keys() == {"a", "b"}

    run_virtual(main)


async def both_sides_work(left: list[DHTNode], right: list[DHTNode], expiration: float) -> None:
    for side, nodes in (("left", left), ("right", right)):
        for number in range(5):
            assert await nodes[number].store(f"{side} {number}", number, expiration)
            assert await nodes[-number - 1].get(f"{side} {number}", latest=True) == (number, expiration)
        assert await nodes[0].store("common", side, expiration, subkey=side)


def test_partition_that_heals() -> None:
    """Both halves go on by themselves; after it, each sees what the other has stored, without anybody's help."""

    async def main() -> None:
        async with dht_swarm(50) as swarm:
            swarm.net.delay(0.01)
            expiration = get_dht_time() + 3600
            assert await swarm.nodes[0].store("before", 1, expiration)
            left, right = swarm.nodes[0::2], swarm.nodes[1::2]
            with swarm.net.partition([node.peer_id for node in left], [node.peer_id for node in right]):
                await asyncio.sleep(40)
                await both_sides_work(left, right, expiration)
                assert await right[3].get("left 0", latest=True) is None
                await asyncio.sleep(60)
            await asyncio.sleep(MENDING)
            for number in range(5):
                assert await right[2 * number].get(f"left {number}", latest=True) == (number, expiration)
                assert await left[2 * number].get(f"right {number}", latest=True) == (number, expiration)
            found = await left[7].get("common", latest=True)
            assert found is not None
            assert set(found.value) == {"left", "right"}
            assert (await right[7].get("before", latest=True)) == (1, expiration)

    run_virtual(main)


def test_slow_and_lossy_network() -> None:
    async def main() -> None:
        async with dht_swarm(20) as swarm:
            swarm.net.delay(0.3, jitter=0.3)
            swarm.net.drop(0.05)
            expiration = get_dht_time() + 600
            for number in range(10):
                assert await swarm.nodes[number].store(f"key {number}", number, expiration)
            found = [await swarm.nodes[19 - number].get(f"key {number}", latest=True) for number in range(10)]
            assert sum(value is not None for value in found) >= 9

    run_virtual(main)


async def _trace(swarm: DHTSwarm) -> tuple[object, ...]:
    expiration = get_dht_time() + 600
    stored = [await node.store(f"key {n}", n, expiration) for n, node in enumerate(swarm.nodes)]
    tables = [sorted(node.protocol.routing_table.uid_to_peer_id) for node in swarm.nodes]
    held = [sorted(node.protocol.storage.data) for node in swarm.nodes]
    return stored, tables, held, asyncio.get_running_loop().time()


def test_simulation_is_deterministic() -> None:
    async def main() -> tuple[object, ...]:
        async with dht_swarm(seed=5) as swarm:
            swarm.net.delay(0.05, jitter=0.05)
            swarm.net.drop(0.02)
            await swarm.grow(15)
            return await _trace(swarm)

    assert run_virtual(main) == run_virtual(main)


def test_two_swarms_with_a_common_peer_become_one() -> None:
    """A node was told of peers of both, of which one did not answer at that time."""

    async def main() -> None:
        async with dht_swarm(10) as left, dht_swarm(0) as right:
            left.net.delay(0.01)
            right.net, right._made = left.net, 100  # ids of nodes come from their numbers
            await right.grow(10)
            expiration = get_dht_time() + 36000
            assert await left.nodes[3].store("left", 1, expiration)
            assert await right.nodes[3].store("right", 2, expiration)
            gate = right.nodes[0]
            with left.net.freeze(gate.p2p):
                common = await left.node(joins=[left.nodes[0], gate])
                await asyncio.sleep(100)
                assert await common.get("right", latest=True) is None
                assert await right.nodes[5].get("left", latest=True) is None
            await asyncio.sleep(300)
            for node in [*left.nodes, *right.nodes]:
                node.protocol.cache.clear()
                assert await node.get("left") == (1, expiration)
                assert await node.get("right") == (2, expiration)

    run_virtual(main)
