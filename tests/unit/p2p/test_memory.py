"""The in-memory network: faults by name, on simulated time, the same in every run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hivemind.errors import (
    ConfigError,
    DaemonDied,
    DeadlineExceeded,
    DispatchFailure,
    P2PDaemonError,
    PeerUnreachable,
    StreamReset,
)
from hivemind.p2p import P2P, MemoryNetwork, Mode
from hivemind.virtual_clock import VirtualDeadlock, run_virtual
from tests.support.conformance import Hanging, echo, echo_stream, soon, until_end

Scenario = Callable[[MemoryNetwork, P2P, P2P], Coroutine[Any, Any, None]]


def simulate(scenario: Scenario, *, seed: int = 0) -> float:
    """Run a scenario with two peers that echo; how long it took on the virtual clock."""

    async def main() -> float:
        network = MemoryNetwork(seed)
        alice, bob = await network.create_p2p(), await network.create_p2p()
        for peer in (alice, bob):
            await peer.transport.listen_unary("echo", echo)
            await peer.transport.listen_stream("stream", Mode.MESSAGES, echo_stream)
        start = now()
        await scenario(network, alice, bob)
        took = now() - start
        await alice.shutdown()
        await bob.shutdown()
        return took

    return run_virtual(main)


def now() -> float:
    return asyncio.get_running_loop().time()


async def call(caller: P2P, callee: P2P, request: bytes = b"x", seconds: float = 100.0) -> bytes:
    return bytes(await caller.transport.call(callee.peer_id, "echo", request, soon(seconds)))


def test_without_faults_nothing_takes_time() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        for _ in range(100):
            assert await call(bob, alice) == b"x"

    assert simulate(scenario) == 0.0


def test_delay_is_each_way_and_faults_add_up() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        with network.delay(0.5), network.delay(0.25, between=(alice, bob)):
            await call(bob, alice)
        await call(bob, alice)
        other = await network.create_p2p()
        await other.transport.listen_unary("echo", echo)
        with network.delay(1.0, between=(alice, bob)):
            await call(bob, other)
        await other.shutdown()

    assert simulate(scenario) == pytest.approx(1.5)


def test_messages_of_a_stream_travel_at_the_same_time_and_in_order() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        with network.delay(1.0, jitter=0.5):
            stream = await bob.transport.open(alice.peer_id, "stream", Mode.MESSAGES, soon())
            sent = [str(number).encode() for number in range(50)]
            for message in sent:
                await stream.send(message)
            await stream.finish()
            assert await until_end(stream) == sent

    # opening, there, back: each one delay with its jitter
    assert 3.0 <= simulate(scenario) <= 4.5


def test_bandwidth_is_per_direction_and_pair() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        with network.bandwidth(1000):
            await call(bob, alice, bytes(2000))

    assert simulate(scenario) == pytest.approx(4.0)

    async def two_at_once(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        with network.bandwidth(1000):
            async with asyncio.TaskGroup() as group:
                for _ in range(2):
                    group.create_task(call(bob, alice, bytes(2000)))

    # the requests share the line: 2 s and 4 s; the first answer travels while the second request still does
    assert simulate(two_at_once) == pytest.approx(6.0)


def test_a_partition_holds_up_what_is_sent_until_it_heals() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        stream = await bob.transport.open(alice.peer_id, "stream", Mode.MESSAGES, soon())
        await stream.send(b"before")
        assert await stream.receive() == b"before"
        cut = network.partition(alice, bob)
        await stream.send(b"during")
        async with asyncio.TaskGroup() as group:
            received = group.create_task(stream.receive())
            called = group.create_task(call(bob, alice))
            await asyncio.sleep(5)
            assert not received.done()
            assert not called.done()
            cut.heal()
            cut.heal()
        assert received.result() == b"during"
        assert called.result() == b"x"
        stream.reset()

    assert simulate(scenario) == pytest.approx(5.0)


def test_a_partition_ends_in_deadlines_and_dial_timeouts() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        with network.partition([alice], [bob]):
            with pytest.raises(DeadlineExceeded):
                await call(bob, alice, seconds=2.0)
            with pytest.raises(PeerUnreachable, match="timed out"):
                await call(bob, alice)

    assert simulate(scenario) == pytest.approx(17.0)


def test_a_long_partition_breaks_connections() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        hanging = Hanging()
        await alice.transport.listen_stream("hang", Mode.MESSAGES, hanging.stream)
        stream = await bob.transport.open(alice.peer_id, "hang", Mode.MESSAGES, soon())
        with network.partition(alice):
            with pytest.raises(StreamReset):
                await stream.receive()
            await hanging.cancelled.wait()
        assert await call(bob, alice) == b"x"

    assert simulate(scenario) == pytest.approx(30.0)


def test_a_partition_of_one_side_from_all_others() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        friend, stranger = await network.create_p2p(), await network.create_p2p()
        for peer in (friend, stranger):
            await peer.transport.listen_unary("echo", echo)
        with network.partition([alice, friend]):
            await call(alice, friend)
            await call(bob, stranger)
            with pytest.raises(DeadlineExceeded):
                await call(stranger, friend, seconds=1)
        await call(stranger, friend)
        await friend.shutdown()
        await stranger.shutdown()

    simulate(scenario)


def test_cancelling_through_a_partition_arrives_later() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        hanging = Hanging()
        await alice.transport.listen_unary("hang", hanging.unary)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(bob.transport.call(alice.peer_id, "hang", b"", soon()))
            await hanging.entered.wait()
            cut = network.partition(alice, bob)
            task.cancel()
        await asyncio.sleep(3)
        assert not hanging.cancelled.is_set()
        cut.heal()
        await hanging.cancelled.wait()

    assert simulate(scenario) == pytest.approx(3.0)


def test_a_frozen_peer_keeps_its_connections() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        await call(bob, alice)
        with network.freeze(alice), pytest.raises(DeadlineExceeded):
            await call(bob, alice, seconds=1)
        assert await call(bob, alice) == b"x"
        assert [info.peer_id for info in await bob.list_peers()] == [alice.peer_id]

    simulate(scenario)


def test_a_killed_peer_is_gone_at_once() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        here, there = Hanging(), Hanging()
        await alice.transport.listen_unary("hang", there.unary)
        await bob.transport.listen_unary("hang", here.unary)
        stream = await bob.transport.open(alice.peer_id, "stream", Mode.MESSAGES, soon())

        async def failing(awaitable: Any, kind: type[Exception]) -> None:
            with pytest.raises(kind):
                await awaitable

        async with asyncio.TaskGroup() as group:
            group.create_task(failing(bob.transport.call(alice.peer_id, "hang", b"", soon()), StreamReset))
            group.create_task(failing(alice.transport.call(bob.peer_id, "hang", b"", soon()), DispatchFailure))
            group.create_task(failing(stream.receive(), StreamReset))
            await here.entered.wait()
            await there.entered.wait()
            network.kill(alice)
            network.kill(alice)
        await here.cancelled.wait()
        await there.cancelled.wait()
        with pytest.raises(PeerUnreachable):
            await call(bob, alice)
        with pytest.raises(DaemonDied):
            await alice.list_peers()
        assert network.peers == [bob.peer_id]
        assert await bob.list_peers() == []
        # it comes back under its id, as after a restart
        again = await network.create_p2p(peer_id=alice.peer_id)
        await again.transport.listen_unary("echo", echo)
        assert await call(bob, again) == b"x"
        await again.shutdown()

    assert simulate(scenario) == 0.0


def test_losses_break_calls_and_streams_and_are_the_same_in_every_run() -> None:
    results: list[list[int]] = []

    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        lost = []
        with network.drop(0.2):
            for number in range(200):
                try:
                    await call(bob, alice)
                except StreamReset:
                    lost.append(number)
            stream = await bob.transport.open(alice.peer_id, "stream", Mode.MESSAGES, soon())

            async def send_for_ever() -> None:
                while True:
                    await stream.send(b"x")
                    await stream.receive()

            with pytest.raises(StreamReset):
                await send_for_ever()
        results.append(lost)

    simulate(scenario, seed=3)
    simulate(scenario, seed=3)
    simulate(scenario, seed=4)
    assert results[0] == results[1] != results[2]
    # 1 - 0.8 ** 2 of 200 calls
    assert 40 <= len(results[0]) <= 104


def test_ids_are_the_same_in_every_run() -> None:
    async def main() -> list[str]:
        network = MemoryNetwork(seed=1)
        peers = [await network.create_p2p() for _ in range(3)]
        ids = [str(peer.peer_id) for peer in peers]
        for peer in peers:
            await peer.shutdown()
        return ids

    assert run_virtual(main) == run_virtual(main)


def test_initial_peers_must_answer() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        alice = await network.create_p2p()
        addresses = await alice.get_visible_maddrs()
        bob = await network.create_p2p(addresses)
        assert [info.peer_id for info in await bob.list_peers()] == [alice.peer_id]
        await alice.shutdown()
        with pytest.raises(P2PDaemonError, match="failed to connect to bootstrap peers"):
            await network.create_p2p(addresses)
        await bob.shutdown()

    run_virtual(main)


def test_waiting_for_nothing_is_an_error() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        stream = await bob.transport.open(alice.peer_id, "stream", Mode.MESSAGES, soon())
        await stream.receive()

    with pytest.raises(VirtualDeadlock):
        simulate(scenario)


@pytest.mark.parametrize(
    "make",
    [
        lambda network: network.delay(-1),
        lambda network: network.delay(1, jitter=-1),
        lambda network: network.drop(1.5),
        lambda network: network.bandwidth(0),
        lambda network: network.bandwidth(float("nan")),
    ],
)
def test_wrong_faults(make: Callable[[MemoryNetwork], object]) -> None:
    with pytest.raises(ConfigError):
        make(MemoryNetwork())


def test_a_shared_memory_peer_has_no_daemon() -> None:
    async def scenario(network: MemoryNetwork, alice: P2P, bob: P2P) -> None:
        with pytest.raises(P2PDaemonError, match="no daemon"):
            _ = alice.daemon_listen_maddr

    simulate(scenario)


def test_a_thousand_peers() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        peers = [await network.create_p2p() for _ in range(1000)]
        for peer in peers:
            await peer.transport.listen_unary("echo", echo)
        with network.delay(0.01, jitter=0.01):
            async with asyncio.TaskGroup() as group:
                for peer, neighbour in zip(peers, peers[1:] + peers[:1], strict=True):
                    group.create_task(call(peer, neighbour))
        for peer in peers:
            await peer.shutdown()

    run_virtual(main)
