"""What a node does: silent peers and clients, joining, caches, validators, batches, arguments, the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hivemind.clock import get_dht_time
from hivemind.dht import DHTID, CompositeValidator, DHTNode, DHTRecord, RecordValidatorBase
from hivemind.errors import BootstrapError, ConfigError, RuntimeClosedError, SerializationError
from hivemind.p2p import metrics_text
from hivemind.virtual_clock import run_virtual
from tests.support.dht import dht_swarm
from tests.support.waiting import eventually


def test_silent_peers_are_left_alone() -> None:
    """The first search pays for a frozen peer; later ones do not, until it answers again."""

    async def main() -> None:
        async with dht_swarm(8) as swarm:
            node, frozen = swarm.nodes[0], swarm.nodes[5]
            loop = asyncio.get_running_loop()
            expiration = get_dht_time() + 3600
            with swarm.net.freeze(frozen.p2p):
                began = loop.time()
                assert await node.get("nothing") is None, "asks all"
                assert 3 <= loop.time() - began < 4, "wait_timeout"
                assert frozen.peer_id in node.blacklist
                assert frozen.node_id not in node.protocol.routing_table
                began = loop.time()
                assert await node.store("b", 1, expiration)
                assert await node.get("b", latest=True) == (1, expiration)
                assert loop.time() - began < 0.5
            await eventually(lambda: frozen.node_id in node.protocol.routing_table, "it is known again", seconds=90)

    run_virtual(main)


def test_nobody_waits_for_a_dead_peer_again() -> None:
    """Others go on naming it, and the while for which it is left alone ends now and then."""

    async def main() -> None:
        async with dht_swarm(5) as swarm:
            swarm.net.delay(0.01)
            node, frozen = swarm.nodes[0], swarm.nodes[3]
            loop = asyncio.get_running_loop()
            with swarm.net.freeze(frozen.p2p):
                assert await node.get("nothing", latest=True) is None
                longest, ended = 0.0, loop.time() + 200
                while loop.time() < ended:
                    for other in swarm.nodes:
                        # as one that has not called it and does not know
                        other.protocol.routing_table.add_or_update_node(frozen.node_id, frozen.peer_id)
                    del node.protocol.routing_table[frozen.node_id]
                    began = loop.time()
                    key = f"key {began}"
                    assert await node.store(key, 1, get_dht_time() + 60)
                    assert await node.get(key, latest=True) is not None
                    longest = max(longest, loop.time() - began)
                    await asyncio.sleep(0.5)
                assert node.blacklist[frozen.peer_id] >= 5, "it was tried again, five times in these minutes"
                assert longest < 0.5

    run_virtual(main)


def test_who_knows_nobody_else_waits_for_a_silent_peer() -> None:
    async def main() -> None:
        async with dht_swarm(2) as swarm:
            node, other = swarm.nodes
            assert await other.store("key", 1, get_dht_time() + 600, exclude_self=False)
            known = {other.node_id: other.peer_id}
            with swarm.net.freeze(other.p2p):
                found = await node.find_nearest_nodes([DHTID(0)], node_to_peer_id=known, exclude_self=True)
                assert found == {DHTID(0): {}}
                assert other.peer_id in node.blacklist
            await eventually(lambda: other.peer_id not in node.blacklist, "the while is over", seconds=10)
            assert len(node.protocol.routing_table) == 0
            found = await node.find_nearest_nodes([DHTID(0)], node_to_peer_id=known, exclude_self=True)
            assert found == {DHTID(0): known}
            assert node.blacklist[other.peer_id] == 0

    run_virtual(main)


def test_a_node_that_slept_during_a_store_is_given_what_it_missed() -> None:
    """It is the nearest to the key and asked first: its dictionary must not lack the entry until it is stored anew."""

    async def main() -> None:
        async with dht_swarm(8) as swarm:
            writer, reader = swarm.nodes[0], swarm.nodes[1]
            key = next(key for key in map(str, range(100)) if _nearest(swarm.nodes, key) is swarm.nodes[5])
            sleeper = swarm.nodes[5]
            expiration = get_dht_time() + 3600
            assert await writer.store(key, 1, expiration, subkey="before")
            with swarm.net.freeze(sleeper.p2p):
                assert await writer.store(key, 2, expiration, subkey="meanwhile")

            def held() -> set[Any]:
                stored = sleeper.protocol.storage.get(DHTID.generate(source=key))
                assert stored is not None
                return set(stored.value.data)

            assert held() == {"before"}
            await eventually(lambda: held() == {"before", "meanwhile"}, "it is given the entry", seconds=10)
            assert set((await reader.get(key)).value) == {"before", "meanwhile"}

    run_virtual(main)


def test_who_stays_away_is_not_waited_for_for_ever() -> None:
    async def main() -> None:
        async with dht_swarm(8) as swarm:
            writer, gone = swarm.nodes[0], swarm.nodes[5]
            expiration = get_dht_time() + 3600
            with swarm.net.freeze(gone.p2p):
                for number in range(20):
                    assert await writer.store(str(number), 1, expiration)
                assert set(writer._retries._owed) == {gone.peer_id}
                await eventually(lambda: not writer._retries._owed, "both further tries have failed", seconds=60)

    run_virtual(main)


def _nearest(nodes: list[DHTNode], key: str) -> DHTNode:
    key_id = DHTID.generate(source=key)
    return min(nodes, key=lambda node: node.node_id ^ key_id)


def test_client_nodes_answer_nothing() -> None:
    async def main() -> None:
        async with dht_swarm(4) as swarm:
            client = await swarm.node(client_mode=True)
            expiration = get_dht_time() + 60
            assert await client.store("key", 1, expiration)
            assert not client.protocol.storage, "others hold it"
            for node in swarm.nodes:
                assert await node.get("key", latest=True) == (1, expiration)
            for node in swarm.nodes[:4]:
                assert client.peer_id not in node.protocol.routing_table
                assert await node.protocol.call_ping(client.peer_id) is None
            nearest = await client.find_nearest_nodes([DHTID(0)])
            assert client.node_id not in nearest[DHTID(0)]
            assert len(nearest[DHTID(0)]) == 4

    run_virtual(main)


def test_bootstrap_names_each_address_and_why() -> None:
    async def main() -> None:
        async with dht_swarm(2) as swarm:
            first, second = swarm.nodes
            addresses = [str(address) for node in (first, second) for address in await node.get_visible_maddrs()]
            await swarm.kill(first)
            async with await swarm.net.create_p2p() as p2p:
                joined = await DHTNode.create(p2p, initial_peers=addresses)
                assert await joined.store("key", 1, get_dht_time() + 60), "one that answers is enough"
                await joined.shutdown()
            await swarm.kill(second)
            async with await swarm.net.create_p2p() as p2p:
                with pytest.raises(BootstrapError, match="failed to connect to bootstrap peers") as caught:
                    await DHTNode.create(p2p, initial_peers=addresses)
                assert set(caught.value.reasons) == set(addresses)
                assert all("PeerUnreachable" in reason for reason in caught.value.reasons.values())
                lone = await DHTNode.create(p2p, initial_peers=addresses, ensure_bootstrap_success=False)
                assert await lone.store("key", 1, get_dht_time() + 60)
                await lone.shutdown()

    run_virtual(main)


def test_bootstrap_does_not_wait_for_the_silent() -> None:
    async def main() -> None:
        async with dht_swarm(3) as swarm:
            swarm.net.delay(0.05)
            silent = swarm.nodes[0]
            with swarm.net.freeze(silent.p2p):
                assert await swarm.nodes[1].store("key", 1, get_dht_time() + 60), "the others know that it is silent"
                assert await swarm.nodes[2].store("key", 1, get_dht_time() + 61)
                began = asyncio.get_running_loop().time()
                joined = await swarm.node(joins=[*swarm.nodes[1:], silent])
                assert asyncio.get_running_loop().time() - began < 2
                assert set(joined.protocol.routing_table.uid_to_peer_id) == {each.node_id for each in swarm.nodes[1:3]}

    run_virtual(main)


def test_clocks_that_differ_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with dht_swarm(1) as swarm:
            wrong = swarm.nodes[0]
            original = type(wrong.protocol).rpc_ping

            async def late(self: Any, request: Any, context: Any) -> Any:
                response = await original(self, request, context)
                response.dht_time -= 10
                return response

            await wrong.protocol.remove_p2p_handlers(wrong.p2p)
            monkeypatch.setattr(wrong.protocol, "rpc_ping", late.__get__(wrong.protocol), raising=False)
            await wrong.protocol.add_p2p_handlers(wrong.p2p)
            with pytest.raises(BootstrapError, match="clock is off by -10"):
                await swarm.node()
            tolerant = await swarm.node(strict=False)
            assert len(tolerant.protocol.routing_table) == 1

    run_virtual(main)


def test_concurrent_gets_share_one_search() -> None:
    async def main() -> None:
        async with dht_swarm(10) as swarm:
            expiration = get_dht_time() + 600
            assert await swarm.nodes[0].store("key", 1, expiration, exclude_self=True)
            swarm.net.delay(0.1)
            node = swarm.nodes[9]
            calls = 0
            original = node.protocol.call_find

            async def counted(*args: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                return await original(*args, **options)

            node.protocol.call_find = counted  # type: ignore[method-assign]
            node.protocol.storage.clear()
            gets = [node.get("key", latest=n % 2 == 0) for n in range(100)]
            assert all(value == (1, expiration) for value in await asyncio.gather(*gets))
            assert calls <= 2 * 10
            assert not node.pending_get_requests

    run_virtual(main)


def test_cache_and_its_renewal() -> None:
    async def main() -> None:
        async with dht_swarm(30) as swarm:
            key = DHTID.generate(source="key")
            far = max(swarm.nodes[1:], key=lambda node: node.node_id ^ key)
            begin = get_dht_time()
            assert await swarm.nodes[0].store("key", 1, begin + 30)
            assert key not in far.protocol.storage
            assert await far.get("key") == (1, begin + 30)
            assert far.protocol.cache.get(key) is not None
            assert await swarm.nodes[0].store("key", 2, begin + 300)
            assert not far.cache_refresh_queue
            assert await far.get("key") == (1, begin + 30), "the first live value, here its copy"
            assert far.cache_refresh_queue.top() == (key, (begin + 25, begin + 25))
            await asyncio.sleep(27)
            assert not far.cache_refresh_queue
            assert await far.get("key") == (2, begin + 300), "renewed before it expired, as it was in use"
            assert await far.get("key", latest=True) == (2, begin + 300)

    run_virtual(main)


def test_nothing_is_cached_where_it_shall_not() -> None:
    async def main() -> None:
        options = {"cache_locally": False, "cache_on_store": False, "cache_nearest": 0}
        async with dht_swarm(10, **options) as swarm:
            assert await swarm.nodes[0].store("key", 1, get_dht_time() + 60)
            for node in swarm.nodes:
                assert await node.get("key", latest=True) is not None
            assert not any(node.protocol.cache for node in swarm.nodes)

    run_virtual(main)


def test_everybody_is_met_in_a_small_swarm_and_not_in_a_large_one() -> None:
    async def main() -> None:
        async with dht_swarm(40) as swarm:
            await asyncio.sleep(5)
            known = [len(node.protocol.routing_table) for node in swarm.nodes]
            assert sum(known) > 0.95 * 40 * 39
            await swarm.grow(250)
            await asyncio.sleep(5)
            assert len(swarm.nodes[-1].protocol.routing_table) < 60

    run_virtual(main)


def test_what_nobody_has_can_be_remembered() -> None:
    async def main() -> None:
        async with dht_swarm(12) as swarm:
            node = await swarm.node(client_mode=True, cache_missing=20.0, cache_on_store=False)
            expiration = get_dht_time() + 600
            await asyncio.sleep(5)  # meanwhile it meets all others

            async def requests_of_get(key: str, **options: Any) -> tuple[int, Any]:
                before = node.stats().requests
                found = await node.get(key, **options)
                return node.stats().requests - before, found and found.value

            assert await requests_of_get("a") == (10, None)
            assert await requests_of_get("a") == (0, None)
            assert await swarm.nodes[3].store("a", 1, expiration)
            assert await requests_of_get("a") == (0, None), "nobody has told it"
            assert (await requests_of_get("a", latest=True))[1] == 1
            assert (await requests_of_get("a"))[1] == 1
            # what it stores itself is there at once, also where it keeps no copy
            assert await requests_of_get("b") == (10, None)
            assert await node.store("b", 2, expiration, subkey="s")
            assert (await requests_of_get("b"))[1] is not None
            # and it looks again in time
            assert await requests_of_get("c") == (10, None)
            assert await swarm.nodes[3].store("c", 3, expiration)
            await asyncio.sleep(21)
            assert (await requests_of_get("c"))[1] == 3
            # where nodes did not answer, one of them may have it
            nearest = min(swarm.nodes, key=lambda each: each.node_id ^ DHTID.generate(source="d"))
            with swarm.net.freeze(nearest.p2p):
                assert (await requests_of_get("d"))[1] is None
            assert (await requests_of_get("d"))[0] > 0

    run_virtual(main)


class OnlyNumbers(RecordValidatorBase):
    def validate(self, record: DHTRecord) -> bool:
        return record.value[:1].isascii()


def test_validators_of_nodes() -> None:
    async def main() -> None:
        async with dht_swarm(5, record_validator=CompositeValidator([OnlyNumbers()])) as swarm:
            careless = await swarm.node()
            expiration = get_dht_time() + 60
            assert not await swarm.nodes[0].store("key", "text", expiration), "refused here"
            assert not await careless.store("key", "text", expiration, exclude_self=True), "refused by the others"
            assert await careless.store("key", 5, expiration + 1)
            assert await swarm.nodes[0].get("key", latest=True) == (5, expiration + 1)

    run_virtual(main)


def test_batches() -> None:
    async def main() -> None:
        async with dht_swarm(8) as swarm:
            expiration = get_dht_time() + 60
            big = bytes(600_000)
            keys = [f"big {n}" for n in range(12)]
            stored = await swarm.nodes[0].store_many(keys, [big] * 12, expiration, exclude_self=True)
            assert all(stored.values())
            found = await swarm.nodes[1].get_many(keys, float("inf"))
            assert all(value == (big, expiration) for value in found.values()), "each answer fits one message"
            subkeys = await swarm.nodes[2].store_many(["a", "a", "b"], [1, 2, 3], expiration, ["x", "y", None])
            assert subkeys == {("a", "x"): True, ("a", "y"): True, "b": True}
            futures = await swarm.nodes[3].get_many(["a", "b", "c"], return_futures=True)
            assert (await futures["b"]) == (3, expiration)
            assert (await futures["c"]) is None
            assert (await futures["a"]).value == {"x": (1, expiration), "y": (2, expiration)}
            quick = await swarm.nodes[4].store_many(["q"], [1], expiration, await_all_replicas=False)
            assert quick == {"q": True}
            assert await swarm.nodes[4].store_many([], [], expiration) == {}

    run_virtual(main)


def test_wrong_arguments() -> None:
    async def main() -> None:
        async with dht_swarm(1) as swarm:
            node = swarm.nodes[0]
            with pytest.raises(SerializationError, match="object"):
                await node.store("key", object(), get_dht_time() + 60)
            with pytest.raises(SerializationError, match="subkey"):
                await node.store("key", 1, get_dht_time() + 60, subkey=["a", "list"])
            with pytest.raises(SerializationError, match="key"):
                await node.store(["a", "list"], 1, get_dht_time() + 60)
            with pytest.raises(ConfigError, match="expiration_time"):
                await node.store("key", 1, float("nan"))
            with pytest.raises(ConfigError, match="value"):
                await node.store("key", bytes(4_000_000), get_dht_time() + 60)
            with pytest.raises(ConfigError, match="values"):
                await node.store_many(["key"], [], get_dht_time() + 60)
            requests = node.stats().requests
            assert not await node.store("key", 1, get_dht_time() - 60)
            assert not await node.store("key", 1, 60), "a mistake: it is a point in time"
            assert node.stats().requests == requests
            with pytest.raises(ConfigError, match="host_maddrs"):
                await DHTNode.create(node.p2p, host_maddrs=[])
            await node.shutdown()
            with pytest.raises(RuntimeClosedError):
                await node.get("key")

    run_virtual(main)


def test_shutdown_in_the_midst_of_searches() -> None:
    async def main() -> None:
        async with dht_swarm(6) as swarm:
            swarm.net.delay(1.0)
            node = swarm.nodes[3]
            getting = asyncio.ensure_future(node.get("nothing", latest=True))
            await asyncio.sleep(0.5)
            await node.shutdown()
            with pytest.raises(RuntimeClosedError):
                await getting

    run_virtual(main)


def test_refresh_of_quiet_buckets() -> None:
    async def main() -> None:
        async with dht_swarm(6, refresh_timeout=10) as swarm:
            node = swarm.nodes[0]
            forgotten = swarm.nodes[5].node_id
            del node.protocol.routing_table[forgotten]
            await eventually(lambda: forgotten in node.protocol.routing_table, "found again", seconds=60)

    run_virtual(main)


def test_what_a_node_counts() -> None:
    async def main() -> None:
        async with dht_swarm(30, bucket_size=4) as swarm:
            node, expiration = swarm.nodes[7], get_dht_time() + 60
            before = node.stats()
            assert await node.store("key", 1, expiration)
            assert not await node.store("key", 2, expiration - 30)
            assert await node.get("key") == (1, expiration)
            assert await node.get("nothing", latest=True) is None
            after = node.stats()
            assert (after.stores - before.stores, after.stores_accepted - before.stores_accepted) == (2, 1)
            assert (after.gets - before.gets, after.gets_found - before.gets_found) == (2, 1)
            hits = after.local_hits - before.local_hits, after.cache_hits - before.cache_hits
            assert hits == ((1, 0) if DHTID.generate("key") in node.protocol.storage else (0, 1))
            assert after.lookups - before.lookups == 3
            assert 1 <= after.mean_hops <= 5
            assert after.requests - before.requests >= 3
            assert (after.failures, after.timeouts) == (before.failures, before.timeouts)
            with swarm.net.freeze(swarm.nodes[3].p2p):
                assert await node.protocol.call_ping(swarm.nodes[3].peer_id) is None
            after = node.stats()
            assert after.failures == after.timeouts == before.failures + 1
            assert after.known_nodes == len(node.protocol.routing_table)
            assert after.stored_keys == len(node.protocol.storage)
            served = sum(other.stats().served for other in swarm.nodes)
            asked = sum(other.stats().requests for other in swarm.nodes)
            assert served == asked - 1, "all but that to the frozen node"

    run_virtual(main)


def test_counts_are_told_to_prometheus() -> None:
    def value(family: str) -> int:
        return sum(int(line.split()[1]) for line in metrics_text().splitlines() if line.startswith(family + " "))

    async def main() -> None:
        async with dht_swarm(2) as swarm:
            before = value("hivemind_dht_gets_total")
            assert await swarm.nodes[0].get("nothing") is None
            assert await swarm.nodes[1].get("nothing") is None
            assert value("hivemind_dht_gets_total") == before + 2

    run_virtual(main)


def test_what_replicas_agree_on_is_checked_once() -> None:
    class Counting(RecordValidatorBase):
        checked = 0

        def validate(self, record: DHTRecord) -> bool:
            self.checked += 1
            return True

    async def main() -> None:
        async with dht_swarm(12) as swarm:
            expiration = get_dht_time() + 600
            for number in range(10):
                assert await swarm.nodes[0].store("key", number, expiration + number, subkey=number)
            validator = Counting()
            reader = await swarm.node(client_mode=True, record_validator=CompositeValidator([validator]))
            found = await reader.get("key", latest=True)
            assert found is not None
            assert {subkey: entry.value for subkey, entry in found.value.items()} == {n: n for n in range(10)}
            assert validator.checked <= 3 * 10, "two versions at the most, and what is pushed to the nearest"

    run_virtual(main)


def test_what_is_heard_after_the_end_does_nothing() -> None:
    """Calls that were under way fail when the node leaves: nobody inherits from the peers that they were for."""

    async def main() -> None:
        async with dht_swarm() as swarm:
            node, other = await swarm.node(), await swarm.node()
            assert await node.store("key", "value", get_dht_time() + 60)
            assert node.protocol.storage.data
            await node.shutdown()
            node.protocol.neighborhood.lost(other.peer_id)
            node.protocol.neighborhood.seen(DHTID.generate(), other.peer_id)
            assert not node.protocol.neighborhood.lost_peers

    run_virtual(main)
