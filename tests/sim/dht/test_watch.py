"""Watching a key: changes come, slow readers get the last state, the end ends it."""

from __future__ import annotations

import asyncio

import pytest

from hivemind.clock import get_dht_time
from hivemind.dht import DHTID, Change, DHTNode, Watch
from hivemind.errors import ConfigError
from hivemind.virtual_clock import run_virtual
from tests.support.dht import DHTSwarm, dht_swarm


async def next_of(watch: Watch, seconds: float = 60.0) -> Change:
    async with asyncio.timeout(seconds):
        return await anext(watch)


def far_from(swarm: DHTSwarm, key: str) -> DHTNode:
    """The node that is the last to hold ``key``."""
    return max(swarm.nodes, key=lambda node: node.node_id ^ DHTID.generate(source=key))


def near(swarm: DHTSwarm, key: str) -> DHTNode:
    return min(swarm.nodes, key=lambda node: node.node_id ^ DHTID.generate(source=key))


def test_changes_are_seen_from_far() -> None:
    async def main() -> None:
        async with dht_swarm(12) as swarm:
            writer, now = swarm.nodes[1], get_dht_time()
            watcher = far_from(swarm, "key")
            assert await writer.store("key", "there before", now + 100, subkey="a")
            async with watcher.watch("key", interval=2.0) as watch:
                assert await next_of(watch) == Change("added", "a", "there before", now + 100)
                assert await writer.store("key", "new", now + 40, subkey="b")
                assert await next_of(watch, 5) == Change("added", "b", "new", now + 40)
                assert await writer.store("key", "newer", now + 200, subkey="a")
                assert await next_of(watch, 5) == Change("updated", "a", "newer", now + 200)
                gone = await next_of(watch)
                assert gone == Change("expired", "b", "new", now + 40)
                assert now + 40 <= get_dht_time() < now + 41, "when it expires, not at the next look"
            with pytest.raises(StopAsyncIteration):
                await anext(watch)

    run_virtual(main)


def test_what_this_node_is_given_is_seen_at_once() -> None:
    async def main() -> None:
        async with dht_swarm(12) as swarm:
            watcher, now = near(swarm, "key"), get_dht_time()
            async with watcher.watch("key", interval=1000.0) as watch:
                await asyncio.sleep(10)
                assert await swarm.nodes[1].store("key", 1, now + 100)
                assert await next_of(watch, 0.5) == Change("added", None, 1, now + 100)

    run_virtual(main)


def test_slow_readers_get_the_last_state() -> None:
    async def main() -> None:
        async with dht_swarm(4) as swarm:
            writer, now = swarm.nodes[1], get_dht_time()
            async with swarm.nodes[2].watch("key", interval=1.0) as watch:
                for number in range(20):
                    assert await writer.store("key", number, now + 1000 + number, subkey="a")
                    await asyncio.sleep(2)
                assert await writer.store("key", "short", now + 60, subkey="b")
                await asyncio.sleep(60)
                assert await next_of(watch) == Change("added", "a", 19, now + 1019)
                assert not watch._waiting, "b came and went unread"

    run_virtual(main)


def test_a_node_that_cannot_reach_the_holders_forgets_nothing() -> None:
    async def main() -> None:
        async with dht_swarm(12) as swarm:
            watcher, now = far_from(swarm, "key"), get_dht_time()
            assert await swarm.nodes[0].store("key", 1, now + 600)
            async with watcher.watch("key", interval=2.0) as watch:
                assert (await next_of(watch)).kind == "added"
                others = [node.p2p for node in swarm.nodes if node is not watcher]
                with swarm.net.partition([watcher.p2p], others), pytest.raises(TimeoutError):
                    await next_of(watch, 120)
                assert await swarm.nodes[0].store("key", 2, now + 700)
                assert await next_of(watch, 90) == Change("updated", None, 2, now + 700)

    run_virtual(main)


def test_it_ends_with_its_node() -> None:
    async def main() -> None:
        async with dht_swarm(2) as swarm:
            watch = swarm.nodes[1].watch("key")
            waiting = asyncio.ensure_future(anext(watch, None))
            await asyncio.sleep(1)
            await swarm.nodes[1].shutdown()
            assert await waiting is None
            await watch.close()
            with pytest.raises(ConfigError, match="interval"):
                swarm.nodes[0].watch("key", interval=0)

    run_virtual(main)
