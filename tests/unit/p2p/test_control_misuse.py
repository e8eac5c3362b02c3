"""Streams that are used wrongly by their owner, and frames that no daemon of good will sends: nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from hivemind.clock import Deadline
from hivemind.errors import ConfigError, ControlFailure, HivemindError, StreamReset
from hivemind.identity import PeerID
from hivemind.p2p.framing import FrameType, Header, pack_target
from hivemind.p2p.streams import ControlStream
from hivemind.p2p.transport import Mode
from tests.fuzz.hostile_daemon import Wire

PEER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))
SECONDS = 10.0


def frame(kind: FrameType, stream: int, length: int = 0, aux: int = 0) -> Header:
    return Header(length, int(kind), 0, 0, stream, aux)


async def opened(wire: Wire) -> ControlStream:
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(wire.client.open(PEER, "name", Mode.MESSAGES, Deadline.never()))
        await asyncio.sleep(0)
        wire.feed_frame(frame(FrameType.OPENED, 1), b"")
    return opening.result()


async def bounded(work: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(SECONDS):
        return await work


@pytest.mark.asyncio
async def test_one_receives_at_a_time() -> None:
    wire = Wire()
    stream = await opened(wire)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(stream.receive())
        await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="one at a time"):
            await bounded(stream.receive())
        wire.feed_frame(frame(FrameType.DATA, 1, 2, 2), b"hi")
    assert first.result() == b"hi"
    await wire.end()


@pytest.mark.asyncio
async def test_one_sends_at_a_time_and_the_end_comes_after() -> None:
    wire = Wire()
    stream = await opened(wire)
    async with asyncio.TaskGroup() as group:
        group.create_task(stream.send(bytes(wire.client.window + 1)))
        await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="one at a time"):
            await bounded(stream.send(b"more"))
        with pytest.raises(ConfigError, match="finish"):
            await bounded(stream.finish())
        wire.feed_frame(frame(FrameType.WINDOW, 1, 0, 1000), b"")
    await bounded(stream.finish())
    await asyncio.sleep(0)
    assert wire.written.finished == {1}
    await wire.end()


@pytest.mark.asyncio
async def test_an_error_ends_who_receives() -> None:
    wire = Wire()
    stream = await opened(wire)
    receiving = asyncio.gather(stream.receive(), return_exceptions=True)
    await asyncio.sleep(0)
    await bounded(stream.send_error("why"))
    (outcome,) = await bounded(_result(receiving))
    assert isinstance(outcome, StreamReset)
    await wire.end()


async def _result(future: asyncio.Future[Any]) -> Any:
    return await future


@pytest.mark.asyncio
async def test_an_end_before_the_opening_opens() -> None:
    wire = Wire()
    opening = asyncio.gather(wire.client.open(PEER, "name", Mode.MESSAGES, Deadline.never()))
    await asyncio.sleep(0)
    wire.feed_frame(frame(FrameType.FIN, 1), b"")
    (stream,) = await bounded(_result(opening))
    assert await bounded(stream.receive()) is None
    await wire.end()


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", [b"[]", b"null", b"\xff", b'{"code": 1'])
async def test_an_answer_in_another_form_ends_the_connection(answer: bytes) -> None:
    wire = Wire()
    asking = asyncio.gather(wire.client.request("peers"), return_exceptions=True)
    await asyncio.sleep(0)
    wire.feed_frame(frame(FrameType.RESPONSE, 1, len(answer)), answer)
    (outcome,) = await bounded(_result(asking))
    assert isinstance(outcome, HivemindError)
    assert wire.transport.aborted
    await wire.end()


@pytest.mark.asyncio
@pytest.mark.parametrize(("number", "peer"), [(1, PEER.to_bytes()), (0, PEER.to_bytes()), (2, b"")])
async def test_streams_that_no_peer_can_have_opened(number: int, peer: bytes) -> None:
    wire = Wire()
    target = pack_target(peer, "name")
    wire.feed_frame(Header(len(target), FrameType.ACCEPT, 0, Mode.MESSAGES, number, 0), target)
    assert wire.transport.aborted
    with pytest.raises(ControlFailure):
        wire.client.check()
    await wire.end()
