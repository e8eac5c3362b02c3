"""What peers send as messages, to handlers and as answers: Python's side, behind the daemon that takes frames apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from hivemind.errors import P2PHandlerError, ProtocolViolation, SerializationError
from hivemind.identity import PeerID
from hivemind.p2p import MemoryNetwork, Mode, P2PContext
from hivemind.p2p.binary import receive_protobuf
from hivemind.p2p.rpc import unary_handler
from hivemind.p2p.serving import answer
from hivemind.proto.test_pb2 import TestRequest as Request
from hivemind.proto.test_pb2 import TestResponse as Response
from hivemind.virtual_clock import run_virtual
from tests.support.conformance import soon
from tests.support.fuzzing import for_seconds

pytestmark = pytest.mark.timeout(0)  # `make fuzz` says how long

PEER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))
LIMIT = 4000

valid = st.builds(lambda number: Request(number=number).SerializeToString(), st.integers(-(2**31), 2**31 - 1))
messages = st.one_of(
    valid, st.binary(max_size=30), st.builds(lambda body, tail: body + tail, valid, st.binary(max_size=4))
)


def number_in(data: bytes) -> int | None:
    """What a handler is given; None: the bytes are no request."""
    try:
        return Request.FromString(data).number
    except DecodeError:
        return None


async def negate(request: Request, _: P2PContext) -> Response:
    if request.number > 1000:
        raise ValueError("too large")
    return Response(number=~request.number)


@for_seconds(0.2)
@given(messages)
def test_requests(data: bytes) -> None:
    """Each is answered by a response or by the text of an error."""
    handler = unary_handler("negate", PEER, negate, Request)
    result, text = asyncio.run(answer(handler, "negate", bytearray(data), PEER, LIMIT))
    number = number_in(data)
    if number is None or number > 1000:
        assert result is None
        assert ("DecodeError" if number is None else "too large") in text
    else:
        assert result is not None
        assert Response.FromString(bytes(result)).number == ~number


@for_seconds(0.4)
@given(st.lists(messages, max_size=6), st.booleans())
def test_streams_of_requests(sent: list[bytes], single: bool) -> None:
    """The handler is given the requests up to the first that is none, and its caller is told of that."""
    run_virtual(lambda: exchange(sent, single=single))


async def exchange(sent: list[bytes], *, single: bool) -> None:
    network = MemoryNetwork(0)
    alice, bob = await network.create_p2p(), await network.create_p2p()
    seen: list[int] = []

    async def keep(requests: AsyncIterator[Request], _: P2PContext) -> Response:
        while (request := await anext(aiter(requests), None)) is not None:
            seen.append(request.number)
        return Response(number=len(seen))

    async def keep_one(request: Request, _: P2PContext) -> AsyncIterator[Response]:
        seen.append(request.number)
        yield Response(number=1)

    await alice.add_protobuf_handler(
        "keep", keep_one if single else keep, Request, stream_input=not single, stream_output=single
    )
    stream = await bob.transport.open(alice.peer_id, "keep", Mode.MESSAGES, soon())
    for each in sent:
        await stream.send(each)
    await stream.finish()
    numbers = [number_in(each) for each in sent]
    wrong = None in numbers[:2] or len(numbers) != 1 if single else None in numbers
    if wrong:
        with pytest.raises(P2PHandlerError):
            await stream.receive()
    else:
        reply = await stream.receive()
        assert reply is not None
        assert Response.FromString(bytes(reply)).number == len(numbers)
        assert await stream.receive() is None
    if not single:
        assert seen == numbers[: numbers.index(None) if wrong else None]
    else:
        assert seen == ([] if wrong else numbers)
    await bob.shutdown()
    await alice.shutdown()


@for_seconds(0.2)
@given(messages)
def test_answers(data: bytes) -> None:
    """An answer that is none costs the call."""

    async def lie(_: object, __: PeerID) -> bytes:
        return data

    async def main() -> None:
        network = MemoryNetwork(0)
        alice, bob = await network.create_p2p(), await network.create_p2p()
        await alice.transport.listen_unary("lie", lie)
        call = bob.call_protobuf_handler(alice.peer_id, "lie", Request(), Request)
        number = number_in(data)
        if number is None:
            with pytest.raises(SerializationError):
                await call
        else:
            assert (await call).number == number
        await bob.shutdown()
        await alice.shutdown()

    run_virtual(main)


@for_seconds(0.2)
@given(
    st.lists(
        st.one_of(st.binary(max_size=12), st.builds(lambda body: b"\0" + len(body).to_bytes(8, "big") + body, valid))
    )
)
def test_raw_streams(pieces: list[bytes]) -> None:
    """Framed by hand, a stream gives whole messages and then says what is wrong."""
    asyncio.run(read_raw(b"".join(pieces)))


async def read_raw(data: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    used = 0
    while True:
        try:
            message, error = await receive_protobuf(Request, reader)
        except (ProtocolViolation, asyncio.IncompleteReadError):
            return
        assert (message is None) != (error is None)
        assert data[used] == (message is None)
        used += 9 + int.from_bytes(data[used + 1 : used + 9], "big")
        assert used <= len(data)
