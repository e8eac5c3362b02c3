"""The framing of hivemind 1.1 on raw streams."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.errors import ProtocolViolation
from hivemind.p2p import P2P
from hivemind.proto import test_pb2
from hivemind.proto.p2pd_pb2 import RPCError


class Wire:
    """A writer that keeps what is written, and gives it back to a reader."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes | memoryview) -> None:
        self.written += data

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def reader(self) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        reader.feed_data(self.written)
        reader.feed_eof()
        return reader


def written(wire: Wire) -> asyncio.StreamWriter:
    return cast("asyncio.StreamWriter", wire)


@pytest.mark.asyncio
async def test_golden_bytes() -> None:
    wire = Wire()
    for number in (1, 2):
        await P2P.send_protobuf(test_pb2.TestRequest(number=number), written(wire))
    await P2P.send_protobuf(P2P.END_OF_STREAM, written(wire))
    assert wire.written.hex() == "00000000000000000208010000000000000000020802010000000000000000"


@given(st.binary(max_size=200_000), st.integers(1, 70_000))
def test_raw_data_comes_back(data: bytes, chunk_size: int) -> None:
    async def main() -> bytes:
        wire = Wire()
        await P2P.send_raw_data(data, written(wire), chunk_size=max(chunk_size, len(data) // 50 + 1))
        return await P2P.receive_raw_data(wire.reader())

    assert asyncio.run(main()) == data


@pytest.mark.asyncio
@pytest.mark.parametrize("message", [RPCError(message="why"), RPCError(), RPCError(message="")])
async def test_errors(message: RPCError) -> None:
    wire = Wire()
    await P2P.send_protobuf(message, written(wire))
    assert await P2P.receive_protobuf(test_pb2.TestRequest, wire.reader()) == (None, message)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("", asyncio.IncompleteReadError),
        ("00", asyncio.IncompleteReadError),
        ("00000000000000000208", asyncio.IncompleteReadError),
        ("020000000000000000", ProtocolViolation),
        ("000000000040000000", ProtocolViolation),
        ("00ffffffffffffffff", ProtocolViolation),
        ("000000000000000002ffff", ProtocolViolation),
        ("010000000000000002ffff", ProtocolViolation),
    ],
)
async def test_bytes_that_are_no_message(data: str, error: type[Exception]) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(bytes.fromhex(data))
    reader.feed_eof()
    with pytest.raises(error):
        await P2P.receive_protobuf(test_pb2.TestRequest, reader)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    async def main() -> Any:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        try:
            return await P2P.receive_protobuf(test_pb2.TestRequest, reader)
        except (ProtocolViolation, asyncio.IncompleteReadError):
            return None

    asyncio.run(main())
