"""What only streams through a daemon have: messages in pieces, and state on both sides of the control socket."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from hivemind.errors import DispatchFailure, StreamReset
from hivemind.p2p import P2P, Mode, Stream
from tests.support.conformance import MIB, echo, echo_stream, soon, until_end
from tests.support.service_contract import Pair
from tests.support.waiting import PATIENCE, eventually


async def no_streams_left(peer: P2P) -> None:
    """Wait until the daemon knows of no stream of its client's."""

    async def none_left() -> bool:
        return (await peer.stats())["in_flight"] == 0

    await eventually(none_left, "no stream is left in the daemon")


@pytest.mark.asyncio
async def test_an_interrupted_message_resets_its_stream(pair: Pair) -> None:
    alice, bob = pair
    go_on, ended = asyncio.Event(), asyncio.Event()
    received: list[int] = []

    async def lazy(stream: Stream) -> None:
        try:
            await go_on.wait()
            while (message := await stream.receive()) is not None:
                received.append(len(message))
            received.append(-1)
        finally:
            ended.set()

    await alice.transport.listen_stream("lazy", Mode.MESSAGES, lazy)
    stream = await bob.transport.open(alice.peer_id, "lazy", Mode.MESSAGES, soon())
    # a whole message that waits unread holds the next one up
    await stream.send(bytes(8 * MIB))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.send(bytes(64 * MIB)), 3.0)
    with pytest.raises(StreamReset):
        await stream.send(b"more")
    go_on.set()
    await eventually(ended.is_set, "the handler has ended")
    # never a part of a message, and no end that looks like a good one
    assert received in ([], [8 * MIB])
    await no_streams_left(bob)
    await no_streams_left(alice)


@pytest.mark.asyncio
async def test_an_interrupted_wait_for_credit_resets_nothing(pair: Pair) -> None:
    alice, bob = pair
    go_on = asyncio.Event()

    async def lazy(stream: Stream) -> None:
        await go_on.wait()
        await stream.send(str(len(await until_end(stream))).encode())

    await alice.transport.listen_stream("lazy", Mode.MESSAGES, lazy)
    stream = await bob.transport.open(alice.peer_id, "lazy", Mode.MESSAGES, soon())
    sent = 0

    async def send_on() -> None:
        nonlocal sent
        while True:
            # of one frame each, so that none can be interrupted in its middle
            await stream.send(bytes(MIB // 8))
            sent += 1

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send_on(), 1.0)
    go_on.set()
    await stream.finish()
    async with asyncio.timeout(PATIENCE):
        assert int(bytes(await stream.receive() or b"")) in (sent, sent + 1)


@pytest.mark.asyncio
async def test_no_stream_stays_in_the_daemon(pair: Pair) -> None:
    alice, bob = pair

    async def one(stream: Stream) -> None:
        await stream.send(b"enough")

    async def fail(stream: Stream) -> None:
        await stream.send_error("no")

    async def crash(stream: Stream) -> None:
        raise RuntimeError

    await alice.transport.listen_stream("echo", Mode.MESSAGES, echo_stream)
    await alice.transport.listen_stream("one", Mode.MESSAGES, one)
    await alice.transport.listen_stream("fail", Mode.MESSAGES, fail)
    await alice.transport.listen_stream("crash", Mode.MESSAGES, crash)
    await alice.transport.listen_stream("raw", Mode.RAW, one)
    await alice.transport.listen_unary("unary", echo)
    for name, finish in (("echo", True), ("one", False), ("fail", False), ("crash", False), ("one", True)):
        stream = await bob.transport.open(alice.peer_id, name, Mode.MESSAGES, soon())
        with contextlib.suppress(DispatchFailure):
            await stream.send(b"x")
            if finish:
                await stream.finish()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(PATIENCE):
                await until_end(stream)
    raw = await bob.transport.open(alice.peer_id, "raw", Mode.RAW, soon())
    await raw.send(b"x")
    await raw.finish()
    assert await until_end(raw) == [b"enough"]
    await bob.transport.call(alice.peer_id, "unary", bytes(2 * MIB), soon())
    await no_streams_left(bob)
    await no_streams_left(alice)
