"""Python's side of the control protocol, with a daemon that sends anything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.clock import Deadline
from hivemind.errors import HivemindError
from hivemind.identity import PeerID
from hivemind.p2p.framing import MAX_FRAME, Flag, FrameType, Header, pack_target
from hivemind.p2p.streams import ControlStream
from hivemind.p2p.transport import Buffer, Mode, Stream
from tests.fuzz.hostile_daemon import Wire, packed
from tests.support.fuzzing import for_seconds

pytestmark = pytest.mark.timeout(0)  # `make fuzz` says how long

PEER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))
#: Seconds in which all must have ended once the connection has.
ENDED = 10.0

Action = Callable[["Play"], None]


class Play:
    """One conversation: what users do and what the daemon sends, in any order."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.streams: list[ControlStream | Stream] = []
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def on_stream(self, number: int, work: Callable[[Any], Awaitable[object]]) -> None:
        if self.streams:
            self.start(_await(work(self.streams[number % len(self.streams)])))

    async def open(self, mode: Mode) -> None:
        self.streams.append(await self.wire.client.open(PEER, "name", mode, Deadline.never()))

    async def echo(self, request: Buffer, _: PeerID) -> Buffer:
        return request

    async def echo_stream(self, stream: Stream) -> None:
        self.streams.append(stream)
        while (message := await stream.receive()) is not None:
            await stream.send(message)


async def _await(work: Awaitable[object]) -> object:
    return await work


async def play(actions: list[Action]) -> None:
    """Let the actions happen, and look at what is left."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    wire = Wire()
    game = Play(wire)
    await wire.listen("echo", Mode.UNARY, game.echo)
    await wire.listen("stream", Mode.MESSAGES, game.echo_stream)
    await wire.listen("raw", Mode.RAW, game.echo_stream)
    for action in actions:
        action(game)
        await asyncio.sleep(0)
        assert wire.buffered <= 4 * wire.fed, "a claim took memory"
    for _ in range(3):
        await asyncio.sleep(0)
    await wire.end()
    if game.tasks:
        done, left = await asyncio.wait(game.tasks, timeout=ENDED)
        assert not left, f"{left} do not end"
        for task in done:
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, HivemindError), repr(error)
    assert not wire.client._streams
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert complaints == [], complaints


def user(work: Callable[[Play], Coroutine[Any, Any, object]]) -> Action:
    return lambda game: game.start(work(game))


def of_stream(number: int, work: Callable[[Any], Awaitable[object]]) -> Action:
    return lambda game: game.on_stream(number, work)


async def _reset(stream: Any) -> None:
    stream.reset()


sizes = st.one_of(st.integers(0, 100), st.sampled_from([MAX_FRAME, MAX_FRAME + 1, 3 << 20]))
few = st.integers(0, 3)
users = st.one_of(
    st.builds(lambda size: user(lambda game: game.wire.client.call(PEER, "x", bytes(size), Deadline.never())), sizes),
    st.builds(lambda mode: user(lambda game: game.open(mode)), st.sampled_from([Mode.MESSAGES, Mode.RAW])),
    st.builds(lambda op: user(lambda game: game.wire.client.request(op)), st.sampled_from(["peers", "stats"])),
    st.builds(lambda number, size: of_stream(number, lambda stream: stream.send(bytes(size))), few, sizes),
    st.builds(lambda number: of_stream(number, lambda stream: stream.receive()), few),
    st.builds(lambda number: of_stream(number, lambda stream: stream.finish()), few),
    st.builds(lambda number: of_stream(number, lambda stream: stream.send_error("why")), few),
    st.builds(lambda number: of_stream(number, _reset), few),
)

numbers = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 0xFFFFFFFF])
texts = st.sampled_from([b"", b"{}", b"[]", b'{"code": 3, "error": "no"}', b'{"code": "x"}', b"\xff", b"null", b"1"])
targets = st.one_of(
    st.builds(
        pack_target, st.sampled_from([PEER.to_bytes(), b"", b"x"]), st.sampled_from(["echo", "stream", "raw", "?"])
    ),
    st.binary(max_size=12),
)


@st.composite
def frames(draw: st.DrawFn) -> Action:
    """A frame that is at least shaped as one of a daemon."""
    kind = draw(st.sampled_from([*FrameType, FrameType.DATA, FrameType.DATA, FrameType.ACCEPT, FrameType.WINDOW]))
    flags, code, aux = draw(st.integers(0, 3)), draw(st.integers(0, 15)), 0
    if kind is FrameType.ACCEPT:
        payload = draw(targets) + draw(st.binary(max_size=9))
        code = draw(st.sampled_from([1, 2, 3, code]))
    elif kind is FrameType.DATA:
        payload = bytes(draw(st.sampled_from([0, 0, 1, 40, 20_000, MAX_FRAME])))
        aux = min(0xFFFFFFFF, len(payload) + draw(st.sampled_from([0, 0, 0, 1, 1000, 1 << 30])))
        flags &= Flag.ERROR
    else:
        payload = draw(texts)
        aux = draw(st.sampled_from([0, 1, 1000, 1 << 20, 0xFFFFFFFF]))
    header = Header(len(payload), int(kind), int(flags), code, draw(numbers), aux)
    return lambda game: game.wire.feed_frame(header, payload)


@st.composite
def continued(draw: st.DrawFn) -> Action:
    """A message in frames that belong together, cut short at will."""
    number, size = draw(numbers), draw(st.sampled_from([0, 5, 3000, 700_000]))
    step, most = draw(st.sampled_from([1000, 65_536, MAX_FRAME])), draw(st.integers(1, 6))

    def action(game: Play) -> None:
        left = size
        for _ in range(most):
            count = min(step, left)
            game.wire.feed_frame(Header(count, FrameType.DATA, 0, 0, number, left), bytes(count))
            left -= count
            if not left:
                return

    return action


def grant_all(credit: int) -> Action:
    """The daemon opens every stream that it was asked for, and grants each some credit."""

    def action(game: Play) -> None:
        for number in tuple(game.wire.client._streams):
            game.wire.feed_frame(Header(0, FrameType.OPENED, 0, 0, number, 0), b"")
            game.wire.feed_frame(Header(0, FrameType.WINDOW, 0, 0, number, credit), b"")

    return action


kind = st.builds(grant_all, st.sampled_from([0, 1, 1000, 300_000]))
anything = st.builds(lambda data: lambda game: game.wire.feed(data), st.binary(max_size=60))


@for_seconds(0.2)
@given(st.lists(st.one_of(users, users, kind), max_size=40))
def test_users_of_a_good_daemon(actions: list[Action]) -> None:
    """Whatever users do, what is written keeps to the protocol and within the credit."""
    asyncio.run(play(actions))


@for_seconds(0.4)
@given(st.lists(st.one_of(users, kind, frames(), frames(), continued()), max_size=40))
def test_frames_of_a_hostile_daemon(actions: list[Action]) -> None:
    asyncio.run(play(actions))


@for_seconds(0.2)
@given(st.lists(st.one_of(users, frames(), anything), max_size=20))
def test_bytes_of_a_hostile_daemon(actions: list[Action]) -> None:
    asyncio.run(play(actions))


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[int, bytes, int]]:
    """Pieces of messages on several streams in the order of a daemon that keeps to the protocol."""
    left = {
        number: [bytes([draw(st.integers(0, 255))]) * draw(st.sampled_from([0, 1, 500, 20_000])) for _ in range(count)]
        for number, count in enumerate(draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)))
    }
    pieces = []
    while open_ones := [number for number, messages in left.items() if messages]:
        number = draw(st.sampled_from(open_ones))
        message = left[number][0]
        count = min(len(message), draw(st.sampled_from([1, 100, 15_000, MAX_FRAME])) + len(message) // 5)
        pieces.append((number, message[:count], len(message)))
        left[number][0] = message[count:]
        if count == len(message):
            left[number].pop(0)
    return pieces


@for_seconds(0.2)
@given(conversations(), st.lists(st.integers(1, 70_000), min_size=1, max_size=5))
def test_messages_of_a_good_daemon(pieces: list[tuple[int, bytes, int]], cuts: list[int]) -> None:
    """Whatever the socket cuts, each stream's messages arrive whole, in order, and on their own stream."""
    asyncio.run(converse(pieces, cuts))


async def converse(pieces: list[tuple[int, bytes, int]], cuts: list[int]) -> None:
    wire = Wire()
    got: dict[int, list[bytes]] = {}

    async def take(stream: Stream) -> None:
        messages = got[len(got)] = []
        while (message := await stream.receive()) is not None:
            messages.append(bytes(message))

    await wire.listen("stream", Mode.MESSAGES, take)
    count = 1 + max((number for number, _, _ in pieces), default=0)
    target = pack_target(PEER.to_bytes(), "stream")
    for number in range(count):
        wire.feed_frame(Header(len(target), FrameType.ACCEPT, 0, Mode.MESSAGES, 2 * number + 2, 0), target)
        await asyncio.sleep(0)
    sent: dict[int, bytearray] = {number: bytearray() for number in range(count)}
    ends: dict[int, list[int]] = {number: [] for number in range(count)}
    data = b""
    for number, payload, ahead in pieces:
        sent[number] += payload
        if len(payload) == ahead:
            ends[number].append(len(sent[number]))
        data += packed(Header(len(payload), FrameType.DATA, 0, 0, 2 * number + 2, ahead)) + payload
    for number in range(count):
        data += packed(Header(0, FrameType.FIN, 0, 0, 2 * number + 2, 0))
    position, turn = 0, 0
    while position < len(data):
        step = max(cuts[turn % len(cuts)], len(data) // 200)
        wire.feed(data[position : position + step])
        position, turn = position + step, turn + 1
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    expected = {
        number: [bytes(sent[number][start:end]) for start, end in zip([0, *ends[number]], ends[number], strict=False)]
        for number in range(count)
    }
    assert got == expected
    await wire.end()
