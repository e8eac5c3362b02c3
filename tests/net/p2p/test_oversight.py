"""What a peer sees of others, and does about them: counters, pings, bans."""

from __future__ import annotations

import asyncio
import http.client
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hivemind.errors import ConfigError, DispatchFailure, HandlerBusy, P2PDaemonError, P2PHandlerError, PeerUnreachable
from hivemind.p2p import P2P, MemoryNetwork, Mode
from hivemind.proto import test_pb2
from tests.support.conformance import STRANGER, echo, soon
from tests.support.service_contract import Numbers, Pair
from tests.support.waiting import eventually


@pytest.mark.asyncio
async def test_calls_are_counted_on_both_sides(pair: Pair) -> None:
    alice, bob = pair
    await Numbers().add_p2p_handlers(alice)
    stub = Numbers.get_stub(bob, alice.peer_id)
    for number in (1, 2):
        await stub.rpc_square(test_pb2.TestRequest(number=number), timeout=30)
    with pytest.raises(P2PHandlerError, match="negative"):
        await stub.rpc_square(test_pb2.TestRequest(number=-1), timeout=30)
    assert [answer.number async for answer in await stub.rpc_count(test_pb2.TestRequest(number=2))] == [0, 1]
    with pytest.raises(DispatchFailure):
        await bob.transport.call(alice.peer_id, "Nobody.rpc_x", b"", soon())

    here, there = await bob.metrics(), await alice.metrics()
    squares = here.protocols["Numbers.rpc_square"].outgoing
    assert (squares.calls, squares.in_flight, squares.finished, squares.errors) == (3, 0, 3, {"handler": 1})
    assert 0 < squares.quantile(0.5) <= squares.longest <= squares.seconds
    assert squares.bytes_sent > 0
    assert there.protocols["Numbers.rpc_square"].incoming.calls == 3
    assert here.protocols["Numbers.rpc_count"].outgoing.errors == {}
    assert here.protocols["Nobody.rpc_x"].outgoing.errors == {"not_supported": 1}

    peer = here.peers[alice.peer_id]
    assert (peer.outgoing.calls, peer.outgoing.failed, peer.connection, peer.slowed) == (5, 2, "direct", False)
    assert peer.connects >= 1
    assert there.peers[bob.peer_id].incoming.calls == 4
    assert there.peers[bob.peer_id].outgoing.calls == 0
    assert (here.other_peers.peer_id, here.other_protocols.outgoing.calls) == (None, 0)
    # those of hivemind 1.1's kind are as they were
    stats = await bob.stats()
    assert all(type(value) is int for value in stats.values())
    assert (stats["unary_out"], stats["streams_out"]) == (4, 1)


@pytest.mark.asyncio
async def test_busy_handlers_are_no_failing_ones(pair: Pair) -> None:
    alice, bob = pair
    await Numbers().add_p2p_handlers(alice)
    stub = Numbers.get_stub(bob, alice.peer_id)
    with pytest.raises(HandlerBusy):
        await stub.rpc_busy(test_pb2.TestRequest(number=1), timeout=30)
    with pytest.raises(HandlerBusy):
        async for _ in await stub.rpc_count_busily(test_pb2.TestRequest(number=1)):
            pass
    here, there = await bob.metrics(), await alice.metrics()
    for name in ("Numbers.rpc_busy", "Numbers.rpc_count_busily"):
        assert here.protocols[name].outgoing.errors == there.protocols[name].incoming.errors == {"busy": 1}


@pytest.mark.asyncio
async def test_bytes_of_a_message(pair: Pair) -> None:
    alice, bob = pair
    await alice.transport.listen_unary("echo", echo)
    await bob.transport.call(alice.peer_id, "echo", bytes(1_000_000), soon())
    calls = (await bob.metrics()).protocols["echo"].outgoing
    for count in (calls.bytes_sent, calls.bytes_received):
        assert 1_000_000 < count < 1_000_300


@pytest.mark.asyncio
async def test_ping(pair: Pair) -> None:
    alice, bob = pair
    assert 0 < await bob.ping(alice.peer_id) < 15
    with pytest.raises(PeerUnreachable):
        await bob.ping(STRANGER, timeout=15)
    with pytest.raises(PeerUnreachable, match="self"):
        await bob.ping(bob.peer_id)


@pytest.mark.asyncio
async def test_a_banned_peer_is_refused_until_it_is_let_in(pair: Pair) -> None:
    alice, bob = pair
    await alice.transport.listen_unary("echo", echo)
    await bob.transport.listen_unary("echo", echo)
    assert await bob.transport.call(alice.peer_id, "echo", b"1", soon()) == b"1"
    await alice.ban(bob.peer_id, 3600)
    assert 3500 < (await alice.bans())[bob.peer_id] <= 3600
    with pytest.raises(DispatchFailure):
        await bob.transport.call(alice.peer_id, "echo", b"2", soon())
    with pytest.raises(PeerUnreachable, match="banned by this peer"):
        await alice.transport.call(bob.peer_id, "echo", b"3", soon())
    assert (await alice.metrics()).peers[bob.peer_id].connection is None

    assert await alice.unban(bob.peer_id)
    assert not await alice.unban(bob.peer_id)
    assert await alice.bans() == {}
    await bob.connect(alice.peer_id, await alice.get_visible_maddrs())
    assert await bob.transport.call(alice.peer_id, "echo", b"4", soon()) == b"4"
    with pytest.raises(ConfigError, match="seconds"):
        await alice.ban(bob.peer_id, 0)


@pytest.mark.asyncio
async def test_a_ban_ends(pair: Pair) -> None:
    alice, bob = pair
    await alice.ban(bob.peer_id, 0.2)
    addresses = await alice.get_visible_maddrs()

    async def let_in() -> bool:
        try:
            await bob.connect(alice.peer_id, addresses)
        except DispatchFailure:
            return False
        return any(peer.peer_id == bob.peer_id for peer in await alice.list_peers())

    await eventually(let_in, "the ban has ended")
    assert await alice.bans() == {}


@pytest.mark.asyncio
async def test_a_peer_without_a_daemon_says_so() -> None:
    network = MemoryNetwork()
    p2p = await network.create_p2p()
    for call in (p2p.metrics(), p2p.ping(STRANGER), p2p.ban(STRANGER, 1), p2p.unban(STRANGER), p2p.bans()):
        with pytest.raises(P2PDaemonError, match="daemon"):
            await call
    await p2p.shutdown()


def fetch(address: str, path: str) -> tuple[int, str]:
    """What the daemon serves there; ``address`` as `P2P.metrics_address` has it."""
    if address.startswith("unix:"):
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(address.removeprefix("unix:"))
    else:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


@pytest.mark.asyncio
async def test_prometheus_text_of_the_daemon() -> None:
    async with await P2P.create(metrics="127.0.0.1:0", pprof=True, relay_service=True) as alice:
        address = alice.metrics_address
        assert address is not None
        async with await P2P.create(await alice.get_visible_maddrs()) as bob:
            assert bob.metrics_address is None
            await alice.transport.listen_unary("echo", echo)
            await bob.transport.call(alice.peer_id, "echo", b"1", soon())
            with pytest.raises(DispatchFailure):
                await (await bob.transport.open(alice.peer_id, "nothing", Mode.MESSAGES, soon())).receive()

            text = ""

            async def counted() -> bool:
                nonlocal text
                text = (await asyncio.to_thread(fetch, address, "/metrics"))[1]
                return "hivemind_p2p_unknown_protocol_streams_total 1" in text

            await eventually(counted, "the unknown protocol is counted")
        for line in (
            'hivemind_p2p_calls_total{direction="in",protocol="echo"} 1',
            'hivemind_p2p_calls_in_flight{direction="in",protocol="echo"} 0',
            'hivemind_p2p_call_seconds_count{direction="in",protocol="echo"} 1',
            'hivemind_p2p_call_bytes_total{direction="in",protocol="echo",way="received"} ',
            'hivemind_p2p_peers{connection="direct"} 1',
            'hivemind_p2p_refused_total{reason="unknown_protocol"} 1',
            "hivemind_p2p_peers_banned 0",
            "hivemind_p2p_client_queue_bytes 0",
            'hivemind_p2p_reachability{verdict="',
        ):
            assert line in text
        for family in ("swarm", "rcmgr", "identify", "relaysvc", "eventbus"):
            assert f"libp2p_{family}_" in text, family
        assert "go_goroutines" in text
        status, profile = await asyncio.to_thread(fetch, address, "/debug/pprof/heap?debug=1")
        assert (status, profile[:5]) == (200, "heap ")

        replica = await P2P.replicate(alice.daemon_listen_maddr)
        assert replica.metrics_address == address
        await replica.shutdown()


@pytest.mark.asyncio
async def test_metrics_at_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    async with await P2P.create(metrics=f"unix:{path}") as p2p:
        assert p2p.metrics_address == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        status, text = await asyncio.to_thread(fetch, p2p.metrics_address, "/metrics")
        assert status == 200
        assert "hivemind_p2p_clients 1" in text
        # profiles are an option of their own
        assert (await asyncio.to_thread(fetch, p2p.metrics_address, "/debug/pprof/"))[0] == 404
    await eventually(lambda: not path.exists(), "the socket is removed")


@pytest.mark.asyncio
async def test_a_metrics_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(P2PDaemonError, match="metrics_listen"):
            await P2P.create(metrics=f"127.0.0.1:{taken.getsockname()[1]}")
