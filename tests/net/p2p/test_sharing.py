"""Several processes on one daemon: each is a client of its own, and dies alone."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing import resource_tracker

import pytest

from hivemind.errors import ControlFailure, DispatchFailure, P2PDaemonError
from hivemind.p2p import P2P, MemoryNetwork, PeerID
from hivemind.p2p.transport import Buffer
from tests.support.conformance import Hanging, echo, soon
from tests.support.spawned import Connection, Spawned
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture(autouse=True, scope="module")
def _resource_tracker() -> None:
    """A service of multiprocessing's own, which starts with the first process."""
    resource_tracker.ensure_running()


def serve(p2p: P2P, commands: Connection) -> None:
    """Runs in the other process: answers calls until it is told to end."""
    asyncio.run(_serve(p2p, commands))


async def _serve(p2p: P2P, commands: Connection) -> None:
    hanging = Hanging()

    async def who(request: Buffer, remote: PeerID) -> Buffer:
        return str(os.getpid()).encode()

    async def entered(request: Buffer, remote: PeerID) -> Buffer:
        return str(int(hanging.entered.is_set())).encode()

    async with p2p:
        await p2p.transport.listen_unary("who", who, balanced=True)
        await p2p.transport.listen_unary(f"hang {os.getpid()}", hanging.unary)
        await p2p.transport.listen_unary(f"entered {os.getpid()}", entered)
        await p2p.transport.listen_unary(f"only {os.getpid()}", who)
        commands.send((str(p2p.peer_id), [str(each.peer_id) for each in await p2p.list_peers()]))
        await asyncio.get_running_loop().run_in_executor(None, commands.recv)


class Client(Spawned):
    """A process that was given ``p2p``."""

    def __init__(self, p2p: P2P) -> None:
        super().__init__(serve, p2p)
        self.peer_id, self.peers = self.answer()


@contextmanager
def client_of(p2p: P2P) -> Iterator[Client]:
    client = Client(p2p)
    try:
        yield client
    finally:
        code = client.end()
    assert code in (0, -signal.SIGKILL)


@asynccontextmanager
async def two_peers() -> AsyncIterator[tuple[P2P, P2P]]:
    async with await P2P.create() as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
        yield alice, bob


async def ask(caller: P2P, callee: P2P, name: str, request: bytes = b"") -> int:
    return int(bytes(await caller.transport.call(callee.peer_id, name, request, soon())))


@pytest.mark.asyncio
async def test_a_peer_is_given_to_another_process() -> None:
    async with two_peers() as (alice, bob):
        with client_of(alice) as client:
            assert client.peer_id == str(alice.peer_id)
            assert str(bob.peer_id) in client.peers
            assert await ask(bob, alice, "who") == client.pid
        with pytest.raises(P2PDaemonError, match="protocol not supported"):
            await ask(bob, alice, "who")
        assert await alice.list_peers()


@pytest.mark.asyncio
async def test_a_client_that_is_killed_takes_its_handlers_along_and_nothing_else() -> None:
    async with two_peers() as (alice, bob):
        await alice.transport.listen_unary("echo", echo)
        with client_of(alice) as first, client_of(alice) as second, client_of(alice) as third:
            clients = (first, second, third)
            answers = await asyncio.gather(*(ask(bob, alice, "who") for _ in range(60)))
            assert set(answers) == {each.pid for each in clients}, "a call goes to whoever has the least to do"

            # each client has calls that hang in it, and others that come and go
            hanging = {each: asyncio.ensure_future(ask(bob, alice, f"hang {each.pid}")) for each in (first, second)}
            done = asyncio.Event()
            failures: list[BaseException] = []
            calls = [asyncio.ensure_future(call_on(bob, alice, done, failures)) for _ in range(8)]
            for each in hanging:
                name = f"entered {each.pid}"
                await eventually(lambda name=name: ask(bob, alice, name), "the call is under way")
            first.kill()
            with pytest.raises(DispatchFailure):
                await hanging[first]
            after = await asyncio.gather(*(ask(bob, alice, "who") for _ in range(60)))
            assert set(after) == {second.pid, third.pid}
            assert not hanging[second].done(), "what runs in another goes on"
            with pytest.raises(P2PDaemonError, match="protocol not supported"):
                await ask(bob, alice, f"only {first.pid}")
            assert await ask(bob, alice, f"only {second.pid}") == second.pid
            assert await bob.transport.call(alice.peer_id, "echo", b"1", soon()) == b"1"
            done.set()
            await asyncio.gather(*calls)
            # only calls that were in the killed process have failed, at most one of each caller
            assert len(failures) <= len(calls)
            assert all(isinstance(each, DispatchFailure) for each in failures)
            hanging[second].cancel()


async def call_on(caller: P2P, callee: P2P, done: asyncio.Event, failures: list[BaseException]) -> None:
    while not done.is_set():
        try:
            await ask(caller, callee, "who")
        except P2PDaemonError as error:
            failures.append(error)


@pytest.mark.asyncio
async def test_a_copy_in_the_same_process() -> None:
    """It connects when it is first used, and has an end of its own."""
    async with two_peers() as (alice, bob):
        twin: P2P = pickle.loads(pickle.dumps(alice))
        assert twin.peer_id == alice.peer_id
        assert twin.daemon_listen_maddr == alice.daemon_listen_maddr
        await twin.transport.listen_unary("echo", echo)
        assert await bob.transport.call(alice.peer_id, "echo", b"1", soon()) == b"1"
        triplet: P2P = pickle.loads(pickle.dumps(twin))
        assert await triplet.get_visible_maddrs() == await alice.get_visible_maddrs()
        await triplet.shutdown()
        never_used: P2P = pickle.loads(pickle.dumps(twin))
        await never_used.shutdown()
        await twin.shutdown()
        await twin.shutdown()
        assert await alice.list_peers()
        data = pickle.dumps(alice)
    with pytest.raises(P2PDaemonError, match="was shut down"):
        pickle.dumps(alice)
    late: P2P = pickle.loads(data)
    with pytest.raises(ControlFailure, match="no p2p daemon answers"):
        await late.list_peers()
    await late.shutdown()


@pytest.mark.asyncio
async def test_a_peer_without_daemon_cannot_be_given_away() -> None:
    async with await MemoryNetwork().create_p2p() as p2p:
        with pytest.raises(P2PDaemonError, match="no daemon"):
            pickle.dumps(p2p)


FORK = """
import asyncio, os, sys
from hivemind.errors import RuntimeClosedError
from hivemind.p2p import P2P

async def use(p2p):
    try:
        await p2p.list_peers()
    except RuntimeClosedError as error:
        print("child:", error)
    await p2p.shutdown()
    async with await P2P.replicate(p2p.daemon_listen_maddr) as twin:
        assert twin.peer_id == p2p.peer_id
        await twin.list_peers()
    print("child: replicated")

async def main():
    async with await P2P.create(startup_timeout=60) as p2p:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio.run(use(p2p))
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            await asyncio.sleep(0.01)
        await p2p.list_peers()
        print("parent:", ended[1])

asyncio.run(main())
"""


def test_a_forked_child_is_told_what_to_do() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "child: this P2P belongs to the parent process" in done.stdout, done.stderr
    assert "child: replicated" in done.stdout, done.stderr
    assert "parent: 0" in done.stdout
