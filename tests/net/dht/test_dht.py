"""`DHT` with real daemons on loopback."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hivemind.clock import get_dht_time
from hivemind.dht import DHT, Change, DHTNode, RSAPrivateKey, RSASignatureValidator
from hivemind.errors import ConfigError, DaemonDied, DeadlineExceeded, HivemindError, P2PDaemonError, RuntimeClosedError
from hivemind.p2p import P2P
from hivemind.runtime import get_runtime
from tests.support.waiting import PATIENCE, eventually_sync

#: nothing beyond this machine
LOCAL = {"auto_nat": False, "nat_port_map": False}


@pytest.fixture
def swarm() -> Iterator[list[DHT]]:
    """Five DHTs that know each other; the last is in client mode."""
    with ExitStack() as stack:
        dhts = [stack.enter_context(DHT(start=True, **LOCAL))]
        address = dhts[0].get_visible_maddrs()
        for number in range(1, 5):
            dht = DHT(initial_peers=address, start=True, await_ready=False, client_mode=number == 4, **LOCAL)
            dhts.append(stack.enter_context(dht))
        for dht in dhts:
            dht.wait_until_ready(PATIENCE)
        yield dhts


def test_values_and_dictionaries(swarm: list[DHT]) -> None:
    expiration = get_dht_time() + 120
    value = {"text": [1, 2.5, None, True], "pair": (1, b"bytes")}
    for number, dht in enumerate(swarm):
        assert dht.store(f"key {number}", value, expiration)
        assert dht.store("all", number, expiration + number, subkey=f"peer {number}")
    for dht in swarm:
        for number in range(5):
            assert dht.get(f"key {number}") == (value, expiration)
        found = dht.get("all", latest=True)
        assert found is not None
        assert found.expiration_time == expiration + 4
        assert {subkey: entry.value for subkey, entry in found.value.items()} == {f"peer {n}": n for n in range(5)}
        assert dht.get("nothing", latest=True) is None
    assert not swarm[0].store("key 1", "older", expiration - 1)
    assert swarm[0].store("key 1", "newer", expiration + 1)
    assert swarm[3].get("key 1", latest=True) == ("newer", expiration + 1)
    # those who hold the records may go
    swarm[0].shutdown()
    assert swarm[2].get("all", latest=True) is not None


def test_who_a_dht_is(swarm: list[DHT]) -> None:
    assert len({dht.peer_id for dht in swarm}) == 5
    for dht in swarm:
        assert dht.is_alive()
        assert dht.node.peer_id == dht.peer_id
        assert all(str(address).endswith(f"/p2p/{dht.peer_id}") for address in dht.get_visible_maddrs(latest=True))
    assert [dht.client_mode for dht in swarm] == [False] * 4 + [True]
    assert swarm[0].get_visible_maddrs()[0].value_for_protocol("ip4") == "127.0.0.1"
    assert not swarm[4].node.protocol.storage
    assert all(swarm[4].peer_id not in dht.node.protocol.routing_table for dht in swarm)


def test_futures(swarm: list[DHT]) -> None:
    expiration = get_dht_time() + 60
    stored = [swarm[n % 5].store(f"key {n}", n, expiration, return_future=True) for n in range(40)]
    assert all(future.result(PATIENCE) for future in stored)
    found = [swarm[(n + 1) % 5].get(f"key {n}", return_future=True) for n in range(40)]

    async def gather() -> list[object]:
        return [await future for future in found]

    assert asyncio.run(gather()) == [(n, expiration) for n in range(40)]


def test_many_threads_at_once(swarm: list[DHT]) -> None:
    expiration = get_dht_time() + 60

    def work(number: int) -> bool:
        dht = swarm[number % 5]
        ok = all(dht.store(f"key {number}", i, expiration + i, subkey=i) for i in range(5))
        found = dht.get(f"key {number}", latest=True)
        return ok and found is not None and {k: v.value for k, v in found.value.items()} == {i: i for i in range(5)}

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(32), timeout=PATIENCE))


async def double(dht: DHT, node: DHTNode) -> tuple[bool, int]:
    await node.store("by coroutine", 21, get_dht_time() + 60)
    found = await node.get("by coroutine")
    assert found is not None
    dht.note = "left behind"  # type: ignore[attr-defined]
    return dht.node is node, 2 * found.value


async def fail(dht: DHT, node: DHTNode) -> None:
    raise ZeroDivisionError("as told")


async def use_blocking_face(dht: DHT, node: DHTNode) -> object:
    return dht.get("key")


async def leave(dht: DHT, node: DHTNode) -> None:
    raise SystemExit(1)


def test_run_coroutine(swarm: list[DHT]) -> None:
    dht = swarm[1]
    assert dht.run_coroutine(double) == (True, 42)
    assert dht.note == "left behind"  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError, match="as told"):
        dht.run_coroutine(fail)
    with pytest.raises(RuntimeClosedError, match="wait for itself"):
        dht.run_coroutine(use_blocking_face)
    with pytest.raises(HivemindError, match="end the process: SystemExit"):
        dht.run_coroutine(leave)
    assert dht.get("by coroutine") is not None, "the node has taken no harm"


def test_run_coroutine_can_be_cancelled(swarm: list[DHT]) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def wait(dht: DHT, node: DHTNode) -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    future = swarm[0].run_coroutine(wait, return_future=True)
    assert begun.wait(PATIENCE)
    future.cancel()
    assert ended.wait(PATIENCE)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(PATIENCE)


def test_signed_records(swarm: list[DHT]) -> None:
    ours, theirs = RSASignatureValidator(RSAPrivateKey()), RSASignatureValidator(RSAPrivateKey())
    swarm[0].add_validators([ours])
    swarm[1].add_validators([theirs])
    expiration = get_dht_time() + 60
    owned = ours.local_public_key
    assert swarm[0].store("key", 1, expiration, subkey=owned)
    assert not swarm[1].store("key", 2, expiration + 1, subkey=owned), "not its owner"
    assert swarm[1].store("key", 3, expiration, subkey=theirs.local_public_key)
    for dht in swarm[:2]:
        found = dht.get("key", latest=True)
        assert found is not None
        assert {subkey: entry.value for subkey, entry in found.value.items()} == {
            owned: 1,
            theirs.local_public_key: 3,
        }


def test_a_peer_can_be_shared(swarm: list[DHT]) -> None:
    """Two DHTs on one daemon would answer to one name: only a client can stand on another's peer."""
    with DHT(p2p=swarm[4].p2p, initial_peers=swarm[0].get_visible_maddrs(), start=True) as guest:
        assert guest.peer_id == swarm[4].peer_id
        assert guest.store("key", 1, get_dht_time() + 60)
        with pytest.raises(P2PDaemonError):
            DHT(p2p=swarm[4].p2p, start=True)
    assert swarm[4].get("key") is not None, "the owner lives on"


def test_replica_for_another_loop(swarm: list[DHT]) -> None:
    async def main() -> None:
        p2p = await swarm[0].replicate_p2p()
        assert await swarm[0].replicate_p2p() is p2p
        assert p2p.peer_id == swarm[0].peer_id
        assert swarm[0].peer_id not in [info.peer_id for info in await p2p.list_peers()]
        await p2p.shutdown()

    asyncio.run(main())
    assert swarm[0].is_alive()

    async def own(dht: DHT, node: DHTNode) -> P2P:
        return await dht.replicate_p2p()

    assert swarm[0].run_coroutine(own) is swarm[0].p2p
    assert swarm[0].store("key", 1, get_dht_time() + 60)


def test_a_forked_child_is_told(swarm: list[DHT]) -> None:
    """The network thread is not there in a child: no hang, one clear error; the parent's DHT is left as it is."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later advise against what is tested
        child = os.fork()
    if child == 0:
        try:
            swarm[0].shutdown()
            swarm[1].get("key")
        except RuntimeClosedError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        assert "forked child" in told.read()
    os.waitpid(child, 0)
    assert swarm[0].store("key", 1, get_dht_time() + 60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_answers_at_an_address() -> None:
    address = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/12D3KooWDLXAnf92spivnVheW2jr1DtRKfd5AGGgDT3XTG3BRnqi"
    with pytest.raises(P2PDaemonError, match="failed to connect to bootstrap peers") as caught:
        DHT(initial_peers=[address], start=True, **LOCAL)
    text = str(caught.value)
    assert address.split("/")[4] in text
    assert "refused" in text
    assert not get_runtime().running, "nothing is left"


def test_a_peer_without_a_dht_is_no_initial_peer() -> None:
    async def only_a_peer(ready: concurrent.futures.Future[list[str]], end: asyncio.Event) -> None:
        async with await P2P.create(**LOCAL) as p2p:
            ready.set_result([str(address) for address in await p2p.get_visible_maddrs()])
            await end.wait()

    runtime = get_runtime()
    runtime.acquire()
    try:
        ready: concurrent.futures.Future[list[str]] = concurrent.futures.Future()
        end = asyncio.Event()
        peer = runtime.submit(only_a_peer, ready, end)
        addresses = ready.result(PATIENCE)
        with pytest.raises(RuntimeError, match=r"failed to connect to bootstrap peers.*protocol not supported"):
            DHT(initial_peers=addresses, start=True, **LOCAL)
        runtime.loop.call_soon_threadsafe(end.set)
        peer.result(PATIENCE)
    finally:
        runtime.release()


def test_life_and_death() -> None:
    dht = DHT(start=False, **LOCAL)
    dht.run_in_background(await_ready=False)
    with pytest.raises(RuntimeClosedError, match="before"):
        dht.run_in_background()
    dht.wait_until_ready(PATIENCE)
    lone = get_dht_time() + 60
    assert dht.store("key", 1, lone), "a swarm of one"
    assert dht.get("key", latest=True) == (1, lone)
    began = time.perf_counter()
    dht.shutdown()
    assert time.perf_counter() - began < 5
    dht.shutdown()
    assert not dht.is_alive()
    with pytest.raises(RuntimeClosedError, match="shut down"):
        dht.get("key")
    assert not get_runtime().running


def test_shutdown_during_the_start() -> None:
    dht = DHT(start=True, await_ready=False, **LOCAL)
    dht.shutdown()
    assert not dht.is_alive()
    with DHT(start=True, await_ready=False, **LOCAL) as other:
        assert other.is_alive()
        assert other.node.peer_id == other.peer_id, "asking for the node waits for it"
        with pytest.raises(ConfigError, match="seconds"):
            other.wait_until_ready(-1)


def test_it_is_started_and_joined_like_a_process() -> None:
    dht = DHT(start=False, **LOCAL)
    with pytest.raises(RuntimeClosedError, match="not started"):
        dht.join()
    assert dht.name == "DHT"
    dht.start()
    dht.wait_until_ready(PATIENCE)
    dht.join(timeout=0)
    assert dht.is_alive()
    joined = threading.Thread(target=dht.join)
    joined.start()
    dht.shutdown()
    joined.join(PATIENCE)
    assert not joined.is_alive()
    dht.join()


def test_a_start_that_takes_too_long_is_given_up() -> None:
    dht = DHT(start=False, **LOCAL)
    with pytest.raises(concurrent.futures.TimeoutError):
        dht.run_in_background(timeout=0)
    assert not dht.is_alive()


def test_the_daemon_dies_for_good(swarm: list[DHT]) -> None:
    """The others go on; this one says what has happened."""
    with DHT(initial_peers=swarm[0].get_visible_maddrs(), start=True, restart=False, **LOCAL) as mortal:
        child = mortal.p2p._child
        assert child is not None
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        eventually_sync(lambda: not _stores(mortal), "the loss is noticed")
        with pytest.raises(DaemonDied):
            mortal.get("key", latest=True)
        assert swarm[2].store("key", 1, get_dht_time() + 60)
        assert swarm[0].get("key", latest=True) is not None


def _stores(dht: DHT) -> bool:
    try:
        return dht.store("key", 0, get_dht_time() + 1)
    except DaemonDied:
        return False


def test_watching_from_threads_and_loops() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(DHT(start=True, **LOCAL))
        second = stack.enter_context(DHT(initial_peers=first.get_visible_maddrs(), start=True, **LOCAL))
        now = get_dht_time()
        with second.watch("key", interval=0.2) as watch:
            with pytest.raises(DeadlineExceeded):
                watch.next_change(timeout=0.5)
            assert first.store("key", 1, now + 60, subkey="a")
            assert watch.next_change(timeout=10) == Change("added", "a", 1, now + 60)
            assert first.store("key", 2, now + 70, subkey="a")
            assert next(watch) == Change("updated", "a", 2, now + 70)

            async def from_another_loop() -> Change:
                assert first.store("key", 3, now + 80, subkey="b")
                async with asyncio.timeout(10):
                    return await anext(watch)

            assert asyncio.run(from_another_loop()) == Change("added", "b", 3, now + 80)
        assert list(watch) == []
        left = second.watch("key")
        assert next(left).kind == "added"
        with pytest.raises(ConfigError, match="interval"):
            second.watch("key", interval=-1)
    assert list(left) == [], "it has ended with its DHT"
    left.close()


def test_peers_meet_through_the_ipfs_network() -> None:
    """A peer of this machine stands for that network: nothing leaves it."""
    with DHT(start=True) as world:
        ipfs = [str(each) for each in world.get_visible_maddrs()]
        with DHT(start=True, use_ipfs=ipfs) as one, DHT([f"/p2p/{one.peer_id}"], start=True, use_ipfs=ipfs) as two:
            assert two.store("key", "value", get_dht_time() + 60)
            assert one.get("key", latest=True).value == "value"  # type: ignore[union-attr]
            # it is a network of addresses: its peers are none of this DHT
            assert world.get("key", latest=True) is None
