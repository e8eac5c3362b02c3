"""The daemon lives exactly as long as its owner, however that ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from hivemind.errors import ControlFailure, DaemonDied, DaemonStartError, HivemindError, P2PDaemonError
from hivemind.p2p import P2P
from hivemind.proto import test_pb2
from tests.support.conformance import Hanging, echo, soon
from tests.support.processes import is_alive, is_stopped
from tests.support.service_contract import Numbers
from tests.support.waiting import PATIENCE, eventually, eventually_sync

PROGRAM = """
import asyncio, os, signal, sys
from hivemind.p2p import P2P

async def main(how):
    p2p = await P2P.create(startup_timeout=60)
    print(p2p._child.pid, p2p.daemon_listen_maddr.value_for_protocol("unix"), flush=True)
    if how == "shutdown":
        await p2p.shutdown()
    elif how == "exception":
        raise RuntimeError("on purpose")
    elif how == "os._exit":
        os._exit(3)
    elif how == "sys.exit":
        sys.exit(4)
    elif how == "fork":
        child = os.fork()
        if child == 0:
            # holds all descriptors but these, the daemon's control connection among them
            os.close(1), os.close(2)
            while True:
                signal.pause()
        print(child, flush=True)
        await asyncio.sleep(600)
    elif how == "wait":
        await asyncio.sleep(600)

asyncio.run(main(sys.argv[1]))
"""


class Owner:
    """A process that owns a daemon."""

    def __init__(self, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        assert line, self.process.communicate()[1]
        self.daemon, self.socket = int(line[0]), Path(line[1])

    def end(self) -> int:
        """Wait for its end; the exit code."""
        self.errors = self.process.communicate(timeout=PATIENCE)[1]
        return self.process.returncode

    def check_nothing_left(self) -> None:
        eventually_sync(lambda: not is_alive(self.daemon), "the daemon is gone")
        eventually_sync(lambda: not self.socket.parent.exists(), "the control socket and its folder are gone")


@pytest.mark.parametrize(
    ("how", "code"), [("shutdown", 0), ("forget", 0), ("exception", 1), ("os._exit", 3), ("sys.exit", 4)]
)
def test_an_owner_that_ends_takes_its_daemon_along(how: str, code: int) -> None:
    owner = Owner(how)
    assert owner.end() == code, owner.errors
    owner.check_nothing_left()
    assert "Traceback" not in owner.errors or how == "exception"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_owner_that_is_signalled_takes_its_daemon_along(number: signal.Signals) -> None:
    owner = Owner("wait")
    assert is_alive(owner.daemon)
    owner.process.send_signal(number)
    assert owner.end() == -number
    owner.check_nothing_left()


def test_a_forked_child_does_not_keep_the_daemon_alive() -> None:
    owner = Owner("fork")
    assert owner.process.stdout is not None
    child = int(owner.process.stdout.readline())
    try:
        owner.process.kill()
        owner.end()
        owner.check_nothing_left()
        assert is_alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_daemon_is_gone_within_a_second_of_kill_9() -> None:
    took = []
    for _ in range(3):
        owner = Owner("wait")
        started = time.monotonic()
        owner.process.kill()
        eventually_sync(lambda daemon=owner.daemon: not is_alive(daemon), "the daemon is gone")
        took.append(time.monotonic() - started)
        owner.end()
        owner.check_nothing_left()
        if took[-1] < 1.0:
            return
    pytest.fail(f"the daemon took {took} s")


def test_what_nobody_was_left_to_remove_goes_with_the_next_start() -> None:
    owner = Owner("wait")
    folder = owner.socket.parent
    os.kill(owner.daemon, signal.SIGSTOP)  # both end at once
    eventually_sync(lambda: is_stopped(owner.daemon), "the daemon does not see its owner's end")
    owner.process.kill()
    os.kill(owner.daemon, signal.SIGKILL)
    owner.end()
    eventually_sync(lambda: not is_alive(owner.daemon), "the daemon is gone")
    assert folder.exists()
    os.utime(folder, (0, 0))
    other = Owner("shutdown")
    assert other.end() == 0
    assert not folder.exists()


@pytest.mark.asyncio
async def test_a_killed_daemon_is_reported() -> None:
    async with await P2P.create() as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
        hanging, there = Hanging(), Hanging()
        await bob.transport.listen_unary("hang", hanging.unary)
        await alice.transport.listen_unary("hang", there.unary)
        await Numbers().add_p2p_handlers(alice)
        stub = Numbers.get_stub(bob, alice.peer_id)
        responses = await stub.rpc_hang_after_one(test_pb2.TestRequest())
        await anext(responses)

        async def read() -> None:
            with pytest.raises(DaemonDied):
                await anext(responses)

        async def call() -> None:
            with pytest.raises(DaemonDied):
                await bob.transport.call(alice.peer_id, "hang", b"", soon())

        async def be_called() -> None:
            with pytest.raises(HivemindError):
                await alice.transport.call(bob.peer_id, "hang", b"", soon())

        child = bob._child
        assert child is not None
        assert child.pid is not None
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            for waiting in (read(), call(), be_called()):
                group.create_task(waiting)
            await hanging.entered.wait()
            await there.entered.wait()
            os.kill(child.pid, signal.SIGKILL)
        await eventually(hanging.cancelled.is_set, "handlers of a dead daemon are cancelled")
        with pytest.raises(DaemonDied) as caught:
            await stub.rpc_square(test_pb2.TestRequest())
        assert caught.value.exit_code == -signal.SIGKILL
        with pytest.raises(DaemonDied):
            await bob.list_peers()
        # its peer lives on
        assert (await alice.get_visible_maddrs(latest=True))[0]


@pytest.mark.asyncio
async def test_a_daemon_that_stops_answering_is_killed_in_bounded_time() -> None:
    p2p = await P2P.create()
    child = p2p._child
    assert child is not None
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE):
        await p2p.shutdown()
    assert not is_alive(child.pid)
    assert not child.control_path.parent.exists()


@pytest.mark.asyncio
async def test_shutdown_is_quick() -> None:
    took = []
    for _ in range(3):
        p2p = await P2P.create()
        started = time.monotonic()
        await p2p.shutdown()
        took.append(time.monotonic() - started)
    assert min(took) < 1.0, took


@pytest.mark.asyncio
async def test_a_cancelled_start_leaves_nothing() -> None:
    task = asyncio.ensure_future(P2P.create())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.asyncio
async def test_an_owner_that_is_dropped_takes_its_daemon_along() -> None:
    p2p = await P2P.create()
    child = p2p._child
    assert child is not None
    pid = child.pid
    assert pid is not None
    del p2p
    gc.collect()
    await eventually(lambda: not is_alive(pid), "the daemon of a dropped P2P is gone")
    await eventually(lambda: all(pipe.ended.done() for pipe in child._pipes), "its pipes are closed")
    assert child.exit_code is not None


def test_a_peer_on_a_loop_of_a_thread_of_the_users() -> None:
    results: list[int] = []

    async def main() -> None:
        async with await P2P.create() as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
            await Numbers().add_p2p_handlers(alice)
            answer = await Numbers.get_stub(bob, alice.peer_id).rpc_square(test_pb2.TestRequest(number=4))
            results.append(answer.number)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join(2 * PATIENCE)
    assert results == [16]


@pytest.mark.asyncio
async def test_a_cancelled_shutdown_leaves_nothing() -> None:
    p2p = await P2P.create()
    child = p2p._child
    assert child is not None
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await p2p.shutdown()
    assert not is_alive(child.pid)
    assert not child.control_path.parent.exists()
    await p2p.shutdown()


@pytest.mark.asyncio
async def test_replicas_come_and_go() -> None:
    async with await P2P.create() as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
        twin = await P2P.replicate(alice.daemon_listen_maddr)
        assert twin.peer_id == alice.peer_id
        assert twin.daemon_listen_maddr == alice.daemon_listen_maddr
        await twin.transport.listen_unary("twin", echo)
        assert await bob.transport.call(alice.peer_id, "twin", b"1", soon()) == b"1"
        await twin.shutdown()
        with pytest.raises(P2PDaemonError, match="protocol not supported"):
            await bob.transport.call(alice.peer_id, "twin", b"1", soon())
        await alice.transport.listen_unary("echo", echo)
        assert await bob.transport.call(alice.peer_id, "echo", b"1", soon()) == b"1"


@pytest.mark.asyncio
async def test_a_replica_learns_of_the_end() -> None:
    alice = await P2P.create()
    address = alice.daemon_listen_maddr
    async with await P2P.replicate(address) as twin:
        await alice.shutdown()

        async def ask_on() -> None:
            while True:
                await twin.list_peers()

        async with asyncio.timeout(PATIENCE):
            with pytest.raises(P2PDaemonError):
                await ask_on()
    with pytest.raises(ControlFailure, match=r"control\.sock"):
        await P2P.replicate(address)


# -- starts that fail ------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_no_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HIVEMIND_P2PD", str(tmp_path / "nothing"))
    with pytest.raises(DaemonStartError, match="make buildgo"):
        await P2P.create()


@pytest.mark.asyncio
async def test_a_binary_that_cannot_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "p2pd"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    monkeypatch.setenv("HIVEMIND_P2PD", str(broken))
    with pytest.raises(DaemonStartError, match="cannot be run"):
        await P2P.create()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo last words >&2; exit 7", "exit code 7.*last words"),
        ("echo not json", "not json"),
        ('echo \'{"ready": true, "version": 99}\'; sleep 600', "version 99"),
        ('echo \'{"fatal": "listen", "error": "no luck", "hint": "try"}\'; exit 4', r"no luck \(try\)"),
        ("exec sleep 600", "Daemon failed to start in"),
    ],
)
async def test_a_daemon_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, words: str
) -> None:
    fake = tmp_path / "p2pd"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("HIVEMIND_P2PD", str(fake))
    timeout = 0.5 if "exec" in script else PATIENCE
    with pytest.raises(DaemonStartError, match=f"(?s){words}"):
        await P2P.create(startup_timeout=timeout)


@pytest.mark.asyncio
async def test_bootstrap_peers_that_do_not_answer_are_named() -> None:
    async with await P2P.create() as alice:
        nobody = str(alice.peer_id)
    addresses = [f"/ip4/127.0.0.1/tcp/{port}/p2p/{nobody}" for port in (1, 2)]
    with pytest.raises(P2PDaemonError, match="failed to connect to bootstrap peers") as caught:
        await P2P.create(addresses)
    assert all(f"/ip4/127.0.0.1/tcp/{port}" in str(caught.value) for port in (1, 2))
    assert "refused" in str(caught.value)


@pytest.mark.asyncio
async def test_an_address_that_cannot_be_listened_on() -> None:
    with pytest.raises(DaemonStartError, match=r"203\.0\.113\.1"):
        await P2P.create(host_maddrs=["/ip4/203.0.113.1/tcp/0"])


@pytest.mark.asyncio
async def test_an_unreachable_peer_is_named_with_each_address() -> None:
    async with await P2P.create() as alice:
        nobody = alice.peer_id
    async with await P2P.create() as bob:
        from multiaddr import Multiaddr

        addresses = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}") for port in (1, 2)]
        with pytest.raises(P2PDaemonError) as caught:
            await bob.connect(nobody, addresses, timeout=20)
        text = str(caught.value)
        assert all(str(address) in text for address in addresses), text
        assert "refused" in text


@pytest.mark.asyncio
async def test_a_long_name_of_the_temporary_folder_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of sockets are short."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    p2p = await P2P.create(startup_timeout=60)
    await p2p.shutdown()
