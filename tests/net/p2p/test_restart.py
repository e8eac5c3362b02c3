"""A daemon that dies is started again where that is asked for: the same peer, reachable as before."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from hivemind.errors import DaemonDied, DeadlineExceeded, HivemindError, PeerUnreachable
from hivemind.p2p import P2P, Mode, PeerID, Stream
from hivemind.p2p.daemon import DaemonTransport
from hivemind.p2p.restarts import Restarts
from hivemind.p2p.transport import Buffer
from hivemind.proto import test_pb2
from tests.support.conformance import Hanging, echo, soon
from tests.support.processes import is_alive
from tests.support.service_contract import Numbers
from tests.support.waiting import PATIENCE, eventually

KEEP = {"restart": True, "startup_timeout": 60}


def daemon_of(p2p: P2P) -> int:
    child = p2p._child
    assert child is not None
    assert child.pid is not None
    return child.pid


def kill(p2p: P2P, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(daemon_of(p2p), number)


async def kill_noticed(p2p: P2P) -> None:
    """The daemon is dead, and its owner knows it: what is called from here on was not sent to it."""
    before = restarts_of(p2p)
    kill(p2p)
    line = p2p.transport._line  # type: ignore[attr-defined]
    await eventually(lambda: line._gap is not None or restarts_of(p2p) > before, "the death is noticed")


def restarts_of(p2p: P2P) -> int:
    assert isinstance(p2p.transport, DaemonTransport)
    return p2p.transport.restarts


async def call_until_answered(caller: P2P, callee: PeerID, name: str, request: bytes) -> Buffer:
    """Others notice by failing calls that a peer was away; they find it again by what they know of it."""
    answers: list[Buffer] = []

    async def answered() -> bool:
        try:
            answers.append(await caller.transport.call(callee, name, request, soon()))
        except HivemindError:
            return False
        return True

    await eventually(answered, f"{name} answers again")
    return answers[0]


async def ask_on(p2p: P2P) -> None:
    """Until an error comes."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await p2p.list_peers()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("hivemind"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="hivemind")
    return caplog


@pytest.mark.asyncio
async def test_the_same_peer_comes_back(log: pytest.LogCaptureFixture) -> None:
    async with await P2P.create(**KEEP) as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
        before = await alice.get_visible_maddrs()
        peer_id, path = alice.peer_id, alice.daemon_listen_maddr
        await alice.transport.listen_unary("echo", echo)
        await Numbers().add_p2p_handlers(alice)

        async def accept(stream: Stream) -> None:
            await stream.send(b"raw " + bytes(await stream.receive() or b""))

        await alice.transport.listen_stream("raw", Mode.RAW, accept)
        await alice.transport.listen_unary("gone", echo)
        await alice.transport.unlisten("gone")
        kill(alice)
        # waits for the daemon
        peers = await alice.list_peers()
        assert restarts_of(alice) == 1
        assert (alice.peer_id, alice.daemon_listen_maddr) == (peer_id, path)
        assert await alice.get_visible_maddrs() == before, "others know these addresses"
        assert bob.peer_id in {peer.peer_id for peer in peers}, "it was connected before"

        assert await call_until_answered(bob, peer_id, "echo", b"1") == b"1"
        stub = Numbers.get_stub(bob, peer_id)
        assert (await stub.rpc_square(test_pb2.TestRequest(number=3), timeout=PATIENCE)).number == 9
        stream = await bob.transport.open(peer_id, "raw", Mode.RAW, soon())
        await stream.send(b"bytes")
        assert bytes(await stream.receive() or b"") == b"raw bytes"
        with pytest.raises(HivemindError, match="protocol not supported"):
            await bob.transport.call(peer_id, "gone", b"", soon())
        # and the other way
        await bob.transport.listen_unary("echo", echo)
        assert await alice.transport.call(bob.peer_id, "echo", b"2", soon()) == b"2"
    warnings = [record.getMessage() for record in log.records if "the p2p daemon has died" in record.getMessage()]
    assert len(warnings) == 1, "one line a restart"
    assert "exit code -9, SIGKILL" in warnings[0]
    assert "restart 1 in 0.1 s" in warnings[0]


@pytest.mark.asyncio
async def test_bans_hold() -> None:
    async with await P2P.create(**KEEP) as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
        stranger = PeerID.from_base58("12D3KooWLKifE42tchWXuDRntRwJN85zKCKziLH4mp1iUyZhgiec")
        await alice.ban(bob.peer_id, seconds=1000)
        await alice.ban(stranger, seconds=1000)
        assert await alice.unban(stranger)
        kill(alice)
        bans = await alice.bans()
        assert restarts_of(alice) == 1
        assert list(bans) == [bob.peer_id]
        assert 900 < bans[bob.peer_id] < 1000


@pytest.mark.asyncio
async def test_a_ban_for_a_flood_holds() -> None:
    options = {**KEEP, "flood_limit": 1, "flood_ban_seconds": 1000.0}
    async with await P2P.create(**options) as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:

        async def dropped() -> bool:
            calls = (bob.transport.call(alice.peer_id, "unknown", b"", soon()) for _ in range(64))
            await asyncio.gather(*calls, return_exceptions=True)
            return bob.peer_id in await alice.bans()

        await eventually(dropped, "the flooder is dropped")
        kill(alice)
        bans = await alice.bans()
        assert restarts_of(alice) == 1
        assert list(bans) == [bob.peer_id]
        assert 900 < bans[bob.peer_id] < 1000


@pytest.mark.asyncio
async def test_calls_end_or_wait() -> None:
    """What was sent is not sent again; what was not waits."""
    async with await P2P.create(**KEEP) as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
        hanging = Hanging()
        counted: list[bytes] = []

        async def count(request: Buffer, remote: PeerID) -> Buffer:
            counted.append(bytes(request))
            return b"counted"

        await bob.transport.listen_unary("hang", hanging.unary)
        await bob.transport.listen_unary("count", count)
        there = Hanging()
        await alice.transport.listen_unary("hang", there.unary)
        sent = asyncio.ensure_future(alice.transport.call(bob.peer_id, "hang", b"", soon()))
        served = asyncio.ensure_future(bob.transport.call(alice.peer_id, "hang", b"", soon()))
        await hanging.entered.wait()
        await there.entered.wait()
        kill(alice)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(DaemonDied, match="it is being restarted") as caught:
                await sent
            assert caught.value.exit_code == -signal.SIGKILL
            with pytest.raises(HivemindError):
                await served
        await eventually(there.cancelled.is_set, "handlers of a dead daemon are cancelled")
        assert restarts_of(alice) == 0, "the call has not waited for the restart"
        await eventually(lambda: restarts_of(alice) == 1, "it runs again")
        await kill_noticed(alice)
        # none now: one waits for the daemon, the other has no time
        waiting = asyncio.ensure_future(alice.transport.call(bob.peer_id, "count", b"1", soon()))
        with pytest.raises(DeadlineExceeded, match="not sent"):
            await alice.call_protobuf_handler(
                bob.peer_id, "count", test_pb2.TestRequest(), test_pb2.TestResponse, timeout=0.001
            )
        assert await waiting == b"counted"
        assert counted == [b"1"]


@pytest.mark.asyncio
async def test_without_restart_the_next_call_tells() -> None:
    p2p = await P2P.create()
    child = p2p._child
    assert child is not None
    folder = child.control_path.parent
    # the Go runtime tells what it was doing and ends, as when it panics
    kill(p2p, signal.SIGABRT)
    with pytest.raises(DaemonDied) as caught:
        await ask_on(p2p)
    assert caught.value.exit_code == 2
    assert "exit code 2" in str(caught.value)
    assert "SIGABRT: abort" in str(caught.value)
    with pytest.raises(DaemonDied):
        await p2p.transport.call(p2p.peer_id, "name", b"", soon())
    assert not folder.exists()
    await p2p.shutdown()
    await p2p.shutdown()


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGABRT])
async def test_whatever_ends_it(number: signal.Signals) -> None:
    async with await P2P.create(**KEEP) as p2p:
        child = p2p._child
        assert child is not None
        for times in range(1, 3):
            kill(p2p, number)
            await eventually(lambda times=times: restarts_of(p2p) == times, "it runs again")
            assert child.control_path.exists()
        assert await p2p.get_visible_maddrs()
    assert not child.control_path.parent.exists()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "options",
    [
        {"no_listen": True},
        {"host_maddrs": ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"]},
        {"announce_maddrs": ["/ip4/203.0.113.5/tcp/4001"]},
        {"dht_mode": "client", "use_relay": False, "auto_nat": False},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_options_hold(options: dict[str, Any]) -> None:
    async with await P2P.create() as bob:
        await bob.transport.listen_unary("echo", echo)
        addresses = await bob.get_visible_maddrs()
        async with await P2P.create(initial_peers=addresses, **options, **KEEP) as alice:
            before = await alice.transport.addresses()
            await kill_noticed(alice)
            assert await alice.transport.call(bob.peer_id, "echo", b"1", soon()) == b"1"
            assert sorted(map(str, await alice.transport.addresses())) == sorted(map(str, before))


@pytest.mark.asyncio
async def test_an_identity_file(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    async with await P2P.create(identity_path=str(path), **KEEP) as p2p:
        peer_id = p2p.peer_id
        kill(p2p)
        await eventually(lambda: restarts_of(p2p) == 1, "it runs again")
        assert p2p.peer_id == peer_id


@pytest.mark.asyncio
async def test_a_port_that_another_has_taken(log: pytest.LogCaptureFixture) -> None:
    async with await P2P.create(**KEEP) as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
        await alice.transport.listen_unary("echo", echo)
        before = await alice.get_visible_maddrs()
        port = int(str(before[0].value_for_protocol("tcp")))
        kill(alice)

        def take() -> socket.socket | None:
            try:
                return socket.create_server(("127.0.0.1", port))
            except OSError:
                return None

        taken: list[socket.socket] = []
        await eventually(lambda: taken.extend(filter(None, [take()])) or taken, "the port is free")
        with taken[0]:
            after = await alice.get_visible_maddrs(latest=True)
        assert int(str(after[0].value_for_protocol("tcp"))) != port
        assert await call_until_answered(bob, alice.peer_id, "echo", b"1") == b"1"
    assert any("listens on free ports" in record.getMessage() for record in log.records)


@pytest.mark.asyncio
async def test_it_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with await P2P.create(**KEEP) as p2p:
        child = p2p._child
        assert child is not None
        assert isinstance(p2p.transport, DaemonTransport)
        p2p.transport._restarts = Restarts(first_pause=0.001, most=3)
        fake = tmp_path / "p2pd"
        fake.write_text("#!/bin/sh\necho no luck >&2; exit 7\n")
        fake.chmod(0o755)
        monkeypatch.setenv("HIVEMIND_P2PD", str(fake))
        kill(p2p)
        for _ in range(2):
            with pytest.raises(DaemonDied, match=r"(?s)given up after 3 restarts within 600 s.*no luck"):
                await p2p.list_peers()
        assert not child.control_path.parent.exists()


@pytest.mark.asyncio
async def test_shutdown_in_the_middle_of_a_restart() -> None:
    for pause in (0.0, 60.0):
        p2p = await P2P.create(**KEEP)
        child = p2p._child
        assert child is not None
        assert isinstance(p2p.transport, DaemonTransport)
        p2p.transport._restarts = Restarts(first_pause=pause, longest_pause=pause)
        kill(p2p)
        waiting = asyncio.ensure_future(p2p.list_peers())
        first = daemon_of(p2p)
        await eventually(lambda first=first: not is_alive(first), "the daemon is dead")
        async with asyncio.timeout(PATIENCE):
            await p2p.shutdown()
            await asyncio.wait({waiting})
        waiting.cancelled() or waiting.exception()
        assert child.pid is not None
        assert not is_alive(child.pid)
        assert not child.control_path.parent.exists()


@pytest.mark.asyncio
async def test_guests_return() -> None:
    async with (
        await P2P.create(**KEEP) as alice,
        await P2P.create(await alice.get_visible_maddrs()) as bob,
        await P2P.replicate(alice.daemon_listen_maddr) as twin,
    ):
        await twin.transport.listen_unary("twin", echo)
        await alice.transport.listen_unary("both", echo, balanced=True)
        await twin.transport.listen_unary("both", echo, balanced=True)
        kill(alice)
        assert await call_until_answered(bob, alice.peer_id, "twin", b"1") == b"1"
        assert await call_until_answered(bob, alice.peer_id, "both", b"1") == b"1"
        assert await bob.transport.call(alice.peer_id, "both", b"2", soon()) == b"2"
        # the daemon is asked to stop and takes leave of its guests
        kill(alice, signal.SIGTERM)
        await eventually(lambda: restarts_of(alice) == 2, "it runs again")
        assert await twin.list_peers() is not None
        assert await call_until_answered(bob, alice.peer_id, "twin", b"2") == b"2"


@pytest.mark.asyncio
async def test_a_swarm_that_has_lost_its_first_peer() -> None:
    """A daemon finds back through peers that came to it; none was given to it at its start."""
    async with await P2P.create(**KEEP) as first:
        async with await P2P.create(await first.get_visible_maddrs()) as second:
            await second.transport.listen_unary("echo", echo)
            transport = first.transport
            assert isinstance(transport, DaemonTransport)
            await eventually(lambda: transport._known, "the daemon has told who is there")
            await kill_noticed(first)
            answer = await first.transport.call(second.peer_id, "echo", b"1", soon())
            assert answer == b"1"
        await kill_noticed(first)
        with pytest.raises(PeerUnreachable):
            await first.transport.call(second.peer_id, "echo", b"1", soon())
